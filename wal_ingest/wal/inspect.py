"""A look into a data directory from outside, also while a server has it open.

Never writes a byte, not even into LMDB's lock files: everything is read page by page, without the engine (see
`lmdb_pages`), so it works on damaged files, as another user, and on a read-only disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from wal_ingest.errors import NoWal, StorageFailed, WalDamaged
from wal_ingest.wal.accounts import Account, account_of
from wal_ingest.wal.cursor import Cursor, Trouble
from wal_ingest.wal.directory import exists, holder_of
from wal_ingest.wal.extent import LostRange
from wal_ingest.wal.recovery import Gap, find_gaps
from wal_ingest.wal.salvage import damaged_files
from wal_ingest.wal.segment import Ends, read_ends, read_entry, segment_paths
from wal_ingest.wal.state import STATE_NAME, StateView, read_state
from wal_ingest.wal.store import WAL_DIR


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

    `waiting_points` counts what comes after the cursor; `oldest_waiting_s` is the age in seconds of the oldest
    entry there, None when nothing waits. `parked` counts the sink's dead letters. For each sink

        points_accepted = since_points + confirmed_points + parked + skipped_points + expired_points + waiting_points

    where `since_points` were accepted before the sink began, `skipped_points` could not be read in damaged segments or
    are in no file, and `expired_points` were given up by an operator; `unaccounted_points` is what is missing from that
    sum, and should be 0. `state` is "ok", or "retrying", "holding" or "failed" with the `reason` and `state_s`, for how
    many seconds: as the server last said; or "paused", by an operator; or "absent", a required sink that the server's
    settings do not name; or "forgotten", given up by an operator.
    """

    cursor_seq: int
    confirmed_points: int
    skipped_points: int
    since_points: int
    expired_points: int
    unaccounted_points: int
    state: str
    reason: str
    state_s: float
    waiting_entries: int
    waiting_points: int
    oldest_waiting_s: float | None
    parked: int


class OddTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Points of the last minutes with implausible times, of one source, as the node that runs counts them.

    `oddity` is time_past (before 1990) or time_future (more than a day ahead); `looks_like` the unit that they would be
    plausible in, None for none; `says` is all of that but the count, in words.
    """

    source: str
    oddity: str
    looks_like: str | None
    points: int
    says: str


class WalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A data directory at one moment. `server_pid` is None when no server has it open, 0 when it cannot be told.

    `gaps` are between the segments that are there now; `lost` is what starts have ever found missing. `account` is by
    sink, the same as in the node's `/status.json`. `odd_times` is not on disk: a caller may add what the node says.
    """

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
    gaps: list[Gap]
    lost: list[LostRange]
    sinks: dict[str, SinkStatus]
    account: dict[str, Account]
    odd_times: list[OddTimes] = msgspec.field(default_factory=list)


def status(data_dir: Path, *, now_ns: int) -> WalStatus:
    """Reads the status of a data directory. `now_ns` is Unix time in nanoseconds, for the ages.

    Raises `NoWal`, PermissionError when this user may not look, `OperatorNeeded` when the state file is damaged.
    """
    wal_dir = data_dir / WAL_DIR
    if not exists(data_dir / STATE_NAME) or not exists(wal_dir):
        raise NoWal(data_dir)
    # The cursors first: what is confirmed while the segments are read then shows as waiting, never the
    # other way round.
    state = read_state(data_dir / STATE_NAME)
    segments, rows = _segments(wal_dir)
    last = segments[-1].ends if segments else None
    points_accepted = last.points_after if last else 0
    return WalStatus(
        data_dir=str(data_dir),
        server_pid=holder_of(data_dir),
        wal_id=str(state.wal_id),
        first_seq=segments[0].ends.header.first_seq if segments else 0,
        last_seq=last.last_seq if last else 0,
        points_accepted=points_accepted,
        points_kept=sum(row.points for row in rows),
        bytes=sum(row.bytes for row in rows),
        segments=rows,
        damaged=_damaged(wal_dir),
        gaps=_gaps(segments),
        lost=state.lost,
        sinks={
            name: _sink(cursor, _trouble(name, state, cursor), segments, now_ns)
            for name, cursor in state.cursors.items()
        },
        account={name: account_of(cursor, points_accepted) for name, cursor in state.cursors.items()},
    )


