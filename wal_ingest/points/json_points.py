"""A JSON body in, canonical lines out: one point, an array of points, or one point a line (NDJSON).

Decoding is typed: the decoder knows the only two shapes there are (see `json_shapes`), and stops at the first
value that does not fit. So nothing is ever built, nor recursed into, that a point cannot hold, however deep a
body is nested; the nesting limit only decides what the refusal says. Where a key stands twice in an object, the
last one counts, as JSON libraries have it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from typing import NoReturn

import msgspec

from wal_ingest.errors import BadRequest, PointError
from wal_ingest.points.json_depth import deeper_than
from wal_ingest.points.json_shapes import AnyPoint, FleetPoint, LineWriter, fleet_lines
from wal_ingest.points.json_slices import (
    SLICE_BYTES,
    array_slices,
    first_character_at,
    has_too_many_names,
    line_slices,
)
from wal_ingest.points.json_words import malformed_reason, value_reason
from wal_ingest.points.lines import BetweenSlices, Lines, Precision, go_on, split_points

_LINE_BYTES_MAX = 64 * 1024

# Decoders keep no state between calls, so threads share them.
_FLEET_ARRAY = msgspec.json.Decoder(list[FleetPoint])
_ANY_ARRAY = msgspec.json.Decoder(list[AnyPoint])
_FLEET = msgspec.json.Decoder(FleetPoint)
_ANY = msgspec.json.Decoder(AnyPoint)

_LAST_BRACKET = re.compile(rb"\][ \t\r\n]*+\Z")
_FULL_LINE = re.compile(rb"(?m)^[ \t\r]*+[^ \t\r\n][^\n]*+")
_PLACE = re.compile(r" - at `\$(?:\[(\d+)\])?(.*)`\Z", re.DOTALL)

# Telegraf's batches: the array is the value of the only name.
_TELEGRAF_BATCH = re.compile(rb'\{[ \t\r\n]{0,65536}+"metrics"[ \t\r\n]{0,65536}+:[ \t\r\n]{0,65536}+\[')
_TELEGRAF_END = re.compile(rb"\][ \t\r\n]*+\}[ \t\r\n]*+\Z")


def accept_json(
    body: bytes,
    *,
    now_ns: int,
    precision: Precision | None = None,
    depth_max: int,
    line_bytes_max: int = _LINE_BYTES_MAX,
    between: BetweenSlices = go_on,
) -> Lines:
    """The canonical lines of one JSON point, an array of them, or a batch of Telegraf's.

    Times are in units of `precision`, without one in milliseconds, or in Telegraf's shape in the unit that their size
    shows. Points without a timestamp, or with null, get `now_ns` (Unix time in nanoseconds). An empty array gives
    `Lines(b"", 0)`. Raises PointError with the index (0 for a single object) and reason for the first point that
    is malformed or makes a line longer than `line_bytes_max` bytes; BadRequest when the body is no JSON, or is
    nested in more than `depth_max` levels.
    """
    writer = _Writer(precision, now_ns, line_bytes_max)
    if SLICE_BYTES < len(body) <= _WHOLE_FLEET_BYTES_MAX:
        # To find where a slice ends takes as long as to decode it. The fleet's shape has no short elements: of that a
        # usual body is little work; what is not that shape the decoder finds out at its first element.
        with contextlib.suppress(*_DECODE_ERRORS):
            return writer.lines(body, _FLEET_ARRAY.decode, _no_other_shape)
    points, data = 0, io.BytesIO()
    for piece, decode_fleet, decode_any in _pieces(body):
        try:
            _check_names(piece, line_bytes_max, depth_max)
            lines = writer.lines(piece, decode_fleet, decode_any)
        except _DECODE_ERRORS as exc:
            _refuse(piece, exc, depth_max, points)
        except PointError as exc:
            if exc.reason == _too_deep(depth_max):
                raise BadRequest(exc.reason) from None
            raise PointError(exc.reason, index=points + (exc.index or 0)) from None
        data.write(lines.data)
        between(data.tell())
        points += lines.points
    return Lines(data.getvalue(), points)


def accept_ndjson(
    body: bytes,
    *,
    now_ns: int,
    precision: Precision | None = None,
    depth_max: int,
    line_bytes_max: int = _LINE_BYTES_MAX,
    between: BetweenSlices = go_on,
) -> Lines:
    """The canonical lines of a body with one JSON point a line; blank lines are fine.

    As `accept_json`, but errors name the line, counted from 1.
    """
    writer = _Writer(precision, now_ns, line_bytes_max)
    points, before, data = 0, 0, io.BytesIO()
    for piece in line_slices(body):
        lines = _ndjson_lines(writer, piece, before, depth_max)
        data.write(lines.data)
        between(data.tell())
        points += lines.points
        before += piece.count(b"\n")
    return Lines(data.getvalue(), points)


def _ndjson_lines(writer: _Writer, piece: bytes, before: int, depth_max: int) -> Lines:
    """The lines of some of the body's lines, which `before` others precede."""
    try:
        _check_names(piece, writer.line_bytes_max, depth_max)
        lines = writer.lines(piece, _FLEET.decode_lines, _ANY.decode_lines)
        if lines.points == _full_lines(piece):
            return lines
    except PointError as exc:
        raise PointError(exc.reason, line=before + _line_number(piece, exc.index or 0)) from None
    except _DECODE_ERRORS:
        pass
    # Something is wrong, or an object does not keep to its line. Line by line it shows where.
    _refuse_first_bad_line(piece, before, depth_max)
    raise BadRequest("the body is no NDJSON: it must hold one JSON object a line")


_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError)
_Fleet = Callable[[bytes], list[FleetPoint]]
_Any = Callable[[bytes], list[AnyPoint]]


