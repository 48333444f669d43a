"""What the node says of itself in numbers: for `/readyz` and `GET /metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime

from wal_ingest import __version__
from wal_ingest.flusher.status import SinkState, SinkStatus
from wal_ingest.metrics import Values
from wal_ingest.settings import WalSettings
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer, free_disk_bytes

# States of a sink that an operator should hear of.
TROUBLED = (SinkState.RETRYING, SinkState.HOLDING, SinkState.FAILED)


def sink_detail(status: SinkStatus, store: Store) -> dict[str, object]:
    """A sink for `/readyz`: whether it takes points, and if not, why and since when."""
    detail: dict[str, object] = {
        "state": status.state.value,
        "waiting_points": store.wal.points_total - status.cursor.points,
        "parked_points": status.cursor.parked,
    }
    if status.state in TROUBLED:
        since = datetime.fromtimestamp(status.since_ns / 1e9, UTC)
        detail |= {"since": since.isoformat(timespec="seconds"), "reason": status.last_error}
    return detail


def metric_values(store: Store, writer: Writer, sinks: list[SinkStatus], settings: WalSettings) -> Values:
    """A value for every name in the table of metrics that is not measured at the act."""

    def each(value: Callable[[SinkStatus], float]) -> dict[tuple[str, ...], float]:
        return {(sink.name,): value(sink) for sink in sinks}

    wal = store.wal
    return {
        "accepted_points": wal.points_total,
        "wal_bytes": wal.bytes,
        "wal_bytes_max": settings.wal_bytes_max,
        "wal_segments": len(wal.segments()),
        "wal_refusing": float(writer.refusal() is not None),
        "wal_damaged_files": len(wal.damaged),
        "wal_oldest_waiting_seconds": 0.0,
        "wal_full_in_seconds": math.inf,
        "disk_free_bytes": free_disk_bytes(wal.directory),
        "disk_free_bytes_min": settings.free_disk_bytes_min,
        "sink_confirmed_points": each(lambda sink: sink.cursor.confirmed),
        "sink_parked_points": each(lambda sink: sink.cursor.parked),
        "sink_skipped_points": each(lambda sink: sink.cursor.skipped),
        "sink_expired_points": each(lambda sink: getattr(sink.cursor, "expired", 0)),
        "sink_waiting_points": each(lambda sink: wal.points_total - sink.cursor.points),
        "sink_lag_seconds": each(lambda _sink: 0.0),
        "sink_catch_up_seconds": each(lambda _sink: 0.0),
        "sink_unaccounted_points": each(lambda sink: sink.cursor.unaccounted),
        "sink_rejected_writes": each(lambda _sink: 0),
        "sink_retried_writes": each(lambda sink: sink.retried_writes),
        "sink_in_flight_writes": each(lambda sink: sink.in_flight),
        "sink_state": {
            (sink.name, state.value): float(sink.state is state) for sink in sinks for state in SinkState
        },
        "sink_state_since_seconds": each(lambda sink: sink.since_ns / 1e9),
        "build_info": {(__version__,): 1},
    }
