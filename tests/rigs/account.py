"""Holds what a database gives back against what was answered 2xx: all there, all equal, nothing else.

A request that got no answer may be there or not, but only as a whole.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.rigs.fleet import MS, Point, make_points
from tests.rigs.load import Sent
from tests.rigs.victoria_metrics import Series, series_name

_SHOWN = 5


class Account:
    """Collects what is wrong and says it at once, the first few of each kind."""

    def __init__(self) -> None:
        self.acked = 0
        self.found = 0
        self._wrong: dict[str, list[str]] = {}

    def wrong(self, kind: str, what: str) -> None:
        self._wrong.setdefault(kind, []).append(what)

    @property
    def lost(self) -> int:
        return len(self._wrong.get("lost", []))

    def check(self) -> None:
        """Raises AssertionError unless everything adds up, and when there was nothing to add up."""
        said = [
            f"{len(whats)} {kind}: " + "; ".join(whats[:_SHOWN])
            for kind, whats in sorted(self._wrong.items())
        ]
        assert not said, f"of {self.acked} points answered 2xx: " + " | ".join(said)
        assert self.acked > 0, "no point was answered 2xx, so this proves nothing"


def points_of(sent: Iterable[Sent]) -> int:
    """How many points these requests carried."""
    return sum(len(make_points(one.plan, one.client, one.number)) for one in sent)


def samples_of(sent: Iterable[Sent]) -> int:
    """How many samples (one per point and field) VictoriaMetrics makes of these requests."""
    return sum(len(point.fields) for one in sent for point in make_points(one.plan, one.client, one.number))


def account_victoria_metrics(found: dict[Series, dict[int, float]], sent: Sequence[Sent]) -> Account:
    """`found` is every sample of the run (`values`), and is emptied by this."""
    account = Account()
    account.found = sum(map(len, found.values()))
    for one in (one for one in sent if one.acked):
        stamps = set()
        for point in make_points(one.plan, one.client, one.number):
            account.acked += 1
            stamps |= _take_samples(account, found, one, point)
        if len(stamps) > 1:
            account.wrong("stamped", f"one request, different times: {sorted(stamps)}")
    for one in (one for one in sent if not one.acked):
        points = make_points(one.plan, one.client, one.number)
        there = sum(_drop_samples(found, point) for point in points)
        if there not in (0, len(points)):
            account.wrong("torn", f"{there} of {len(points)} points of an unanswered request are there")
    for series, samples in found.items():
        for ms, value in samples.items():
            account.wrong("never sent", f"{series} {value} at {ms}")
    return account


def _take_samples(
    account: Account, found: dict[Series, dict[int, float]], one: Sent, point: Point
) -> set[int]:
    """Takes a point's samples out of `found`; gives the times that the server made, if it made any."""
    stamps: set[int] = set()
    for field, value in point.fields:
        series = series_name({"__name__": f"{point.measurement}_{field}", **dict(point.tags)})
        samples = found.get(series, {})
        if point.time_ns is not None:
            ms = point.time_ns // MS
        elif len(samples) == 1:
            (ms,) = samples
            stamps.add(ms)
            if not one.sent_ns // MS <= ms <= one.heard_ns // MS:
                account.wrong("stamped", f"{series} at {ms}, sent {one.sent_ns} heard {one.heard_ns}")
        else:
            ms = 0
        stored = samples.pop(ms, None)
        if stored is None:
            account.wrong("lost", f"{series} at {point.time_ns}")
        elif stored != value:
            account.wrong("changed", f"{series} at {ms} is {stored}, sent {value}")
    return stamps


def _drop_samples(found: dict[Series, dict[int, float]], point: Point) -> bool:
    """Takes the samples of a point that may be there; says whether they were."""
    there = False
    for field, _ in point.fields:
        series = series_name({"__name__": f"{point.measurement}_{field}", **dict(point.tags)})
        samples = found.get(series, {})
        ms = point.time_ns // MS if point.time_ns is not None else next(iter(samples), 0)
        there = samples.pop(ms, None) is not None
    return there


def account_influxdb(rows: Iterable[dict[str, Any]], sent: Sequence[Sent], measurement: str) -> Account:
    """`rows` are all rows of `measurement` in nanoseconds; every sent request was answered."""
    account = Account()
    points = {
        (point.tags, point.time_ns): (point, one)
        for one in sent
        for point in make_points(one.plan, one.client, one.number)
        if point.measurement == measurement
    }
    account.acked = len(points)
    tag_keys = {key for tags, _ in points for key, _ in tags}
    for row in rows:
        account.found += 1
        time_ns = row.pop("time")
        tags = tuple(sorted((key, row.pop(key)) for key in tag_keys & row.keys()))
        key = (tags, time_ns) if (tags, time_ns) in points else (tags, None)
        if key not in points:
            account.wrong("never sent", f"{tags} {row} at {time_ns}")
            continue
        point, one = points.pop(key)
        if row != dict(point.fields):
            account.wrong("changed", f"{tags} at {time_ns} is {row}, sent {point.fields}")
        # As InfluxDB does, a stamp is cut to the request's precision, of which the coarsest here is ms.
        if point.time_ns is None and not one.sent_ns // MS * MS <= time_ns <= one.heard_ns:
            account.wrong("stamped", f"{tags} at {time_ns}, sent {one.sent_ns} heard {one.heard_ns}")
    for point, _ in points.values():
        account.wrong("lost", point.line())
    return account


def archive_lines(data_dir: Path) -> list[str]:
    """Every line of the archive below a data directory, in the order of its files."""
    return [
        line
        for path in sorted((data_dir / "archive").glob("*/*.lp.gz"))
        for line in gzip.decompress(path.read_bytes()).decode().splitlines()
    ]


def account_archive(lines: Iterable[str], sent: Sequence[Sent]) -> Account:
    """`lines` are those of the archive, where a line may be only once; all points were sent with times."""
    account = Account()
    counted = Counter(lines)
    account.found = counted.total()
    for line, times in counted.items():
        if times > 1:
            account.wrong("twice", f"{line} ({times} times)")
    left = set(counted)
    for one in sent:
        expected = {point.line() for point in make_points(one.plan, one.client, one.number)}
        there = expected & left
        left -= there
        if one.acked:
            account.acked += len(expected)
            for line in expected - there:
                account.wrong("lost", line)
        elif there and there != expected:
            account.wrong("torn", f"{len(there)} of {len(expected)} points of an unanswered request")
    for line in left:
        account.wrong("never sent", line)
    return account
