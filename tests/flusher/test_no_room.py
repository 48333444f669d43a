"""Dead letters without room: delivery holds where a person sees it, loses nothing, and goes on by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from tests.flusher.fake_sink import FakeSink
from tests.flusher.rig import SETTINGS, DeliveryRig
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.outcome import Outcome, Rejected
from wal_ingest.flusher.status import SinkState
from wal_ingest.wal.cursor import Cursor

BAD = b"bad"


def refuse_bad(lines: list[bytes]) -> Outcome | None:
    return Rejected("a bad point", 400) if any(BAD in line for line in lines) else None


def rig_with_bad(*, good: int, letters_max: int, bad: int = 1) -> DeliveryRig:
    """Entries of ten points each: good ones, bad ones, good ones again; a sink that refuses the bad ones."""
    rig = DeliveryRig()
    rig.state.letters_max = letters_max
    rig.sink.answer = refuse_bad
    for _ in range(good):
        rig.log.append(10)
    for number in range(bad):
        seq = rig.log.last_seq + 1
        rig.log.append(
            10, lines=b"".join(b"bad,seq=%d n=%di %d\n" % (seq, n, 10**18 + number) for n in range(10))
        )
    for _ in range(good):
        rig.log.append(10)
    return rig


@asynccontextmanager
async def holding(*, good: int, for_s: float = 60) -> AsyncIterator[tuple[DeliveryRig, Delivery]]:
    """A delivery that has held for so long because its letters have no room."""
    rig = rig_with_bad(good=good, letters_max=0)
    async with rig.running() as delivery:
        await trio.sleep(for_s)
        assert delivery.status().no_room
        yield rig, delivery


async def test_delivery_holds_and_says_so_while_letters_have_no_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with holding(good=3) as (rig, delivery):
        status = delivery.status()
        assert status.state is SinkState.HOLDING
        assert status.no_room
        assert status.last_error.startswith(
            "no room for dead letters of fake: 0 letters are the limit; try: "
        )
        assert "wal-ingest dead-letters list" in status.last_error
    assert rig.state.letters == []
    assert rig.state.cursor("fake").seq < 4


async def test_the_cursor_goes_up_to_the_first_letter_that_has_no_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with holding(good=3) as (rig, _delivery):
        assert rig.state.cursor("fake").seq == 3
        assert rig.state.cursor("fake").confirmed == 30
        assert rig.told[-1] == 3


async def test_the_points_that_wait_for_room_stay_bounded_however_long_it_takes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with holding(good=1, for_s=30) as (rig, _delivery):
        for _ in range(500):
            rig.log.append(10)
        writes = len(rig.sink.writes)
        await trio.sleep(600)
        assert len(rig.sink.writes) - writes <= 2


async def test_delivery_goes_on_by_itself_once_there_is_room(autojump_clock: trio.testing.MockClock) -> None:
    async with holding(good=3) as (rig, delivery):
        rig.state.letters_max = None
        with trio.fail_after(SETTINGS.hold_retry_s + 5):
            await rig.state.reached(rig.log.last_seq)
        await trio.testing.wait_all_tasks_blocked()
        status = delivery.status()
        assert (status.state, status.no_room) == (SinkState.IDLE, False)
        assert "no room" not in status.last_error
    assert len(rig.state.letters) == 10
    assert rig.state.cursor("fake") == Cursor(
        7, 70, parked=10, confirmed=60, position=b"after 7", learnt=rig.state.cursor("fake").learnt
    )
    assert rig.accounted() == sorted(rig.log.all_lines())


async def test_a_stop_while_it_holds_ends_in_order_and_the_next_delivery_parks_what_waited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with holding(good=3) as (rig, _delivery):
        pass
    assert rig.sink.closed == 1
    assert rig.state.letters == []
    rig.state.letters_max = None
    await rig.deliver_all()
    assert len(rig.state.letters) == 10
    assert rig.accounted() == sorted(rig.log.all_lines())


async def test_what_the_sink_answers_meanwhile_does_not_hide_why_it_holds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = rig_with_bad(good=0, letters_max=0, bad=30)
    rig.sink = FakeSink(in_flight_max=4)
    rig.sink.answer = refuse_bad
    async with rig.running() as delivery:
        for _ in range(40):
            await trio.sleep(1)
            if delivery.status().no_room:
                assert delivery.status().last_error.startswith("no room for dead letters")
        assert delivery.status().no_room
