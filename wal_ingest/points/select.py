"""Which of an entry's canonical lines belong to some measurements: one regular expression per entry, never a line at a
time. Pure.

A name is given as people say it, `my disk`; in line protocol its spaces and commas have a backslash in front of them,
`my\\ disk`. A backslash before anything else is part of the name, as InfluxDB has it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from wal_ingest.points.lines import Lines, count_points, split_points


class Measurements:
    """Some measurements by name. Several threads may share one object."""

    def __init__(self, names: Sequence[str]) -> None:
        spelled = [re.escape(re.sub(r"([ ,])", r"\\\1", name).encode()) for name in names]
        # A line begins behind a line feed: a literal that the engine looks for before it tries anything else.
        self._pattern = re.compile(rb"\n(?:" + b"|".join(spelled) + rb")[ ,][^\n]*")
        self._begin = re.compile(rb"(?:" + b"|".join(spelled) + rb")[ ,]")

    def of(self, lines: bytes) -> Lines:
        """Those of the canonical lines that are of these measurements, in order."""
        if b'"' in lines:
            # A string may hold a line feed, and what follows that is no beginning of a line.
            some = [each for each in split_points(lines, count_points(lines)) if self._begin.match(each)]
            return Lines(b"".join(some), len(some))
        found = self._pattern.findall(b"\n" + lines)
        if not found:
            return Lines(b"", 0)
        return Lines(b"".join(found)[1:] + b"\n", len(found))
