"""The account of a chaos run: it finds the one point that is lost, doubled, torn, or where it must not be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ops.chaos.account import Account, Found, take_account
from ops.chaos.traffic import SHAPES, Kind, Sent, is_poisoned, points_of
from tests.rigs.fleet import MS, Plan, Point
from tests.rigs.victoria_metrics import series_name

NOW_NS = 1_763_800_000_000 * MS
PLAN = Plan("unit", NOW_NS - 7_200_000 * MS, points=6, shapes=SHAPES, seed=3)
FLEET_TIMED = next(n for n, shape in enumerate(SHAPES) if shape.form == "fleet" and shape.timed)
LINES_TIMED = next(n for n, shape in enumerate(SHAPES) if shape.form == "lines" and shape.timed)
LINES_UNTIMED = next(n for n, shape in enumerate(SHAPES) if shape.form == "lines" and not shape.timed)


def request(number: int, *, kind: Kind = Kind.GOOD, status: int = 204, tries: int = 1) -> Sent:
    return Sent(PLAN, 0, number, kind, status, NOW_NS, NOW_NS + 5 * MS, tries)


def points(one: Sent) -> list[Point]:
    return points_of(one.plan, one.client, one.number, one.kind)


def store(database: dict[str, dict[int, float]], point: Point) -> None:
    """Puts a point into the database, stamped when it has no time."""
    ms = (NOW_NS if point.time_ns is None else point.time_ns) // MS
    for field, value in point.fields:
        name = series_name({"__name__": f"{point.measurement}_{field}", **dict(point.tags)})
        database.setdefault(name, {})[ms] = float(value)


def line(point: Point) -> bytes:
    return (replace(point, time_ns=point.time_ns or NOW_NS).line() + "\n").encode()


def written(sent: list[Sent]) -> Found:
    """What there is when everything went well: good points in the database, poisoned ones parked."""
    found = Found({}, [], [])
    for point in (point for one in sent if one.acked for point in points(one)):
        if is_poisoned(point):
            found.letters = [*found.letters, line(point)]
        else:
            store(found.database, point)
    return found


SENT = [
    request(FLEET_TIMED),
    request(LINES_TIMED, kind=Kind.POISONED),
    request(LINES_UNTIMED),
    request(len(SHAPES) + LINES_TIMED, status=0),
    request(2 * len(SHAPES) + LINES_TIMED, kind=Kind.BROKEN, status=400),
]
GOOD = next(point for point in points(SENT[1]) if not is_poisoned(point))
POISONED = next(point for point in points(SENT[1]) if is_poisoned(point))
SERIES = series_name({"__name__": "unit_value", **dict(GOOD.tags)})


def kinds(account: Account) -> set[str]:
    return set(account.wrong_counts)


def test_where_everything_is_in_its_place_nothing_is_wrong() -> None:
    account = take_account(SENT, written(SENT))

    parked = sum(map(is_poisoned, points(SENT[1])))
    assert kinds(account) == set()
    assert (account.acked, account.confirmed, account.parked, account.waiting) == (18, 18 - parked, parked, 0)
    assert (account.unclear_requests, account.refused_requests) == (1, 1)


def test_a_point_that_waits_in_the_wal_is_waiting_and_not_lost() -> None:
    found = written(SENT)
    assert GOOD.time_ns is not None
    del found.database[SERIES][GOOD.time_ns // MS]
    found.waiting = [line(GOOD)]

    account = take_account(SENT, found)

    assert kinds(account) == set()
    assert account.waiting == 1


def test_a_point_that_is_only_in_a_segment_that_was_set_aside_is_skipped_and_not_lost() -> None:
    found = written(SENT)
    _lose(found)
    found.set_aside = [line(GOOD), line(POISONED)]  # the other one was parked before

    account = take_account(SENT, found)

    assert kinds(account) == set()
    assert account.skipped == 1


def _lose(found: Found) -> None:
    assert GOOD.time_ns is not None
    del found.database[SERIES][GOOD.time_ns // MS]


def _lose_a_letter(found: Found) -> None:
    found.letters = [letter for letter in found.letters if letter != line(POISONED)]


def _lose_an_untimed_one(found: Found) -> None:
    point = points(SENT[2])[2]
    del found.database[series_name({"__name__": "unit_value", **dict(point.tags)})]


def _change(found: Found) -> None:
    assert GOOD.time_ns is not None
    found.database[SERIES][GOOD.time_ns // MS] += 1


def _park_without_cause(found: Found) -> None:
    _lose(found)
    found.letters = [*found.letters, line(GOOD)]


def _park_twice(found: Found) -> None:
    found.letters = [*found.letters, line(POISONED)]


def _write_poison(found: Found) -> None:
    store(found.database, POISONED)


def _tear(found: Found) -> None:
    store(found.database, points(SENT[3])[0])


def _write_what_was_refused(found: Found) -> None:
    for point in points(SENT[4]):
        store(found.database, point)


def _write_what_nobody_sent(found: Found) -> None:
    found.database["foreign_value"] = {1: 1.0}


def _stamp_late(found: Found) -> None:
    point = points(SENT[2])[0]
    name = series_name({"__name__": "unit_value", **dict(point.tags)})
    found.database[name] = {NOW_NS // MS + 60_000: found.database[name][NOW_NS // MS]}


def _double_a_stamp(found: Found) -> None:
    point = points(SENT[2])[0]
    name = series_name({"__name__": "unit_value", **dict(point.tags)})
    found.database[name][NOW_NS // MS + 1] = found.database[name][NOW_NS // MS]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_lose, {"lost"}),
        (_lose_a_letter, {"lost"}),
        (_lose_an_untimed_one, {"lost"}),
        (_change, {"changed"}),
        (_park_without_cause, {"parked without cause"}),
        (_park_twice, {"parked twice"}),
        (_write_poison, {"confirmed though refused"}),
        (_tear, {"torn"}),
        (_write_what_was_refused, {"refused yet there"}),
        (_write_what_nobody_sent, {"never sent"}),
        (_stamp_late, {"stamped"}),
        (_double_a_stamp, {"stamped", "never sent"}),
    ],
)
def test_one_wrong_point_is_found_and_named(damage: Callable[[Found], None], named: set[str]) -> None:
    found = written(SENT)
    damage(found)

    assert kinds(take_account(SENT, found)) == named


def test_what_the_server_should_not_have_answered_is_named() -> None:
    sent = [
        request(FLEET_TIMED, status=400),
        request(LINES_TIMED, kind=Kind.BROKEN),
        replace(request(LINES_UNTIMED), points=5, seq=7),
        replace(request(len(SHAPES) + LINES_TIMED), seq=7),
    ]

    assert kinds(take_account(sent, written(sent))) == {
        "refused though good",
        "accepted though broken",
        "miscounted",
        "seq told twice",
    }


def test_a_point_sent_twice_may_be_parked_twice_and_is_one_point() -> None:
    sent = [request(LINES_TIMED, kind=Kind.POISONED, tries=2)]
    found = written(sent)
    found.letters = [*found.letters, *found.letters]

    account = take_account(sent, found)

    assert kinds(account) == set()
    assert account.acked == len(points(sent[0]))


V1_TIMED = next(index for index, shape in enumerate(SHAPES) if shape.form == "v1" and shape.timed)


def test_good_lines_of_a_broken_request_to_write_must_be_there() -> None:
    """The answer 400 follows their sync: they are as much accepted as those of a 204."""
    sent = [request(V1_TIMED, kind=Kind.BROKEN, status=400)]
    found = Found({}, [], [])
    assert kinds(take_account(sent, found)) == {"lost"}

    for point in points(sent[0]):
        store(found.database, point)
    account = take_account(sent, found)

    assert kinds(account) == set()
    assert account.acked == account.confirmed == len(points(sent[0]))
