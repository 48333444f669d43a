"""One sink's batches on their way: good ones overtake suspects, and points like refused ones travel by themselves.

Invariants:

* Every point that is taken is settled exactly once; `settled` is called with it.
* Where order is promised (one write in flight) no point is written before an older one of its series is settled: what
  would overtake its own series waits for it, and only that. Points like refused ones are no exception:
  they are written at once, before what follows.
* Investigations are bounded in number. Beyond that a batch keeps its worker until it is settled. As long as the sink
  confirmed nothing at all there are few.
* Points like refused ones are collected over many batches, for `COLLECT_S` at most: one write for all of them.

**Cancellation:** what is under way is not settled, and is read again after a restart. What was confirmed or parked, and
which shapes fail, is kept with the cursor; evidence against single points begins anew, which takes minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from functools import partial

import trio

from wal_ingest.flusher.batches import Batch, halve, join, others, pick
from wal_ingest.flusher.learnt import Pattern
from wal_ingest.flusher.outcome import (
    BeyondRetention,
    Confirmed,
    Named,
    Rejected,
    TooLarge,
    Unavailable,
    plain,
)
from wal_ingest.flusher.parking import letters_of
from wal_ingest.flusher.piece import Piece, Verdict
from wal_ingest.flusher.shapes import series_of
from wal_ingest.flusher.suspicion import LEAVE_AFTER
from wal_ingest.flusher.window import Settled
from wal_ingest.flusher.writing import SinkWriter

# Batches that are investigated while others overtake them, …
INVESTIGATED_MAX = 256
# … as long as the sink confirmed nothing at all, and may be no database, …
INVESTIGATED_UNCONFIRMED_MAX = 16
# … and those of them after which no other write has passed yet.
UNPROVEN_MAX = 8
# How long points like refused ones are collected.
COLLECT_S = 2.0


@dataclass(slots=True, eq=False)
class _Holder:
    """Points that are not settled, by their series; `free` is set when no older holder has one of these series."""

    series: Counter[bytes]
    free: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Collected:
    """Points like refused ones, of one group: pieces in the order of their taking, each of one pattern."""

    since_s: float
    pieces: list[tuple[Pattern, Batch]] = field(default_factory=list)
    points: int = 0


class Overtaking:
    """Takes batches from workers. `settled` is called with pieces of them and what became of those."""

    def __init__(
        self,
        writer: SinkWriter,
        *,
        strict: bool,
        settled: Callable[[Batch, Settled], None],
    ) -> None:
        self._writer = writer
        self._strict = strict
        self._settled = settled
        self._holders: list[_Holder] = []
        self._investigated = 0
        self._unproven: set[int] = set()
        self._collected: dict[Hashable, _Collected] = {}
        self._collecting = trio.Event()
        self._nursery: trio.Nursery | None = None

    def begin(self, nursery: trio.Nursery) -> None:
        """Has what `take` starts run in the nursery of the workers, which is open as long as one of them is at work."""
        self._nursery = nursery
        nursery.start_soon(self._collect)

    async def _collect(self) -> None:
        """Writes what was collected for long enough, until cancelled."""
        while True:
            await self._collecting.wait()
            await trio.sleep_until(min(self._due_s().values(), default=-float("inf")))
            self._collecting = trio.Event()
            now_s = trio.current_time()
            for group in [each for each, due_s in self._due_s().items() if due_s <= now_s]:
                self._start(self._write_collected, self._collected.pop(group))
            if self._collected:
                self._collecting.set()

    def _start(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task, *arguments)

    def _due_s(self) -> dict[Hashable, float]:
        return {group: found.since_s + COLLECT_S for group, found in self._collected.items()}

    async def take(self, batch: Batch) -> None:
        """Writes a batch; returns when the next one may be written.

        Raises what the sink raises.
        """
        if self._holders:
            lines = await self._writer.run_sync(batch.split)
            blocked = {series for holder in self._holders for series in holder.series}
            held = [place for place, line in enumerate(lines) if series_of(line) in blocked]
            if held:
                self._defer(pick(batch, lines, held), [lines[place] for place in held])
                go = others(len(lines), held)
                if not go:
                    return
                batch = pick(batch, lines, go)
        await self._write(batch, None)

    def _defer(self, batch: Batch, lines: list[bytes]) -> None:
        holder = self._hold(lines)
        self._start(self._write_when_free, batch, holder)

    async def _write_when_free(self, batch: Batch, holder: _Holder) -> None:
        await holder.free.wait()
        await self._write(batch, holder)

    async def _write(self, batch: Batch, holder: _Holder | None) -> None:
        if batch.points > self._writer.points_max:
            for half in await self._writer.run_sync(halve, batch):
                await self._write(half, holder)
            return
        learnt, piece, verdict = self._writer.learnt, Piece(batch), None
        while verdict is None:
            patterns = learnt.patterns(batch.group, now_s=trio.current_time())
            version = learnt.version
            if patterns:
                rest = await self._set_apart(batch, patterns, holder)
                if rest is None:
                    return
                if rest is not batch:
                    piece, batch = Piece(rest), rest
                elif piece.suspicion.failures:
                    await self._writer.back_off(piece, Unavailable("nothing was learnt about it"))
            verdict = await self._writer.decide(piece, leave=partial(self._may_leave, version=version))
            if learnt.version == version:
                break
        if isinstance(verdict, Confirmed):
            what = Settled(verdict.position)
            self._writer.count(batch, what)
            self._note(holder, batch, what)
        elif isinstance(verdict, TooLarge) and batch.points > 1:
            for half in await self._writer.run_sync(halve, batch):
                await self._write(half, holder)
        else:
            await self._leave(piece, verdict, holder)

    # -- suspects ---------------------------------------------------------------------------------------

    @property
    def _is_crowded(self) -> bool:
        most = INVESTIGATED_MAX if self._writer.confirmed_writes else INVESTIGATED_UNCONFIRMED_MAX
        return self._investigated >= most

    def _may_leave(self, piece: Piece, *, version: int | None = None) -> bool:
        """Whether the batches that follow should go before a piece that failed.

        Also when something was learnt since a `version`: without points like refused ones the rest may pass at once.
        """
        if version is not None and version != self._writer.learnt.version:
            return True
        if self._is_crowded:
            return False
        if piece.suspicion.may_be_left:
            return True
        if piece.suspicion.failures < LEAVE_AFTER or len(self._unproven) >= UNPROVEN_MAX:
            return False
        self._unproven.add(id(piece))
        return True

    def _may_leave_apart(self, piece: Piece) -> bool:
        """As `_may_leave`, of points like refused ones: once is enough."""
        return not self._is_crowded or self._may_leave(piece)

    async def _leave(self, piece: Piece, verdict: Verdict | None, holder: _Holder | None) -> None:
        """Has a piece investigated beside what follows it; or here, when there are too many."""
        if self._strict and holder is None:
            holder = self._hold(await self._writer.run_sync(piece.batch.split))
        if self._is_crowded:
            await self._investigate(piece, verdict, holder)
            return
        piece.suspicion.left = True
        self._investigated += 1
        self._start(self._investigate_beside, piece, verdict, holder)

    async def _investigate_beside(
        self, piece: Piece, verdict: Verdict | None, holder: _Holder | None
    ) -> None:
        try:
            await self._investigate(piece, verdict, holder)
        finally:
            self._investigated -= 1
            self._unproven.discard(id(piece))

    async def _investigate(self, piece: Piece, verdict: Verdict | None, holder: _Holder | None) -> None:
        await self._writer.find(piece, verdict, lambda batch, what: self._note(holder, batch, what))

    def _note(self, holder: _Holder | None, batch: Batch, what: Settled) -> None:
        """Reports settled points; those that wait for their series may go on."""
        self._settled(batch, what)
        if holder is None:
            return
        for line in batch.split():
            series = series_of(line)
            holder.series[series] -= 1
            if holder.series[series] <= 0:
                del holder.series[series]
        if not holder.series:
            self._holders.remove(holder)
        self._free()

    def _hold(self, lines: list[bytes]) -> _Holder:
        holder = _Holder(Counter(map(series_of, lines)))
        self._holders.append(holder)
        return holder

    def _free(self) -> None:
        """Lets those go whose series no older one holds."""
        blocked: set[bytes] = set()
        for holder in self._holders:
            if not holder.free.is_set() and blocked.isdisjoint(holder.series):
                holder.free.set()
            blocked.update(holder.series)

    # -- points like refused ones -----------------------------------------------------------------------

    async def _set_apart(self, batch: Batch, patterns: list[Pattern], holder: _Holder | None) -> Batch | None:
        """Takes the points that patterns mean out of a batch; gives the others, None when there are none."""
        now_ns = self._writer.now_ns()
        apart, rest = await self._writer.run_sync(self._writer.learnt.cut, batch, patterns, now_ns)
        if not apart:
            return batch
        if self._strict:
            found = _Collected(0.0, apart)
            await self._write_collected(found, holder)
            return rest
        found = self._collected.setdefault(batch.group, _Collected(trio.current_time()))
        found.pieces += apart
        found.points += sum(piece.points for _, piece in apart)
        if found.points >= self._writer.points_max:
            del self._collected[batch.group]
            self._start(self._write_collected, found)
        else:
            self._collecting.set()
        return rest

    async def _write_collected(self, found: _Collected, holder: _Holder | None = None) -> None:
        """Writes points like refused ones. When all are refused, each has the reason that those like it have."""
        batch = await self._writer.run_sync(join, [piece for _, piece in found.pieces])
        piece = Piece(batch)
        piece.suspicion.left = not self._strict
        verdict: Verdict | None = None
        if batch.points <= self._writer.points_max:
            verdict = await self._writer.decide(
                piece, leave=self._may_leave_apart if self._strict else _never
            )
            if verdict is None:
                await self._leave(piece, None, holder)
                return
        if isinstance(verdict, Rejected) and self._all_refused(verdict, batch, found):
            for pattern, part in found.pieces:
                self._park(pattern, part, verdict if len(found.pieces) == 1 else None, holder)
                await trio.lowlevel.checkpoint()  # a thousand letters at once would hold up all other tasks
            return
        patterns = {
            (part.seq, part.first + line): pattern
            for pattern, piece in found.pieces
            for part in piece.parts
            for line in range(part.points)
        }

        def noted(part: Batch, what: Settled) -> None:
            if not what.letters:
                for each in part.parts:
                    pattern = patterns[each.seq, each.first]
                    self._writer.learnt.forget(pattern, now_s=trio.current_time())
            self._note(holder, part, what)

        await self._writer.find(piece, verdict, noted)

    def _all_refused(self, verdict: Rejected, batch: Batch, found: _Collected) -> bool:
        """Whether a refusal says so of every point, for the one cause that was learnt of each."""
        known = self._writer.learnt.patterns(batch.group, now_s=trio.current_time())
        patterns = {pattern for pattern, _ in found.pieces}
        if verdict.dropped != batch.points or not patterns <= set(known):
            return False
        if isinstance(verdict.hint, BeyondRetention):
            return all(isinstance(pattern.hint, BeyondRetention) for pattern in patterns)
        return all(isinstance(pattern.hint, Named) for pattern in patterns) and verdict.hint in {
            pattern.hint for pattern in patterns
        }

    def _park(self, pattern: Pattern, batch: Batch, verdict: Rejected | None, holder: _Holder | None) -> None:
        """Parks points of a pattern, in the words of this verdict or, where it is about several, of its own."""
        reason, status = self._writer.learnt.reason(pattern)
        if verdict is not None:
            reason, status = plain(verdict.reason), verdict.status
        now_s, now_ns = trio.current_time(), self._writer.now_ns()
        letters = letters_of(self._writer.name, batch, reason, status, parked_ns=now_ns)
        what = Settled(None, tuple(letters))
        self._writer.count(batch, what)
        self._note(holder, batch, what)
        self._writer.learnt.renew(pattern, now_s=now_s)


def _never(_piece: Piece) -> bool:
    return False
