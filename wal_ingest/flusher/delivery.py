"""One sink's delivery: read → batch → write, several at once → confirm in order → cursor, durable → tell.

Invariants:

* The durable cursor never passes a point that is not confirmed by the sink or parked in the same
  transaction. What is settled beyond it is written down exactly, so that no restart does it again.
* `confirmed` is called only after the cursor is on disk: what truncates on it drops nothing that is needed.
* Memory is bounded by the window, whatever the sink does: see `window.Window.full`.
* Where dead letters have no room, nothing is lost and nothing ends: the points stay in the log, the cursor before them.
  No further batch is read or written until the letters could be stored.
* Sinks do not see each other: each has a `Delivery` of its own, and none holds another up.

Who waits for whom: the reader waits for appended entries, for a batch to fill, and for room in the window;
the workers (`sink.in_flight_max` of them) wait for batches and for the sink; investigations of suspect batches
(see `overtaking`) wait for the sink; the committer waits for progress and for its interval. None holds anything that
another needs while it waits.

What a stop or a cancellation leaves behind: writes under way have `grace_s` to learn their outcome, then the
cursor is committed once more and the sink is closed. What a crash leaves behind: the durable cursor; what was
written after it is written again, which is harmless (every line carries its own time).

What ends it by raising: a failed commit, a damaged WAL, a required sink that says an operator is needed. The cursor
is not touched again then. An optional sink that raises ends its own delivery alone, and its status says so.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable
from random import Random

import trio

from wal_ingest.errors import NoRoomForLetters, WalIngestError
from wal_ingest.flusher.batches import Batch, Batcher, Run, part_of_entry
from wal_ingest.flusher.grace import Grace
from wal_ingest.flusher.learnt import Learnt
from wal_ingest.flusher.log import Log, NowNs, RunSync, State
from wal_ingest.flusher.outcome import plain
from wal_ingest.flusher.overtaking import Overtaking
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress, SinkState, SinkStatus
from wal_ingest.flusher.window import Settled, Slot, Window
from wal_ingest.flusher.writing import SinkWriter
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.cursor import Cursor, open_in
from wal_ingest.wal.entry import Entry

log = logging.getLogger(__name__)

# How far delivery runs ahead of the oldest unsettled batch. It is also what may be written twice after a crash.
WINDOW_BATCHES_MAX = 64
WINDOW_BYTES_MAX = 32 * 1024 * 1024
# One read of the WAL: enough batches to make the trip to a thread cheap.
READ_BYTES_MAX = 1024 * 1024
# Where fewer batches than this wait, a moment is given for more to come: entry by entry the trips to a thread
# cost more than the reading.
GATHER_BATCHES = 8
GATHER_S = 0.01


class Delivery:
    """Delivers one log to one sink. `run` is its life; `stop` ends it in an orderly way.

    `confirmed` is called with the sink's name after each durable move of its cursor. `progress` are the live numbers
    of the sink's deliveries before, which go on counting.
    """

    def __init__(
        self,
        sink: Sink,
        log: Log,
        state: State,
        settings: FlusherSettings,
        *,
        run_sync: RunSync,
        now_ns: NowNs,
        rng: Random,
        confirmed: Callable[[str], None] = lambda _name: None,
        grace_s: float = 5.0,
        progress: Progress | None = None,
    ) -> None:
        self._sink = sink
        self._log = log
        self._state = state
        self._settings = settings
        self._run_sync = run_sync
        self._now_ns = now_ns
        self._confirmed = confirmed
        self._grace_s = grace_s
        self._progress = progress or Progress(now_ns())
        self._grace = Grace(grace_s)
        cursor = state.cursor(sink.name)
        self._window = Window(cursor, batches_max=WINDOW_BATCHES_MAX, bytes_max=WINDOW_BYTES_MAX, ahead=True)
        self._learnt = Learnt(cursor.learnt)
        self._points_max = sink.batch_points_max or settings.batch_points_max
        self._batcher = Batcher(sink.group, points_max=self._points_max)
        self._writer = SinkWriter(
            sink,
            points_max=self._points_max,
            settings=settings,
            progress=self._progress,
            grace=self._grace,
            run_sync=run_sync,
            now_ns=now_ns,
            rng=rng,
            changed=self._refresh_state,
            learnt=self._learnt,
        )
        self._overtaking = Overtaking(
            self._writer, strict=sink.in_flight_max == 1, settled=self._note_settled
        )
        self._stopping = trio.Event()
        self._settled = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._no_room = False  # dead letters could not be stored by the latest try
        self._before = cursor  # what an earlier life had settled ahead is not written again
        self._read_seq, self._read_points = cursor.seq, cursor.points

    @property
    def name(self) -> str:
        """The sink's name: its cursor's key."""
        return self._sink.name

    def stop(self) -> None:
        """Begins an orderly stop; `run` returns when it is done."""
        self._stopping.set()

    def status(self) -> SinkStatus:
        """A snapshot; cheap, no I/O."""
        return self._progress.status(self._sink.name, required=self._sink.required, cursor=self.cursor)

    @property
    def cursor(self) -> Cursor:
        """The durable cursor."""
        return self._window.durable

    async def run(self) -> None:
        """Opens the sink and delivers until `stop`, or until an optional sink raises: that ends its delivery alone.

        Raises (in an ExceptionGroup) what ends it for good: WalDamaged, whatever a commit of the cursor raises, and
        from a required sink OperatorNeeded, ConfigError and the like.

        **Cancellation:** like `stop`: writes under way are finished within the grace, the cursor is committed, the
        sink is closed.
        """
        try:
            await self._live()
        except BaseException as exc:
            if self._sink.required or not self._is_the_sinks_own(exc):
                raise
            reason = plain(str(self._writer.failures[0]))
            self._progress.error(reason, self._now_ns())
            self._progress.enter(SinkState.FAILED, self._now_ns())
            log.error("%s: nothing more is delivered to this optional sink: %s", self._sink.name, reason)

    async def _live(self) -> None:
        try:
            await self._open()
            try:
                await self._deliver()
            except BaseException as exc:
                if _is_cancellation(exc):
                    await self._commit_last()
                raise
            await self._commit_last()
        finally:
            self._progress.no_room("", self._now_ns())
            self._writer.finish()
            with trio.move_on_after(self._grace_s, shield=True):
                await self._sink.aclose()

    async def _open(self) -> None:
        """Opens the sink; the position that it begins with is durable before its first write."""
        try:
            position = await self._sink.open(self._window.durable.position)
        except WalIngestError as exc:
            self._writer.failures.append(exc)
            raise
        if position is not None:
            cursor = self._window.opened(position)
            await self._run_sync(self._state.commit_cursor, self._sink.name, cursor, ())
            self._window.committed(cursor)

    def _is_the_sinks_own(self, exc: BaseException) -> bool:
        """Whether nothing but errors that the sink raised is in it; a failed commit is none of these."""
        if isinstance(exc, BaseExceptionGroup):
            return all(map(self._is_the_sinks_own, exc.exceptions))
        return any(exc is failure for failure in self._writer.failures)

    async def _deliver(self) -> None:
        send, receive = trio.open_memory_channel[Slot](WINDOW_BATCHES_MAX)
        async with send, receive, trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_stop, nursery.cancel_scope)
            nursery.start_soon(self._read, send)
            self._overtaking.begin(nursery)
            for _ in range(self._sink.in_flight_max):
                nursery.start_soon(self._work, receive)
            nursery.start_soon(self._commit_often)

    async def _watch_stop(self, scope: trio.CancelScope) -> None:
        """Ends everything on `stop`; on either way out starts the grace of the writes under way."""
        try:
            await self._stopping.wait()
            scope.cancel()
        finally:
            self._grace.begin()

    # -- reading ----------------------------------------------------------------------------------------

    async def _read(self, send: trio.MemorySendChannel[Slot]) -> None:
        while True:
            flush = await self._wait_for_points()
            if not flush and self._log.points_total - self._read_points < GATHER_BATCHES * self._points_max:
                await trio.sleep(GATHER_S)
            runs, batches = await self._run_sync(self._next_batches, flush, self._now_ns())
            self._window.read(runs)
            self._settled.unpark_all()
            for batch in batches:
                while self._window.full or self._no_room:
                    await self._room.park()
                send.send_nowait(self._window.add(batch))
                self._refresh_state()

    async def _wait_for_points(self) -> bool:
        """Returns when a batch can be filled, or the oldest point waited long enough: then true, for a flush.

        Entries that trickle in are left in the WAL meanwhile: one read for all of them is cheaper than one for each.
        """
        wait_s = self._settings.batch_wait_s_max
        oldest_ns = self._batcher.oldest_accepted_ns
        waited_s = 0.0 if oldest_ns is None else (self._now_ns() - oldest_ns) / 1e9
        if self._fillable():
            await trio.lowlevel.checkpoint()
            return waited_s >= wait_s
        if oldest_ns is None:
            await self._log.wait_appended(self._read_seq)
        else:
            # The clock may have been set back or forth: never longer than a whole wait, never negative.
            wait_s = min(wait_s, max(0.0, wait_s - waited_s))
        with trio.move_on_after(wait_s):
            while not self._fillable():
                await self._log.wait_appended(max(self._log.last_seq, self._read_seq))
            return False
        return True

    def _fillable(self) -> bool:
        waiting = self._log.points_total - self._read_points + self._batcher.open_points
        return self._log.last_seq > self._read_seq and waiting >= self._points_max

    def _next_batches(self, flush: bool, now_ns: int) -> tuple[list[Run], list[Batch]]:
        """What was read, and the batches that are full with it.

        Runs in a thread, one at a time: only the reader calls it, and it waits for the answer.
        """
        runs: list[Run] = []
        batches: list[Batch] = []
        last_seq, points_total = self._log.last_seq, self._log.points_total
        if last_seq > self._read_seq:
            entries = self._log.read(self._read_seq, bytes_max=READ_BYTES_MAX)
            fresh = bisect_right(entries, self._before.reach, key=lambda entry: entry.seq)
            for entry in entries[:fresh]:
                self._read_again(entry, runs, batches, now_ns)
            batches += self._batcher.add(entries[fresh:], now_ns=now_ns)
            runs += self._batcher.take_runs()
            if entries:
                self._read_seq = entries[-1].seq
                self._read_points = entries[-1].points_before + entries[-1].points
            else:  # all that was there is damaged and set aside: what comes next is after it
                self._read_seq, self._read_points = last_seq, points_total
        if flush:
            # Where more is to be read, what was begun just now goes on filling.
            whole_wait_ns = int(self._settings.batch_wait_s_max * 1e9)
            caught_up = self._log.last_seq == self._read_seq
            batches += self._batcher.flush(opened_before_ns=None if caught_up else now_ns - whole_wait_ns)
        return runs, batches

    def _read_again(self, entry: Entry, runs: list[Run], batches: list[Batch], now_ns: int) -> None:
        """Takes an entry that an earlier life of the process had settled, in part at least."""
        ranges = open_in(self._before.open, entry.seq, entry.points)
        if ranges == [(0, entry.points)]:
            batches += self._batcher.add([entry], now_ns=now_ns)
            runs += self._batcher.take_runs()
            return
        batches += self._batcher.flush()  # older points of its series go first
        if ranges:
            batches.append(part_of_entry(entry, ranges, self._sink.group(entry)))
            runs += batches[-1].runs
        else:
            after = entry.points_before + entry.points
            runs.append(Run(entry.seq, entry.seq, entry.points, after, settled=entry.points))

    # -- writing and confirming -------------------------------------------------------------------------

    async def _work(self, receive: trio.MemoryReceiveChannel[Slot]) -> None:
        async for slot in receive:
            batch = slot.batch
            assert batch is not None
            while self._no_room:
                await self._room.park()
            self._window.begin(slot)
            self._room.unpark_all()
            await self._overtaking.take(batch)

    def _note_settled(self, batch: Batch, settled: Settled) -> None:
        """What became of points, whichever batches they came in: the committer writes it down."""
        self._window.settle_parts(batch.parts, settled)
        self._settled.unpark_all()
        self._room.unpark_all()
        self._refresh_state()

    async def _commit_often(self) -> None:
        while True:
            while not self._window.has_pending:
                await self._settled.park()
            await self._commit()
            await trio.sleep(self._settings.hold_retry_s if self._no_room else self._settings.cursor_commit_s)

    async def _commit_last(self) -> None:
        """What has no room now stays in the log, and is delivered, refused and parked by the next delivery."""
        with trio.CancelScope(shield=True):
            await self._commit()

    async def _commit(self) -> None:
        """Cursor and letters to disk, then memory, then the callback that truncates."""
        if self._learnt.changed:
            self._window.learn(self._learnt.encode())
        pending = self._window.pending()
        if pending is None:
            return
        cursor, letters = pending
        try:
            await self._run_sync(self._state.commit_cursor, self._sink.name, cursor, letters)
        except NoRoomForLetters as exc:
            self._hold(exc)
            before_letters = self._window.not_committed()
            if before_letters is None:
                return
            cursor, letters = before_letters, ()
            await self._run_sync(self._state.commit_cursor, self._sink.name, cursor, letters)
        else:
            self._end_hold()
        self._window.committed(cursor, letters)
        self._room.unpark_all()
        self._confirmed(self._sink.name)

    def _hold(self, exc: NoRoomForLetters) -> None:
        """Letters have no room: the status and the log show it until a later try finds some."""
        if not self._no_room:
            log.error("%s: nothing more is delivered: %s; try: %s", self._sink.name, exc, exc.hint)
        self._no_room = True
        self._progress.no_room(f"{exc}; try: {exc.hint}", self._now_ns())
        self._refresh_state()

    def _end_hold(self) -> None:
        if self._no_room:
            self._no_room = False
            self._progress.no_room("", self._now_ns())
            self._refresh_state()

    def _refresh_state(self) -> None:
        if self._writer.holding or self._no_room:
            state = SinkState.HOLDING
        elif self._writer.retrying:
            state = SinkState.RETRYING
        elif self._window.unsettled:
            state = SinkState.DELIVERING
        else:
            state = SinkState.IDLE
        before = self._progress.state
        if not self._progress.enter(state, self._now_ns()):
            return
        if state is SinkState.RETRYING:
            log.warning("%s: unavailable, trying again: %s", self._sink.name, self._progress.last_error)
        elif before in (SinkState.RETRYING, SinkState.HOLDING) and not self._stopping.is_set():
            log.info("%s: %s again", self._sink.name, state.value)


def _is_cancellation(exc: BaseException) -> bool:
    """Whether nothing but cancellation ended a nursery."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_cancellation(inner) for inner in exc.exceptions)
    return isinstance(exc, trio.Cancelled)
