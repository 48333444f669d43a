"""The exact parser: line by line, naming line, column and reason, and writing the canonical form.

It follows the reference decoder step by step and shares no pattern with `grammar`, so that the property test
of one against the other means something. It is the slow path (some µs a line): bodies that a fast pattern took
never come here. Every pattern below is possessive, so it is linear on hostile input too.

Differences from the reference decoder that are kept, each because InfluxDB 1 and 2 read it so:

* Control characters, tabs and NUL among them, are part of a name, of a tag value and of a comment. Before a
  measurement, the fields and a time, tabs and NULs count as spaces.
* An even run of backslashes before a space, comma or equals sign is read, in a tag key and a tag value, as backslashes
  and an escaped character. In a field key it is refused: InfluxDB ends the key there. In a measurement it is refused,
  too: InfluxDB answers 204, and no query finds the point.
* A record that InfluxDB would not end at its last line feed is refused by name (see `records`).
"""

from __future__ import annotations

import re
from typing import NoReturn

from wal_ingest.errors import PointError
from wal_ingest.points.lines import Lines
from wal_ingest.points.records import ends_as_one_record

TIME_NS_MIN = -9_223_372_036_854_775_806
TIME_NS_MAX = 9_223_372_036_854_775_806
"""The times that InfluxDB takes: two less than int64 at one end and one less at the other."""

# Lines without a point, however many in a row: blank or a comment.
SKIPPED_LINES = re.compile(rb"(?:[ \t\x00]*+(?:#[^\n]*+)?+\r?+\n)++")
_LAST_SKIPPED = re.compile(rb"[ \t\x00]*+(?:#[^\n]*+)?+\r?+\Z")

_SPACES = re.compile(rb" *+")
_BLANKS = re.compile(rb"[ \t\x00]*+")
_END_OF_LINE = re.compile(rb"\r?+(?:\n|\Z)")
_MEASUREMENT = re.compile(rb"(?:[^\\, \n]|\\[, ]|\\)*+")
_KEY = re.compile(rb"(?:[^\\,= \n]|\\[,= ]|\\)*+")
_EVEN_RUN = re.compile(rb"(?<!\\)(?:\\\\)++[,= ]")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_AFTER_STRING = frozenset({b",", b" ", b"\r", b"\n", b""})
_WORD = re.compile(rb"[^, \r\n]*+")
_TIME = re.compile(rb"-?[0-9]++")

