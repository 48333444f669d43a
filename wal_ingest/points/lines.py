"""The canonical form of points, and how it is cut into entries."""

from __future__ import annotations

import enum
from dataclasses import dataclass


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
    """Canonical lines: `data` holds exactly `points` lines, each ended by `\\n` and with its own time."""

    data: bytes
    points: int


def split_lines(lines: Lines, points_max: int) -> list[Lines]:
    """Cuts lines into pieces of at most `points_max` points, in order; one piece is returned as it is.

    Bulk work: one pass of `bytes.split` over the body when it must be cut at all. No points give no pieces.
    """
    if lines.points <= points_max:
        return [lines] if lines.points else []
    every = lines.data.split(b"\n")
    every.pop()  # what follows the last line feed: nothing
    pieces = []
    for start in range(0, len(every), points_max):
        part = every[start : start + points_max]
        part.append(b"")
        pieces.append(Lines(b"\n".join(part), len(part) - 1))
    return pieces