@dataclass(frozen=True, slots=True)
class _Segment:
    path: Path
    ends: Ends


def _segments(wal_dir: Path) -> tuple[list[_Segment], list[SegmentStatus]]:
    paths = segment_paths(wal_dir)
    segments: list[_Segment] = []
    rows: list[SegmentStatus] = []
    for path in paths:
        try:
            ends = read_ends(path)
        except (WalDamaged, StorageFailed) as exc:
            if path.exists():  # else it was truncated while we looked, which is no damage
                rows.append(SegmentStatus(file=path.name, error=exc.reason))
            continue
        segments.append(_Segment(path, ends))
        rows.append(
            SegmentStatus(
                file=path.name,
                first_seq=ends.header.first_seq,
                last_seq=ends.last_seq,
                points=ends.points_after - ends.header.points_before,
                bytes=ends.bytes,
                sealed=path != paths[-1],
            )
        )
    return segments, rows


def _gaps(segments: list[_Segment]) -> list[Gap]:
    gaps = find_gaps([segment.ends for segment in segments])
    # Truncation takes the oldest first: it may have come to a segment behind one that was read just before.
    return gaps if not gaps or segments[0].path.exists() else []


def _damaged(wal_dir: Path) -> list[str]:
    return [file.path.name for file in damaged_files(wal_dir)]


def _trouble(sink: str, state: StateView, cursor: Cursor) -> Trouble | None:
    """What keeps a sink from taking points: that it is absent, or an operator's pause, before anything else."""
    record = state.requirements.get(sink)
    if record is not None and record.absent_since_ns is not None:
        if record.forgotten:
            return Trouble(
                "forgotten", "given up by an operator; nothing is kept for it", record.absent_since_ns
            )
        if record.holds(cursor.seq):
            reason = "the settings of the node's last start do not name this required sink; its points wait"
            return Trouble("absent", reason, record.absent_since_ns)
    since_ns = state.pauses.get(sink)
    if since_ns is not None:
        return Trouble("paused", "paused by an operator", since_ns)
    return state.troubles.get(sink)


def _sink(cursor: Cursor, trouble: Trouble | None, segments: list[_Segment], now_ns: int) -> SinkStatus:
    last = segments[-1].ends if segments else None
    waiting = last is not None and last.last_seq > cursor.seq
    first_seq = segments[0].ends.header.first_seq if segments else 0
    return SinkStatus(
        cursor_seq=cursor.seq,
        confirmed_points=cursor.confirmed,
        skipped_points=cursor.skipped,
        since_points=cursor.since,
        expired_points=cursor.expired,
        unaccounted_points=cursor.unaccounted,
        state=trouble.state if trouble else "ok",
        reason=trouble.reason if trouble else "",
        state_s=max(0.0, (now_ns - trouble.since_ns) / 1e9) if trouble else 0.0,
        waiting_entries=last.last_seq - max(cursor.seq, first_seq - 1) if last and waiting else 0,
        waiting_points=last.points_after - cursor.settled if last and waiting else 0,
        oldest_waiting_s=_oldest_waiting_s(cursor, segments, now_ns) if waiting else None,
        parked=cursor.parked,
    )


def _oldest_waiting_s(cursor: Cursor, segments: list[_Segment], now_ns: int) -> float | None:
    for segment in segments:
        ends = segment.ends
        seq = max(cursor.seq + 1, ends.header.first_seq)
        if seq <= ends.last_seq:
            try:
                entry = read_entry(segment.path, seq)
            except (WalDamaged, StorageFailed):
                continue
            if entry is not None:
                return max(0.0, (now_ns - entry.accepted_ns) / 1e9)
    return None