_INTEGER = re.compile(rb"-?[0-9]+i")
_UNSIGNED = re.compile(rb"[0-9]+u")
_FLOAT = re.compile(rb"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLEANS = frozenset({b"t", b"T", b"true", b"True", b"TRUE", b"f", b"F", b"false", b"False", b"FALSE"})
_INT_DIGITS_MAX = 20
_NO_CLOSING_QUOTE = "the quoted string has no closing quote"


class Misfit(Exception):
    """What is wrong with a record, and at which offset of the body.

    `line_end` is the offset after the record's first line, `record_end` that after the line on which its last string
    was closed, which is the same for a record of one line. `quote` is where the last string begins that has a line feed
    in it, `read_to` how far the body was read.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset
        self.line_end = self.record_end = self.read_to = offset
        self.quote: int | None = None

    def blame_open_quote(self) -> None:
        """Makes this about the quote: what was found after it is no part of its record."""
        if self.quote is not None:
            self.reason, self.offset, self.record_end = _NO_CLOSING_QUOTE, self.quote, self.line_end

    def error(self, body: bytes) -> PointError:
        """The same with line and column, which take a pass over the body to count."""
        line, column = position_of(body, self.offset)
        return PointError(self.reason, line=line, column=column)


def parse_lines(body: bytes, *, unit_ns: int, now_ns: int, line_bytes_max: int | None = None) -> Lines:
    """The canonical lines of a body of valid UTF-8 whose times are in units of `unit_ns` nanoseconds.

    Lines without a time get `now_ns`, rounded down to the unit. Raises PointError at the first bad line.
    """
    out: list[bytes] = []
    position = 0
    while True:
        line, position = parse_next(
            body, position, unit_ns=unit_ns, now_ns=now_ns, line_bytes_max=line_bytes_max
        )
        if line is None:
            return Lines(b"".join(out), len(out))
        out.append(line)


def parse_next(
    body: bytes, start: int, *, unit_ns: int, now_ns: int, line_bytes_max: int | None = None
) -> tuple[bytes | None, int]:
    """The first point from `start` on, which begins a line, as a canonical line, and where its own line ends.

    None when there is no other point. Raises PointError as `parse_lines` does; line numbers count from the
    beginning of the body.
    """
    try:
        return scan_next(body, start, unit_ns=unit_ns, now_ns=now_ns, line_bytes_max=line_bytes_max)
    except Misfit as exc:
        raise exc.error(body) from None


def scan_next(
    body: bytes, start: int, *, unit_ns: int, now_ns: int, line_bytes_max: int | None = None
) -> tuple[bytes | None, int]:
    """As `parse_next`, but raises Misfit, which costs no pass over the body."""
    scanner = _Scanner(body, start)
    if not scanner.skip_to_point():
        return None, len(body)
    start = scanner.position
    try:
        tags_end = scanner.take_measurement_and_tags()
        fields_start, fields_end = scanner.take_fields()
        time = scanner.take_time(unit_ns)
        if line_bytes_max is not None and scanner.position - start - 1 > line_bytes_max:
            raise Misfit(too_long(line_bytes_max), start)
        if time is None:
            time = now_ns - now_ns % unit_ns
        line = b"%b %b %d\n" % (body[start:tags_end], body[fields_start:fields_end], time)
        if scanner.even_run is not None and not ends_as_one_record(line):
            raise Misfit(
                "an even number of backslashes before a space, comma or '=', and a quote after it: "
                "InfluxDB would take the lines that follow for a part of this one",
                scanner.even_run,
            )
    except Misfit as exc:
        exc.line_end = exc.record_end = body.find(b"\n", start) + 1 or len(body)
        exc.quote = scanner.quote
        exc.read_to = max(exc.offset, scanner.position)
        if scanner.strings_end > exc.line_end:
            exc.record_end = body.find(b"\n", scanner.strings_end) + 1 or len(body)
        elif exc.offset >= exc.line_end:
            exc.blame_open_quote()
        raise
    return line, scanner.position


def has_open_quote(body: bytes, misfit: Misfit) -> bool:
    """Whether the last quote before a line feed was never closed, in a refused record of several lines.

    It was not where the line on which its string seems to end is a good line by itself: then the quote that ended it
    is the first one of a string on that line. (A line that begins within a string has an odd number of quotes, so it
    is no good line.)
    """
    if misfit.record_end <= misfit.line_end:
        return False
    last_line = body.rfind(b"\n", 0, misfit.record_end - 1) + 1
    text = body[last_line : misfit.record_end]
    try:
        line, end = scan_next(text, 0, unit_ns=1, now_ns=0)
    except Misfit:
        return False
    return line is not None and end == len(text)


def too_long(line_bytes_max: int) -> str:
    """The reason against a line that is longer than the limit."""
    return f"the line is longer than {line_bytes_max} bytes (server.line_bytes_max)"


def position_of(body: bytes, offset: int) -> tuple[int, int]:
    """Line and column of a byte, both counted from 1, the column in bytes."""
    return body.count(b"\n", 0, offset) + 1, offset - body.rfind(b"\n", 0, offset)


class _Scanner:
    """A position in a body, moved forward by what is taken; every `take` raises Misfit on a mismatch.

    `even_run` is where the first even run of backslashes before a special character stands, outside strings.
    `strings_end` is the offset after the last string that was closed and followed by what may follow one, `quote` the
    start of the last string with a line feed in it.
    """

    def __init__(self, body: bytes, position: int) -> None:
        self._body = body
        self.position = position
        self.even_run: int | None = None
        self.strings_end = 0
        self.quote: int | None = None

    def skip_to_point(self) -> bool:
        """Goes to the start of the next point, past blank lines and comments; False at the end of the body."""
        skipped = SKIPPED_LINES.match(self._body, self.position)
        if skipped:
            self.position = skipped.end()
        if _LAST_SKIPPED.match(self._body, self.position):
            return False
        self._skip(_BLANKS)
        return True

    def take_measurement_and_tags(self) -> int:
        """Returns the offset behind the last tag."""
        start = self.position
        if self._take(_MEASUREMENT) == start:
            self._refuse(f"{self._found()} where a measurement name should begin")
        self._refuse_backslashes(
            start, "measurement", "InfluxDB would take the point, but no query would find it"
        )
        keys: set[bytes] = set()
        while self._next() == b",":
            self.position += 1
            self._take_tag(keys)
        if self._next() != b" ":
            self._refuse(f"{self._found()} where a space and the fields should follow")
        return self.position

    def take_fields(self) -> tuple[int, int]:
        """Returns the offsets of the first field and behind the last."""
        self._skip(_BLANKS)
        start = self.position
        self._take_field()
        while self._next() == b",":
            self.position += 1
            self._take_field()
        return start, self.position

    def take_time(self, unit_ns: int) -> int | None:
        """Takes the rest of the line; returns its time in nanoseconds, or None when it has none."""
        end = self.position
        if self._next() == b" ":
            self._skip(_BLANKS)
        if self._take_end_of_line():
            return None
        if self.position == end:
            self._refuse(f"{self._found()} where the field value should end")
        start = self.position
        if self._take(_TIME) == start:
            self._refuse(f"{self._found()} where a time should begin")
        text = self._body[start : self.position]
        end = self.position
        self._skip(_SPACES)
        if not self._take_end_of_line():
            what = "within the time" if self.position == end else "behind the time"
            self._refuse(f"{self._found()} {what}, where the line should end")
        value = _integer_in_range(text, TIME_NS_MIN // unit_ns - 1, TIME_NS_MAX // unit_ns + 1)
        if value is None or not TIME_NS_MIN <= value * unit_ns <= TIME_NS_MAX:
            self._refuse("the time is out of range", at=start)
        return value * unit_ns

    def _take_tag(self, keys: set[bytes]) -> None:
        start = self.position
        if self._take(_KEY) == start:
            self._refuse(f"{self._found()} where a tag key should begin")
        self._note_backslashes(start)
        key = self._body[start : self.position]
        if self._next() != b"=":
            self._refuse(f"{self._found()} where '=' should follow the tag key")
        if key in keys:
            self._refuse("the tag key stands twice in this line", at=start)
        keys.add(key)
        self.position += 1
        start = self.position
        if self._take(_KEY) == start:
            self._refuse(f"{self._found()} where a tag value should begin (it cannot be empty)")
        self._note_backslashes(start)

    def _take_field(self) -> None:
        start = self.position
        if self._take(_KEY) == start:
            self._refuse(f"{self._found()} where a field key should begin")
        self._refuse_backslashes(start, "field key", "InfluxDB ends the key there")
        if self._next() != b"=":
            self._refuse(f"{self._found()} where '=' should follow the field key")
        self.position += 1
        start = self.position
        if self._next() == b'"':
            if self._take(_STRING) == start:
                self.position = len(self._body)
                self._refuse(_NO_CLOSING_QUOTE, at=start)
            if self._body.find(b"\n", start, self.position) >= 0:
                self.quote = start
            if self._next() in _AFTER_STRING:
                self.strings_end = self.position
            return
        self._take(_WORD)
        reason = _reason_against(self._body[start : self.position])
        if reason:
            self._refuse(reason, at=start)

    def _note_backslashes(self, start: int) -> None:
        if self.even_run is None:
            run = _EVEN_RUN.search(self._body, start, self.position)
            if run:
                self.even_run = run.start()

    def _refuse_backslashes(self, start: int, what: str, why: str) -> None:
        run = _EVEN_RUN.search(self._body, start, self.position)
        if run:
            self._refuse(
                f"an even number of backslashes before a space, comma or '=' in a {what}: {why}; "
                "write '/' for the backslashes, or leave out the last one",
                at=run.start(),
            )

    def _skip(self, pattern: re.Pattern[bytes]) -> None:
        self._take(pattern)

    def _take(self, pattern: re.Pattern[bytes]) -> int:
        """Moves behind what matches here, if anything does; returns the new position."""
        match = pattern.match(self._body, self.position)
        if match:
            self.position = match.end()
        return self.position

    def _take_end_of_line(self) -> bool:
        match = _END_OF_LINE.match(self._body, self.position)
        if match:
            self.position = match.end()
        return match is not None

    def _next(self) -> bytes:
        return self._body[self.position : self.position + 1]

    def _found(self) -> str:
        """What stands at the position, for a reason's first words."""
        here = self._next()
        if not here:
            return "the end of the body"
        if here == b"\n" or _END_OF_LINE.match(self._body, self.position):
            return "the end of the line"
        if here == b" ":
            return "a space"
        if here < b" " or here == b"\x7f":
            return f"the control character 0x{here[0]:02x}"
        # Part of a character beyond ASCII is shown whole: the body is valid UTF-8.
        return repr(self._body[self.position : self.position + 4].decode("utf-8", "ignore")[:1])

    def _refuse(self, reason: str, *, at: int | None = None) -> NoReturn:
        raise Misfit(reason, self.position if at is None else at)


def _reason_against(word: bytes) -> str:
    """Why an unquoted field value is refused; empty when it is fine."""
    if word in _BOOLEANS:
        return ""
    if not word:
        return "the field value is missing"
    if _FLOAT.fullmatch(word):
        return "the float is out of range" if float(word) in (float("inf"), float("-inf")) else ""
    if _INTEGER.fullmatch(word):
        in_range = _integer_in_range(word[:-1], -(2**63), 2**63 - 1) is not None
        return "" if in_range else "the integer is out of range"
    if _UNSIGNED.fullmatch(word):
        in_range = _integer_in_range(word[:-1], 0, 2**64 - 1) is not None
        return "" if in_range else "the unsigned integer is out of range"
    return "the field value is neither a number, nor a boolean, nor a quoted string"


def _integer_in_range(text: bytes, least: int, most: int) -> int | None:
    """The integer, or None when it is out of range; however many digits it has, this costs one pass."""
    digits = text.lstrip(b"-").lstrip(b"0") or b"0"
    if len(digits) > _INT_DIGITS_MAX:
        return None
    value = -int(digits) if text.startswith(b"-") else int(digits)
    return value if least <= value <= most else None
