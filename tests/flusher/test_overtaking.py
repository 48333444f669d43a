"""Suspect batches are investigated beside the good ones: none waits for them, and what is learnt is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pytest
import trio
import trio.testing
from msgspec import structs

from tests.flusher.refusing import RefusingSink
from tests.flusher.rig import SETTINGS, DeliveryRig
from tests.flusher.twins import START_NS
from wal_ingest.flusher.outcome import Misconfigured, Outcome, Rejected, Unavailable
from wal_ingest.flusher.status import SinkState
from wal_ingest.wal.entry import Destination

FAST = structs.replace(SETTINGS, retry_s_max=1.0)
FAILED = Unavailable("HTTP 500: internal error", 500, suspect=True)


def old_lines(count: int) -> bytes:
    """The batch of the case: each line a series of its own, all of them long past."""
    return "".join(f"old,kind=old,i={n} v=1 {1_263_800_000_000_000_000 + n}\n" for n in range(count)).encode()


def good_lines(seq: int, count: int = 10) -> bytes:
    return "".join(f"good,host=h{n} v={seq} {START_NS + seq}\n" for n in range(count)).encode()


def refuse_old(outcome: Outcome) -> DeliveryRig:
    rig = DeliveryRig(settings=structs.replace(SETTINGS, batch_points_max=20, batch_wait_s_max=0.1))
    rig.sink.answer = lambda lines: outcome if any(b"kind=old" in line for line in lines) else None
    return rig


async def a_good_batch_a_second(rig: DeliveryRig, seconds: int, *, slowest_s: float = 1.0) -> None:
    """Appends good lines for so long; each must reach the sink soon, whatever else is under way."""
    for _ in range(seconds):
        seq = rig.log.append(10, lines=good_lines(rig.log.last_seq + 1)).seq
        line = b"good,host=h9 v=%d %d\n" % (seq, START_NS + seq)
        with trio.fail_after(slowest_s):
            while line not in rig.sink.confirmed:
                await rig.sink.wrote(len(rig.sink.writes) + 1)
                await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1.0)


@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_partial_write_told_with_500_is_a_verdict_and_parked_in_a_few_writes(
    autojump_clock: trio.testing.MockClock, in_flight_max: int
) -> None:
    """InfluxDB 2.0 to 2.0.4, and a server that always counts one."""

    def words(lines: Sequence[bytes]) -> tuple[int, str] | None:
        if not any(b"kind=old" in line for line in lines):
            return None
        return 500, (
            '{"code":"internal error","message":"unexpected error writing points to database: partial write: '
            'points beyond retention policy dropped=1"}'
        )

    sink = RefusingSink(words, lambda line: b"kind=old" in line, in_flight_max=in_flight_max)
    rig = DeliveryRig(settings=structs.replace(SETTINGS, batch_points_max=20))
    rig.sink = sink
    rig.log.append(20, lines=old_lines(20))
    async with rig.running():
        await a_good_batch_a_second(rig, 5, slowest_s=2.0)
        assert len(rig.state.letters) == 20
    assert len(sink.writes) <= 5 + 20
    assert all("retention" in letter.reason for letter in rig.state.letters)


@pytest.mark.parametrize("first", [True, False], ids=["bad batch first", "bad batch later"])
@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_good_points_are_delivered_all_the_while_and_a_refused_batch_is_parked_within_minutes(
    autojump_clock: trio.testing.MockClock, in_flight_max: int, first: bool
) -> None:
    rig = refuse_old(FAILED)
    rig.sink.in_flight_max = in_flight_max
    async with rig.running() as delivery:
        if not first:
            await a_good_batch_a_second(rig, 2)
        rig.log.append(20, lines=old_lines(20))
        await trio.sleep(
            3.0
        )  # with one write at a time, and nothing confirmed, the first tries take this long
        await a_good_batch_a_second(rig, 120)
        letters = len(rig.state.letters)
        assert letters > 0  # visible while the batch is still investigated, or over
        while len(rig.state.letters) < 20:
            await a_good_batch_a_second(rig, 10)
        assert trio.current_time() < 300.0
        await rig.state.reached(rig.log.last_seq)
        assert delivery.status().state is SinkState.IDLE
    assert sorted(letter.line for letter in rig.state.letters) == sorted(
        old_lines(20).splitlines(keepends=True)
    )
    assert all("for this point alone" in letter.reason for letter in rig.state.letters)


async def test_a_thousand_points_that_fail_without_a_word_cost_samples_and_minutes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = refuse_old(FAILED)
    rig.settings = structs.replace(rig.settings, batch_points_max=1_000)
    rig.sink.in_flight_max = 2
    async with rig.running():
        await a_good_batch_a_second(rig, 2)
        rig.log.append(1_000, lines=old_lines(1_000))
        while len(rig.state.letters) < 1_000:
            await a_good_batch_a_second(rig, 10, slowest_s=2.0)
        assert trio.current_time() < 300.0
    assert sum("as each of 16 points like it" in letter.reason for letter in rig.state.letters) == 984


async def test_a_restart_in_the_middle_loses_no_progress(autojump_clock: trio.testing.MockClock) -> None:
    rig = refuse_old(FAILED)
    rig.sink.in_flight_max = 2
    rig.log.append(20, lines=old_lines(20))
    async with rig.running():
        await trio.sleep(3.0)
        while len(rig.state.letters) < 5:
            await a_good_batch_a_second(rig, 10)
    parked, written = len(rig.state.letters), set(rig.sink.confirmed)
    cursor = rig.state.cursor("fake")
    assert (cursor.seq, cursor.parked, cursor.unaccounted) == (0, parked, 0)
    assert parked < 20
    rig.sink.writes.clear()
    async with rig.running():
        while len(rig.state.letters) < 20:
            await a_good_batch_a_second(rig, 10)
        await rig.state.reached(rig.log.last_seq)
    again = {line for _, lines in rig.sink.writes for line in lines}
    assert again.isdisjoint(letter.line for letter in rig.state.letters[:parked])
    controls = {line for _, lines in rig.sink.writes for line in lines if line in written}
    assert len(controls) <= 20  # no more than what was being confirmed at the very end
    cursor = rig.state.cursor("fake")
    assert (cursor.parked, cursor.unaccounted, cursor.ahead) == (20, 0, 0)


async def test_with_one_write_at_a_time_no_point_overtakes_one_of_its_series(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=1, settings=FAST)
    rig.sink.answer = lambda lines: FAILED if any(b"n=3,seq=2i" in line for line in lines) else None
    for seq in range(1, 60):
        lines = "".join(f"m,host=h{n} n={n},seq={seq}i {START_NS + seq}\n" for n in range(10)).encode()
        rig.log.append(10, lines=lines)
    async with rig.running():
        while len(rig.state.letters) < 1:
            await rig.sink.wrote(len(rig.sink.writes) + 1)
            await trio.testing.wait_all_tasks_blocked()
        before = len(set(rig.sink.confirmed))
        await rig.state.reached(59)
    assert before > 400  # the nine other series went on all the while
    seqs: dict[bytes, list[int]] = defaultdict(list)
    seen: set[bytes] = set()
    for line in rig.sink.confirmed:
        if line not in seen:  # a control is written again
            seen.add(line)
            seqs[line.split(b" ")[0]].append(int(line.split(b"seq=")[1].split(b"i")[0]))
    assert all(each == sorted(each) for each in seqs.values())
    assert len(seen) == 589


async def test_more_suspects_than_are_investigated_at_once_are_all_settled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=4, settings=FAST)
    refusal = Rejected("never", 400)
    rig.sink.answer = lambda lines: refusal if any(b"n=3i" in line for line in lines) else None
    for _ in range(40):
        rig.log.append(10)
    await rig.deliver_all()
    assert rig.accounted() == sorted(rig.log.all_lines())
    assert len(rig.state.letters) == 40


# -- refused by what stands before the database ---------------------------------------------------------


DENIED = Misconfigured("HTTP 403: blocked", 403, suspect=True)


@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_403_about_one_line_parks_that_line_and_holds_nothing(
    autojump_clock: trio.testing.MockClock, in_flight_max: int
) -> None:
    rig = DeliveryRig(in_flight_max=in_flight_max)
    rig.sink.answer = lambda lines: DENIED if any(b"/etc/passwd" in line for line in lines) else None
    for seq in range(1, 30):
        text = "/etc/passwd" if seq == 10 else "fine"
        lines = "".join(
            f'm,host=h{n},seq={seq} s="{text if n == 4 else "fine"}" {START_NS + n}\n' for n in range(10)
        )
        rig.log.append(10, lines=lines.encode())
    async with rig.running() as delivery:
        with trio.fail_after(SETTINGS.hold_retry_s):
            await rig.state.reached(29)
        assert delivery.status().state is SinkState.IDLE
    assert [letter.line.split(b" ")[0] for letter in rig.state.letters] == [b"m,host=h4,seq=10"]
    assert rig.state.letters[0].status == 403
    assert len(set(rig.sink.confirmed)) == 289


@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_403_about_the_very_first_batch_does_not_hold_the_others_for_ever(
    autojump_clock: trio.testing.MockClock, in_flight_max: int
) -> None:
    rig = DeliveryRig(in_flight_max=in_flight_max)
    rig.sink.answer = lambda lines: DENIED if any(b"seq=1 n=4i" in line for line in lines) else None
    for _ in range(10):
        rig.log.append(10)
    async with rig.running():
        with trio.fail_after(10 * SETTINGS.hold_retry_s):
            await rig.state.reached(10)
    assert [letter.line for letter in rig.state.letters] == [rig.log.all_lines()[4]]


@pytest.mark.parametrize("confirmed_before", [True, False])
async def test_a_token_that_is_refused_for_every_batch_holds_and_parks_nothing(
    autojump_clock: trio.testing.MockClock, confirmed_before: bool
) -> None:
    rig = DeliveryRig(in_flight_max=2)
    rig.log.append(10)
    denied = False
    rig.sink.answer = lambda _lines: DENIED if denied else None
    denied = not confirmed_before
    async with rig.running() as delivery:
        if confirmed_before:
            await rig.state.reached(1)
        denied = True
        for _ in range(20):
            rig.log.append(10)
        begun, writes = trio.current_time(), len(rig.sink.writes)
        await trio.sleep(40 * SETTINGS.hold_retry_s)
        assert delivery.status().state is SinkState.HOLDING
        # Own batch and control for each probe, or the scout's; and a few for those that others went before.
        assert len(rig.sink.writes) - writes <= 2 * (trio.current_time() - begun) / SETTINGS.hold_retry_s + 60
        denied = False
        await rig.state.reached(21)
    assert rig.state.letters == []
    assert set(rig.sink.confirmed) == set(rig.log.all_lines())


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("entries", [1, 4, 30])
@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_sink_that_refuses_access_from_the_start_is_holding_all_the_time_and_recovers_at_once(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    in_flight_max: int,
    entries: int,
    status: int,
) -> None:
    """A wrong token, or a bucket that is missing: the operator must see it, however few points there are."""
    rig = DeliveryRig(in_flight_max=in_flight_max)
    denied = True
    refusal = Misconfigured("blocked", status, suspect=True)
    rig.sink.answer = lambda _lines: refusal if denied else None
    for _ in range(entries):
        rig.log.append(5)
    async with rig.running() as delivery:
        await trio.sleep(SETTINGS.batch_wait_s_max + 1.0)
        for _ in range(500):
            assert delivery.status().state is SinkState.HOLDING
            await trio.sleep(0.37)
        denied = False
        with trio.fail_after(SETTINGS.hold_retry_s + 2.0):
            await rig.state.reached(entries)
        assert delivery.status().state is SinkState.IDLE
    assert rig.state.letters == []
    [said] = caplog.records
    assert said.getMessage() == "fake: everything is kept, nothing is delivered: blocked"


async def test_a_destination_that_is_forbidden_is_not_asked_more_often_because_others_pass(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=4)
    rig.sink.answer = lambda lines: DENIED if any(b"seq=1 " in line for line in lines) else None
    rig.log.append(1, destination=Destination("org", "forbidden"))
    async with rig.running():
        await trio.sleep(SETTINGS.batch_wait_s_max + 1.0)
        for _ in range(100):
            rig.log.append(10, destination=Destination("org", "allowed"))
            await trio.sleep(1.0)
    asked = sum(any(b"seq=1 " in line for line in lines) for _, lines in rig.sink.writes)
    assert asked <= 100 / SETTINGS.hold_retry_s + 25


async def test_a_rejection_of_one_batch_is_investigated_beside_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(in_flight_max=1)

    async def answer(lines: list[bytes]) -> Outcome | None:
        with trio.move_on_after(1.0):
            await trio.sleep_forever()
        return Rejected("never", 400) if any(b"seq=1 " in line for line in lines) else None

    rig.sink.answer = answer
    rig.log.append(10)
    for _ in range(10):
        rig.log.append(10)
    async with rig.running():
        await rig.sink.wrote(22)
        # Every second write at most is one of the investigation.
        assert len(rig.sink.confirmed) >= 9 * 10
        await rig.state.reached(11)
    assert len(rig.state.letters) == 10
