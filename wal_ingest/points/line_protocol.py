"""A body of line protocol in, canonical lines out: which path a body takes, and the stamping.

The fast path works on whole bodies: one match says whether every line has a time (then the body is stored as it
came), or none has (then one replacement stamps them all), or some have (then one substitution stamps the
others). Blank lines, comments and `\\r\\n` are taken out in bulk and the rest is tried again. What no pattern takes
goes to the exact parser, which either brings it to the canonical form or says what is wrong. The two agree to the
byte wherever the fast path accepts; a property test over both engines says so.

A large body goes that way a slice at a time: every single operation holds the interpreter's lock, and 32 MiB of short
lines held everybody up for two seconds. A slice begins where a record begins. When all its lines are good it also ends
where one ends, for the patterns take no record of several lines.

Plain functions of their arguments, but for the learned tag keys, which only ever decide the speed.
"""

from __future__ import annotations

import re

from wal_ingest.errors import PointError
from wal_ingest.points.engine import ENGINES, Engine
from wal_ingest.points.exact import (
    SKIPPED_LINES,
    TIME_NS_MAX,
    TIME_NS_MIN,
    Misfit,
    has_open_quote,
    position_of,
    scan_next,
    too_long,
)
from wal_ingest.points.grammar import ZEROS, Grammar, Shape
from wal_ingest.points.lines import BetweenSlices, Lines, Precision, count_lines, go_on
from wal_ingest.points.reading import GoodLines, Reader, Refused, start_of_long_line
from wal_ingest.points.tag_keys import TagKeys, key_lists_of, lines_with_a_key_twice
from wal_ingest.points.utf8 import first_invalid_byte

# In lines that the grammar took, the text behind the last space is a time, or has the '=' of a field, or ends
# with the quote of a string. (A space within a key stands before that key's '='.) So this finds exactly the
# lines without a time.
_UNTIMED_END = re.compile(rb'("|=[0-9A-Za-z.+-]++)\n')
_TIMED_LINE_END = re.compile(rb" -?[0-9]++(?=\n)")
_SKIPPED_STARTS = (b"\n", b"#", b" ", b"\t", b"\x00")
# A leap over good lines that is shorter than this is tried once more without regard to tag keys.
_LEAP_BYTES_MIN = 16 * 1024

# Large bodies are read in slices of so many bytes, so that their thread can rest in between.
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

    A record of several lines whose strings are closed is left out as a whole; a quote that is never closed costs its
    own line only. Raises PointError when more than `REFUSED_LINES_MAX` lines are bad, or the body is not UTF-8.
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
        reader = Reader(body, precision, now_ns, line_bytes_max, between)
        try:
            self._read(reader)
        except Misfit as exc:
            if has_open_quote(body, exc):
                exc.blame_open_quote()
            raise exc.error(body) from None
        return reader.lines()

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
        check_encoding(body)
        body = body.removeprefix(_BOM)
        reader = Reader(body, precision, now_ns, line_bytes_max, between)
        refused = Refused(body, refusals_max)
        while True:
            try:
                self._read(reader)
            except Misfit as exc:
                reader.go_to(refused.add(exc))
            else:
                return refused.result(reader.lines())

    def _read(self, reader: Reader) -> None:
        """Takes all lines from `reader.start` on. Raises Misfit for the first that cannot be taken.

        Good lines are taken in bulk, and only the others go to the exact parser: one odd or bad line among a thousand
        costs little more than none.
        """
        while True:
            self._leap(reader)
            line, end = scan_next(
                reader.body,
                reader.start,
                unit_ns=reader.precision.value,
                now_ns=reader.now_ns,
                line_bytes_max=reader.line_bytes_max,
            )
            if line is None:
                return
            reader.add(Lines(line, 1), end)

    def _leap(self, reader: Reader) -> None:
        """Takes the good lines from `reader.start` on that bulk operations can take, up to a line that is too long."""
        if reader.precision not in ZEROS:
            return
        while self._take_slice(reader):
            pass
        if reader.start < reader.good_to:
            # Their syntax has been checked; only a tag key that stands twice can be wrong.
            self._take_to(reader, reader.next_doubtful())
            return
        if reader.must_wait():
            return
        body, start = reader.body, reader.start
        until = min(reader.next_long_line(), start + SLICE_BYTES)
        end = self._tag_keys.grammar.end_of_good_lines(body, start, until, reader.precision)
        if end - start < _LEAP_BYTES_MIN:
            # What stopped it is perhaps a list of tag keys that it has not learned.
            further = self._any_keys.end_of_good_lines(body, end, until, reader.precision)
            if further > end:
                self._learn(reader, end, further)
                end = reader.next_doubtful()
        reader.note_leap(end > start)
        self._take_to(reader, end)

    def _take_slice(self, reader: Reader) -> bool:
        """Takes the next slice of a large body if every line of it is good and none has yet been tried."""
        start, body = reader.start, reader.body
        if start < reader.tried_to or len(body) - start <= SLICE_BYTES:
            return False
        end = body.rfind(b"\n", start, min(reader.next_long_line(), start + SLICE_BYTES)) + 1
        reader.tried_to = max(end, start + 1)
        lines = self._take_bulk(body[start:end], reader.precision, reader.now_ns) if end > start else None
        if lines is None:
            return False
        reader.add(lines, end)
        return True

    def _learn(self, reader: Reader, start: int, end: int) -> None:
        """Checks the tag keys of lines that are good otherwise."""
        text = reader.body[start:end]
        lists = key_lists_of(_without_skipped_lines(text))
        free = {keys for keys in lists if len(set(keys)) == len(keys)}
        self._tag_keys.learn(free)
        reader.good_to = end
        if len(free) < len(lists):
            reader.doubtful.extend(start + offset for offset in lines_with_a_key_twice(text))

    def _take_to(self, reader: Reader, end: int) -> None:
        """Takes the lines from `reader.start` on, which are good."""
        if end > reader.start:
            text = reader.body[reader.start : end]
            shape = self._shape_of(text, reader.precision)
            if shape is Shape.MIXED:
                text = _without_skipped_lines(text)
                shape = self._shape_of(text, reader.precision)
            reader.add(_stamped(text, shape, reader.precision, reader.now_ns), end)

    def _shape_of(self, text: bytes, precision: Precision) -> Shape:
        """The shape of good lines. To stamp lines of which only some have a time costs ten times as much as to look."""
        for shape in (Shape.TIMED, Shape.UNTIMED):
            if self._any_keys.matches(text, shape, precision):
                return shape
        return Shape.MIXED

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
    check_encoding(body)


def check_encoding(body: bytes) -> None:
    """Raises PointError when the body is not UTF-8."""
    offset = first_invalid_byte(body)
    if offset is not None:
        line, column = position_of(body, offset)
        raise PointError("invalid UTF-8", line=line, column=column)


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
