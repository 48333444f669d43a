"""The confirm tracker: points are settled in any order, and the cursor passes them in the order of their seqs. Pure.

Invariants:

* The cursor that `pending` offers passes an entry only when all its points are settled. Points that are settled beyond
  it are described exactly (`Cursor.ahead`, `reach`, `open`), so that a restart does not write them again.
* A dead letter leaves together with the cursor that counts it as parked, never before and never after.
* `full` bounds what is held: batches that wait for a write, bytes of what is not settled, runs of entries that are not
  settled, and bytes of dead letters that are not on disk yet. What is settled ahead takes next to nothing, so
  one batch that is stuck stops neither the reading nor the others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from wal_ingest.flusher.batches import Batch, Part, Run
from wal_ingest.wal.cursor import Cursor, DeadLetter, OpenLines

# What a dead letter costs beside its line and its reason, roughly.
_LETTER_BYTES = 300
# Ranges of open points that a cursor carries: some 50 KB. What is settled beyond them is written again after a crash.
OPEN_RANGES_MAX = 2_000
# Runs of entries that are settled in part, each with the ranges of what is.
PARTIAL_RUNS_MAX = 4_096
# Settled runs that may lie between others before neighbours are joined.
_JOIN_ABOVE = 256


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of some points: each is confirmed, or among `letters`. `position` is the sink's, None for none."""

    position: bytes | None = None
    letters: tuple[DeadLetter, ...] = ()


@dataclass(slots=True, eq=False)
class _Mark:
    """A run of entries: how much of it is settled.

    `parts` are those of its batch; `done` are the settled points of a run that is settled in part. `before` is the
    cursor before the run, once it is passed.
    """

    run: Run
    parts: tuple[Part, ...] = ()
    confirmed: int = 0
    parked: int = 0
    held_bytes: int = 0
    passed: bool = False
    before: Cursor | None = None
    done: list[Part] = field(default_factory=list)

    @property
    def outstanding(self) -> int:
        return self.run.points - self.run.settled - self.confirmed - self.parked


@dataclass(slots=True, eq=False)
class Slot:
    """A batch's place in the order. The batch itself is released once it was taken to be written."""

    batch: Batch | None
    marks: tuple[_Mark, ...]


