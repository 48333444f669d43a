"""One sink's writes: a batch goes in, and comes out settled, however long that takes.

Invariants:

* `settle` returns only when every point of the batch is confirmed by the sink or is in a dead letter with
  the sink's own reason. Nothing else ends it but cancellation; tries have no end.
* A point is parked only when the sink refused it alone, or refused every point of its piece, or failed for
  it alone again and again while writes of its neighbours passed (see `suspicion`).
* While the sink is misconfigured exactly one task probes it; all others wait.
* A batch of which every point was refused, in words that name nothing a point has, by a sink that confirmed
  nothing yet is not parked but held: see `_doubtful`.
* Nothing is written before the time that a server asked for with Retry-After, by any task.

A write under way is shielded from cancellation (`Grace`), so that a stop learns its outcome rather than
throwing it away. Cancellation anywhere else leaves nothing behind: the batch is simply not settled.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from random import Random

import trio

from wal_ingest.errors import WalIngestError
from wal_ingest.flusher.batches import Batch, halve
from wal_ingest.flusher.grace import Grace
from wal_ingest.flusher.log import NowNs, RunSync
from wal_ingest.flusher.outcome import (
    Confirmed,
    Misconfigured,
    Outcome,
    Rejected,
    TooLarge,
    Unavailable,
    plain,
)
from wal_ingest.flusher.parking import ParkingLog, letters_of
from wal_ingest.flusher.patience import Patience
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress
from wal_ingest.flusher.suspicion import Neighbours, Suspicion
from wal_ingest.flusher.window import Settled
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.cursor import DeadLetter

# Groups (destinations) of which the latest confirmed write is remembered, to compare a failing one with.
_GROUPS_MAX = 32
# A batch with fewer points says little about the sink when all of them are refused.
_DOUBTFUL_POINTS_MIN = 10


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
    about_points: bool = True


_Verdict = Confirmed | _Split | _Park


@dataclass(slots=True)
class _Group:
    """What is known of one destination; `control` is its latest confirmed write, harmless to do again."""

    neighbours: Neighbours = field(default_factory=Neighbours)
    control: Batch | None = None


class SinkWriter:
    """Turns batches into settled ones, for several tasks at once. `changed` is called when the state may have.

    `failures` are the errors that the sink raised, each of which ended `settle`.
    """

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
        self._progress = progress
        self._grace = grace
        self._run_sync = run_sync
        self._now_ns = now_ns
        self._changed = changed
        self._patience = Patience(sink.name, settings, rng=rng, changed=changed)
        self._refused_whole = False
        self._parking_log = ParkingLog(sink.name)
        self.failures: list[WalIngestError] = []
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self._unavailable: set[int] = set()  # ids of the pieces that failed and are not decided yet

    @property
    def retrying(self) -> bool:
        """Whether the sink was unavailable for some write that is still to be done."""
        return bool(self._unavailable)

    @property
    def holding(self) -> bool:
        """Whether the sink is misconfigured, as far as is known."""
        return self._patience.holding

    async def settle(self, batch: Batch) -> Settled:
        """Writes a batch, in pieces where it must be, until all its points are confirmed or parked.

        Raises what the sink raises.

        **Cancellation:** a write under way is finished within the grace; nothing is settled.
        """
        while (settled := await self._settle_in_pieces(batch)) is None:
            self._refused_whole = True
        self._progress.parked_points += len(settled.letters)
        if settled.letters:
            reason = settled.letters[-1].reason
            self._parking_log.parked(len(settled.letters), reason, now_s=trio.current_time())
        return settled

    def finish(self) -> None:
        """Says what the log was spared so far."""
        self._parking_log.say()

    async def _settle_in_pieces(self, batch: Batch) -> Settled | None:
        """What became of the batch; None when all of it was refused, and that is not to be believed."""
        pieces = deque([_Piece(batch)])
        letters: list[DeadLetter] = []
        position: bytes | None = None
        confirmed_points = 0
        parked_for_points = False
        believing = not self._refused_whole
        while pieces:
            piece = pieces.popleft()
            oversize = piece.batch.points > self._points_max
            verdict = _Split() if oversize else await self._decide(piece)
            if isinstance(verdict, Confirmed):
                confirmed_points += piece.batch.points
                position = position if verdict.position is None else verdict.position
            elif isinstance(verdict, _Park):
                parked_for_points |= verdict.about_points
                reason, now_ns = plain(verdict.reason), self._now_ns()
                letters += letters_of(self._sink.name, piece.batch, reason, verdict.status, parked_ns=now_ns)
            else:
                inherited = verdict.suspect or piece.suspicion.inherited
                first, second = await self._run_sync(halve, piece.batch)
                pieces.appendleft(_Piece(second, Suspicion(inherited=inherited)))
                pieces.appendleft(_Piece(first, Suspicion(inherited=inherited)))
        whole = len(letters) == batch.points >= _DOUBTFUL_POINTS_MIN
        if whole and not parked_for_points and self._patience.confirmed_writes == 0:
            return None
        if letters and believing and self._refused_whole:
            return None  # the doubt arose elsewhere while this was bisected: its refusals are asked for again
        self._progress.confirmed_points += confirmed_points
        return Settled(position, tuple(letters))

    def _doubtful(self, outcome: Outcome) -> bool:
        """Whether a refusal is to be taken for a misconfiguration.

        A server that refused every single point of a batch, never confirmed anything to this process, and says
        nothing that only a database would say (a gateway's `{"message": "Bad Request"}`) is likely no database.
        Parking would empty the WAL into dead letters, so delivery holds, visibly, and asks again now and then.

        It is not held when the words are about points (`Rejected.about_points`, all 422 among them): a fleet whose
        first batches are all beyond the retention must not stall for ever. Nor before the batch was bisected, as a
        good line in it would be confirmed and so clear the doubt; nor for a few points, which may well all be bad.
        """
        doubt = self._refused_whole and self._patience.confirmed_writes == 0
        return doubt and isinstance(outcome, Rejected) and not outcome.about_points

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
                await self._patience.gate()
            outcome = await self._write(piece.batch)
            if isinstance(outcome, Rejected) and self._doubtful(outcome):
                said = f"everything is refused, and nothing was ever confirmed: {outcome.reason}"
                outcome = Misconfigured(said, outcome.status)
            if isinstance(outcome, Misconfigured):
                probing = await self._patience.hold(outcome, probing=probing)
                self._progress.retried_writes += 1
                continue
            if probing:
                probing = False
                self._patience.release()
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
            await self._patience.back_off(outcome, piece.suspicion)
            await self._write_control(piece)
            self._progress.retried_writes += 1

    async def _write(self, batch: Batch) -> Outcome:
        """One write, shielded until a stop's grace is over; keeps the numbers."""
        self._progress.in_flight += 1
        began_s = trio.current_time()
        try:
            with self._grace.shield():
                outcome = await self._sink.write(batch)
                self._progress.wrote(trio.current_time() - began_s)
                self._note(batch, outcome)
                return outcome
        except WalIngestError as exc:
            self.failures.append(exc)
            raise
        finally:
            self._progress.in_flight -= 1
        await trio.sleep_forever()  # the grace is over, and so is the surrounding scope: raises Cancelled
        raise AssertionError("the stop began without a cancellation")  # pragma: no cover: as it says

    def _note(self, batch: Batch, outcome: Outcome) -> None:
        if not isinstance(outcome, Confirmed):
            self._progress.error(plain(outcome.reason), self._now_ns())
            self._progress.rejected_writes += isinstance(outcome, Rejected)
            if isinstance(outcome, Unavailable) and outcome.retry_after_s is not None:
                self._patience.asked(outcome.retry_after_s)
            return
        self._patience.confirmed()
        group = self._group(batch)
        group.neighbours.passed += 1
        group.control = batch

    # -- suspects ---------------------------------------------------------------------------------------

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
            await self._patience.gate()
            await self._write(group.control)


def _refusal(outcome: Rejected, points: int) -> _Verdict:
    """What a refusal means for a piece of so many points: all of them, or some that must be found.

    Only the exact count is believed: a larger one is about something else than this piece.
    """
    if points == 1 or outcome.dropped == points:
        return _Park(outcome.reason, outcome.status, outcome.about_points)
    return _Split()
