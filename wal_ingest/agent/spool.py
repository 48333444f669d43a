"""The spool: what was measured and the node does not have yet; a WAL like the node's own, with small limits.

Invariants:

1. A round is one entry, durable before it is sent; its seq is the number of its frame.
2. What is in the spool stays until the node has it, or has refused it for good; then its lines are in `refused/`, with
   the reason, before the cursor moves past them.
3. Nothing is dropped to make room. A round for which there is none is not taken: `WalFull`.
4. A stream's identity is the spool's: `<wal_id>`, or `<wal_id>.<suffix>` after `begin_stream`. It is made durable with
   the cursor, before anything is sent under it.

All of it is to be seen with the commands for a node: `wal-ingest wal status --data-dir SPOOL`, `wal cat`, `wal verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import structlog
import trio

from wal_ingest.agent.refused import Refused
from wal_ingest.errors import DataDirLocked, StorageFailed, WalFull
from wal_ingest.settings import KIB, MIB, WalSettings
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import ENTRY_POINTS_MAX, Entry, NewEntry
from wal_ingest.wal.recovery import SetAside
from wal_ingest.wal.space import free_disk_bytes, is_no_descriptors
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

SINK = "node"
"""The name of the one cursor."""

SPOOL_BYTES_MIN = 4 * MIB

# Below this a spool is not what fills the disk: while the node takes every round, one that says so still gets through.
_SMALL_BYTES = 2 * MIB
_FREE_DISK_BYTES_MIN = 256 * MIB
_SEGMENT_BYTES_MAX = 8 * MIB
_SEGMENT_S_MAX = 900.0
_PLENTY = 1 << 62

_log = structlog.get_logger("wal_ingest.agent")


def spool_settings(bytes_max: int) -> WalSettings:
    """The limits of a spool that may take `bytes_max` bytes of disk."""
    return WalSettings(
        wal_bytes_max=bytes_max,
        free_disk_bytes_min=_FREE_DISK_BYTES_MIN,
        segment_bytes_max=min(_SEGMENT_BYTES_MAX, bytes_max // 4),
        segment_s_max=_SEGMENT_S_MAX,
        keep_confirmed_s=0.0,
        keep_confirmed_bytes_max=0,
        append_queue_bytes_max=8 * MIB,
    )


class Spool:
    """An open spool, held by this process alone. `run` must be under way while rounds are appended.

    `refused` keeps what the node refused; it shares the spool's limit.
    """

    def __init__(
        self,
        directory: Path,
        *,
        bytes_max: int,
        now_ns: Callable[[], int],
        free_bytes: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        """Opens or begins a spool. Raises as `Store` does."""
        settings = spool_settings(bytes_max)
        try:
            self._store = Store(directory, settings, now_ns=now_ns)
        except DataDirLocked as exc:
            exc.hint = "stop that agent first, or give this one a spool of its own with --spool-dir"
            raise
        with ExitStack() as on_error:
            on_error.callback(self._store.close)
            self.directory = directory
            self._now_ns = now_ns
            self._bytes_max = bytes_max
            self.refused = Refused(directory / "refused")

            def free(path: Path) -> int:
                return free_bytes(path) if self._store.wal.bytes > _SMALL_BYTES else _PLENTY

            self._writer = Writer(self._store.wal, settings, free_bytes=free)
            self._settled = trio.lowlevel.ParkingLot()
            # Two moves of the cursor never overlap: each goes on from the one before.
            self._moving = trio.Lock()
            self._cursor = self._store.cursor(SINK)
            self._store.commit_cursor(SINK, self._cursor)
            on_error.pop_all()

    @property
    def trouble(self) -> list[str]:
        """What was found amiss when the spool was opened, a sentence each."""
        told = [
            f"{moved.path} was damaged and is set aside: {moved.reason}" for moved in self._store.wal.damaged
        ]
        if self._store.state_trouble:
            told.append(f"{self._store.state_trouble}: rounds that the node has may be sent once more")
        return told

    @property
    def stream_id(self) -> str:
        """The client_id under which the entries' seqs are frame numbers."""
        suffix = (self._cursor.position or b"").decode()
        return f"{self._store.state.wal_id}{suffix}"

    @property
    def last_seq(self) -> int:
        """The highest seq in the spool, 0 before the first."""
        return self._store.wal.last_seq

    @property
    def settled_seq(self) -> int:
        """Up to which seq the node has, or has refused, everything."""
        return self._cursor.seq

    @property
    def waiting_points(self) -> int:
        """Points that the node does not have yet."""
        return self._store.wal.points_total - self._cursor.points

    @property
    def disk_bytes(self) -> int:
        """What the spool takes on disk."""
        return self._store.wal.bytes + self.refused.disk_bytes

    # -- taking rounds ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Writes what is appended until cancelled. Raises what the disk failed with (see `Writer`)."""
        await self._writer.run(task_status=task_status)
        if self._writer.failure is not None:
            raise self._writer.failure

    async def append(self, lines: Sequence[str]) -> int:
        """Makes a round durable and returns its last seq; at least one canonical line.

        Raises `WalFull` (not stored: there is no room), other `ComeBackLater`.

        **Cancellation:** the round may be stored all the same.
        """
        if self.disk_bytes >= self._bytes_max:
            raise WalFull(
                f"the spool has {self.disk_bytes} bytes, {self.refused.disk_bytes} of them refused by the node; "
                f"its limit is {self._bytes_max} (--spool-bytes-max)"
            )
        now_ns = self._now_ns()
        pieces = [lines[at : at + ENTRY_POINTS_MAX] for at in range(0, len(lines), ENTRY_POINTS_MAX)]
        entries = [NewEntry("".join(piece).encode(), len(piece), now_ns, source="agent") for piece in pieces]
        return (await self._writer.append(entries)).last_seq

    # -- giving them to the node -----------------------------------------------------------------------

    async def read(self, after_seq: int, *, bytes_max: int = 256 * KIB) -> list[Entry]:
        """Entries behind a seq, in order; none when there are none. Those in `refused/` are among them.

        Damage is met here: the segment is set aside, which is logged, and reading goes on behind it. Raises
        `UnknownFormatVersion`, `StorageFailed`.
        """

        def read() -> list[Entry]:
            return self._store.read_past_damage(
                after_seq,
                bytes_max=bytes_max,
                seal=lambda: trio.from_thread.run(self._writer.seal),
                tell=_tell,
            )

        return await trio.to_thread.run_sync(read)

    async def wait_read(self, after_seq: int) -> list[Entry]:
        """`read`, but waits until there is an entry."""
        while True:
            last_seq = self.last_seq
            entries = await self.read(after_seq)
            if entries:
                return entries
            # Where nothing can be read up to `last_seq`, it was set aside as damaged just now.
            after_seq = max(after_seq, last_seq)
            await self._writer.wait_appended(after_seq)

    async def wait_appended(self, seq: int) -> None:
        """Returns as soon as there is an entry after a seq."""
        await self._writer.wait_appended(seq)

    async def settle(self, entries: Sequence[Entry], *, refused: Collection[int] = ()) -> None:
        """Moves the cursor behind the last of the entries, durably, and drops what lies behind it in whole segments.

        The entries are those that come next, in order: the node has each of them, or it will never have it (its seq is
        in `refused`) and it is in `refused/` by now. Raises `StorageFailed`.

        **Cancellation:** waits for the disk all the same: memory and disk agree.
        """
        with trio.CancelScope(shield=True):
            async with self._moving:
                cursor = self._cursor
                for entry in entries:
                    # What was set aside as damaged since lies between, and is counted as skipped.
                    cursor = cursor.passed(
                        seq=entry.seq,
                        points_after=entry.points_before + entry.points,
                        points=entry.points,
                        parked=entry.points if entry.seq in refused else 0,
                        position=None,
                    )
                await trio.to_thread.run_sync(self._commit, cursor)
            if self._writer.refusal() is not None:
                await self._writer.seal_if_due()  # which measures: there may be room again
        self._settled.unpark_all()

    async def wait_settled(self, seq: int) -> None:
        """Returns as soon as the node has, or has refused, everything up to a seq."""
        while self._cursor.seq < seq:
            await self._settled.park()

    async def begin_stream(self, suffix: str) -> None:
        """Has everything that is not settled go under a new client_id, `<wal_id>.<suffix>`, from here on."""
        with trio.CancelScope(shield=True):
            async with self._moving:
                cursor = replace(self._cursor, position=f".{suffix}".encode())
                await trio.to_thread.run_sync(self._commit, cursor)

    def _commit(self, cursor: Cursor) -> None:
        self._store.commit_cursor(SINK, cursor)
        self._cursor = cursor
        try:
            self._store.wal.truncate(cursor.seq)
        except StorageFailed as exc:
            if not is_no_descriptors(exc.number):
                raise  # else nothing depends on it: it goes next time
        self._store.wal.rest_segments([cursor.seq])

    def close(self) -> None:
        """Lets go of the directory. `run` must have ended."""
        self._store.close()


def _tell(moved: SetAside) -> None:
    _log.error("damaged segment of the spool set aside", path=str(moved.path), reason=moved.reason)
