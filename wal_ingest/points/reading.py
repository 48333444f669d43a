"""How far a body of line protocol has been read, what was taken of it, and what was refused."""

from __future__ import annotations

import io
from collections import deque
from dataclasses import dataclass

from wal_ingest.errors import PointError
from wal_ingest.points.exact import Misfit, has_open_quote
from wal_ingest.points.lines import BetweenSlices, Lines, Precision

REFUSED_LINES_MAX = 100_000
"""A body with more bad lines than this is refused whole, so that a body that is not line protocol costs little time."""

# A slice ends with a line, so it is a little shorter than it may be.
TELL_BYTES = 32 * 1024

_PAUSE_LINES_MAX = 16
# Lines after a quote that was not closed are read a second time, but no more bytes in all than so many times the body.
_READ_AGAIN_TIMES_MAX = 4


@dataclass(frozen=True, slots=True)
class GoodLines:
    """What could be taken of a body: the good lines, how many were refused, and the first of their reasons.

    `refusals` holds a PointError with line and column for each of the first refused lines, in order, `starts` where
    those lines begin in the body.
    """

    lines: Lines
    dropped: int
    refusals: tuple[PointError, ...]
    starts: tuple[int, ...] = ()


class Reader:
    """How far a body has been read, and what was taken of it.

    Every line from `start` to `good_to` is known to be fine but for its tag keys; `doubtful` are the starts of those
    that have a key twice. `tried_to` is the end of the slice that was last tried as a whole. `between` is called at
    least once for each `TELL_BYTES` of the body, unless a single record is larger.
    """

    def __init__(
        self, body: bytes, precision: Precision, now_ns: int, line_bytes_max: int, between: BetweenSlices
    ) -> None:
        self.body = body
        self.precision = precision
        self.now_ns = now_ns
        self.line_bytes_max = line_bytes_max
        self.start = 0
        self.good_to = 0
        self.tried_to = 0
        self.doubtful: deque[int] = deque()
        self._long_line = start_of_long_line(body, line_bytes_max)
        self._pause = self._waited = 0
        self._made = io.BytesIO()
        self._points = 0
        self._between = between
        self._told_to = 0

    def add(self, lines: Lines, end: int) -> None:
        """Takes lines that were made of the body from `start` to `end`, and goes on there."""
        self._made.write(lines.data)
        self._points += lines.points
        self.go_to(end)

    def go_to(self, end: int) -> None:
        """What is before `end` was taken or refused."""
        self.start = end
        if end - self._told_to >= TELL_BYTES:
            self._told_to = end
            self._between(self._made.tell())

    def next_doubtful(self) -> int:
        """Where the good lines end for now."""
        while self.doubtful and self.doubtful[0] < self.start:
            self.doubtful.popleft()
        return self.doubtful[0] if self.doubtful else self.good_to

    def next_long_line(self) -> int:
        """Where the next line begins that is longer than the limit; the end of the body without one."""
        if self._long_line is not None and self._long_line < self.start:
            self._long_line = start_of_long_line(self.body, self.line_bytes_max, self.start)
        return len(self.body) if self._long_line is None else self._long_line

    def must_wait(self) -> bool:
        """Whether the next line goes to the exact parser untried, because the lines before it had to."""
        self._waited += 1
        return self._waited <= self._pause

    def note_leap(self, is_any: bool) -> None:
        """Where nothing could be taken in bulk, twice as many lines pass until that is tried again."""
        self._pause = 0 if is_any else min(2 * self._pause + 1, _PAUSE_LINES_MAX)
        self._waited = 0

    def lines(self) -> Lines:
        """All that was taken."""
        return Lines(self._made.getvalue(), self._points)


class Refused:
    """What was refused of a body so far, and where to go on after it."""

    def __init__(self, body: bytes, refusals_max: int) -> None:
        self._body = body
        self._refusals_max = refusals_max
        self._dropped = 0
        self._refusals: list[PointError] = []
        self._starts: list[int] = []
        self._counted_to, self._line = 0, 1
        self._read_again = 0

    def add(self, misfit: Misfit) -> int:
        """Takes note of a record that is refused; returns where the next one may begin.

        Raises PointError when there were too many.
        """
        self._dropped += 1
        if self._dropped > REFUSED_LINES_MAX:
            first = self._refusals[0]
            reason = f"{first.reason}, and so on: more than {REFUSED_LINES_MAX} bad lines, so none is taken"
            raise PointError(reason, line=first.line, column=first.column)
        # What stands in a string must never be taken for points, so a record whose strings are closed is passed over
        # as a whole. After a quote that was never closed, the lines that it seemed to hold are read again.
        may_read_again = self._read_again < _READ_AGAIN_TIMES_MAX * len(self._body)
        if may_read_again and has_open_quote(self._body, misfit):
            misfit.blame_open_quote()
        self._read_again += max(0, misfit.read_to - misfit.record_end)
        if len(self._refusals) < self._refusals_max:
            self._describe(misfit)
        return misfit.record_end

    def result(self, lines: Lines) -> GoodLines:
        """The outcome, with the lines that were taken."""
        return GoodLines(lines, self._dropped, tuple(self._refusals), tuple(self._starts))

    def _describe(self, misfit: Misfit) -> None:
        start = self._body.rfind(b"\n", 0, misfit.offset) + 1
        self._line += self._body.count(b"\n", self._counted_to, start)
        self._counted_to = start
        self._refusals.append(PointError(misfit.reason, line=self._line, column=misfit.offset - start + 1))
        self._starts.append(start)


def start_of_long_line(body: bytes, line_bytes_max: int, start: int = 0) -> int | None:
    """Where the first line from `start` on begins that is longer than the limit, its line feed not counted.

    None without one. It goes in leaps of the limit, so 32 MiB take few steps.
    """
    while len(body) - start > line_bytes_max:
        line_end = body.rfind(b"\n", start, start + line_bytes_max + 1)
        if line_end < 0:
            return start
        start = line_end + 1
    return None
