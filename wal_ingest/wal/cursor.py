"""What is remembered of each sink: how far it has come, and what it will never take. Pure records."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from wal_ingest.wal.entry import Destination


class OpenLines(NamedTuple):
    """Points that a sink has neither confirmed nor refused, among others after them that it has.

    All points of the entries `first_seq` to `last_seq`; or, where `lines` is not 0, of one entry so many points from
    the one with the number `first_line` (the first is 0).
    """

    first_seq: int
    last_seq: int
    first_line: int = 0
    lines: int = 0


def open_in(ranges: Sequence[OpenLines], seq: int, points: int) -> list[tuple[int, int]]:
    """Which of an entry's points are open, as (first, count); `ranges` are in the order of their seqs."""
    found = []
    for place in range(bisect_left(ranges, seq, key=lambda each: each.last_seq), len(ranges)):
        each = ranges[place]
        if each.first_seq > seq:
            break
        found.append((each.first_line, each.lines) if each.lines else (0, points))
    return found


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to which seq a sink has confirmed (or parked) every point; seq 0 is before the first entry.

    `points` is how many points the WAL had taken up to and including that seq, so a sink's lag in points is a
    subtraction even after the segments are gone. Each of them has gone one of five ways, counted here:

    * `since`: taken before this sink began;
    * `confirmed`: the sink has it;
    * `parked`: it is a dead letter;
    * `skipped`: it could not be read in a damaged segment, or is in no file;
    * `expired`: an operator decided that the sink need not have it.

    `position` is the sink's own (see `outcome.Confirmed`).

    Points after `seq` may be settled before those at it: `ahead` is how many, all of them counted as confirmed or
    parked above. They are all points of the entries up to `reach` but for those that are `open`. `learnt` is what
    delivery has learnt of the sink's refusals, in its own form; it may be dropped at any time.
    """

    seq: int = 0
    points: int = 0
    parked: int = 0
    position: bytes | None = None
    confirmed: int = 0
    skipped: int = 0
    since: int = 0
    expired: int = 0
    ahead: int = 0
    reach: int = 0
    open: tuple[OpenLines, ...] = ()
    learnt: str = ""

    @property
    def settled(self) -> int:
        """Points that do not wait any longer, those ahead of the cursor among them."""
        return self.points + self.ahead

    @property
    def unaccounted(self) -> int:
        """Points that went none of the five ways: 0, or there is a bug, or the file was tampered with."""
        return self.settled - self.since - self.confirmed - self.parked - self.skipped - self.expired

    def passed(
        self, *, seq: int, points_after: int, points: int, parked: int, position: bytes | None
    ) -> Cursor:
        """The cursor behind a settled batch that ends with `seq`.

        The batch has `points` points, `parked` of them dead letters; up to its end the WAL had taken `points_after`.
        What lies between this cursor and the batch was not there to be read.
        """
        return replace(
            self,
            seq=seq,
            points=points_after,
            confirmed=self.confirmed + points - parked,
            parked=self.parked + parked,
            skipped=self.skipped + points_after - points - self.points,
            position=self.position if position is None else position,
        )

    def expired_to(self, *, seq: int, points_after: int, ahead: int = 0) -> Cursor:
        """The cursor after a range that an operator gave up; up to its end the WAL had taken `points_after`.

        `ahead` is how many points after the range are settled; what is settled in it is not given up.
        """
        return replace(
            self,
            seq=seq,
            points=points_after,
            expired=self.expired + points_after - self.points - (self.ahead - ahead),
            ahead=ahead,
            reach=self.reach if self.reach > seq else 0,
            open=tuple(each for each in self.open if each.last_seq > seq),
        )

    def without_letters(self, count: int, *, written: bool) -> Cursor:
        """The cursor after so many dead letters were removed: `written` to the sink after all, or given up."""
        return replace(
            self,
            parked=self.parked - count,
            confirmed=self.confirmed + (count if written else 0),
            expired=self.expired + (0 if written else count),
        )


class DeadLetter(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A point that a sink will never take: its canonical line (with `\\n`), the entry it came with, and why.

    `status` is the sink's code, 0 when it has none; `parked_ns` is Unix time in nanoseconds. `number` counts the
    sink's letters; 0 before it is stored: letters are equal without it. Thousands are made in a second, and a
    dataclass takes ten times as long.
    """

    sink: str
    seq: int
    line: bytes
    reason: str
    status: int
    parked_ns: int
    destination: Destination
    number: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeadLetter) and self._compared() == other._compared()

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        return self.sink, self.seq, self.line, self.reason, self.status, self.parked_ns, self.destination


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a sink from taking points: "retrying", "holding" or "failed", in whose words, and since when.

    `since_ns` is Unix time in nanoseconds.
    """

    state: str
    reason: str
    since_ns: int
