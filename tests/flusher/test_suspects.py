"""A batch that alone gets 500 again and again: found and parked, but never in an outage or an overload."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from tests.flusher.rig import DeliveryRig
from tests.flusher.test_outcomes import refuse
from wal_ingest.flusher.outcome import Outcome, Unavailable
from wal_ingest.wal.entry import Destination

OVERLOADED = Unavailable("HTTP 500: overloaded", 500, suspect=True)


def divided_seqs(rig: DeliveryRig) -> set[bytes]:
    """The entries, of a batch each, that were written in pieces."""
    return {lines[0].split(b" ")[0] for _, lines in rig.sink.writes if len(lines) < 10}


@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_point_that_fails_alone_for_minutes_while_others_pass_is_parked(
    autojump_clock: trio.testing.MockClock, in_flight_max: int
) -> None:
    rig = DeliveryRig(in_flight_max=in_flight_max)
    rig.sink.answer = refuse(OVERLOADED, b"seq=3 n=6i")
    for _ in range(20):
        rig.log.append(10)
    async with rig.running():
        begun = trio.current_time()
        await rig.state.reached(20)
        assert trio.current_time() - begun > 60.0
    assert [letter.line for letter in rig.state.letters] == [rig.log.all_lines()[26]]
    assert "for this point alone" in rig.state.letters[0].reason
    assert set(rig.sink.confirmed) == set(rig.log.all_lines()) - {rig.log.all_lines()[26]}


async def test_in_an_outage_nothing_is_parked_and_one_batch_at_most_is_divided(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=4)
    failing = True
    rig.sink.answer = lambda _lines: OVERLOADED if failing else None
    for _ in range(20):
        rig.log.append(10)
    async with rig.running():
        await rig.sink.wrote(400)
        assert len(divided_seqs(rig)) <= 1
        failing = False
        await rig.state.reached(20)
    assert rig.state.letters == []
    assert set(rig.sink.confirmed) == set(rig.log.all_lines())


async def test_an_outage_that_begins_during_the_suspicion_parks_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=2)
    down = False

    def answer(lines: list[bytes]) -> Outcome | None:
        if down or any(b"seq=3 n=6i" in line for line in lines):
            return OVERLOADED
        return None

    rig.sink.answer = answer
    for _ in range(20):
        rig.log.append(10)
    async with rig.running():
        while not any(len(lines) == 1 and b"seq=3 n=6i" in lines[0] for _, lines in rig.sink.writes):
            await rig.sink.wrote(len(rig.sink.writes) + 1)
        down = True  # the point is alone now, and everything fails
        await rig.sink.wrote(len(rig.sink.writes) + 200)
        assert rig.state.letters == []
        rig.sink.answer = lambda _lines: None
        await rig.state.reached(20)
    assert rig.state.letters == []
    assert set(rig.sink.confirmed) == set(rig.log.all_lines())


@pytest.mark.parametrize("seed", range(5))
async def test_a_sink_that_fails_most_writes_is_overloaded_and_nothing_is_parked(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    rig = DeliveryRig(in_flight_max=4)
    rng = Random(seed)
    rig.sink.answer = lambda _lines: OVERLOADED if rng.random() < 0.6 else None
    for _ in range(300):
        rig.log.append(10)
    await rig.deliver_all()
    assert rig.state.letters == []
    assert set(rig.sink.confirmed) == set(rig.log.all_lines())


async def test_two_points_that_fail_alone_at_one_time_are_both_found(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=4)
    rig.sink.answer = refuse(OVERLOADED, b"seq=3 n=6i", b"seq=4 n=1i", b"seq=5 n=2i")
    for _ in range(20):
        rig.log.append(10)
    await rig.deliver_all()
    every = rig.log.all_lines()
    assert sorted(letter.line for letter in rig.state.letters) == [every[26], every[31], every[42]]


async def test_another_destination_that_passes_is_no_evidence(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig(in_flight_max=2)
    failing = True
    rig.sink.answer = lambda lines: OVERLOADED if failing and b"seq=1 " in lines[0] else None
    rig.log.append(10, destination=Destination("acme", "broken"))
    for _ in range(30):
        rig.log.append(10, destination=Destination("acme", "sound"))
    async with rig.running():
        await rig.sink.wrote(200)
        assert divided_seqs(rig) == {b"m,seq=1"}  # as in an outage
        failing = False
        await rig.state.reached(31)
    assert rig.state.letters == []
