"""Each row of the outcome table, as delivery obeys it: waiting, holding, halving, bisecting, parking."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.flusher.rig import SETTINGS, DeliveryRig
from wal_ingest.flusher import delivery as delivery_module
from wal_ingest.flusher.outcome import (
    REASON_CHARS_MAX,
    Misconfigured,
    Outcome,
    Rejected,
    TooLarge,
    Unavailable,
)
from wal_ingest.flusher.retry import PROBE_S, RETRY_AFTER_S_MAX
from wal_ingest.flusher.status import SinkState
from wal_ingest.wal.cursor import Cursor, OpenLines
from wal_ingest.wal.entry import Destination


def script(*outcomes: Outcome | None) -> Callable[[list[bytes]], Outcome | None]:
    """Answers these in turn, then confirms."""
    left = iter(outcomes)
    return lambda _lines: next(left, None)


def refuse(refusal: Outcome, *needles: bytes) -> Callable[[list[bytes]], Outcome | None]:
    """Gives that answer to every write that holds a line with one of the needles."""
    return lambda lines: refusal if any(needle in line for line in lines for needle in needles) else None


def waits(rig: DeliveryRig) -> list[float]:
    """Seconds between the writes."""
    times = [when for when, _ in rig.sink.writes]
    return [after - before for before, after in zip(times, times[1:], strict=False)]  # noqa: RUF007 - shorter


# -- unavailable ----------------------------------------------------------------------------------------


async def test_tries_have_no_end_and_waits_grow_to_the_longest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = script(*[Unavailable("refused")] * 200)
    rig.log.append(10)
    await rig.deliver_all()
    assert len(rig.sink.writes) == 201
    assert SETTINGS.retry_s_min / 2 <= waits(rig)[0] <= SETTINGS.retry_s_min
    assert all(SETTINGS.retry_s_max / 2 <= wait <= SETTINGS.retry_s_max for wait in waits(rig)[10:])
    assert len(set(waits(rig)[10:])) > 100  # jitter
    assert rig.state.letters == []


async def test_retry_after_is_the_least_wait_for_every_write(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig(in_flight_max=4)
    rig.sink.answer = script(Unavailable("come back", 503, retry_after_s=20.0))
    for _ in range(12):
        rig.log.append(10)
    await rig.deliver_all()
    times = [when for when, _ in rig.sink.writes]
    begun_together = [when for when in times if when < times[0] + 0.001]
    assert len(begun_together) <= 4
    assert all(when >= times[0] + 20.0 for when in times[len(begun_together) :])
    assert max(times) <= times[0] + 20.0 + 10.0 + 1.0


async def test_a_retry_after_of_an_hour_is_obeyed_for_minutes_and_probed_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=4)
    rig.sink.answer = lambda _lines: Unavailable("maintenance", 503, retry_after_s=3_600.0)
    for _ in range(20):
        rig.log.append(10)
    async with rig.running():
        await rig.sink.wrote(4)
        begun = trio.current_time()
        await rig.sink.wrote(8)
        times = [when - begun for when, _ in rig.sink.writes[4:]]
        assert all(later - earlier >= PROBE_S for earlier, later in itertools.pairwise(times))
        assert PROBE_S <= times[0] <= times[-1] <= 5 * PROBE_S
        rig.sink.answer = lambda _lines: None
        up = trio.current_time()
        await rig.state.reached(20)
        assert trio.current_time() - up <= PROBE_S + 2.0
    assert rig.state.letters == []


async def test_the_limit_of_a_retry_after_ends_it_for_every_write(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = lambda _lines: (
        None if trio.current_time() > RETRY_AFTER_S_MAX else Unavailable("come back", 503, retry_after_s=1e9)
    )
    for _ in range(3):
        rig.log.append(10)
    await rig.deliver_all()
    assert len(rig.sink.writes) <= 3 + RETRY_AFTER_S_MAX / PROBE_S + 1
    assert rig.sink.confirmed == rig.log.all_lines()


async def test_a_write_that_passes_wakes_those_that_wait(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig(in_flight_max=2)
    up_again = trio.Event()
    tries = 0

    async def first_fails_often(lines: list[bytes]) -> Outcome | None:
        nonlocal tries
        if b"seq=1 " in lines[0]:
            tries += 1
            return Unavailable("refused") if tries <= 20 else None
        if tries < 20:
            await up_again.wait()
        return None

    rig.sink.answer = first_fails_often
    rig.log.append(10)
    rig.log.append(10)
    async with rig.running() as delivery:
        await rig.sink.wrote(21)
        await trio.testing.wait_all_tasks_blocked()
        assert delivery.status().state is SinkState.RETRYING
        autojump_clock.jump(1.0)  # past the least wait
        await trio.testing.wait_all_tasks_blocked()
        assert tries == 20
        up_again.set()
        begun = trio.current_time()
        await rig.state.reached(2)
        assert trio.current_time() - begun < 1.0  # and not half of retry_s_max


async def test_a_write_that_passes_does_not_cut_retry_after_short(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=2)
    second_waits = trio.Event()

    async def answer(lines: list[bytes]) -> Outcome | None:
        if b"seq=1 " in lines[0] and len(rig.sink.writes) < 3:
            return Unavailable("come back", 429, retry_after_s=50.0)
        if b"seq=2 " in lines[0]:
            await second_waits.wait()
        return None

    rig.sink.answer = answer
    rig.log.append(10)
    rig.log.append(10)
    async with rig.running():
        await rig.sink.wrote(2)
        await trio.testing.wait_all_tasks_blocked()
        second_waits.set()
        begun = trio.current_time()
        await rig.state.reached(2)
        assert trio.current_time() - begun >= 50.0


async def test_the_state_says_retrying_through_all_tries(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig()
    states: list[SinkState] = []
    async with rig.running() as delivery:

        def answer(_lines: list[bytes]) -> Outcome | None:
            states.append(delivery.status().state)
            return Unavailable("refused") if len(states) < 10 else None

        rig.sink.answer = answer
        rig.log.append(10)
        await rig.state.reached(1)
        assert states == [SinkState.DELIVERING] + [SinkState.RETRYING] * 9
        assert delivery.status().state is SinkState.IDLE


# -- misconfigured --------------------------------------------------------------------------------------


async def test_a_misconfigured_sink_is_held_and_probed_by_one_write_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=4)
    wrong = True
    rig.sink.answer = lambda _lines: Misconfigured("HTTP 401: unauthorized", 401) if wrong else None
    for _ in range(20):
        rig.log.append(10)
    async with rig.running() as delivery:
        await rig.sink.wrote(4 + 10)
        status = delivery.status()
        assert status.state is SinkState.HOLDING
        assert status.last_error == "HTTP 401: unauthorized"
        times = [when for when, _ in rig.sink.writes]
        assert [after - before for before, after in zip(times[4:], times[5:], strict=False)] == pytest.approx(  # noqa: RUF007
            [SETTINGS.hold_retry_s] * 9
        )
        assert rig.state.commits == []
        wrong = False
        begun = trio.current_time()
        await rig.state.reached(20)
        assert trio.current_time() - begun <= SETTINGS.hold_retry_s + 1.0
    assert delivery.status().state is SinkState.IDLE
    assert rig.state.letters == []
    assert sorted(rig.sink.confirmed) == sorted(rig.log.all_lines())


async def test_a_hold_that_turns_into_an_outage_goes_on_with_back_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = script(Misconfigured("HTTP 404", 404), Unavailable("refused"))
    rig.log.append(10)
    await rig.deliver_all()
    assert waits(rig)[0] == pytest.approx(SETTINGS.hold_retry_s)
    assert waits(rig)[1] <= SETTINGS.retry_s_min


# -- too large ------------------------------------------------------------------------------------------


async def test_a_batch_that_is_too_large_is_halved(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig()
    rig.sink.answer = lambda lines: TooLarge("HTTP 413") if len(lines) > 3 else None
    rig.log.append(10)
    await rig.deliver_all()
    assert [len(lines) for _, lines in rig.sink.writes] == [10, 5, 3, 2, 5, 3, 2]
    assert rig.sink.confirmed == rig.log.all_lines()


async def test_a_single_line_that_is_too_large_is_parked(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig()
    rig.sink.answer = refuse(TooLarge("HTTP 413: too much"), b"n=7i")
    rig.log.append(10)
    await rig.deliver_all()
    assert [(letter.line, letter.status) for letter in rig.state.letters] == [(rig.log.all_lines()[7], 413)]
    assert len(rig.sink.confirmed) == 9


# -- rejected -------------------------------------------------------------------------------------------


async def test_refused_points_are_found_and_parked_with_the_reason_and_the_rest_is_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=3)
    rig.sink.answer = refuse(
        Rejected("HTTP 422: beyond retention", 422, dropped=1), b"seq=2 n=0i", b"seq=3 n=4i"
    )
    destination = Destination("acme", "cpu")
    for _ in range(4):
        rig.log.append(5, destination=destination)
    await rig.deliver_all()
    letters = sorted(rig.state.letters, key=lambda letter: letter.seq)
    assert [(letter.seq, letter.line.split()[1]) for letter in letters] == [(2, b"n=0i"), (3, b"n=4i")]
    assert {(letter.reason, letter.status, letter.sink) for letter in letters} == {
        ("HTTP 422: beyond retention", 422, "fake")
    }
    assert {letter.destination for letter in letters} == {destination}
    assert len(set(rig.sink.confirmed)) == 18
    assert rig.state.cursor("fake").parked == 2


async def test_every_write_is_timed_and_those_refused_for_their_points_are_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()

    async def slowly(outcome: Outcome | None) -> Outcome | None:
        await trio.sleep(2)
        return outcome

    scripted = script(Unavailable("down"), Rejected("HTTP 422: beyond retention", 422, dropped=10))
    rig.sink.answer = lambda lines: slowly(scripted(lines))
    seconds: list[float] = []
    async with rig.running() as delivery:
        delivery._progress.wrote = seconds.append
        rig.log.append(10)
        await rig.state.reached(rig.log.last_seq)
    assert seconds == [pytest.approx(2), pytest.approx(2)]
    assert delivery.status().rejected_writes == 1
    assert delivery.status().retried_writes == 1


async def test_a_batch_of_which_every_point_was_dropped_is_parked_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = script(Rejected("HTTP 422: all beyond retention", 422, dropped=10))
    rig.log.append(10)
    await rig.deliver_all()
    assert len(rig.sink.writes) == 1
    assert [letter.line for letter in rig.state.letters] == rig.log.all_lines()


@pytest.mark.parametrize("dropped", [0, 1, 9, 11, 5000])
async def test_a_count_that_is_not_that_of_the_piece_is_not_believed(
    autojump_clock: trio.testing.MockClock, dropped: int
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = refuse(Rejected("partial write", 400, dropped=dropped), b"n=3i")
    rig.log.append(10)
    await rig.deliver_all()
    assert [letter.line for letter in rig.state.letters] == [rig.log.all_lines()[3]]
    assert len(set(rig.sink.confirmed)) == 9


async def test_a_letters_reason_can_be_stored_whatever_the_sink_said(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = script(Rejected("bad \ud83d\x00 " + "x" * 10_000, 400, dropped=10))
    rig.log.append(10)
    async with rig.running() as delivery:
        await rig.state.reached(1)
        said = delivery.status().last_error
    reason = rig.state.letters[0].reason
    assert reason == said
    assert reason.encode().startswith(b"bad ?  xxx")
    assert len(reason) <= REASON_CHARS_MAX


BAD_REQUEST = Rejected("HTTP 400: Bad Request", 400, about_points=False)


@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_sink_that_refuses_everything_and_confirmed_nothing_is_held(
    autojump_clock: trio.testing.MockClock, in_flight_max: int
) -> None:
    rig = DeliveryRig(in_flight_max=in_flight_max)
    wrong = True
    rig.sink.answer = lambda _lines: BAD_REQUEST if wrong else None
    for _ in range(20):
        rig.log.append(10)
    async with rig.running() as delivery:
        await rig.sink.wrote(200)
        begun, writes = trio.current_time(), len(rig.sink.writes)
        await rig.sink.wrote(writes + 10)
        assert trio.current_time() - begun >= 9 * SETTINGS.hold_retry_s
        status = delivery.status()
        assert status.state is SinkState.HOLDING
        assert "Bad Request" in status.last_error
        assert rig.state.commits == []
        wrong = False
        await rig.state.reached(20)
    assert rig.state.letters == []
    assert set(rig.sink.confirmed) == set(rig.log.all_lines())


async def test_a_first_batch_that_is_refused_for_its_points_is_parked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = lambda _lines: Rejected("HTTP 422: points beyond retention policy", 422)
    rig.log.append(10)
    rig.log.append(10)
    await rig.deliver_all()
    assert rig.accounted() == rig.log.all_lines()
    assert len(rig.state.letters) == 20


async def test_once_anything_was_confirmed_a_batch_refused_whole_is_parked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = refuse(BAD_REQUEST, b"seq=2 ")
    rig.log.append(10)
    rig.log.append(10)
    await rig.deliver_all()
    assert [letter.seq for letter in rig.state.letters] == [2] * 10


async def test_a_first_batch_with_a_good_line_is_bisected_not_held(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = lambda lines: BAD_REQUEST if any(b"n=9i" not in line for line in lines) else None
    rig.log.append(10)
    await rig.deliver_all()
    assert len(rig.state.letters) == 9
    assert rig.sink.confirmed == [rig.log.all_lines()[9]]


async def test_a_few_points_that_are_all_refused_do_not_hold_the_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = refuse(BAD_REQUEST, b"seq=1 ")
    rig.log.append(3, destination=Destination("acme", "a"))
    rig.log.append(10, destination=Destination("acme", "b"))
    await rig.deliver_all()
    assert len(rig.state.letters) == 3
    assert len(rig.sink.confirmed) == 10


async def test_parking_is_said_at_once_and_then_once_a_minute_with_the_count(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = refuse(Rejected("never", 400), b"n=7i")
    async with rig.running():
        for seq in range(1, 101):
            rig.log.append(10)
            await rig.state.reached(seq)  # two a second
    said = [record.getMessage() for record in caplog.records if "parked" in record.getMessage()]
    assert said[0] == "fake: parked 1 points, the last because of: never"
    assert len(said) <= 3
    assert sum(int(message.split()[2]) for message in said) == 100


async def test_letters_ahead_of_a_stuck_write_are_durable_at_once_and_the_account_adds_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=2)
    go_on = trio.Event()

    async def answer(lines: list[bytes]) -> Outcome | None:
        if b"seq=1 " in lines[0]:
            await go_on.wait()
            return None
        return Rejected("never", 400, dropped=10)

    rig.sink.answer = answer
    rig.log.append(10)
    rig.log.append(10)
    async with rig.running():
        await rig.sink.wrote(2)
        await trio.sleep(2 * SETTINGS.cursor_commit_s)
        assert len(rig.state.letters) == 10
        assert rig.state.cursor("fake") == Cursor(parked=10, ahead=10, reach=2, open=(OpenLines(1, 1),))
        go_on.set()
        await rig.state.reached(2)
    assert [(cursor.seq, letters) for _, cursor, letters in rig.state.commits] == [(0, 10), (2, 0)]


async def test_letters_that_are_not_durable_yet_count_against_the_window(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "WINDOW_BYTES_MAX", 1)
    rig = DeliveryRig()
    rig.sink.answer = refuse(Rejected("never", 400, dropped=10), b"m,")
    for _ in range(4):
        rig.log.append(10)
    await rig.deliver_all()
    assert [letters for _, _, letters in rig.state.commits] == [10] * 4
    assert [letter.line for letter in rig.state.letters] == rig.log.all_lines()


async def test_status_counts_what_was_confirmed_parked_and_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.sink.answer = script(Unavailable("refused"), Rejected("never", 400, dropped=10))
    rig.log.append(10)
    rig.log.append(10)
    async with rig.running() as delivery:
        await rig.state.reached(2)
        status = delivery.status()
    assert (status.confirmed_points, status.parked_points, status.retried_writes) == (10, 10, 1)
    assert status.last_error == "never"
    assert status.cursor.parked == 10
