"""The canonical form of points, and how it is cut into entries."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

from wal_ingest.points.records import end_of_records, records_of


class Precision(enum.Enum):
    """The unit of the times in a request; the value is its length in nanoseconds."""

    NS = 1
    US = 1_000
    MS = 1_000_000
    S = 1_000_000_000
    M = 60_000_000_000
    H = 3_600_000_000_000


@dataclass(frozen=True, slots=True)
class Lines:
    """Canonical lines: `data` holds exactly `points` of them, each ended by `\\n` and with its own time.

    A line feed inside a quoted string is part of its line, so there may be more line feeds than points.
    """

    data: bytes
    points: int


BetweenSlices = Callable[[int], None]
"""Called now and then while a large body is read, with the bytes of the lines made so far; it may raise or wait."""


def go_on(_made_bytes: int) -> None:
    """A `BetweenSlices` that does nothing."""


# Lines longer than this are counted faster by `replace`, which leaps from one to the next; the first speaks for all.
_LEAP_BYTES = 32


def count_lines(text: bytes) -> int:
    """How many line feeds there are.

    `bytes.count` looks at every byte by itself: 60 µs for a usual body of a thousand points, where the search that
    `replace` is made of takes 20. Only of many short lines the copying is dearer.
    """
    if text.find(b"\n", 0, _LEAP_BYTES) >= 0:
        return text.count(b"\n")
    return len(text) - len(text.replace(b"\n", b""))


def count_points(lines: bytes) -> int:
    """How many points canonical lines of unknown number are."""
    if b'"' not in lines:
        return count_lines(lines)
    end, count = end_of_records(lines)
    return count if end == len(lines) else count_lines(lines)


def end_of_points(lines: bytes) -> int:
    """The offset after the last whole point of canonical lines that may be cut off within one."""
    return end_of_records(lines)[0] if b'"' in lines else lines.rfind(b"\n") + 1


def split_points(lines: bytes, points: int) -> list[bytes]:
    """Canonical lines cut into their points, each with its `\\n`. Every reader that needs single points calls this.

    Raises ValueError when there are not `points` of them.
    """
    every = lines.split(b"\n")
    every.pop()  # what follows the last line feed: nothing
    if len(every) == points:
        return [point + b"\n" for point in every]
    # Some string has a line feed in it: slower, by the rules of quoting.
    records = list(records_of(lines))
    if len(records) != points:
        raise ValueError(f"{len(records)} points, {points} expected")
    return records


def split_lines(lines: Lines, points_max: int) -> list[Lines]:
    """Cuts lines into pieces of at most `points_max` points, in order; one piece is returned as it is.

    No points give no pieces.
    """
    return list(iter_pieces(lines, points_max))


def iter_pieces(lines: Lines, points_max: int) -> Iterator[Lines]:
    """As `split_lines`, one piece at a time.

    Points become no objects of their own: five million of them in a body of 32 MiB took 600 MiB and held the
    interpreter's lock for half a second.
    """
    data, left = lines.data, lines.points
    if left <= points_max:
        if left:
            yield lines
        return
    if _count_line_feeds(data) == left:
        for match in _pieces_pattern(points_max).finditer(data):
            yield Lines(match[0], min(points_max, left))
            left -= points_max
        return
    # Some string has a line feed in it: slower, by the rules of quoting.
    records, found = records_of(data), 0
    while piece := list(islice(records, points_max)):
        found += len(piece)
        yield Lines(b"".join(piece), len(piece))
    if found != lines.points:
        raise ValueError(f"{found} points, {lines.points} expected")


@cache
def _pieces_pattern(points_max: int) -> re.Pattern[bytes]:
    return re.compile(rb"(?:[^\n]*+\n){1,%d}+" % points_max)


_COUNTED_BYTES = 1024 * 1024


def _count_line_feeds(data: bytes) -> int:
    """In steps: to count 32 MiB at once holds the interpreter's lock for 30 ms."""
    return sum(data.count(b"\n", at, at + _COUNTED_BYTES) for at in range(0, len(data), _COUNTED_BYTES))


def split_at(lines: Lines, points: int) -> tuple[Lines, Lines]:
    """The first `points` points, and the others."""
    first = b"".join(split_points(lines.data, lines.points)[:points])
    return Lines(first, points), Lines(lines.data[len(first) :], lines.points - points)
