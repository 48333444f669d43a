"""Which points of a refused batch are the refused ones: by what the sink named, and by dividing where it named nothing.

Invariants:

* Every point of the piece is settled exactly once, in the order in which that becomes known.
* A dead letter's reason is one that the sink gave for that very point: it refused it alone, listed it, counted all
  points of a piece as refused, for a cause that the point has, or refused a younger one as beyond its retention.
  Only of a piece of one shape, of which every sample was refused alone in the same words and nothing
  passed, the rest is taken to be alike, and the reason says so. Such a piece is large, or a point of its shape was
  parked before.
* Pieces are decided in their order. One that fails without a verdict, which may take minutes, waits after the others
  and beside its like; so does one that is to be divided because it failed, as its parts are likely refused. What must
  not overtake it waits with it: a point that replaces one of it, and, where order is promised, any point of its series.

| the sink named | the points it may mean are | and are refused when |
|---|---|---|
| lines | those | it lists each of them |
| a field and the type given | those that have it | all were counted as refused, or more samples than were counted |
| a retention | those before its bound, or the oldest of them, as many as were counted | a younger one was |
| nothing | of one shape, then of one series, then half | they are refused alone |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from wal_ingest.flusher.batches import Batch, halve, others, pick
from wal_ingest.flusher.learnt import Pattern
from wal_ingest.flusher.outcome import (
    BeyondRetention,
    Confirmed,
    LinesRefused,
    Named,
    Rejected,
    TooLarge,
    Unavailable,
    plain,
    words_of,
)
from wal_ingest.flusher.parking import letters_of
from wal_ingest.flusher.piece import Convicted, Piece, Refusal, Verdict
from wal_ingest.flusher.shapes import (
    by_time,
    common_shape,
    divided,
    reasons_by_place,
    repeats,
    selected,
    series_of,
    shape_of,
    shapes_of,
    spread,
    time_of,
)
from wal_ingest.flusher.window import Settled

if TYPE_CHECKING:
    from wal_ingest.flusher.writing import SinkWriter

# A batch with fewer points says little about the sink when all of them are refused.
_DOUBTFUL_POINTS_MIN = 10
# A piece of one shape with at least so many points is judged by samples, …
_SAMPLED_POINTS_MIN = 64
# … this many of them. Fewer points are divided until each is known.
_SAMPLES = 16
# … or this many, however few points there are, where a point of the shape was parked in the same words before.
_SAMPLES_OF_KNOWN = 4
# Samples of points that all have what the sink named.
_NAMED_SAMPLES_MAX = 4


class Finder:
    """Settles one piece. `settled` is called with each part of it and what became of that."""

    def __init__(self, writer: SinkWriter, piece: Piece, settled: Callable[[Batch, Settled], None]) -> None:
        self._writer = writer
        self._piece = piece
        self._settled = settled
        self._believing = not writer.refused_whole
        self._ordered: bool | None = None  # whether some points must keep their order; None: not looked at
        # Refusals of a sink that confirmed nothing yet, in words that name nothing a point has: perhaps no database's.
        self._withheld: list[tuple[Piece, str, int]] = []

    async def run(self, verdict: Verdict | None) -> None:
        """Settles every point. Raises what the sink raises.

        **Cancellation:** what `settled` was called with stays.
        """
        await self._resolve([(self._piece, verdict)])
        while self._withheld:
            pieces = [(replace(piece, batch=piece.batch), None) for piece, _, _ in self._withheld]
            if not self._is_doubted():
                for withheld in self._withheld:
                    self._park(*withheld)
                return
            self._withheld.clear()
            if self._piece.batch.points == sum(piece.batch.points for piece, _ in pieces):
                pieces = [(Piece(self._piece.batch), None)]
            await self._resolve(pieces)

    def _is_doubted(self) -> bool:
        """Whether what was withheld must not be believed: a whole batch was refused, and nothing ever confirmed."""
        believed, self._believing = self._believing, False
        if believed and self._writer.refused_whole:
            return True  # the doubt arose elsewhere while this was divided: the sink decides again
        points = sum(piece.batch.points for piece, _, _ in self._withheld)
        if self._writer.confirmed_writes or points < max(self._piece.batch.points, _DOUBTFUL_POINTS_MIN):
            return False
        self._writer.refused_whole = True
        return True

    async def _resolve(self, pieces: Sequence[tuple[Piece, Verdict | None]]) -> None:
        """Settles pieces in their order; what takes long after the others: see the invariants."""
        stack = list(reversed(pieces))
        failing: list[Piece] = []
        convicted: list[tuple[Piece, Verdict | None]] = []
        behind: list[tuple[Piece, Verdict | None]] = []
        while stack:
            piece, verdict = stack.pop()
            earlier = [*failing, *(each for each, _ in convicted), *(each for each, _ in behind)]
            if earlier and await self._must_follow(piece, earlier):
                behind.append((piece, verdict))
                continue
            found = verdict or await self._decide(piece, leave=partial(_any, stack, failing))
            if found is None:
                failing.append(piece)
            elif stack and verdict is None and isinstance(found, Convicted):
                convicted.append((piece, found))
            else:
                stack += [(part, None) for part in reversed(await self._parts_of(piece, found))]
        if failing or convicted:
            async with trio.open_nursery() as nursery:
                if convicted:
                    nursery.start_soon(self._resolve, convicted)
                for piece in failing:
                    # Bounds the tasks: this one waits, holding nothing that those under way need.
                    await self._writer.investigations.acquire()
                    nursery.start_soon(self._resolve_failing, piece)
        if behind:
            await self._resolve(behind)

    async def _must_follow(self, piece: Piece, earlier: Sequence[Piece]) -> bool:
        """Whether a piece has points that may not be written before those of earlier ones.

        A point that replaces another, of the same series and time; any one of its series, where order is promised.
        """
        if self._ordered is None:
            whole = self._piece.batch
            self._ordered = self._writer.strict or await self._writer.run_sync(lambda: repeats(whole.split()))
        if not self._ordered:
            return False
        batches = [each.batch for each in earlier]

        def shares() -> bool:
            before = {series_of(line) for batch in batches for line in batch.split()}
            return any(series_of(line) in before for line in piece.batch.split())

        return await self._writer.run_sync(shares)

    async def _resolve_failing(self, piece: Piece) -> None:
        """Settles a piece that failed: that may take minutes, of which the others need not wait."""
        try:
            parts = await self._parts_by_what_is_learnt(piece)
        finally:
            self._writer.investigations.release()
        await self._resolve([(part, None) for part in parts])

    async def _parts_by_what_is_learnt(self, piece: Piece) -> list[Piece]:
        """Settles what a verdict on a piece decides; gives the rest in parts.

        What another piece taught in the meantime divides this one as well, without evidence of its own.
        """
        learnt = self._writer.learnt
        parts: list[Piece] = []
        while not parts:
            newer = partial(learnt.is_newer_than, learnt.version)
            verdict = await self._decide(piece, leave=newer if piece.batch.points > 1 else lambda: False)
            if verdict is not None:
                return await self._parts_of(piece, verdict)
            parts = await self._cut(piece)
            if not parts:
                await self._writer.back_off(piece, Unavailable("nothing was learnt about it"))
                parts = await self._cut(piece)
        return parts

    async def _cut(self, piece: Piece, *, convicted: bool = False) -> list[Piece]:
        """The parts in which what was learnt divides a piece, what it does not mean first; none where it does not."""
        learnt, now_ns = self._writer.learnt, self._writer.now_ns()
        patterns = learnt.patterns(piece.batch.group, now_s=trio.current_time())
        apart, rest = await self._writer.run_sync(learnt.cut, piece.batch, patterns, now_ns)
        if not apart or rest is None:
            return []
        return [piece.part(batch, convicted=convicted) for batch in (rest, *(batch for _, batch in apart))]

    async def _parts_of(self, piece: Piece, verdict: Verdict) -> list[Piece]:
        """Settles what a verdict decides; gives what is still to be decided, in parts."""
        if isinstance(verdict, Confirmed):
            await self._confirm(piece, verdict)
            return []
        if not isinstance(verdict, TooLarge):
            return await self._narrow(piece, verdict)
        if piece.batch.points > 1:
            return [piece.part(half) for half in await self._writer.run_sync(halve, piece.batch)]
        self._park(piece, verdict.reason, verdict.status)
        return []

    async def _decide(self, piece: Piece, *, leave: Callable[[], bool] = lambda: False) -> Verdict | None:
        """The verdict on a piece; None as soon as it failed without one and `leave` says so."""
        if piece.batch.points > self._writer.points_max:
            return TooLarge("more points than are written at once")
        return await self._writer.decide(piece, leave=lambda _piece: leave())

    async def _decide_alone(self, piece: Piece) -> Verdict:
        verdict = await self._decide(piece)
        assert verdict is not None
        return verdict

    # -- what a refusal of a piece leads to -------------------------------------------------------------

    async def _narrow(self, piece: Piece, refusal: Refusal) -> list[Piece]:
        """Parks what is proven by a refusal; gives what is still to be decided, in parts."""
        if piece.batch.points == 1:
            self._park_alone(piece, refusal)
            return []
        lines = await self._writer.run_sync(piece.batch.split)
        hint = refusal.hint if isinstance(refusal, Rejected) else None
        if isinstance(refusal, Rejected) and hint is not None:
            places = await self._writer.run_sync(selected, lines, hint)
            by_hint: _ByHint = _BY_HINT[type(hint)]
            parts = await by_hint(self, piece, lines, refusal, places)
            if parts is not None:
                return parts
        return await self._without_words(piece, lines, refusal)

    async def _listed(
        self, piece: Piece, lines: Sequence[bytes], refusal: Rejected, places: Sequence[int]
    ) -> list[Piece] | None:
        hint = refusal.hint
        assert isinstance(hint, LinesRefused)
        if len(places) < len(lines):
            return await self._split(piece, lines, places) if places else None
        for place, reason in sorted(reasons_by_place(lines, hint).items()):
            self._park(piece.part(pick(piece.batch, lines, [place])), reason, refusal.status)
        return []

    async def _of_field(
        self, piece: Piece, lines: Sequence[bytes], refusal: Rejected, places: Sequence[int]
    ) -> list[Piece] | None:
        if len(places) < len(lines):
            return await self._split(piece, lines, places) if places else None
        if refusal.dropped == len(lines):
            self._park(piece, refusal.reason, refusal.status)
            self._learn(piece, refusal, refusal.hint)
            return []
        needed = 2 if refusal.dropped is None else refusal.dropped + 1
        if needed > _NAMED_SAMPLES_MAX:
            return None
        return await self._sampled(piece, lines, refusal, samples=max(2, needed))

    async def _too_old(
        self, piece: Piece, lines: Sequence[bytes], refusal: Rejected, places: Sequence[int]
    ) -> list[Piece] | None:
        if refusal.dropped == len(lines):
            self._park(piece, refusal.reason, refusal.status)
            newest = max(map(time_of, lines))
            self._learn(piece, refusal, BeyondRetention(newest + 1))
            return []
        if not places:
            now_ns, beyond = self._writer.now_ns(), self._writer.learnt.beyond
            places = await self._writer.run_sync(lambda: beyond(piece.batch.group, lines, now_ns=now_ns))
        if 0 < len(places) < len(lines):
            return await self._split(piece, lines, places)
        order = await self._writer.run_sync(by_time, lines)
        if not places and refusal.dropped and refusal.dropped < len(lines) and not piece.counted:
            # The oldest first: they teach where the bound is, for all that follows.
            oldest = sorted(order[: refusal.dropped])
            return await self._split(piece, lines, oldest, counted=True, first=True)
        return await self._bound(piece, lines, refusal, order, newest_first=bool(places))

    async def _bound(
        self,
        piece: Piece,
        lines: Sequence[bytes],
        refusal: Rejected,
        order: Sequence[int],
        *,
        newest_first: bool,
    ) -> list[Piece] | None:
        """Searches the time before which points are refused: what is older than a refused point is refused as well.

        Begins with the newest point where all are likely refused: then that one is enough.
        """
        low, high = 0, len(order)
        while low < high:
            middle = high - 1 if newest_first else (low + high) // 2
            newest_first = False
            single = piece.part(pick(piece.batch, lines, [order[middle]]))
            verdict = await self._decide_alone(single)
            if isinstance(verdict, Rejected) and isinstance(verdict.hint, BeyondRetention):
                refusal, low = verdict, middle + 1
                self._learn(piece, refusal, BeyondRetention(time_of(lines[order[middle]]) + 1))
                continue
            # Settled by itself: it is no longer among the others.
            await self._resolve([(single, verdict)])
            order = [*order[:middle], *order[middle + 1 :]]
            high = middle
        if low:
            old = piece.part(pick(piece.batch, lines, sorted(order[:low])))
            self._park(old, refusal.reason, refusal.status)
        rest = sorted(order[low:])
        return [piece.part(pick(piece.batch, lines, rest))] if rest else []

    async def _without_words(self, piece: Piece, lines: Sequence[bytes], refusal: Refusal) -> list[Piece]:
        # A batch that was under way when its shapes were learnt: its good points wait for none of the others.
        if parts := await self._cut(piece, convicted=isinstance(refusal, Convicted)):
            return parts
        shape = await self._writer.run_sync(common_shape, lines)
        if shape is not None:
            if isinstance(refusal, Rejected) and refusal.hint is None and refusal.dropped == len(lines):
                self._park(piece, refusal.reason, refusal.status, refusal.about_points)
                return []
            if shape not in piece.passed:
                known = self._writer.evidence.convictions.of_shape(
                    piece.batch.group, shape, refusal.reason, refusal.status
                )
                if len(lines) >= (_SAMPLES_OF_KNOWN if known else _SAMPLED_POINTS_MIN):
                    return await self._sampled(
                        piece, lines, refusal, samples=_SAMPLES_OF_KNOWN if known else _SAMPLES
                    )
        places = await self._writer.run_sync(divided, lines)
        return await self._split(piece, lines, places, convicted=isinstance(refusal, Convicted), first=True)

    async def _sampled(
        self, piece: Piece, lines: Sequence[bytes], refusal: Refusal, *, samples: int
    ) -> list[Piece]:
        """Decides some points alone: when each is refused in the same words, the others are taken to be alike."""
        convicted = isinstance(refusal, Convicted)
        places = spread(len(lines), samples)
        decided: list[int] = []
        alike = True
        for place in places:
            single = piece.part(pick(piece.batch, lines, [place]), convicted=convicted)
            verdict = await self._decide_alone(single)
            decided.append(place)
            await self._resolve([(single, verdict)])
            if isinstance(verdict, Confirmed | TooLarge) or _words(verdict) != _words(refusal):
                alike = False
                break
        rest = others(len(lines), decided)
        if not rest:
            return []
        batch = await self._writer.run_sync(pick, piece.batch, lines, rest)
        if not alike:
            if len(rest) == 1:
                return [piece.part(batch, convicted=convicted)]
            left = [lines[place] for place in rest]
            found = await self._writer.run_sync(divided, left)
            return await self._split(piece.part(batch), left, found, convicted=convicted, first=True)
        about = isinstance(refusal, Convicted) or refusal.about_points
        note = f" (as each of {len(decided)} points like it that were written alone)"
        self._park(piece.part(batch), refusal.reason + note, refusal.status, about)
        if isinstance(refusal, Rejected):
            self._learn(piece, refusal, refusal.hint)
        return []

    async def _split(
        self,
        piece: Piece,
        lines: Sequence[bytes],
        places: Sequence[int],
        *,
        convicted: bool = False,
        counted: bool = False,
        first: bool = False,
    ) -> list[Piece]:
        """The lines at some places and the others, as two pieces; those at the places last, unless they are `first`.

        There are lines of both kinds.
        """
        rest = others(len(lines), places)

        def cut() -> list[Batch]:
            return [pick(piece.batch, lines, places), pick(piece.batch, lines, rest)]

        batches = await self._writer.run_sync(cut)
        parts = [piece.part(batch, convicted=convicted, counted=counted) for batch in batches]
        return parts if first else parts[::-1]

    # -- settling ---------------------------------------------------------------------------------------

    async def _confirm(self, piece: Piece, verdict: Confirmed) -> None:
        if piece is not self._piece:  # of a piece of a refused batch: its shapes are not refused as such
            piece.passed |= await self._writer.run_sync(lambda: set(shapes_of(piece.batch.split())))
        self._settled(piece.batch, Settled(verdict.position))

    def _park_alone(self, piece: Piece, refusal: Refusal) -> None:
        if isinstance(refusal, Convicted):
            self._convict(piece, refusal)
            self._park(piece, f"{refusal.reason} (for this point alone, every time)", refusal.status)
            return
        hint, reason = refusal.hint, refusal.reason
        lines = [piece.batch.lines()]
        if isinstance(hint, LinesRefused):
            reason = reasons_by_place(lines, hint).get(0, reason)
        self._park(piece, reason, refusal.status, refusal.about_points)
        if isinstance(hint, BeyondRetention):
            hint = BeyondRetention(time_of(lines[0]) + 1)
        if hint is not None and selected(lines, hint):
            self._learn(piece, refusal, hint)
        elif hint is None and (refusal.about_points or self._writer.confirmed_writes):
            self._convict(piece, refusal)

    def _convict(self, piece: Piece, refusal: Refusal) -> None:
        """Remembers the shape of this point for others like it, as the sink gave no reason."""
        shape = shape_of(piece.batch.lines())
        self._writer.evidence.convictions.parked(
            piece.batch.group,
            refusal.reason,
            refusal.status,
            shape=None if shape in piece.passed else shape,
            now_s=trio.current_time(),
            now_ns=self._writer.now_ns(),
        )

    def _learn(self, piece: Piece, refusal: Rejected, hint: object) -> None:
        if isinstance(hint, BeyondRetention) or (isinstance(hint, Named) and hint.field):
            self._writer.learnt.learn(
                Pattern(piece.batch.group, hint),
                plain(refusal.reason),
                refusal.status,
                now_s=trio.current_time(),
                now_ns=self._writer.now_ns(),
            )

    def _park(self, piece: Piece, reason: str, status: int, about_points: bool = True) -> None:
        if not about_points and not self._writer.confirmed_writes:
            self._withheld.append((piece, reason, status))
            return
        now_ns = self._writer.now_ns()
        letters = letters_of(self._writer.name, piece.batch, plain(reason), status, parked_ns=now_ns)
        self._settled(piece.batch, Settled(None, tuple(letters)))


def _any(*lists: Sequence[object]) -> bool:
    return any(lists)


_ByHint = Callable[[Finder, Piece, Sequence[bytes], Rejected, Sequence[int]], Awaitable[list[Piece] | None]]

# What to do with a refusal, by what it names; None where the words do not tell the points of the piece apart.
_BY_HINT: dict[type, _ByHint] = {
    LinesRefused: Finder._listed,
    Named: Finder._of_field,
    BeyondRetention: Finder._too_old,
}


def _words(verdict: object) -> Hashable:
    """What two refusals for the same cause have in common."""
    if isinstance(verdict, Rejected) and isinstance(verdict.hint, Named):
        return verdict.status, verdict.hint
    assert isinstance(verdict, Rejected | Convicted)
    return words_of(verdict.reason, verdict.status)
