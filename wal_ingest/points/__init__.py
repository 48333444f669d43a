"""Bodies in, canonical lines out: pure functions without Trio, LMDB or a clock.

*Canonical lines* are the one thing that is stored and sent on: valid line protocol in UTF-8, every line with
its own time in nanoseconds, every line ended by one `\\n`, no blank lines, no comments, no `\\r`; so the
number of lines is the number of points, and any `\\n` is a place where the body may be cut.
"""

from wal_ingest.points.lines import Lines, Precision, split_lines, split_points

__all__ = ["Lines", "Precision", "split_lines", "split_points"]
