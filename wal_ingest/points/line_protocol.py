"""A body of line protocol in, canonical lines out: which path a body takes, and the stamping.

The fast path works on whole bodies: one match says whether every line has a time (then the body is stored as it
came), or none has (then one replacement stamps them all), or some have (then one substitution stamps the
others). Blank lines, comments and `\\r\\n` are taken out in bulk and the rest is tried again. What no pattern takes
goes to the exact parser, which either brings it to the canonical form or says what is wrong. The two agree to the
byte wherever the fast path accepts; a property test over both engines says so.

A body of more than `SLICE_BYTES` goes that way a slice at a time: every single operation holds the interpreter's lock,
and 32 MiB of short lines held everybody up for two seconds. A slice begins where a record begins. When all its lines
are good it also ends where one ends, for the patterns take no record of several lines.

Plain functions of their arguments, but for the learned tag keys, which only ever decide the speed.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass

from wal_ingest.errors import PointError
from wal_ingest.points.engine import ENGINES, Engine
from wal_ingest.points.exact import (
    SKIPPED_LINES,
    TIME_NS_MAX,
    TIME_NS_MIN,
    Misfit,
    parse_next,
    position_of,
    scan_next,
    too_long,
)
from wal_ingest.points.grammar import ZEROS, Grammar, Shape
from wal_ingest.points.lines import BetweenSlices, Lines, Precision, count_lines, go_on
from wal_ingest.points.tag_keys import TagKeys, key_lists_of
from wal_ingest.points.utf8 import end_of_valid, first_invalid_byte

# In lines that the grammar took, the text behind the last space is a time, or has the '=' of a field, or ends
# with the quote of a string. (A space within a key stands before that key's '='.) So this finds exactly the
# lines without a time.
_UNTIMED_END = re.compile(rb'("|=[0-9A-Za-z.+-]++)\n')
_TIMED_LINE_END = re.compile(rb" -?[0-9]++(?=\n)")
_SKIPPED_STARTS = (b"\n", b"#", b" ", b"\t", b"\x00")
REFUSED_LINES_MAX = 100_000
"""A body with more bad lines than this is refused whole, so that what is no line protocol costs little time."""

SLICE_BYTES = 64 * 1024

_BOM = b"\xef\xbb\xbf"
_SKIPPED_LINES_ANYWHERE = re.compile(rb"(?m)^" + SKIPPED_LINES.pattern)


def accept_line_protocol(
    body: bytes,
    *,
    precision: Precision,
    now_ns: int,
    line_bytes_max: int,
    between: BetweenSlices = go_on,
) -> Lines:
    """The canonical lines of a body whose times are in units of `precision`. A byte order mark at its start is dropped.

    Lines without a time get `now_ns` (Unix time in nanoseconds, within what InfluxDB takes), rounded down to the
    precision as the reference decoder does. A body without any point gives `Lines(b"", 0)`.

    Raises PointError with line, column and reason for the first line that is malformed, is longer than
    `line_bytes_max` bytes, has a number or a time out of range, or has a tag key twice.
    """
    return _ACCEPTOR.accept(
        body, precision=precision, now_ns=now_ns, line_bytes_max=line_bytes_max, between=between
    )


def accept_line_protocol_fast(
    body: bytes, *, precision: Precision, now_ns: int, line_bytes_max: int
) -> Lines | None:
    """`accept_line_protocol` where bulk operations can do it, else None: then the exact parser has work to do.

    Takes at most a few microseconds a kilobyte, whatever is in the body; the exact parser may take a hundred times
    that. Raises PointError as that does, for what bulk operations can see.
    """
    check_lines(body, line_bytes_max)
    return _ACCEPTOR.accept_fast(body, precision=precision, now_ns=now_ns)


@dataclass(frozen=True, slots=True)
class GoodLines:
    """What could be taken of a body: the good lines, how many were refused, and the first of their reasons.

    `refusals` holds a PointError with line and column for each of the first refused lines, in order.
    """

    lines: Lines
    dropped: int
    refusals: tuple[PointError, ...]


def accept_good_lines(
    body: bytes,
    *,
    precision: Precision,
    now_ns: int,
    line_bytes_max: int,
    refusals_max: int = 5,
    between: BetweenSlices = go_on,
) -> GoodLines:
    """As `accept_line_protocol`, but a line that cannot be taken is left out and reported instead of raised.

    A line with a quote that is not closed is refused up to its line feed; a record whose strings are closed, as a
    whole. Raises PointError when more than `REFUSED_LINES_MAX` lines are bad.
    """
    return _ACCEPTOR.accept_good(
        body,
        precision=precision,
        now_ns=now_ns,
        line_bytes_max=line_bytes_max,
        refusals_max=refusals_max,
        between=between,
    )


class LineProtocol:
    """`accept_line_protocol` over a given engine; any number of threads may call one object at once."""

    def __init__(self, engine: Engine) -> None:
        self._any_keys = Grammar(engine, None)
        self._tag_keys = TagKeys(engine)

    def accept(
        self,
        body: bytes,
        *,
        precision: Precision,
        now_ns: int,
        line_bytes_max: int,
        between: BetweenSlices = go_on,
    ) -> Lines:
        """See `accept_line_protocol`."""
        if not TIME_NS_MIN <= now_ns - now_ns % precision.value <= TIME_NS_MAX:
            raise ValueError(f"now_ns is out of range: {now_ns}")
        check_lines(body, line_bytes_max)
        if len(body) <= SLICE_BYTES:
            lines = self.accept_fast(body, precision=precision, now_ns=now_ns)
            if lines is not None:
                return lines
        body = body.removeprefix(_BOM)
        made, start = _Made(between), 0
        while True:
            start = self._leap(body, start, precision, now_ns, made)
            line, start = parse_next(
                body, start, unit_ns=precision.value, now_ns=now_ns, line_bytes_max=line_bytes_max
            )
            if line is None:
                return made.lines()
            made.add(line, 1, start)

    def accept_good(
        self,
        body: bytes,
        *,
        precision: Precision,
        now_ns: int,
        line_bytes_max: int,
        refusals_max: int,
        between: BetweenSlices = go_on,
    ) -> GoodLines:
        """See `accept_good_lines`. Every byte is read a bounded number of times, whatever is in the body."""
        if len(body) <= SLICE_BYTES:
            try:
                check_lines(body, line_bytes_max)
                lines = self.accept_fast(body, precision=precision, now_ns=now_ns)
                if lines is not None:
                    return GoodLines(lines, 0, ())
            except PointError:
                pass
        body = body.removeprefix(_BOM)
        taken = _Taken(body, refusals_max, between)
        for start, end in _sound_parts(body, line_bytes_max, taken):
            self._take_good(body[start:end], start, precision, now_ns, line_bytes_max, taken)
        return taken.result()

    def _take_good(
        self, part: bytes, offset: int, precision: Precision, now_ns: int, line_bytes_max: int, taken: _Taken
    ) -> None:
        """Takes what is good of a part of a body: valid UTF-8 in whole lines, none of them too long."""
        start = 0
        taken.made.begin()
        while True:
            start = self._leap(part, start, precision, now_ns, taken.made)
            try:
                line, start = scan_next(
                    part, start, unit_ns=precision.value, now_ns=now_ns, line_bytes_max=line_bytes_max
                )
            except Misfit as exc:
                taken.refuse(exc.reason, offset + exc.offset)
                start = exc.resync
                continue
            if line is None:
                return
            taken.made.add(line, 1, start)

    def _leap(self, body: bytes, start: int, precision: Precision, now_ns: int, made: _Made) -> int:
        """Takes the good lines from `start` on in bulk; returns where the first line begins that is not.

        Only the others go to the exact parser: one odd or bad line among a thousand costs little more than none.
        """
        if precision not in ZEROS:
            return start
        while True:
            until = start + SLICE_BYTES
            if start >= made.tried_to:
                # Also takes blank lines and comments, and learns tag keys.
                cut = made.tried_to = body.rfind(b"\n", start, until) + 1
                lines = self._take_bulk(body[start:cut], precision, now_ns) if cut else None
                if lines is not None:
                    made.add(lines.data, lines.points, cut)
                    start = cut
                    continue
            end = self._tag_keys.grammar.end_of_good_lines(body, start, until, precision)
            if end == start:
                return start
            lines = _stamped(body[start:end], Shape.MIXED, precision, now_ns)
            made.add(lines.data, lines.points, end)
            start = end

    def accept_fast(self, body: bytes, *, precision: Precision, now_ns: int) -> Lines | None:
        """The canonical lines when bulk operations can make them, else None; the body must be valid UTF-8."""
        if precision not in ZEROS:
            return None
        text = body.removeprefix(_BOM)
        return self._take_bulk(text if text.endswith(b"\n") else text + b"\n", precision, now_ns)

    def _take_bulk(self, text: bytes, precision: Precision, now_ns: int) -> Lines | None:
        """`accept_fast` for whole lines."""
        lines = self._take(text, precision, now_ns)
        if lines is None:
            plain = _without_skipped_lines(text)
            if plain != text:
                lines = self._take(plain, precision, now_ns) if plain else Lines(b"", 0)
        return lines

    def _take(self, text: bytes, precision: Precision, now_ns: int) -> Lines | None:
        grammar = self._tag_keys.grammar
        # The end of the first line tells which shape to try first; when it misleads, only time is lost.
        first_end = text.find(b"\n")
        last_word = text[text.rfind(b" ", 0, first_end) + 1 : first_end]
        shape = Shape.TIMED if last_word.lstrip(b"-").isdigit() else Shape.UNTIMED
        if not grammar.matches(text, shape, precision):
            shape = Shape.MIXED
            if not grammar.matches(text, shape, precision) and not self._check_keys(text, precision):
                return None
        return _stamped(text, shape, precision, now_ns)

    def _check_keys(self, text: bytes, precision: Precision) -> bool:
        """Whether the lines are fine with tag keys that the grammar has not learned; then it hears of them."""
        if not self._any_keys.matches(text, Shape.MIXED, precision):
            return False
        lists = key_lists_of(text)
        if any(len(set(keys)) < len(keys) for keys in lists):
            return False
        self._tag_keys.learn(lists)
        return True


def check_lines(body: bytes, line_bytes_max: int) -> None:
    """Raises PointError when a line is longer than `line_bytes_max` bytes, or the body is not UTF-8."""
    start = start_of_long_line(body, line_bytes_max)
    if start is not None:
        raise PointError(too_long(line_bytes_max), line=position_of(body, start)[0])
    offset = first_invalid_byte(body)
    if offset is not None:
        line, column = position_of(body, offset)
        raise PointError("invalid UTF-8", line=line, column=column)


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


class _Made:
    """The lines that were made of a body so far.

    `tried_to` is the end of the slice that was last tried as a whole.
    """

    def __init__(self, between: BetweenSlices) -> None:
        self._between = between
        self._out = io.BytesIO()
        self._points = 0
        self._told_to = 0
        self.tried_to = 0

    def begin(self) -> None:
        """Offsets count from the beginning of another part."""
        self._told_to = self.tried_to = 0

    def add(self, data: bytes, points: int, end: int) -> None:
        """Takes lines, which were made of the body up to `end`."""
        self._out.write(data)
        self._points += points
        # A slice ends with a line, so it is a little shorter than it may be.
        if end - self._told_to >= SLICE_BYTES // 2:
            self._told_to = end
            self._between(self._out.tell())

    def lines(self) -> Lines:
        """All of them."""
        return Lines(self._out.getvalue(), self._points)


class _Taken:
    """What was taken of a body and what was refused, so far."""

    def __init__(self, body: bytes, refusals_max: int, between: BetweenSlices) -> None:
        self._body = body
        self._refusals_max = refusals_max
        self._dropped = 0
        self._refusals: list[tuple[int, str]] = []
        self.made = _Made(between)

    def refuse(self, reason: str, offset: int) -> None:
        self._dropped += 1
        if self._dropped > REFUSED_LINES_MAX:
            error = self.result().refusals[0]
            reason = f"{error.reason}, and so on: more than {REFUSED_LINES_MAX} bad lines, so none is taken"
            raise PointError(reason, line=error.line, column=error.column)
        if len(self._refusals) < self._refusals_max:
            self._refusals.append((offset, reason))

    def result(self) -> GoodLines:
        errors = []
        for offset, reason in self._refusals:
            line, column = position_of(self._body, offset)
            errors.append(PointError(reason, line=line, column=column))
        return GoodLines(self.made.lines(), self._dropped, tuple(errors))


def _sound_parts(body: bytes, line_bytes_max: int, taken: _Taken) -> Iterator[tuple[int, int]]:
    """The parts of a body between lines that are too long or no UTF-8, which are refused here."""
    start = 0
    long_line = start_of_long_line(body, line_bytes_max)
    valid_to = end_of_valid(body, 0)
    while start < len(body):
        reason, at = too_long(line_bytes_max), len(body) if long_line is None else long_line
        if valid_to < at:
            reason, at = "invalid UTF-8", valid_to
        bad_line = max(start, body.rfind(b"\n", start, at) + 1) if at < len(body) else len(body)
        if bad_line > start:
            yield start, bad_line
        if at == len(body):
            return
        taken.refuse(reason, at)
        start = body.find(b"\n", at) + 1 or len(body)
        if long_line is not None and long_line < start:
            long_line = start_of_long_line(body, line_bytes_max, start)
        if valid_to < start:
            valid_to = end_of_valid(body, start)


def _without_skipped_lines(text: bytes) -> bytes:
    """The body without blank lines, comments and carriage returns at the ends of lines.

    Safe, because what comes of it is tried with patterns whose lines hold no line feed inside a string. Were one
    of the lines that are taken out here within a string, the line in which that string begins would still be
    there with its quote open, and no pattern takes that.
    """
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    if text[:1] in _SKIPPED_STARTS or any(b"\n" + start in text for start in _SKIPPED_STARTS):
        text = _SKIPPED_LINES_ANYWHERE.sub(b"", text)
    return text


def _stamped(text: bytes, shape: Shape, precision: Precision, now_ns: int) -> Lines:
    """Gives every line its time in nanoseconds. `text` is what a pattern of that shape took."""
    now_units = now_ns // precision.value
    zeros = b"0" * ZEROS[precision]
    if shape is Shape.UNTIMED:
        text = text.replace(b"\n", b" %d\n" % (now_units * precision.value))
    else:
        if zeros:
            text = _with_zeros(text, shape, zeros)
        if shape is Shape.MIXED:
            text = _UNTIMED_END.sub(rb"\g<1> %d\n" % (now_units * precision.value), text)
    return Lines(text, count_lines(text))


def _with_zeros(text: bytes, shape: Shape, zeros: bytes) -> bytes:
    if shape is Shape.TIMED:
        return text.replace(b"\n", zeros + b"\n")
    return _TIMED_LINE_END.sub(rb"\g<0>" + zeros, text)


_ACCEPTOR = LineProtocol(ENGINES[0])
