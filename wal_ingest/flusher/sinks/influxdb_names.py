r"""Measurements that InfluxDB takes and then does not find. Pure.

InfluxDB stores a point under the text of its name and looks it up under the name, escaped anew. With two or more
backslashes before a space, a comma, `=` or a quote the two differ: it answers 204, and no query finds the point.
Measured with InfluxDB 1.6.7 (tests/points/test_read_back_from_influxdb.py); InfluxDB 2 makes its keys with the same
code. No spelling of such a name helps. In tags and fields runs of backslashes do no harm.
"""

from __future__ import annotations

import re

from wal_ingest.points import split_points

_MEASUREMENT = re.compile(rb"(?:[^\\, ]|\\[, ]?)++")
_LOST = re.compile(rb'\\\\[ ,="]')

LOST = (
    "the measurement has several backslashes before a space, comma, '=' or quote: InfluxDB would answer 204, and no "
    "query would find the point; parked, not sent"
)


def lost_names(lines: bytes, points: int) -> list[int]:
    """The places, from 0, of the canonical lines whose measurement InfluxDB would lose.

    Raises ValueError when there are not so many points.
    """
    if not _LOST.search(lines):
        return []
    found = []
    for place, line in enumerate(split_points(lines, points) if points > 1 else [lines]):
        name = _MEASUREMENT.match(line)
        if name is not None and _LOST.search(name[0]):
            found.append(place)
    return found
