"""One sink's writes: a piece of a batch goes in, and its verdict comes out, however long that takes.

Invariants:

* `settle` returns only when every point of the batch is confirmed by the sink or is in a dead letter with
  the sink's own reason. Nothing else ends it but cancellation; tries have no end.
* A failure that names no points is a verdict on a piece only when it failed again and again while writes of its
  neighbours passed (see `suspicion`). A 401, 403 or 404 is one when a write that passed before still passes.
* While the sink is misconfigured exactly one task probes it; all others wait.
* Once every point of a batch was refused, in words that name nothing a point has, by a sink that confirmed
  nothing yet, such refusals are a misconfiguration: see `_doubtful`.
* Until the time that a server named with Retry-After (up to a limit) only a probe is written now and then.
* No more than `sink.in_flight_max` writes are under way, those of suspects one at a time among them.

A write under way is shielded from cancellation (`Grace`), so that a stop learns its outcome rather than
throwing it away. Cancellation anywhere else leaves nothing behind: the batch is simply not settled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from random import Random

import trio

from wal_ingest.errors import WalIngestError
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.evidence import Evidence, Group
from wal_ingest.flusher.finding import Finder
from wal_ingest.flusher.grace import Grace
from wal_ingest.flusher.learnt import Learnt
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
from wal_ingest.flusher.parking import ParkingLog
from wal_ingest.flusher.patience import Patience
from wal_ingest.flusher.piece import Convicted, Piece, Verdict
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress
from wal_ingest.flusher.window import Settled
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.cursor import DeadLetter

# Pieces that failed without a verdict and are tried again and again, side by side.
_PATIENT_MAX = 512


class SinkWriter:
    """Decides pieces, for several tasks at once. `changed` is called when the state may have.

    `failures` are the errors that the sink raised, each of which ended a `decide`.
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
        learnt: Learnt | None = None,
    ) -> None:
        self.points_max = points_max
        self.run_sync = run_sync
        self.now_ns = now_ns
        self.learnt = learnt or Learnt()
        self.evidence = Evidence(self.learnt, run_sync=run_sync, now_ns=now_ns)
        self.name = sink.name
        self.refused_whole = False
        self.failures: list[WalIngestError] = []
        # Whether repeated points of a series must keep their order: see `finding`.
        self.strict = sink.in_flight_max == 1
        self._sink = sink
        self._settings = settings
        self._progress = progress
        self._grace = grace
        self._changed = changed
        self._patience = Patience(sink.name, settings, rng=rng, changed=changed)
        self.learnt.taught = self._patience.taught
        self._parking_log = ParkingLog(sink.name)
        self._unavailable: set[int] = set()  # ids of the pieces that failed and are not decided yet
        self._permits = trio.Semaphore(sink.in_flight_max)
        self._of_suspects = trio.Lock()
        self._of_scouts = trio.Lock()
        self.investigations = trio.Semaphore(_PATIENT_MAX)

    @property
    def retrying(self) -> bool:
        """Whether the sink was unavailable for some write that is still to be done."""
        return bool(self._unavailable)

    @property
    def holding(self) -> bool:
        """Whether the sink is misconfigured, as far as is known."""
        return self._patience.holding

    @property
    def confirmed_writes(self) -> int:
        """The writes that the sink confirmed since the start of this process."""
        return self._patience.confirmed_writes

    async def settle(self, batch: Batch) -> Settled:
        """Writes a batch, in pieces where it must be, until all its points are confirmed or parked.

        Raises what the sink raises.

        **Cancellation:** a write under way is finished within the grace; nothing is settled.
        """
        letters: list[DeadLetter] = []
        position: bytes | None = None

        def settled(_piece: Batch, what: Settled) -> None:
            nonlocal position
            letters.extend(what.letters)
            position = position if what.position is None else what.position

        await self.find(Piece(batch), None, settled)
        return Settled(position, tuple(sorted(letters, key=lambda letter: letter.seq)))

    async def find(
        self, piece: Piece, verdict: Verdict | None, settled: Callable[[Batch, Settled], None]
    ) -> None:
        """Finds out which points of a piece are refused; `verdict` is that on the whole piece, if there is one.

        `settled` is called with each part of it as soon as what becomes of that is known. Raises what the sink raises.

        **Cancellation:** as `settle`; what `settled` was called with stays.
        """

        def counted(batch: Batch, what: Settled) -> None:
            self.count(batch, what)
            settled(batch, what)

        await Finder(self, piece, counted).run(verdict)

    def count(self, batch: Batch, what: Settled) -> None:
        """Keeps the numbers of what became of some points, and has parked ones logged."""
        parked = len(what.letters)
        self._progress.confirmed_points += batch.points - parked
        self._progress.parked_points += parked
        if parked:
            self._parking_log.parked(parked, what.letters[-1].reason, now_s=trio.current_time())

    def finish(self) -> None:
        """Has what the log was spared so far logged."""
        self._parking_log.say()

    async def decide(
        self, piece: Piece, *, leave: Callable[[Piece], bool] = lambda _piece: False
    ) -> Verdict | None:
        """Writes one piece again and again until its outcome decides what becomes of it.

        None as soon as `leave` says, after a failure that may be the piece's own fault, that others go first.
        """
        try:
            return await self._conclude(piece, leave)
        finally:
            if id(piece) in self._unavailable:
                self._unavailable.discard(id(piece))
                self._changed()

    async def _conclude(self, piece: Piece, leave: Callable[[Piece], bool]) -> Verdict | None:
        probing = False
        while True:
            if not probing:
                await self._patience.gate(through_hold=piece.scout)
            outcome = await self._write(piece.batch, suspect=piece.suspicion.left)
            if isinstance(outcome, Rejected) and self._doubtful(outcome):
                reason = f"everything is refused, and nothing was ever confirmed: {outcome.reason}"
                outcome = Misconfigured(reason, outcome.status)
            denied = isinstance(outcome, Misconfigured) and outcome.suspect
            about_piece = denied and await self._control_passes(piece)
            if isinstance(outcome, Misconfigured) and not about_piece:
                self._progress.retried_writes += 1
                # The others first: one of them may pass, and then there is something to compare with.
                left = denied and leave(piece)
                if left or (denied and self.evidence.scouts_denied(piece, outcome)):
                    if probing:
                        self._patience.release()
                    return None if left else Convicted(outcome.reason, outcome.status)
                self._patience.refused(piece.batch.group, outcome)
                # What a scout of the same group got through shows that access is granted.
                neighbours = self.evidence.group(piece.batch).neighbours
                recovered = partial(neighbours.passed_since, neighbours.passed)
                if piece.scout:
                    async with self._of_scouts:  # in all, one write at a time, as if it were the probe
                        await self._patience.before_probe(recovered)
                    continue
                probing = await self._patience.hold(recovered, probing=probing)
                continue
            if probing:
                probing = False
                self._patience.release()
            if isinstance(outcome, Misconfigured):
                if await self.evidence.is_denied(piece, outcome):
                    return Convicted(outcome.reason, outcome.status)
                continue
            if isinstance(outcome, Confirmed | TooLarge | Rejected):
                return outcome
            self._unavailable.add(id(piece))
            self._changed()
            piece.suspicion.failed(self.evidence.group(piece.batch).neighbours, suspect=outcome.suspect)
            if outcome.suspect:
                if await self.evidence.is_proven(piece, outcome):
                    return Convicted(outcome.reason, outcome.status)
                if leave(piece):
                    return None
                if self.evidence.scouts(piece):
                    return Convicted(outcome.reason, outcome.status)
            version = self.learnt.version
            await self._patience.back_off(outcome, piece.suspicion, partial(leave, piece))
            if self.learnt.is_newer_than(version) and leave(piece):
                return None
            await self._write_control(piece)
            self._progress.retried_writes += 1

    async def back_off(self, piece: Piece, outcome: Unavailable) -> None:
        """Waits after a failure; then what is needed to judge the next one was written."""
        await self._patience.back_off(outcome, piece.suspicion)
        await self._write_control(piece)
        self._progress.retried_writes += 1

    def _doubtful(self, outcome: Rejected) -> bool:
        """Whether a refusal is to be taken for a misconfiguration.

        A server that refused every single point of a batch, never confirmed anything to this process, and says
        nothing that only a database would say (a gateway's `{"message": "Bad Request"}`) is likely no database.
        Parking would empty the WAL into dead letters, so delivery holds, visibly, and asks again now and then.

        It is not held when the words are about points (`Rejected.about_points`, all 422 among them): a fleet whose
        first batches are all beyond the retention must not stall for ever. Nor before the batch was bisected, as a
        good line in it would be confirmed and so clear the doubt; nor for a few points, which may well all be bad.
        """
        return self.refused_whole and self.confirmed_writes == 0 and not outcome.about_points

    async def _write(self, batch: Batch, *, suspect: bool = False) -> Outcome:
        """One write in its turn."""
        async with self._turn(suspect=suspect):
            return await self._write_now(batch)

    @asynccontextmanager
    async def _turn(self, *, suspect: bool) -> AsyncIterator[None]:
        async with AsyncExitStack() as permits:
            if suspect:
                # Investigations share one of the permits at a time: good batches keep the others.
                await permits.enter_async_context(self._of_suspects)
            await permits.enter_async_context(self._permits)
            yield

    async def _write_now(self, batch: Batch, *, control: bool = False) -> Outcome:
        """One write, shielded until a stop's grace is over; keeps the numbers. Only in its turn."""
        self._progress.in_flight += 1
        began_s = trio.current_time()
        try:
            with self._grace.shield():
                outcome = await self._sink.write(batch)
                self._progress.wrote(trio.current_time() - began_s)
                self._note(batch, outcome, began_s, control=control)
                return outcome
        except WalIngestError as exc:
            self.failures.append(exc)
            raise
        finally:
            self._progress.in_flight -= 1
        await trio.sleep_forever()  # the grace is over, and so is the surrounding scope: raises Cancelled
        raise AssertionError("the stop began without a cancellation")  # pragma: no cover: as it says

    def _note(self, batch: Batch, outcome: Outcome, began_s: float, *, control: bool) -> None:
        self.evidence.note(batch, outcome, control=control)
        is_doubted = isinstance(outcome, Rejected) and self._doubtful(outcome)
        if not isinstance(outcome, Misconfigured) and not is_doubted:
            self._patience.answered(batch.group)
        if isinstance(outcome, Confirmed):
            self._patience.confirmed(began_s)
            return
        self._progress.error(plain(outcome.reason), self.now_ns())
        self._progress.rejected_writes += isinstance(outcome, Rejected)
        if isinstance(outcome, Unavailable) and outcome.retry_after_s is not None:
            self._patience.sent_away(outcome.retry_after_s)

    # -- controls ---------------------------------------------------------------------------------------

    async def _write_control(self, piece: Piece) -> None:
        """Where a piece may be to blame but no neighbour came by: writes again what is known to pass.

        Its outcome only counts as evidence: the points are confirmed already.
        """
        group = self.evidence.group(piece.batch)
        if group.control is not None and piece.suspicion.wants_control(group.neighbours):
            await self._patience.gate()
            await self._rewrite(piece, group)

    async def _control_passes(self, piece: Piece) -> bool:
        """Whether what passed before still passes: then a refusal of access is about this piece."""
        group = self.evidence.group(piece.batch)
        if group.control is None:
            piece.suspicion.failures += 1
            return False
        # The second time twice, for a point that is parked then: of two servers in turn, one with a wrong token, every
        # other write is refused, and a single control would pass each time.
        for _ in range(1 + piece.denied if piece.batch.points == 1 else 1):
            if not isinstance(await self._rewrite(piece, group), Confirmed):
                piece.denied = 0  # as with other failures: the sink's own trouble
                return False
        piece.denied += 1
        return True

    async def _rewrite(self, piece: Piece, group: Group) -> Outcome:
        """Writes a control. It is chosen in its turn: an earlier choice could undo a point that was replaced since."""
        async with self._turn(suspect=piece.suspicion.left):
            assert group.control is not None
            control = await self.evidence.control_for(piece, group.control)
            return await self._write_now(control, control=True)
