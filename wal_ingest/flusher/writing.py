"""One sink's writes: a batch goes in, and comes out settled, however long that takes.

Invariants:

* `settle` returns only when every point of the batch is confirmed by the sink or is in a dead letter with
  the sink's own reason. Nothing else ends it but cancellation; tries have no end.
* A point is parked only when the sink refused it alone, or refused every point of its piece, or failed for
  it alone again and again while writes of its neighbours passed (see `suspicion`).
* While the sink is misconfigured exactly one task probes it; all others wait.
* Nothing is written before the time that a server asked for with Retry-After, by any task.

A write under way is shielded from cancellation (`Grace`), so that a stop learns its outcome rather than
throwing it away. Cancellation anywhere else leaves nothing behind: the batch is simply not settled.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from random import Random

import trio

from wal_ingest.flusher.batches import Batch, halve
from wal_ingest.flusher.grace import Grace
from wal_ingest.flusher.log import NowNs, RunSync
from wal_ingest.flusher.outcome import Confirmed, Misconfigured, Outcome, Rejected, TooLarge, Unavailable
from wal_ingest.flusher.retry import RETRY_AFTER_S_MAX, back_off_s, retry_after_s
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress
from wal_ingest.flusher.suspicion import Neighbours, Suspicion
from wal_ingest.flusher.window import Settled
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.cursor import DeadLetter

log = logging.getLogger(__name__)

# Groups (destinations) of which the latest confirmed write is remembered, to compare a failing one with.
_GROUPS_MAX = 32


@dataclass(slots=True)
class _Piece:
    batch: Batch
    suspicion: Suspicion = field(default_factory=Suspicion)


@dataclass(frozen=True, slots=True)
class _Split:
    """Write the halves instead; `suspect` says that it is for failures, not for a refusal."""

    suspect: bool = False


@dataclass(frozen=True, slots=True)
class _Park:
    reason: str
    status: int


_Verdict = Confirmed | _Split | _Park


@dataclass(slots=True)
class _Group:
    """What is known of one destination; `control` is its latest confirmed write, harmless to do again."""

    neighbours: Neighbours = field(default_factory=Neighbours)
    control: Batch | None = None


class SinkWriter:
    """Turns batches into settled ones, for several tasks at once. `changed` is called when the state may have."""

    def __init__(
        self,
        sink: Sink,
        *,
        points_max: int,
        settings: FlusherSettings,
        progress: Progress,
        grace: Grace,
        run_sync: RunSync,
        now_ns: NowNs,
        rng: Random,
        changed: Callable[[], None],
    ) -> None:
        self._sink = sink
        self._points_max = points_max
        self._settings = settings
        self._progress = progress
        self._grace = grace
        self._run_sync = run_sync
        self._now_ns = now_ns
        self._rng = rng
        self._changed = changed
        self._held: trio.Event | None = None
        self._not_before = -float("inf")
        self._confirmed_writes = 0
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self._recovered = trio.lowlevel.ParkingLot()
        self._unavailable: set[int] = set()  # ids of the pieces that failed and are not decided yet

    @property
    def retrying(self) -> bool:
        """Whether the sink was unavailable for some write that is still to be done."""
        return bool(self._unavailable)

    @property
    def holding(self) -> bool:
        """Whether the sink is misconfigured, as far as is known."""
        return self._held is not None

    async def settle(self, batch: Batch) -> Settled:
        """Writes a batch, in pieces where it must be, until all its points are confirmed or parked.

        **Cancellation:** a write under way is finished within the grace; nothing is settled.
        """
        pieces = deque([_Piece(batch)])
        letters: list[DeadLetter] = []
        position: bytes | None = None
        while pieces:
            piece = pieces.popleft()
            oversize = piece.batch.points > self._points_max
            verdict = _Split() if oversize else await self._decide(piece)
            if isinstance(verdict, Confirmed):
                self._progress.confirmed_points += piece.batch.points
                position = position if verdict.position is None else verdict.position
            elif isinstance(verdict, _Park):
                letters.extend(self._letters_of(piece.batch, verdict))
            else:
                inherited = verdict.suspect or piece.suspicion.inherited
                first, second = await self._run_sync(halve, piece.batch)
                pieces.appendleft(_Piece(second, Suspicion(inherited=inherited)))
                pieces.appendleft(_Piece(first, Suspicion(inherited=inherited)))
        if letters:
            log.warning("%s: parked %d points: %s", self._sink.name, len(letters), letters[0].reason)
        return Settled(position, tuple(letters))

    async def _decide(self, piece: _Piece) -> _Verdict:
        try:
            return await self._conclude(piece)
        finally:
            if id(piece) in self._unavailable:
                self._unavailable.discard(id(piece))
                self._changed()

    async def _conclude(self, piece: _Piece) -> _Verdict:
        """Writes one piece again and again until its outcome decides what becomes of it."""
        probing = False
        while True:
            if not probing:
                await self._gate()
            outcome = await self._write(piece.batch)
            if isinstance(outcome, Misconfigured):
                probing = await self._hold(outcome, probing=probing)
                self._progress.retried_writes += 1
                continue
            if probing:
                probing = False
                self._release()
            if isinstance(outcome, Confirmed):
                return outcome
            if isinstance(outcome, TooLarge):
                return _Split() if piece.batch.points > 1 else _Park(outcome.reason, outcome.status)
            if isinstance(outcome, Rejected):
                return _refusal(outcome, piece.batch.points)
            self._unavailable.add(id(piece))
            self._changed()
            piece.suspicion.failed(self._group(piece.batch).neighbours, suspect=outcome.suspect)
            if outcome.suspect and piece.suspicion.proven(points=piece.batch.points):
                if piece.batch.points > 1:
                    return _Split(suspect=True)
                return _Park(f"{outcome.reason} (for this point alone, every time)", outcome.status)
            await self._back_off(outcome, piece.suspicion)
            await self._write_control(piece)
            self._progress.retried_writes += 1

    async def _write(self, batch: Batch) -> Outcome:
        """One write, shielded until a stop's grace is over; keeps the numbers."""
        self._progress.in_flight += 1
        try:
            with self._grace.shield():
                outcome = await self._sink.write(batch)
                self._note(batch, outcome)
                return outcome
        finally:
            self._progress.in_flight -= 1
        await trio.sleep_forever()  # the grace is over, and so is the surrounding scope: raises Cancelled
        raise AssertionError("the stop began without a cancellation")

    def _note(self, batch: Batch, outcome: Outcome) -> None:
        if not isinstance(outcome, Confirmed):
            self._progress.error(outcome.reason, self._now_ns())
            if isinstance(outcome, Unavailable) and outcome.retry_after_s is not None:
                asked_s = min(outcome.retry_after_s, RETRY_AFTER_S_MAX)
                self._not_before = max(self._not_before, trio.current_time() + asked_s)
            return
        self._confirmed_writes += 1
        group = self._group(batch)
        group.neighbours.passed += 1
        group.control = batch
        self._recovered.unpark_all()

    # -- waiting ----------------------------------------------------------------------------------------

    async def _gate(self) -> None:
        """Waits while the sink is held, or asked to be left alone. Always a checkpoint."""
        await trio.lowlevel.checkpoint()
        while True:
            if self._held is not None:
                await self._held.wait()
                continue
            wait_s = self._not_before - trio.current_time()
            if wait_s <= 0:
                return
            # They were sent away together and should not come back in the same instant.
            await trio.sleep(wait_s + self._rng.random() * self._settings.retry_s_min)

    async def _hold(self, outcome: Misconfigured, *, probing: bool) -> bool:
        """Waits until it makes sense to write again; true for the one task that does so as the probe."""
        if self._held is None:
            self._held = trio.Event()
            probing = True
            self._changed()
            log.error("%s: everything is kept, nothing is delivered: %s", self._sink.name, outcome.reason)
        if probing:
            await trio.sleep(self._settings.hold_retry_s)
        else:
            await self._held.wait()
        return probing

    def _release(self) -> None:
        assert self._held is not None
        self._held.set()
        self._held = None
        self._changed()

    async def _back_off(self, outcome: Unavailable, suspicion: Suspicion) -> None:
        """Sleeps; a success elsewhere ends it early unless the server named the time or the piece is suspect."""
        settings, passed = self._settings, self._confirmed_writes
        limits = {"retry_s_min": settings.retry_s_min, "retry_s_max": settings.retry_s_max}
        if outcome.retry_after_s is not None:
            await trio.sleep(retry_after_s(outcome.retry_after_s, rng=self._rng, **limits))
            return
        delay_s = back_off_s(suspicion.failures, rng=self._rng, **limits)
        # The least wait keeps a sink that answers every other write from being asked in a tight loop.
        certain_s = delay_s if suspicion.counted > 1 else min(delay_s, settings.retry_s_min)
        await trio.sleep(certain_s)
        if self._confirmed_writes == passed:
            with trio.move_on_after(delay_s - certain_s):
                await self._recovered.park()

    # -- suspects and dead letters ----------------------------------------------------------------------

    def _group(self, batch: Batch) -> _Group:
        group = self._groups.setdefault(batch.group, _Group())
        self._groups.move_to_end(batch.group)
        if len(self._groups) > _GROUPS_MAX:
            self._groups.popitem(last=False)
        return group

    async def _write_control(self, piece: _Piece) -> None:
        """Where a piece may be to blame but no neighbour came by: writes again what is known to pass.

        Its outcome only counts as evidence: the points are confirmed already.
        """
        group = self._group(piece.batch)
        if group.control is not None and piece.suspicion.wants_control(group.neighbours):
            await self._gate()
            await self._write(group.control)

    def _letters_of(self, batch: Batch, park: _Park) -> Iterator[DeadLetter]:
        lines = batch.lines().split(b"\n")
        parts = (part for part in batch.parts for _ in range(part.points))
        parked_ns = self._now_ns()
        self._progress.parked_points += batch.points
        for line in lines[:-1]:
            part = next(parts, None)
            yield DeadLetter(
                sink=self._sink.name,
                seq=part.seq if part else batch.first_seq,
                line=line + b"\n",
                reason=park.reason,
                status=park.status,
                parked_ns=parked_ns,
                destination=part.destination if part else batch.destination,
            )


def _refusal(outcome: Rejected, points: int) -> _Verdict:
    """What a refusal means for a piece of so many points: all of them, or some that must be found."""
    everything = outcome.dropped is not None and outcome.dropped >= points
    return _Park(outcome.reason, outcome.status) if points == 1 or everything else _Split()
