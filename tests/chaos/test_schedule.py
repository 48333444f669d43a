"""What the seed decides: when which fault strikes, and what the clients send."""

from __future__ import annotations

from itertools import islice

import pytest

from ops.chaos.faults import FAULTS, pairs_of
from ops.chaos.run import Order
from ops.chaos.schedule import Strike, schedule
from ops.chaos.traffic import SHAPES, Kind, is_poisoned, kind_of, make_request, points_of
from tests.rigs.fleet import Plan

PLAN = Plan("plan", 1_700_000_000_000_000_000, points=8, shapes=SHAPES, seed=5, vary=True)


def strikes(seed: int, count: int = 60) -> list[Strike]:
    made = schedule(
        list(FAULTS),
        pairs=pairs_of(list(FAULTS)),
        seconds=120,
        seed=seed,
    )
    return list(islice(made, count))


def test_two_minutes_are_enough_for_a_first_round_with_every_fault_once() -> None:
    for seed in range(20):
        first = [strike for strike in strikes(seed) if strike.first_round]

        assert sorted(name for strike in first for name in strike.faults) == sorted(FAULTS)
        assert sum(strike.pause_s + strike.lasts_s for strike in first) < 90


def test_the_same_seed_strikes_the_same_and_another_does_not() -> None:
    assert strikes(1) == strikes(1)
    assert strikes(1) != strikes(2)


def test_later_on_the_server_is_struck_in_the_middle_of_something_else() -> None:
    pairs = [strike.faults for strike in strikes(4) if len(strike.faults) == 2]

    assert len(pairs) > 10
    assert {"disk_full+kill", "clock_jump+power_cut", "db_401+sigstop"} <= {*pairs_of(list(FAULTS))}
    assert all(FAULTS[second].whom == "server" for _, second in pairs)


def test_a_request_is_the_same_when_it_is_made_again() -> None:
    for number in range(48):
        for kind in Kind:
            assert make_request(PLAN, 1, number, kind) == make_request(PLAN, 1, number, kind)


def test_poison_is_in_poisoned_requests_alone_and_no_form_that_cannot_carry_it_has_any() -> None:
    for number in range(96):
        kind = kind_of(PLAN, 0, number, poison=0.5, broken=0.5)
        poisoned = sum(map(is_poisoned, points_of(PLAN, 0, number, kind)))

        assert (poisoned > 0) == (kind is Kind.POISONED)


def test_every_encoding_form_and_kind_is_sent() -> None:
    numbers = range(400)
    requests = [make_request(PLAN, 0, number, Kind.GOOD) for number in numbers]

    assert {one.headers.get("Content-Encoding", "identity") for one in requests} == {
        "identity",
        "gzip",
        "deflate",
        "zstd",
    }
    assert {one.path.partition("?")[0] for one in requests} == {"/metrics", "/api/v2/write", "/write"}
    assert {kind_of(PLAN, 0, number, poison=0.2, broken=0.2) for number in numbers} == set(Kind)


def test_what_cannot_be_struck_here_is_listed_with_what_it_needs_and_never_scheduled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ops.chaos.run.missing", lambda need: "root" if need == "loop" else "")

    made, not_struck = Order(120, 1).schedule()

    assert not_struck == {"power_cut": "needs root", "disk_full": "needs root"}
    struck = {name for strike in islice(made, 300) for name in strike.faults}
    assert struck == {*FAULTS} - {*not_struck}
