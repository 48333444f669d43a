"""Bodies in, canonical lines out: pure functions without Trio, LMDB or a clock.

*Canonical lines* are the one thing that is stored and sent on: valid line protocol in UTF-8, every line with
its own time in nanoseconds, every line ended by one `\\n`, no blank lines, no comments, no `\\r` at its end. A quoted
string may hold line feeds, so the points are not always as many as the line feeds: `split_points`
cuts lines into points, `count_points` counts them.
"""

from wal_ingest.points.lines import (
    BetweenSlices,
    Lines,
    Precision,
    count_points,
    end_of_points,
    go_on,
    split_at,
    split_lines,
    split_points,
)

__all__ = [
    "BetweenSlices",
    "Lines",
    "Precision",
    "count_points",
    "end_of_points",
    "go_on",
    "split_at",
    "split_lines",
    "split_points",
]
