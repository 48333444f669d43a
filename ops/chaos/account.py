"""Where is every point? Confirmed, waiting or parked, each that was answered 2xx, and no other. Pure.

A request that got no clear answer may be there or not, but only as a whole. One that was refused must not be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ops.chaos.traffic import Kind, Sent, is_poisoned, points_of, shape_of
from tests.rigs.fleet import MS, Point
from tests.rigs.victoria_metrics import Series, series_name

_SHOWN = 10

# A point by what tells it from every other: measurement, tags in order, and its time unless it was sent without.
Key = tuple[str, tuple[tuple[str, str], ...], int | None]


@dataclass(slots=True)
class Found:
    """What there is at the end.

    `database` is every sample by series and millisecond, `waiting` the lines behind the cursor, `letters` the dead
    letters' lines, `set_aside` those in damaged segments, most of which were delivered.
    """

    database: dict[Series, dict[int, float]]
    waiting: Sequence[bytes]
    letters: Sequence[bytes]
    set_aside: Sequence[bytes] = ()


@dataclass(slots=True)
class Account:
    """How many points that were answered 2xx are where, and what is wrong: the first few of each kind."""

    acked: int = 0
    confirmed: int = 0
    waiting: int = 0
    parked: int = 0
    skipped: int = 0
    unclear_requests: int = 0
    refused_requests: int = 0
    wrong: dict[str, list[str]] = field(default_factory=dict)
    wrong_counts: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, what: str) -> None:
        """Something is wrong."""
        self.wrong_counts[kind] += 1
        whats = self.wrong.setdefault(kind, [])
        if len(whats) < _SHOWN:
            whats.append(what)


def take_account(sent: Iterable[Sent], found: Found) -> Account:
    """Looks for every point of every request; `found.database` is emptied by this."""
    account = Account()
    search = _Search(account, found)
    seqs: Counter[int] = Counter()
    for one in sent:
        points = points_of(one.plan, one.client, one.number, one.kind)
        if one.acked or one.partial:
            search.acked(one, points)
            seqs.update([one.seq] if one.seq is not None else [])
        else:
            search.not_acked(one, points)
    for seq, times in seqs.items():
        if times > 1:
            account.note("seq told twice", f"{seq} ({times} times)")
    search.leftovers()
    return account


class _Search:
    """Takes points out of what was found, so that what is left was never sent."""

    def __init__(self, account: Account, found: Found) -> None:
        self._account = account
        self._database = found.database
        self._waiting = _by_key(found.waiting)
        self._letters = _by_key(found.letters)
        self._set_aside = _by_key(found.set_aside)

    def acked(self, one: Sent, points: list[Point]) -> None:
        account = self._account
        account.acked += len(points)
        if one.kind is Kind.BROKEN and not one.partial:
            account.note("accepted though broken", _name(one))
        if one.points is not None and one.points != len(points):
            account.note("miscounted", f"{_name(one)}: {len(points)} points, told {one.points}")
        stamps: set[int] = set()
        for point in points:
            stamps |= self._settle(one, point)
        if len(stamps) > 1:
            account.note("stamped", f"{_name(one)}: one request, different times {sorted(stamps)}")

    def not_acked(self, one: Sent, points: list[Point]) -> None:
        there = sum(any(self._take(point)) for point in points)
        if one.refused:
            self._account.refused_requests += 1
            if one.kind is not Kind.BROKEN:
                self._account.note("refused though good", f"{_name(one)}: {one.status}")
            if there and one.tries == 1:
                self._account.note("refused yet there", f"{_name(one)}: {there} points")
        else:
            self._account.unclear_requests += 1
            if there not in (0, len(points)):
                self._account.note("torn", f"{_name(one)}: {there} of {len(points)} points are there")

    def _settle(self, one: Sent, point: Point) -> set[int]:
        """Puts one point to its account; gives the times that the server made for it."""
        account = self._account
        stamps = self._stamps(one, point)
        in_database, waiting, letters, set_aside = self._take(point)
        if letters > one.tries:
            account.note("parked twice", f"{point.line()}: {letters} letters, sent {one.tries} times")
        if in_database and is_poisoned(point):
            account.note("confirmed though refused", point.line())
        elif in_database:
            account.confirmed += 1
        elif waiting:
            account.waiting += 1
        elif letters:
            account.parked += 1
            if not is_poisoned(point):
                account.note("parked without cause", point.line())
        elif set_aside:
            account.skipped += 1
        else:
            account.note("lost", f"{point.line()} ({_name(one)})")
        return stamps

    def _stamps(self, one: Sent, point: Point) -> set[int]:
        """The milliseconds at which a point is that was sent without a time; they must be within the request's."""
        if point.time_ns is not None:
            return set()
        stamps = {ms for series, _ in _samples(point) for ms in self._database.get(series, {})}
        for ms in stamps:
            if not one.sent_ns // MS - 1 <= ms <= one.heard_ns // MS + 1:
                self._account.note(
                    "stamped", f"{point.line()} at {ms}, sent {one.sent_ns} heard {one.heard_ns}"
                )
        return stamps

    def _take(self, point: Point) -> tuple[bool, int, int, int]:
        """Takes a point out of everything: is it in the database; how often waiting, parked, set aside."""
        key = (point.measurement, tuple(sorted(point.tags)), point.time_ns)
        where = (self._waiting, self._letters, self._set_aside)
        waiting, letters, set_aside = (counted.pop(key, 0) for counted in where)
        return self._take_samples(point), waiting, letters, set_aside

    def _take_samples(self, point: Point) -> bool:
        there = []
        for series, value in _samples(point):
            samples = self._database.get(series, {})
            if point.time_ns is None:
                stored = samples.popitem()[1] if samples else None
            else:
                stored = samples.pop(point.time_ns // MS, None)
            there.append(stored is not None)
            if stored is not None and stored != value:
                self._account.note("changed", f"{point.line()} is {stored}")
        if any(there) and not all(there):
            self._account.note("torn", f"{point.line()}: some fields are missing")
        return all(there)

    def leftovers(self) -> None:
        """What nobody sent, or what is there once more than it was sent."""
        for series, samples in self._database.items():
            for ms, value in samples.items():
                self._account.note("never sent", f"{series} {value} at {ms}")
        for where, lines in (("waiting", self._waiting), ("parked", self._letters)):
            for key in lines:
                self._account.note("never sent", f"{where}: {key}")


def _samples(point: Point) -> Iterable[tuple[Series, float]]:
    for field_name, value in point.fields:
        labels = {"__name__": f"{point.measurement}_{field_name}", **dict(point.tags)}
        yield series_name(labels), float(value)


def _by_key(lines: Iterable[bytes]) -> Counter[Key]:
    """How often each point is among the lines: under its time, and under none where its series says it had none."""
    counted: Counter[Key] = Counter()
    for line in lines:
        head, _, time = line.decode().rstrip("\n").rpartition(" ")
        measurement, *tags = head.split(" ")[0].split(",")
        pairs = tuple(sorted((key, value) for key, _, value in (tag.partition("=") for tag in tags)))
        untimed = any("untimed" in value for _, value in pairs)
        counted[(measurement, pairs, None if untimed else int(time))] += 1
    return counted


def _name(one: Sent) -> str:
    shape = shape_of(one.plan, one.number).label
    return f"{one.plan.run} client {one.client} request {one.number}, {shape}, {one.kind.value}"
