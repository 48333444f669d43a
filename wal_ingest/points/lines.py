"""The canonical form of points, and how it is cut into entries."""

from __future__ import annotations

import enum
from dataclasses import dataclass

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

    Bulk work: one pass of `bytes.split` over the body when it must be cut at all. No points give no pieces.
    """
    if lines.points <= points_max:
        return [lines] if lines.points else []
    every, end = lines.data.split(b"\n"), b"\n"
    every.pop()  # what follows the last line feed: nothing
    if len(every) != lines.points:
        every, end = split_points(lines.data, lines.points), b""
    pieces = []
    for start in range(0, len(every), points_max):
        part = every[start : start + points_max]
        pieces.append(Lines(end.join(part) + end, len(part)))
    return pieces


def split_at(lines: Lines, points: int) -> tuple[Lines, Lines]:
    """The first `points` points, and the others."""
    first = b"".join(split_points(lines.data, lines.points)[:points])
    return Lines(first, points), Lines(lines.data[len(first) :], lines.points - points)