class Window:
    """What was read after a sink's durable cursor and is not passed by it yet.

    With `ahead` the cursor describes what is settled beyond it; without, `pending` offers what it has passed alone.
    """

    def __init__(self, cursor: Cursor, *, batches_max: int, bytes_max: int, ahead: bool = False) -> None:
        self.durable = cursor
        self._ahead = ahead
        # What an earlier life had settled ahead, until it is read and passed.
        self._prior_ahead = cursor.ahead
        self._prior_reach = cursor.reach
        self._prior_open = cursor.open
        self._passed = replace(cursor, ahead=0, reach=0, open=())
        self._position = cursor.position
        self._changed = False
        self._marks: list[_Mark] = []
        self._letters: list[tuple[_Mark, DeadLetter]] = []
        self._held_bytes = 0
        self._untouched = 0
        self._batches_max = batches_max
        self._bytes_max = bytes_max
        self._learnt = cursor.learnt

    @property
    def full(self) -> bool:
        """Whether nothing more may be added now. One batch always fits, however large."""
        if not self.unsettled and not self._letters:
            return False
        return (
            self._untouched >= self._batches_max
            or self._held_bytes >= self._bytes_max
            or len(self._marks) >= PARTIAL_RUNS_MAX
        )

    @property
    def unsettled(self) -> bool:
        """Whether any point that was read is still on its way."""
        return bool(self._marks)

    def opened(self, position: bytes) -> Cursor:
        """The durable cursor with the position that a sink opened with; only before the first `add`."""
        self._position = position
        self._passed = replace(self._passed, position=position)
        return replace(self.durable, position=position)

    def read(self, runs: Iterable[Run]) -> None:
        """Takes what was read next, in the order of the seqs; the batches of it may come later, in any order."""
        self._marks += [_Mark(run) for run in runs]
        self._pass()

    def add(self, batch: Batch) -> Slot:
        """Takes a batch of what was read; one without runs is the next in order. Gives its slot."""
        if batch.runs:
            marks = tuple(self._mark_of(run.first_seq) for run in batch.runs)
        else:
            run = Run(batch.first_seq, batch.last_seq, batch.points, batch.points_after)
            self._marks.append(_Mark(run))
            marks = (self._marks[-1],)
        for mark in marks:
            first, last = mark.run.first_seq, mark.run.last_seq
            mark.parts = (
                batch.parts
                if len(marks) == 1
                else tuple(part for part in batch.parts if first <= part.seq <= last)
            )
            mark.held_bytes = len(batch.body) * (mark.run.points - mark.run.settled) // batch.points
            self._held_bytes += mark.held_bytes
        self._untouched += 1
        return Slot(batch, marks)

    def settle(self, slot: Slot, settled: Settled) -> bool:
        """Notes what became of a whole batch; true when `pending` has more to offer because of it."""
        slot.batch = None
        parked: dict[int, int] = {}
        for letter in settled.letters:
            mark = self._mark_in(slot.marks, letter.seq)
            parked[id(mark)] = parked.get(id(mark), 0) + 1
            self._keep_letter(mark, letter)
        for mark in slot.marks:
            points = mark.outstanding
            mark.parked += parked.get(id(mark), 0)
            mark.confirmed += points - parked.get(id(mark), 0)
            self._release(mark, mark.held_bytes)
            mark.done.clear()
        self._untouched -= 1
        return self._noted(settled.position)

    def begin(self, slot: Slot) -> None:
        """The batch was taken to be written in pieces (see `settle_parts`): it is not held here any longer."""
        slot.batch = None
        self._untouched -= 1

    def settle_parts(self, parts: Sequence[Part], settled: Settled) -> bool:
        """Notes what became of some points, which may be of several batches; as `settle`."""
        mark = None
        for part in parts:
            mark = self._mark_of(part.seq, mark)
            mark.confirmed += part.points
            if mark.outstanding:
                mark.done.append(part)
                self._release(mark, mark.held_bytes * part.points // (mark.outstanding + part.points))
            else:
                mark.done.clear()
                self._release(mark, mark.held_bytes)
        for letter in settled.letters:
            mark = self._mark_of(letter.seq, mark)
            mark.confirmed -= 1
            mark.parked += 1
            self._keep_letter(mark, letter)
        return self._noted(settled.position)

    @property
    def has_pending(self) -> bool:
        """Whether `pending` may have something to offer; cheap."""
        return self._changed

    def pending(self) -> tuple[Cursor, Sequence[DeadLetter]] | None:
        """The cursor to commit and the letters that belong to the same transaction; None when nothing is due."""
        if not self._ahead:
            if self._passed.seq == self.durable.seq:
                return None
            return self._passed, tuple(letter for mark, letter in self._letters if mark.passed)
        if not self._changed:
            return None
        self._join_settled()
        cursor, reach = self._described()
        letters = tuple(letter for _, letter in self._letters if letter.seq <= reach)
        self._changed = len(letters) < len(self._letters)
        return None if cursor == self.durable and not letters else (cursor, letters)

    def committed(self, cursor: Cursor, letters: Sequence[DeadLetter] = ()) -> None:
        """What `pending` or `opened` offered is on disk now."""
        self.durable = cursor
        if letters:
            gone = {id(letter) for letter in letters}
            self._letters = [each for each in self._letters if id(each[1]) not in gone]
            self._held_bytes -= sum(map(_letter_bytes, letters))

    def not_committed(self) -> Cursor | None:
        """What `pending` offered could not be stored, as its letters have no room; it will offer it again.

        Returns the cursor up to the first of the letters, which can be committed without any; None where that is no
        further than the durable one, or is unavailable because the durable one describes points ahead of it.
        """
        self._changed = True
        if self.durable.ahead or self._prior_ahead:
            return None
        passed = [mark for mark, _ in self._letters if mark.passed]
        first = min(passed, key=lambda mark: mark.run.first_seq, default=None)
        cursor = self._passed if first is None or first.before is None else first.before
        return replace(cursor, learnt=self._learnt) if cursor.seq > self.durable.seq else None

    def learn(self, learnt: str) -> None:
        """Has the cursor carry what was learnt of the sink."""
        self._learnt = learnt
        self._changed = True

    # -- the order --------------------------------------------------------------------------------------

    def _noted(self, position: bytes | None) -> bool:
        if position is not None:
            self._position = position
        self._changed = True
        return self._pass() or self._ahead

    def _pass(self) -> bool:
        """Moves the cursor past what is settled from the front; true when there was something."""
        count = next((place for place, mark in enumerate(self._marks) if mark.outstanding), len(self._marks))
        for mark in self._marks[:count]:
            run = mark.run
            mark.passed = True
            mark.before = self._passed
            self._passed = self._passed.passed(
                seq=run.last_seq,
                points_after=run.points_after,
                points=run.points,
                parked=mark.parked,
                position=self._position,
            )
            # What was settled in an earlier life is among what the cursor counts already.
            self._passed = replace(self._passed, confirmed=self._passed.confirmed - run.settled)
            self._prior_ahead -= run.settled
        del self._marks[:count]
        self._changed |= count > 0
        if self._prior_reach and self._passed.seq >= self._prior_reach:
            # Points that were settled ahead, and then lost with a damaged segment, are not skipped: the sink has them.
            self._passed = replace(self._passed, skipped=self._passed.skipped - self._prior_ahead)
            self._prior_ahead, self._prior_reach, self._prior_open = 0, 0, ()
        return count > 0

    def _described(self) -> tuple[Cursor, int]:
        """The cursor with what is settled ahead of it, as much as it may carry; and up to which seq that is."""
        confirmed = parked = settled = 0
        reach, ranges, ranges_then = 0, list[OpenLines](), 0
        last_seq = self._passed.seq
        for mark in self._marks:
            last_seq = mark.run.last_seq
            ranges += _open_ranges(mark)
            if len(ranges) > OPEN_RANGES_MAX and last_seq > self._prior_reach:
                break
            if mark.outstanding < mark.run.points:
                reach, ranges_then = last_seq, len(ranges)
                confirmed += mark.confirmed
                parked += mark.parked
                settled += mark.confirmed + mark.parked
        if self._prior_reach > last_seq:  # not all of what an earlier life described was read again by now
            reach, ranges_then = self._prior_reach, len(ranges)
            unread = [each for each in self._prior_open if each.last_seq > last_seq]
            ranges += [each._replace(first_seq=max(each.first_seq, last_seq + 1)) for each in unread]
            ranges_then = len(ranges)
        cursor = replace(
            self._passed,
            position=self._position,
            confirmed=self._passed.confirmed + confirmed,
            parked=self._passed.parked + parked,
            ahead=self._prior_ahead + settled,
            reach=reach,
            open=tuple(_joined(ranges[:ranges_then])),
            learnt=self._learnt,
        )
        return cursor, max(reach, self._passed.seq)

    def _join_settled(self) -> None:
        """Joins neighbours that are settled: what is settled ahead of a stuck batch must not add up."""
        if len(self._marks) < _JOIN_ABOVE:
            return
        marks: list[_Mark] = []
        for mark in self._marks:
            before = marks[-1] if marks else None
            if before is not None and not before.outstanding and not mark.outstanding:
                run = before.run
                before.run = run._replace(
                    last_seq=mark.run.last_seq,
                    points=run.points + mark.run.points,
                    points_after=mark.run.points_after,
                    settled=run.settled + mark.run.settled,
                )
                before.confirmed += mark.confirmed
                before.parked += mark.parked
            else:
                marks.append(mark)
        self._marks = marks

    # -- where what lies --------------------------------------------------------------------------------

    def _mark_of(self, seq: int, last: _Mark | None = None) -> _Mark:
        """The mark with a seq. `last` is the one that was found before: neighbours are often in the same."""
        if last is not None and last.run.first_seq <= seq <= last.run.last_seq:
            return last
        place = bisect_right(self._marks, seq, key=lambda mark: mark.run.first_seq) - 1
        mark = self._marks[place]
        assert mark.run.first_seq <= seq <= mark.run.last_seq, f"seq {seq} is not on its way"
        return mark

    @staticmethod
    def _mark_in(marks: Sequence[_Mark], seq: int) -> _Mark:
        """The mark with a seq; a slot of one takes what comes, as its parts may be numbered in another way."""
        return next((mark for mark in marks if mark.run.first_seq <= seq <= mark.run.last_seq), marks[0])

    def _keep_letter(self, mark: _Mark, letter: DeadLetter) -> None:
        self._letters.append((mark, letter))
        self._held_bytes += _letter_bytes(letter)

    def _release(self, mark: _Mark, size: int) -> None:
        mark.held_bytes -= size
        self._held_bytes -= size


def _letter_bytes(letter: DeadLetter) -> int:
    return len(letter.line) + len(letter.reason) + _LETTER_BYTES


def _open_ranges(mark: _Mark) -> Iterator[OpenLines]:
    """What of a run is open, in the order of seqs and lines."""
    if mark.outstanding == mark.run.points:
        yield OpenLines(mark.run.first_seq, mark.run.last_seq)
        return
    if not mark.outstanding:
        return
    done: dict[int, list[tuple[int, int]]] = {}
    for part in mark.done:
        done.setdefault(part.seq, []).append((part.first, part.first + part.points))
    for part in mark.parts:
        at = part.first
        for first, end in sorted(done.get(part.seq, ())):
            if part.first <= first < part.first + part.points:
                if at < first:
                    yield OpenLines(part.seq, part.seq, at, first - at)
                at = end
        if at < part.first + part.points:
            yield OpenLines(part.seq, part.seq, at, part.first + part.points - at)


def _joined(ranges: Sequence[OpenLines]) -> Iterator[OpenLines]:
    """Whole entries that follow each other, as one range."""
    before: OpenLines | None = None
    for each in ranges:
        if (
            before is not None
            and not before.lines
            and not each.lines
            and each.first_seq == before.last_seq + 1
        ):
            before = before._replace(last_seq=each.last_seq)
            continue
        if before is not None:
            yield before
        before = each
    if before is not None:
        yield before
