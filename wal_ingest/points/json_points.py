"""A JSON body in, canonical lines out: one point, an array of points, or one point a line (NDJSON).

Decoding is typed: the decoder knows the only two shapes there are (see `json_shapes`), and stops at the first
value that does not fit. So nothing is ever built, nor recursed into, that a point cannot hold, however deep a
body is nested; the nesting limit only decides what the refusal says. Where a key stands twice in an object, the
last one counts, as JSON libraries have it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

import msgspec

from wal_ingest.errors import BadRequest, PointError
from wal_ingest.points.json_depth import deeper_than
from wal_ingest.points.json_shapes import AnyPoint, FleetPoint, LineWriter, fleet_lines
from wal_ingest.points.lines import Lines, Precision, split_points

_LINE_BYTES_MAX = 64 * 1024

# Decoders keep no state between calls, so threads share them.
_FLEET_ARRAY = msgspec.json.Decoder(list[FleetPoint])
_ANY_ARRAY = msgspec.json.Decoder(list[AnyPoint])
_FLEET = msgspec.json.Decoder(FleetPoint)
_ANY = msgspec.json.Decoder(AnyPoint)

_FIRST = re.compile(rb"[ \t\r\n]*+(.?)", re.DOTALL)
_FULL_LINE = re.compile(rb"(?m)^[ \t\r]*+[^ \t\r\n][^\n]*+")
_PLACE = re.compile(r" - at `\$(?:\[(\d+)\])?(.*)`\Z", re.DOTALL)


def accept_json(
    body: bytes,
    *,
    now_ns: int,
    precision: Precision = Precision.MS,
    depth_max: int,
    line_bytes_max: int = _LINE_BYTES_MAX,
) -> Lines:
    """The canonical lines of one JSON point or an array of them, whose times are in units of `precision`.

    Points without a timestamp, or with null, get `now_ns` (Unix time in nanoseconds). An empty array gives
    `Lines(b"", 0)`. Raises PointError with the index (0 for a single object) and reason for the first point that
    is malformed or makes a line longer than `line_bytes_max` bytes; BadRequest when the body is no JSON, or is
    nested in more than `depth_max` levels.
    """
    try:
        if _first_character(body) == b"[":
            return _lines(body, _FLEET_ARRAY.decode, _ANY_ARRAY.decode, precision, now_ns, line_bytes_max)
        return _lines(body, _one_fleet, _one_any, precision, now_ns, line_bytes_max)
    except _DECODE_ERRORS as exc:
        _refuse(body, exc, depth_max)


def accept_ndjson(
    body: bytes,
    *,
    now_ns: int,
    precision: Precision = Precision.MS,
    depth_max: int,
    line_bytes_max: int = _LINE_BYTES_MAX,
) -> Lines:
    """The canonical lines of a body with one JSON point a line; blank lines are fine.

    As `accept_json`, but errors name the line, counted from 1.
    """
    try:
        lines = _lines(body, _FLEET.decode_lines, _ANY.decode_lines, precision, now_ns, line_bytes_max)
        if lines.points == _full_lines(body):
            return lines
    except PointError as exc:
        raise PointError(exc.reason, line=_line_number(body, exc.index or 0)) from None
    except _DECODE_ERRORS:
        pass
    # Something is wrong, or an object does not keep to its line. Line by line it shows where.
    _refuse_first_bad_line(body, depth_max)
    raise BadRequest("the body is no NDJSON: it must hold one JSON object a line")


_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError)


def _one_fleet(body: bytes) -> list[FleetPoint]:
    return [_FLEET.decode(body)]


def _one_any(body: bytes) -> list[AnyPoint]:
    return [_ANY.decode(body)]


def _lines(
    body: bytes,
    decode_fleet: Callable[[bytes], list[FleetPoint]],
    decode_any: Callable[[bytes], list[AnyPoint]],
    precision: Precision,
    now_ns: int,
    line_bytes_max: int,
) -> Lines:
    """Decodes and writes: the fleet's shape in bulk, whatever else point by point."""
    try:
        fleet = decode_fleet(body)
    except msgspec.ValidationError:
        points = decode_any(body)
        count = len(points)
        data = LineWriter(precision=precision, now_ns=now_ns).lines(points)
    else:
        count = len(fleet)
        data = fleet_lines(fleet, precision=precision, now_ns=now_ns) if fleet else b""
    if len(data) > line_bytes_max:
        for index, point in enumerate(split_points(data, count)):
            if len(point) - 1 > line_bytes_max:
                reason = f"the point takes more than {line_bytes_max} bytes as a line (server.line_bytes_max)"
                raise PointError(reason, index=index)
    return Lines(data, count)


def _first_character(body: bytes) -> bytes:
    first = _FIRST.match(body)
    if first is None or not first[1]:
        raise BadRequest("the body is empty where JSON was expected")
    return first[1]


def _refuse(body: bytes, exc: Exception, depth_max: int) -> NoReturn:
    """Raises what the sender is told about a body that a decoder refused."""
    if deeper_than(body, depth_max):
        raise BadRequest(
            f"the JSON is nested in more than {depth_max} levels (server.json_depth_max)"
        ) from None
    if isinstance(exc, UnicodeDecodeError):
        raise BadRequest("the JSON holds invalid UTF-8") from None
    if not isinstance(exc, msgspec.ValidationError):
        raise BadRequest(str(exc)) from None
    reason = str(exc)
    place = _PLACE.search(reason)
    if place is None:
        raise PointError(reason, index=0) from None
    where = f" at {place[2].lstrip('.')}" if place[2] else ""
    raise PointError(reason[: place.start()] + where, index=int(place[1] or 0)) from None


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


def _refuse_first_bad_line(body: bytes, depth_max: int) -> None:
    for line in _FULL_LINE.finditer(body):
        try:
            _ANY.decode(line[0])
        except _DECODE_ERRORS as exc:
            number = body.count(b"\n", 0, line.start()) + 1
            try:
                _refuse(line[0], exc, depth_max)
            except PointError as error:
                raise PointError(error.reason, line=number) from None
            except BadRequest as error:
                raise PointError(str(error), line=number) from None
