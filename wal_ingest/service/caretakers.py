"""What is done on the side while the node runs: segments are sealed by age and dropped; troubles are written down, and
how far streams have come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from wal_ingest.errors import StorageFailed
from wal_ingest.service.numbers import TROUBLED
from wal_ingest.service.sinks import SinkRunner
from wal_ingest.settings import WalSettings
from wal_ingest.wal.cursor import Trouble
from wal_ingest.wal.leftover import Leftover
from wal_ingest.wal.retention import droppable_seq
from wal_ingest.wal.space import is_no_descriptors
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

# How often age, free disk and cursors are looked at.
CARETAKER_S = 1.0

# How often the positions of streams are written down: so many seconds of the log a start reads after a kill -9. Seldom
# enough to cost little, often enough that there are never so many of them that appends feel it.
SAVE_POSITIONS_S = 2.0

# Space of dropped segments is given back at `leftover.STEP_BYTES` in this time, 50 MiB/s: faster than a node fills it,
# slowly enough for the syncs between. Their files stay open until then, so there are few at a time.
GIVE_BACK_PAUSE_S = 0.02
DROPPED_AT_ONCE_MAX = 8

_log = structlog.get_logger("wal_ingest.service")


class Moved:
    """Said whenever a cursor has moved, durably: what was kept may be dropped now."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """A cursor has moved."""
        self._event.set()

    async def wait(self) -> None:
        """Returns when one has moved since the last wait returned."""
        await self._event.wait()
        self._event = trio.Event()


class Caretakers:
    """Each method is a task that runs until cancelled. They raise `StorageFailed`, which ends the node."""

    def __init__(
        self,
        store: Store,
        writer: Writer,
        runners: Sequence[SinkRunner],
        settings: WalSettings,
        moved: Moved,
        *,
        now_ns: Callable[[], int],
    ) -> None:
        self._store = store
        self._writer = writer
        self._runners = runners
        self._settings = settings
        self._moved = moved
        self._now_ns = now_ns

    async def seal_by_age(self) -> None:
        """Has the last segment sealed when it is old enough."""
        while True:
            await trio.sleep(CARETAKER_S)
            await self._writer.seal_if_due()
            # Cursors may not have moved, yet what was sealed just now may be confirmed already.
            self._moved.set()

    async def save_positions(self) -> None:
        """Writes down how far each stream has come, now and then. Where the disk is full, the log knows it as well."""
        while True:
            await trio.sleep(SAVE_POSITIONS_S)
            if self._store.positions_are_due:
                await trio.to_thread.run_sync(self._store.save_positions, self._now_ns())

    async def note_troubles(self) -> None:
        """Writes down which sinks are in trouble, for `wal status` to tell from outside."""
        while True:
            for runner in self._runners:
                status = runner.status()
                trouble = None
                if status.state in TROUBLED:
                    trouble = Trouble(status.state.value, status.last_error, status.since_ns)
                await trio.to_thread.run_sync(self._store.state.note_trouble, runner.name, trouble)
            await trio.sleep(CARETAKER_S)

    async def truncate(self) -> None:
        """Drops what every required sink has confirmed, after each durable move of a cursor."""
        wal = self._store.wal
        while True:
            await self._moved.wait()
            cursors = [(runner.required, self._store.cursor(runner.name).seq) for runner in self._runners]
            # Where no sink is required, all are: a point must be somewhere before it may go.
            holding = [seq for required, seq in cursors if required] or [seq for _, seq in cursors]
            # A required sink that the settings do not name may be missing by mistake.
            holding += [self._store.cursor(name).seq for name in self._store.absent_sinks()]
            await trio.to_thread.run_sync(wal.rest_segments, [seq for _, seq in cursors])
            try:
                while await self._drop_confirmed(min(holding)):
                    pass
            except StorageFailed as exc:
                if not is_no_descriptors(exc.number):
                    raise
                # Nothing depends on it: what should be gone goes next time.
                _log.warning("confirmed segments could not be dropped", reason=str(exc))
            await self._writer.seal_if_due()  # which also measures: a full WAL may take points again

    async def _drop_confirmed(self, confirmed_seq: int) -> bool:
        """Drops a few segments, gives their space back gently, and says whether there may be more of them.

        Cancellation: they are gone, and their space comes back at once.
        """
        leftovers = await trio.to_thread.run_sync(self._truncate, confirmed_seq)
        try:
            for leftover in leftovers:
                pause_s = await trio.to_thread.run_sync(self._give_back, leftover)
                while pause_s is not None:
                    await trio.sleep(pause_s)
                    pause_s = await trio.to_thread.run_sync(self._give_back, leftover)
        finally:
            for leftover in leftovers:
                leftover.close()
        return len(leftovers) == DROPPED_AT_ONCE_MAX

    def _give_back(self, leftover: Leftover) -> float | None:
        """Frees a step of it, and says how long to wait with the next; None when there is none."""
        if not leftover.give_back():
            return None
        return 0.0 if self._writer.space_is_short() else GIVE_BACK_PAUSE_S

    def _truncate(self, confirmed_seq: int) -> list[Leftover]:
        wal = self._store.wal
        droppable = droppable_seq(
            wal.segments(),
            confirmed_seq,
            now_ns=self._now_ns(),
            keep_s=self._settings.keep_confirmed_s,
            keep_bytes_max=self._settings.keep_confirmed_bytes_max,
            space_is_short=self._writer.space_is_short(),
        )
        return wal.truncate_gently(droppable, segments_max=DROPPED_AT_ONCE_MAX)
