"""Delivery over a scripted sink, on virtual time: order, durability, bounds, stopping."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flusher.fake_sink import FakeSink
from tests.flusher.rig import SETTINGS, DeliveryRig
from tests.flusher.twins import START_NS
from wal_ingest.errors import ArchiveBroken, ConfigError, OperatorNeeded, StorageFailed, WalDamaged
from wal_ingest.flusher import delivery as delivery_module
from wal_ingest.flusher.outcome import Outcome, Rejected, TooLarge, Unavailable
from wal_ingest.flusher.status import SinkState
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import Destination


async def test_everything_appended_is_confirmed_and_the_cursor_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    for points in (1, 9, 10, 3):
        rig.log.append(points)
    await rig.deliver_all()
    assert rig.sink.confirmed == rig.log.all_lines()
    assert rig.state.cursor("fake") == Cursor(seq=4, points=23, parked=0, position=b"after 4", confirmed=23)
    assert rig.sink.opened_with == [None]
    assert rig.sink.closed == 1


async def test_whoever_truncates_is_told_only_after_the_cursor_is_durable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.log.append(10)
    await rig.deliver_all()
    assert rig.told == [1]  # what the callback saw in the state


async def test_a_batch_that_does_not_fill_goes_when_its_oldest_point_waited_long_enough(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    async with rig.running():
        await trio.testing.wait_all_tasks_blocked()
        rig.log.append(3, accepted_ns=START_NS + int(trio.current_time() * 1e9))
        begun = trio.current_time()
        await rig.sink.wrote(1)
        assert trio.current_time() - begun == pytest.approx(SETTINGS.batch_wait_s_max)


async def test_entries_that_trickle_in_are_read_together(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig()
    async with rig.running():
        for _ in range(10):
            rig.log.append(1)
            await trio.testing.wait_all_tasks_blocked()
        await rig.sink.wrote(1)
    assert rig.log.reads == 1
    assert len(rig.sink.writes[0][1]) == 10


async def test_an_entry_larger_than_a_batch_is_halved_until_its_pieces_fit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.log.append(35)
    await rig.deliver_all()
    assert [len(lines) for _, lines in rig.sink.writes] == [9, 9, 9, 8]
    assert rig.sink.confirmed == rig.log.all_lines()


async def test_gaps_where_damage_was_set_aside_are_passed(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig()
    rig.log.append(4)
    rig.log.append(4, skip=1000)
    await rig.deliver_all()
    assert rig.state.cursor("fake").seq == 1002
    assert rig.sink.confirmed == rig.log.all_lines()


async def test_where_all_that_was_there_is_damaged_what_comes_next_is_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.log.append(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.log, "read", lambda _after_seq, **_options: [])
        async with rig.running():
            await trio.sleep(5)
            patch.undo()
            rig.log.append(10)
            await rig.state.reached(2)
    cursor = rig.state.cursor("fake")
    assert (cursor.skipped, cursor.confirmed, cursor.unaccounted) == (10, 10, 0)


async def test_writes_go_out_several_at_once_but_are_confirmed_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=4)
    go_on = trio.Event()

    async def first_is_slow(lines: list[bytes]) -> None:
        if b"seq=1 " in lines[0]:
            await go_on.wait()

    rig.sink.answer = first_is_slow
    for _ in range(6):
        rig.log.append(10)
    async with rig.running() as delivery:
        await rig.sink.wrote(6)
        await trio.testing.wait_all_tasks_blocked()
        assert len(rig.sink.confirmed) == 50
        assert {cursor.seq for _, cursor, _ in rig.state.commits} == {0}
        assert delivery.status().cursor.seq == 0
        go_on.set()
        await rig.state.reached(6)
    assert rig.sink.in_flight_peak == 4


async def test_one_in_flight_keeps_strict_order(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig(in_flight_max=1)
    outcomes: list[Outcome | None] = [Unavailable("busy"), None, Unavailable("busy"), TooLarge("too much")]
    rig.sink.answer = lambda _lines: outcomes.pop(0) if outcomes else None
    for _ in range(6):
        rig.log.append(10)
    await rig.deliver_all()
    assert rig.sink.confirmed == rig.log.all_lines()
    assert rig.sink.in_flight_peak == 1


async def test_the_cursor_moves_no_more_often_than_its_interval(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()

    async def a_tenth_of_a_second(_lines: list[bytes]) -> None:
        with trio.move_on_after(0.1):
            await trio.sleep_forever()

    rig.sink.answer = a_tenth_of_a_second
    for _ in range(30):
        rig.log.append(10)
    await rig.deliver_all()
    times = [when for when, _, _ in rig.state.commits]
    assert len(times) > 3
    assert all(
        later - earlier >= SETTINGS.cursor_commit_s - 1e-6 for earlier, later in itertools.pairwise(times)
    )


async def test_a_stuck_write_stops_neither_the_others_nor_the_reading(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=2)
    go_on = trio.Event()

    async def first_is_stuck(lines: list[bytes]) -> None:
        if b"seq=1 " in lines[0]:
            await go_on.wait()

    rig.sink.answer = first_is_stuck
    for _ in range(400):
        rig.log.append(10)
    async with rig.running() as delivery:
        await rig.sink.wrote(400)
        await trio.sleep(2 * SETTINGS.cursor_commit_s)
        assert len(rig.sink.confirmed) == 3990
        assert len(delivery._window._marks) < 300  # what is settled ahead is joined
        go_on.set()
        await rig.state.reached(400)
    assert sorted(rig.sink.confirmed) == sorted(rig.log.all_lines())
    assert rig.state.cursor("fake") == Cursor(seq=400, points=4000, position=b"after 1", confirmed=4000)


async def test_batches_that_wait_for_a_write_stop_the_reading(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "WINDOW_BATCHES_MAX", 8)
    rig = DeliveryRig(in_flight_max=2)
    go_on = trio.Event()

    async def stuck(_lines: list[bytes]) -> None:
        await go_on.wait()

    rig.sink.answer = stuck
    for _ in range(100):
        rig.log.append(10)
    async with rig.running() as delivery:
        await rig.sink.wrote(2)
        await trio.testing.wait_all_tasks_blocked()
        assert delivery._window.full
        assert delivery._window._untouched == 8
        go_on.set()
        await rig.state.reached(100)
    assert sorted(rig.sink.confirmed) == sorted(rig.log.all_lines())


async def test_bytes_of_unsettled_batches_stop_the_reading_too(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "WINDOW_BYTES_MAX", 1)
    rig = DeliveryRig(in_flight_max=4)
    for _ in range(10):
        rig.log.append(10)
    await rig.deliver_all()
    assert rig.sink.in_flight_peak == 1
    assert rig.sink.confirmed == rig.log.all_lines()


async def test_a_stop_waits_for_writes_under_way_and_commits_what_they_confirmed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=2)
    go_on = trio.Event()

    async def held(_lines: list[bytes]) -> None:
        await go_on.wait()

    rig.sink.answer = held
    for _ in range(10):
        rig.log.append(10)
    async with trio.open_nursery() as nursery:
        delivery = rig.delivery()
        nursery.start_soon(delivery.run)
        await rig.sink.wrote(2)
        delivery.stop()
        await trio.testing.wait_all_tasks_blocked()
        go_on.set()
    assert len(rig.sink.writes) == 2  # nothing new was begun
    assert rig.state.cursor("fake").seq == 2
    assert rig.sink.closed == 1


@pytest.mark.parametrize("by", ["stop", "cancellation"])
async def test_a_write_that_outlasts_the_grace_is_given_up(
    autojump_clock: trio.testing.MockClock, by: str
) -> None:
    rig = DeliveryRig()

    async def never(_lines: list[bytes]) -> None:
        await trio.sleep_forever()

    rig.log.append(10)
    async with rig.running():
        await rig.state.reached(1)
    rig.sink.answer = never
    rig.log.append(10)
    async with trio.open_nursery() as nursery:
        delivery = rig.delivery()
        nursery.start_soon(delivery.run)
        await rig.sink.wrote(2)
        begun = trio.current_time()
        if by == "stop":
            delivery.stop()
        else:
            nursery.cancel_scope.cancel()
    assert trio.current_time() - begun == pytest.approx(rig.grace_s)
    assert rig.state.cursor("fake").seq == 1
    assert rig.sink.closed == 2


async def test_a_stop_does_not_wait_for_retries(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig(in_flight_max=2)
    rig.sink.answer = lambda _lines: Unavailable("away", retry_after_s=600.0)
    rig.log.append(10)
    async with rig.running():
        await rig.sink.wrote(1)
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
    assert trio.current_time() == begun
    assert rig.state.commits == []


async def test_a_cancellation_commits_what_was_confirmed_before_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    stuck = trio.Event()

    async def second_is_stuck(lines: list[bytes]) -> None:
        if b"seq=3 " in lines[0]:
            stuck.set()
            await trio.sleep_forever()

    rig.sink.answer = second_is_stuck
    for _ in range(4):
        rig.log.append(10)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.delivery().run)
            await stuck.wait()
            scope.cancel()
    assert scope.cancelled_caught
    assert rig.state.cursor("fake").seq == 2


async def test_a_failed_commit_ends_the_delivery_and_is_not_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.state.fail = OSError("no space")
    rig.log.append(10)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="no space")):
        await rig.delivery().run()
    assert rig.state.commits == []
    assert rig.told == []
    assert rig.sink.closed == 1


async def test_damage_in_the_wal_ends_the_delivery(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = DeliveryRig()
    rig.log.append(10)

    def damaged(after_seq: int, *, bytes_max: int) -> list[object]:
        raise WalDamaged(Path("a segment"), "flipped")

    monkeypatch.setattr(rig.log, "read", damaged)
    with pytest.RaisesGroup(WalDamaged):
        await rig.delivery().run()
    assert rig.sink.closed == 1


async def test_the_position_that_a_sink_begins_with_is_durable_before_its_first_write(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.opening = b"from here"
    seen: list[bytes | None] = []
    rig.sink.answer = lambda _lines: seen.append(rig.state.cursor("fake").position)
    rig.log.append(10)
    await rig.deliver_all()
    assert seen == [b"from here"]
    assert rig.state.cursor("fake") == Cursor(seq=1, points=10, parked=0, position=b"after 1", confirmed=10)


async def test_a_sink_that_gives_no_position_keeps_the_one_it_began_with(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.opening = b"from here"
    rig.sink.answer = lambda _lines: Rejected("never", dropped=10)
    rig.log.append(10)
    await rig.deliver_all()
    assert rig.state.cursor("fake") == Cursor(seq=1, points=10, parked=10, position=b"from here")


BREAKDOWNS = [ArchiveBroken(Path("a file"), "a sync failed"), ConfigError("wrong"), OperatorNeeded("look")]


@pytest.mark.parametrize("at", ["open", "write"])
@pytest.mark.parametrize("error", BREAKDOWNS, ids=lambda error: type(error).__name__)
async def test_an_optional_sink_that_breaks_down_ends_its_own_delivery_alone(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, error: Exception, at: str
) -> None:
    rig = DeliveryRig(in_flight_max=3, required=False)
    break_down(rig, error, at)
    delivery = rig.delivery()
    await delivery.run()
    status = delivery.status()
    assert status.state is SinkState.FAILED
    assert status.last_error == str(error)
    assert str(error) in caplog.text
    assert rig.state.commits == []
    assert rig.sink.closed == 1


@pytest.mark.parametrize("at", ["open", "write"])
@pytest.mark.parametrize("error", BREAKDOWNS, ids=lambda error: type(error).__name__)
async def test_a_required_sink_that_breaks_down_ends_more_than_itself(
    autojump_clock: trio.testing.MockClock, error: Exception, at: str
) -> None:
    rig = DeliveryRig()
    break_down(rig, error, at)
    with pytest.RaisesGroup(type(error), allow_unwrapped=True, flatten_subgroups=True):
        await rig.delivery().run()
    assert rig.sink.closed == 1


@pytest.mark.parametrize("opening", [None, b"from here"])
async def test_a_failed_commit_is_not_forgiven_to_an_optional_sink_either(
    autojump_clock: trio.testing.MockClock, opening: bytes | None
) -> None:
    rig = DeliveryRig(required=False)
    rig.sink.opening = opening
    rig.state.fail = StorageFailed(Path("state"), "no space")
    rig.log.append(10)
    with pytest.RaisesGroup(StorageFailed, allow_unwrapped=True, flatten_subgroups=True):
        await rig.delivery().run()
    assert rig.sink.closed == 1


def break_down(rig: DeliveryRig, error: Exception, at: str) -> None:
    def breaks(_lines: list[bytes]) -> None:
        raise error

    for _ in range(5):
        rig.log.append(10)
    if at == "open":
        rig.sink.opening = error
    rig.sink.answer = breaks


async def test_the_state_goes_from_idle_to_delivering_and_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    go_on = trio.Event()

    async def held(_lines: list[bytes]) -> None:
        await go_on.wait()

    rig.sink.answer = held
    async with rig.running() as delivery:
        assert delivery.status().state is SinkState.IDLE
        rig.log.append(10)
        await rig.sink.wrote(1)
        await trio.testing.wait_all_tasks_blocked()
        assert delivery.status().state is SinkState.DELIVERING
        assert delivery.status().in_flight == 1
        go_on.set()
        await rig.state.reached(1)
        assert delivery.status().state is SinkState.IDLE
        assert delivery.status().confirmed_points == 10


class _Crash(Exception):
    """The process ends here, without a farewell."""


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=12),
    script=st.lists(
        st.sampled_from(["ok", "busy", "500", "crash", "crash after", "large", "reject"]), max_size=25
    ),
    in_flight_max=st.integers(1, 4),
    poison=st.sets(st.tuples(st.integers(1, 12), st.integers(0, 24)), max_size=3),
)
def test_whatever_happens_no_point_is_skipped_and_none_parked_that_the_sink_would_take(
    sizes: list[int], script: list[str], in_flight_max: int, poison: set[tuple[int, int]]
) -> None:
    """Crashes at scripted writes, restarts from the durable cursor: every point ends confirmed or parked."""
    refused = {f"seq={seq} n={n}i ".encode() for seq, n in poison}
    steps = iter(script)

    def is_refused(line: bytes) -> bool:
        return line.partition(b",")[2].startswith(tuple(refused)) if refused else False

    def answer(lines: list[bytes]) -> Outcome | Awaitable[Outcome | None] | None:
        step = next(steps, "ok")
        if step == "crash":
            raise _Crash
        if step == "busy":
            return Unavailable("busy")
        if step == "500":
            return Unavailable("overloaded", 500, suspect=True)
        if step == "large" and len(lines) > 1:
            return TooLarge("too much")
        if any(map(is_refused, lines)):
            return Rejected("never", 400)
        if step == "crash after":
            raise _Crash
        return None

    async def until_done() -> None:
        rig = DeliveryRig(in_flight_max=in_flight_max)
        crashes: list[int] = []
        rig.sink.answer = answer
        for points in sizes:
            rig.log.append(points)
        while rig.state.cursor("fake").seq < rig.log.last_seq:
            try:
                await rig.deliver_all()
            except* _Crash:
                crashes.append(1)
        assert rig.accounted() == sorted(rig.log.all_lines())
        parked = [letter.line for letter in rig.state.letters]
        assert sorted(parked) == sorted(filter(is_refused, rig.log.all_lines()))
        assert rig.state.cursor("fake").parked == len(parked)
        assert all(f"seq={letter.seq} ".encode() in letter.line for letter in rig.state.letters)

    trio.run(until_done, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_fake_sink_is_typed_as_a_sink() -> None:
    from wal_ingest.flusher.sinks import Sink

    sink: Sink = FakeSink()
    assert sink.name == "fake"


async def test_a_delivery_is_called_by_its_sinks_name() -> None:
    assert DeliveryRig().delivery().name == "fake"


async def test_more_destinations_than_are_remembered_are_all_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    for number in range(40):
        rig.log.append(1, destination=Destination("", f"bucket-{number}"))
    await rig.deliver_all()
    assert rig.sink.confirmed == rig.log.all_lines()
    assert len(rig.sink.writes) == 40


async def test_a_stop_while_the_sink_is_away_says_nothing_of_its_coming_back(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = DeliveryRig()
    rig.sink.answer = lambda _lines: Unavailable("away")
    rig.log.append(10)
    async with rig.running() as delivery:
        await rig.sink.wrote(2)
        assert delivery.status().state is SinkState.RETRYING
    assert "trying again" in caplog.text
    assert "again" not in caplog.text.replace("trying again", "")
