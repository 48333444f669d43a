"""What a caller may hand over as points, brought to canonical lines. Pure but for the callers' own objects."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

from wal_ingest.errors import PointError
from wal_ingest.points import Lines, Precision
from wal_ingest.points.line_protocol import accept_line_protocol

_UNITS = {"ns": Precision.NS, "us": Precision.US, "ms": Precision.MS, "s": Precision.S}


@runtime_checkable
class HasLineProtocol(Protocol):
    """A point of another library, such as influxdb-client's `Point`.

    Where it has a `write_precision` ("ns", "us", "ms", "s"), its line's time is taken to be in that unit.
    """

    def to_line_protocol(self) -> Any:
        """The point as a line."""


Point = str | bytes | HasLineProtocol
Points = Point | Iterable[Point]


def lines_of(points: Points, *, now_ns: int, line_bytes_max: int) -> Lines:
    """Canonical lines of anything that may be handed over; a line without a time gets `now_ns`.

    Raises PointError for the first line that is malformed, or for an object without fields; its `line` counts from the
    first of what was handed over.
    """
    if isinstance(points, str | bytes):
        return _accept(_bytes(points), Precision.NS, now_ns, line_bytes_max)
    several = [points] if isinstance(points, HasLineProtocol) else list(points)
    pieces = [
        _accept(b"\n".join(_bytes(point) for point in same), unit, now_ns, line_bytes_max)
        for unit, same in groupby(several, key=_unit)
    ]
    if len(pieces) == 1:
        return pieces[0]
    return Lines(b"".join(piece.data for piece in pieces), sum(piece.points for piece in pieces))


def _accept(body: bytes, unit: Precision, now_ns: int, line_bytes_max: int) -> Lines:
    return accept_line_protocol(body, precision=unit, now_ns=now_ns, line_bytes_max=line_bytes_max)


def _bytes(point: Point) -> bytes:
    if isinstance(point, bytes):
        return point
    if isinstance(point, str):
        # Half a surrogate pair becomes what it is, invalid UTF-8, and is refused with its place.
        return point.encode(errors="surrogatepass")
    written = point.to_line_protocol()
    if not written:
        # influxdb-client's way to say so; its own client drops the point without a word.
        raise PointError("a point without fields")
    return _bytes(written)


def _unit(point: Point) -> Precision:
    return _UNITS.get(str(getattr(point, "write_precision", "ns")), Precision.NS)
