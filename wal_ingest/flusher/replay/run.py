"""One replay under way: read → batch → write, several at once → confirm in order → remember.

Who waits for whom: the reader waits for its pace and for room in the window; the workers (`sink.in_flight_max` of them)
wait for batches and for the sink; whoever remembers waits for its interval. The writes and what becomes of each are
`writing.SinkWriter`'s, the order of their confirmation `window.Window`'s, as in the delivery of a running node. The
window counts batches in place of seqs: they may come from the archive, which has none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from random import Random

import trio

from wal_ingest.errors import WalIngestError
from wal_ingest.flusher.batches import Batch, Batcher
from wal_ingest.flusher.grace import Grace
from wal_ingest.flusher.log import NowNs, RunSync
from wal_ingest.flusher.replay.pace import Pace
from wal_ingest.flusher.replay.places import Place, Source
from wal_ingest.flusher.replay.record import Step
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress, SinkState
from wal_ingest.flusher.window import Slot, Window
from wal_ingest.flusher.writing import SinkWriter
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.lost import Lost

# How far writing runs ahead of the oldest unsettled batch. It is also what may be written twice after a kill.
WINDOW_BATCHES_MAX = 64
WINDOW_BYTES_MAX = 32 * 1024 * 1024
# One trip to the thread that reads: so many bytes, where a small entry costs more than its bytes.
READ_BYTES_MAX = 1024 * 1024
_ENTRY_BYTES = 100
# The place is remembered so often, and sooner when so many rejected points wait for their file.
SAVE_S = 3.0
LETTERS_MAX = 1_000

Remember = Callable[[Step, Sequence[DeadLetter]], None]


@dataclass(frozen=True, slots=True)
class Moment:
    """What can be seen of a replay from outside.

    `confirmed` and `rejected` count points of this run, as the sink answered. `settled` counts these and the points
    that were read and not selected, of about `expected` in all.

    `last_error` is the sink's latest refusal in words, empty when there was none.
    """

    confirmed: int
    rejected: int
    settled: int
    expected: int
    state: SinkState
    last_error: str


class Replay:
    """Writes what `sources` give to `sink`, once. `run` is its life; `stop` ends it early, in order.

    `remember` is called (in a thread) with what is settled, and the points that were rejected since the last call; it
    returns when that is durable. `rate` is in points a second, None for as fast as the sink takes them.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        sink: Sink,
        remember: Remember,
        settings: FlusherSettings,
        *,
        points_max: int,
        rate: float | None,
        run_sync: RunSync,
        now_ns: NowNs,
        rng: Random,
        after: Place | None = None,
        grace_s: float = 5.0,
    ) -> None:
        self._sources = sources
        self._items = chain.from_iterable(source.items() for source in sources)
        self._sink = sink
        self._remember = remember
        self._run_sync = run_sync
        self._grace_s = grace_s
        self._grace = Grace(grace_s)
        self._pace = Pace(rate)
        self._progress = Progress(now_ns())
        self._window = Window(Cursor(), batches_max=WINDOW_BATCHES_MAX, bytes_max=WINDOW_BYTES_MAX)
        # One after the other: the place of a batch is the end of all that was read before it.
        self._batcher = Batcher(sink.group, points_max=points_max, groups_max=1)
        self._writer = SinkWriter(
            sink,
            points_max=points_max,
            settings=settings,
            progress=self._progress,
            grace=self._grace,
            run_sync=run_sync,
            now_ns=now_ns,
            rng=rng,
            changed=lambda: None,
        )
        self._lost: list[Lost] = []
        self._batches = 0
        self._points = 0
        self._chosen = 0  # points that go to the sink, of those that were read
        self._left_out = 0  # points that do not
        self._seen: Place | None = after  # everything up to here is in the batcher, or beyond it
        self._place: Place | None = after  # everything up to here is settled and remembered
        self._places: deque[tuple[int, Place | None]] = deque()
        self._step: Step | None = None
        self._read_all = False
        self._finished = False
        self._stopping = trio.Event()
        self._press = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._failure: WalIngestError | None = None
        self._unsavable = False

    @property
    def lost(self) -> Sequence[Lost]:
        """What could not be read so far."""
        return self._lost

    def stop(self) -> None:
        """Begins an orderly stop: writes under way are finished within the grace, the place is remembered."""
        self._stopping.set()

    def moment(self) -> Moment:
        """A snapshot; cheap, no I/O."""
        state = SinkState.DELIVERING
        if self._writer.holding:
            state = SinkState.HOLDING
        elif self._writer.retrying:
            state = SinkState.RETRYING
        return Moment(
            confirmed=self._progress.confirmed_points,
            rejected=self._progress.parked_points,
            settled=self._left_out + self._progress.confirmed_points + self._progress.parked_points,
            expected=sum(source.expected_points() for source in self._sources),
            state=state,
            last_error=self._progress.last_error,
        )

    async def run(self) -> bool:
        """Replays everything, or as much as there is time for until `stop`; true when nothing is left.

        Raises what reading, remembering or the sink raises.

        **Cancellation:** like `stop`, but that it raises.
        """
        try:
            await self._sink.open(None)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_stop, nursery.cancel_scope)
                    nursery.start_soon(self._replay, nursery.cancel_scope)
            finally:
                if not self._unsavable:
                    with trio.CancelScope(shield=True):
                        await self._save()
        finally:
            self._writer.finish()
            with trio.move_on_after(self._grace_s, shield=True):
                await self._sink.aclose()
        if self._failure is not None:
            raise self._failure
        return self._finished

    async def _watch_stop(self, scope: trio.CancelScope) -> None:
        """Ends everything on `stop`; on either way out starts the grace of the writes under way."""
        try:
            await self._stopping.wait()
            scope.cancel()
        finally:
            self._grace.begin()

    async def _replay(self, whole: trio.CancelScope) -> None:
        """Reads and writes to the end; then ends what surrounds it."""
        send, receive = trio.open_memory_channel[Slot](WINDOW_BATCHES_MAX)
        async with receive, trio.open_nursery() as nursery:
            nursery.start_soon(self._guarded, whole, self._save_often)
            async with trio.open_nursery() as writing:
                writing.start_soon(self._guarded, whole, self._read, send)
                for _ in range(self._sink.in_flight_max):
                    writing.start_soon(self._guarded, whole, self._work, receive)
            self._finished = self._read_all and not self._window.unsettled
            whole.cancel()

    async def _guarded(self, whole: trio.CancelScope, task: Callable[..., object], *args: object) -> None:
        """Runs a task; its error ends the replay, and is what `run` raises."""
        try:
            await task(*args)  # type: ignore[misc]
        except WalIngestError as exc:
            self._failure = self._failure or exc
            whole.cancel()

    # -- reading ----------------------------------------------------------------------------------------

    async def _read(self, send: trio.MemorySendChannel[Slot]) -> None:
        with send:
            while not self._read_all:
                for batch, place in await self._run_sync(self._next_batches):
                    await self._pace.take(batch.points)
                    while self._window.full:
                        await self._room.park()
                    self._batches += 1
                    self._points += batch.points
                    self._places.append((self._batches, place))
                    numbered = replace(
                        batch,
                        first_seq=self._batches,
                        last_seq=self._batches,
                        points_after=self._points,
                        runs=(),
                    )
                    send.send_nowait(self._window.add(numbered))
                self._pass_over()

    def _next_batches(self) -> list[tuple[Batch, Place | None]]:
        """Runs in a thread, one at a time: only the reader calls it, and it waits for the answer."""
        found: list[tuple[Batch, Place | None]] = []
        read_bytes = 0
        for item in self._items:
            if isinstance(item, Lost):
                self._lost.append(item)
                continue
            entry, place = item
            before, self._seen = self._seen, place or self._seen
            self._chosen += entry.points
            if place is not None:  # else the source has counted points that its next units will give
                self._left_out = sum(source.passed.points for source in self._sources) - self._chosen
            if entry.points:
                full = self._batcher.add([entry])
                # Those closed before this entry came in end where the one before it did.
                ends = [before] * len(full)
                if full and not self._batcher.open_points:
                    ends[-1] = self._seen
                found += zip(full, ends, strict=True)
            read_bytes += len(entry.payload) + _ENTRY_BYTES
            if read_bytes >= READ_BYTES_MAX:
                return found
        found += [(batch, self._seen) for batch in self._batcher.flush()]
        self._read_all = True
        return found

    def _pass_over(self) -> None:
        """What was read and not chosen is settled too, as soon as nothing before it is on its way."""
        if not self._window.unsettled and not self._batcher.open_points:
            if self._places:
                self._places[-1] = (self._places[-1][0], self._seen)
            else:
                self._place = self._seen

    # -- writing and remembering ------------------------------------------------------------------------

    async def _work(self, receive: trio.MemoryReceiveChannel[Slot]) -> None:
        async for slot in receive:
            assert slot.batch is not None
            self._window.settle(slot, await self._writer.settle(slot.batch))
            self._room.unpark_all()
            pending = self._window.pending()
            if pending is not None and len(pending[1]) >= LETTERS_MAX:
                self._press.set()

    async def _save_often(self) -> None:
        while True:
            with trio.move_on_after(SAVE_S):
                await self._press.wait()
            self._press = trio.Event()
            await self._save()

    async def _save(self) -> None:
        """Rejected points and the place to disk, then memory."""
        pending = self._window.pending()
        cursor, letters = (self._window.durable, ()) if pending is None else pending
        place, settled = self._place, 0
        for number, behind in self._places:
            if number > cursor.seq:
                break
            place, settled = behind, settled + 1
        step = Step(place, cursor.confirmed, cursor.parked, tuple(self._lost), self._finished)
        if step == self._step:
            return
        try:
            await self._run_sync(self._remember, step, letters)
        except WalIngestError:
            self._unsavable = True
            raise
        self._step, self._place = step, place
        for _ in range(settled):
            self._places.popleft()
        if pending is not None:
            self._window.committed(cursor, letters)
            self._room.unpark_all()
