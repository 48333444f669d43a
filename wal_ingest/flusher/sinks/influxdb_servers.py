"""Which server answers, and what must be written to it. Pure.

InfluxDB reads canonical lines as they are meant, but for a few measurements that it would lose (see `influxdb_names`).
VictoriaMetrics says that it is InfluxDB 1.8.0 and reads some of them
otherwise (see `victoria_metrics`). How they differ, measured with InfluxDB 1.6.7 and VictoriaMetrics 1.79.5; the
first header that is there decides:

| header of the answer | server |
|---|---|
| `X-Influxdb-Build` | InfluxDB |
| `X-Server-Hostname` | VictoriaMetrics |
| `X-Influxdb-Version`, but not 1.8.0 | InfluxDB |

Anything else is an unknown server. It gets what both read alike; all other points are refused until the settings name
it. An answer without any of these headers (a proxy's) does not make a known server unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.outcome import LineRefused, LinesRefused, Rejected
from wal_ingest.flusher.sinks.influxdb_names import LOST, lost_names
from wal_ingest.flusher.sinks.victoria_metrics import reads_alike, rewrite
from wal_ingest.wal.gzip_codec import compress


class Server(enum.Enum):
    """By whose rules lines are read; the value is the setting's."""

    UNKNOWN = "auto"
    INFLUXDB = "influxdb"
    VICTORIA_METRICS = "victoriametrics"


# How VictoriaMetrics names itself.
_FEIGNED_VERSION = "1.8.0"


def server_of(headers: Mapping[str, str]) -> Server:
    """The server that sent an answer with these headers, whose names must be found in any case."""
    if "x-influxdb-build" in headers:
        return Server.INFLUXDB
    if "x-server-hostname" in headers:
        return Server.VICTORIA_METRICS
    version = headers.get("x-influxdb-version", _FEIGNED_VERSION).strip()
    return Server.UNKNOWN if version == _FEIGNED_VERSION else Server.INFLUXDB


def is_read_alike(batch: Batch) -> bool:
    """Whether it surely does not matter which server reads a batch. One decompression.

    A body that is not complete gzip is sent as it is: the server refuses all of it.
    """
    try:
        lines = batch.lines()
    except ValueError:
        return True
    return reads_alike(lines)


def body_for(server: Server, batch: Batch) -> bytes | Rejected:
    """The gzip body that makes a server read the batch's points, or a refusal that lists those that none does.

    A body that is no whole gzip stays as it is: the server refuses all of it.
    """
    try:
        lines = batch.lines()
    except ValueError:
        return batch.body
    if server is Server.INFLUXDB:
        lost = lost_names(lines, batch.points)
        return _refusal(dict.fromkeys(lost, LOST)) if lost else batch.body
    found = rewrite(lines, batch.points)
    if server is Server.UNKNOWN:
        why = (
            "InfluxDB and VictoriaMetrics read this point differently, and the server does not say which it is; "
            "parked, not sent: set influxdb.server and retry it"
        )
        reasons = dict.fromkeys(sorted({*found.special, *found.unreadable}), why)
    else:
        reasons = {
            place: f"VictoriaMetrics does not read {what} as InfluxDB does; parked, not sent"
            for place, what in found.unreadable.items()
        }
    if reasons:
        return _refusal(reasons)
    return batch.body if found.lines == lines else compress(found.lines)


def _refusal(reasons: Mapping[int, str]) -> Rejected:
    """A refusal of the lines at some places, from 0, each with its reason."""
    refused = tuple(LineRefused(reason, number=place + 1) for place, reason in reasons.items())
    return Rejected(refused[0].reason, dropped=len(refused), hint=LinesRefused(refused))