def _pieces(body: bytes) -> Iterator[tuple[bytes, _Fleet, _Any]]:
    """The body in pieces that are decoded one after the other, each with its decoders."""
    at = first_character_at(body)
    first = body[at : at + 1]
    if not first:
        raise BadRequest("the body is empty where JSON was expected")
    batch = _TELEGRAF_BATCH.match(body, at) if first == b"{" else None
    if first == b"[":
        start, ending = at + 1, _LAST_BRACKET
    elif batch is not None:
        start, ending = batch.end(), _TELEGRAF_END
    else:
        yield body, _one_fleet, _one_any
        return
    end = ending.search(body, max(start, len(body) - _ENDING_BYTES_MAX))
    if end is None:
        # Not closed near its end: the decoder finds what is wrong, or that there is only white space.
        end = ending.search(body, start)
    if end is None:
        yield from _unclosed(body, start)
        return
    for piece in array_slices(body, start, end.start()):
        yield piece, _FLEET_ARRAY.decode, _ANY_ARRAY.decode


_ENDING_BYTES_MAX = 256
_WHOLE_FLEET_BYTES_MAX = 128 * 1024


def _no_other_shape(_body: bytes) -> list[AnyPoint]:
    raise msgspec.DecodeError


def _unclosed(body: bytes, start: int) -> Iterator[tuple[bytes, _Fleet, _Any]]:
    """What is whole of an array that is cut short, to find a bad element before the end is found missing."""
    for piece in array_slices(body, start, len(body), is_closed=False):
        yield piece, _FLEET_ARRAY.decode, _ANY_ARRAY.decode
    raise BadRequest("the JSON is malformed: the array is not closed")


def _check_names(piece: bytes, line_bytes_max: int, depth_max: int) -> None:
    """Raises PointError when a piece, which is one large point then, has more names than a line can hold."""
    if has_too_many_names(piece, line_bytes_max):
        if deeper_than(piece, depth_max):
            raise PointError(_too_deep(depth_max), index=0)
        raise PointError(_too_long(line_bytes_max), index=0)


def _too_deep(depth_max: int) -> str:
    return f"the JSON is nested in more than {depth_max} levels (server.json_depth_max)"


def _one_fleet(body: bytes) -> list[FleetPoint]:
    return [_FLEET.decode(body)]


def _one_any(body: bytes) -> list[AnyPoint]:
    return [_ANY.decode(body)]


def _too_long(line_bytes_max: int) -> str:
    return f"the point takes more than {line_bytes_max} bytes as a line (server.line_bytes_max)"


class _Writer:
    """Decodes pieces of one body and writes them: the fleet's shape in bulk, everything else point by point."""

    def __init__(self, precision: Precision | None, now_ns: int, line_bytes_max: int) -> None:
        self._precision = precision
        self._now_ns = now_ns
        self.line_bytes_max = line_bytes_max
        self.too_long = _too_long(line_bytes_max)

    def lines(self, piece: bytes, decode_fleet: _Fleet, decode_any: _Any) -> Lines:
        """The lines of one piece. Raises PointError with the index in the piece, and what the decoders raise."""
        try:
            fleet = decode_fleet(piece)
        except msgspec.ValidationError:
            points = decode_any(piece)
            data = LineWriter(precision=self._precision, now_ns=self._now_ns).lines(points)
            count = len(points)
        else:
            precision = self._precision or Precision.MS
            data = fleet_lines(fleet, precision=precision, now_ns=self._now_ns) if fleet else b""
            count = len(fleet)
        if len(data) > self.line_bytes_max:
            for index, point in enumerate(split_points(data, count)):
                if len(point) - 1 > self.line_bytes_max:
                    raise PointError(self.too_long, index=index)
        return Lines(data, count)


def _refuse(body: bytes, exc: Exception, depth_max: int, before: int = 0) -> NoReturn:
    """Raises what a body is refused with that a decoder did not take; `before` points precede it."""
    if deeper_than(body, depth_max):
        raise BadRequest(_too_deep(depth_max)) from None
    if isinstance(exc, UnicodeDecodeError):
        raise BadRequest("the JSON holds invalid UTF-8") from None
    if not isinstance(exc, msgspec.ValidationError):
        raise BadRequest(malformed_reason(str(exc))) from None
    reason = str(exc)
    place = _PLACE.search(reason)
    if place is None:
        raise PointError(value_reason(reason), index=before) from None
    where = f" at {place[2].lstrip('.')}" if place[2] else ""
    raise PointError(
        value_reason(reason[: place.start()]) + where, index=before + int(place[1] or 0)
    ) from None


def _full_lines(body: bytes) -> int:
    """How many lines are not blank."""
    lines = body.count(b"\n") + (not body.endswith(b"\n") and bool(body))
    if b"\n\n" in body or b"\r" in body or body[:1] in (b"\n", b" ", b"\t") or body[-1:] in (b" ", b"\t"):
        lines = sum(1 for _ in _FULL_LINE.finditer(body))
    return lines


def _line_number(body: bytes, index: int) -> int:
    """The number, from 1, of the line that holds the point of that index."""
    for count, line in enumerate(_FULL_LINE.finditer(body)):
        if count == index:
            return body.count(b"\n", 0, line.start()) + 1
    return 1


def _refuse_first_bad_line(body: bytes, before: int, depth_max: int) -> None:
    for line in _FULL_LINE.finditer(body):
        try:
            _ANY.decode(line[0])
        except _DECODE_ERRORS as exc:
            number = before + body.count(b"\n", 0, line.start()) + 1
            try:
                _refuse(line[0], exc, depth_max)
            except PointError as error:
                raise PointError(error.reason, line=number) from None
            except BadRequest as error:
                raise PointError(str(error), line=number) from None
