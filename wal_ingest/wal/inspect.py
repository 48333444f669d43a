"""A look into a data directory from outside, also while a server has it open. Never changes a durable byte.

The segment that is being written to, and the state, are opened with LMDB's reader table (a slot in their lock file),
so that the pages being read are not reused under the reader; sealed segments need none of that.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from wal_ingest.errors import OperatorNeeded, StorageFailed, WalDamaged
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.directory import holder_of
from wal_ingest.wal.log import DAMAGED_DIR
from wal_ingest.wal.segment import SUFFIX, Segment, map_bytes_for
from wal_ingest.wal.state import STATE_NAME, State
from wal_ingest.wal.store import WAL_DIR

_READ_BYTES_MAX = 1


class SegmentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One segment. `error` is empty unless the file cannot be read; then the numbers are 0."""

    file: str
    first_seq: int = 0
    last_seq: int = 0
    points: int = 0
    bytes: int = 0
    sealed: bool = False
    error: str = ""


class SinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far one sink has come, by its durable cursor.

    `waiting_points` counts what is behind the cursor; `oldest_waiting_s` is the age in seconds of the oldest
    entry there, None when nothing waits. `parked` counts the sink's dead letters.
    """

    cursor_seq: int
    waiting_entries: int
    waiting_points: int
    oldest_waiting_s: float | None
    parked: int


class WalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A data directory at one moment. `server_pid` is None when no server has it open, 0 when it cannot be told."""

    data_dir: str
    server_pid: int | None
    wal_id: str
    first_seq: int
    last_seq: int
    points_accepted: int
    points_kept: int
    bytes: int
    segments: list[SegmentStatus]
    damaged: list[str]
    sinks: dict[str, SinkStatus]


def status(data_dir: Path, *, now_ns: int) -> WalStatus:
    """Reads the status of a data directory. `now_ns` is Unix time in nanoseconds, for the ages.

    Raises `OperatorNeeded` when there is no WAL, or its state file cannot be read.
    """
    wal_dir = data_dir / WAL_DIR
    if not (data_dir / STATE_NAME).exists() or not wal_dir.is_dir():
        error = OperatorNeeded(f"there is no WAL in {data_dir}")
        error.hint = "name the server's data directory with --data-dir"
        raise error
    # The cursors first: what is confirmed while the segments are read then shows as waiting, never the
    # other way round.
    state = State(data_dir, now_ns=now_ns, readonly=True)
    try:
        cursors = state.cursors()
        wal_id = str(state.wal_id)
    finally:
        state.close()
    segments, rows = _segments(wal_dir)
    try:
        last = segments[-1] if segments else None
        return WalStatus(
            data_dir=str(data_dir),
            server_pid=holder_of(data_dir),
            wal_id=wal_id,
            first_seq=segments[0].first_seq if segments else 0,
            last_seq=last.last_seq if last else 0,
            points_accepted=last.points_after if last else 0,
            points_kept=sum(segment.points for segment in segments),
            bytes=sum(row.bytes for row in rows),
            segments=rows,
            damaged=_damaged(wal_dir),
            sinks={name: _sink(cursor, segments, now_ns) for name, cursor in cursors.items()},
        )
    finally:
        for segment in segments:
            segment.close()


def _segments(wal_dir: Path) -> tuple[list[Segment], list[SegmentStatus]]:
    paths = sorted(wal_dir.glob(f"*{SUFFIX}"))
    segments: list[Segment] = []
    rows: list[SegmentStatus] = []
    for path in paths:
        last = path == paths[-1]
        try:
            segment = Segment(path, map_bytes=map_bytes_for(0), sealed=not last, readonly=True)
        except (WalDamaged, StorageFailed) as exc:
            if path.exists():  # else it was truncated while we looked, which is no damage
                rows.append(SegmentStatus(file=path.name, error=exc.reason))
            continue
        segments.append(segment)
        rows.append(
            SegmentStatus(
                file=path.name,
                first_seq=segment.first_seq,
                last_seq=segment.last_seq,
                points=segment.points,
                bytes=segment.bytes,
                sealed=not last,
            )
        )
    return segments, rows


def _damaged(wal_dir: Path) -> list[str]:
    return sorted(path.name for path in (wal_dir / DAMAGED_DIR).glob(f"*{SUFFIX}*") if path.suffix != ".txt")


def _sink(cursor: Cursor, segments: list[Segment], now_ns: int) -> SinkStatus:
    if not segments or segments[-1].last_seq <= cursor.seq:
        return SinkStatus(
            cursor_seq=cursor.seq,
            waiting_entries=0,
            waiting_points=0,
            oldest_waiting_s=None,
            parked=cursor.parked,
        )
    last = segments[-1]
    return SinkStatus(
        cursor_seq=cursor.seq,
        waiting_entries=last.last_seq - max(cursor.seq, segments[0].first_seq - 1),
        waiting_points=last.points_after - max(cursor.points, segments[0].header.points_before),
        oldest_waiting_s=_oldest_waiting_s(cursor, segments, now_ns),
        parked=cursor.parked,
    )


def _oldest_waiting_s(cursor: Cursor, segments: list[Segment], now_ns: int) -> float | None:
    for segment in segments:
        if segment.last_seq > cursor.seq and segment.last_seq >= segment.first_seq:
            try:
                entries = segment.read(cursor.seq, bytes_max=_READ_BYTES_MAX)
            except (WalDamaged, StorageFailed):
                continue
            if entries:
                return max(0.0, (now_ns - entries[0].accepted_ns) / 1e9)
    return None
