"""However many batches fail without a word of why: good points go on, and every bad one is parked within minutes."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from msgspec import structs

from tests.flusher.rig import SETTINGS, DeliveryRig
from tests.flusher.twins import START_NS
from wal_ingest.flusher import learnt, overtaking
from wal_ingest.flusher.outcome import Misconfigured, Named, Outcome, Rejected, Unavailable

POINTS = 100
FAILED = Unavailable("HTTP 500", 500, suspect=True)
CLOSED = Unavailable("the connection was closed without an answer", suspect=True)
PLAIN_400 = Unavailable("HTTP 400: cannot read the body", 400, suspect=True)
DENIED = Misconfigured("HTTP 403: Forbidden", 403, suspect=True)
MINUTES_S = 300.0

# A bad line of an entry, by its number: of a shape of its own, of one of many shapes, or of that of good ones.
BAD_LINES: dict[str, Callable[[int, int], str]] = {
    "one shape": lambda seq, n: f"old,kind=old v={n},seq={seq}i {START_NS + n}\n",
    "many shapes": lambda seq, n: f"old,kind=old,tag{seq % 7}=1 v={n},seq={seq}i {START_NS + n}\n",
    "the shape of good ones": lambda seq, n: f"m,host=kind\\=old{n} v={n},seq={seq}i {START_NS + n}\n",
}


def is_bad(line: bytes) -> bool:
    return b"kind=old" in line or b"kind\\=old" in line


def rig_that_answers(outcome: Outcome, *, in_flight_max: int = 4) -> DeliveryRig:
    rig = DeliveryRig(
        in_flight_max=in_flight_max,
        settings=structs.replace(SETTINGS, batch_points_max=POINTS, batch_wait_s_max=0.1),
    )

    async def answer(lines: list[bytes]) -> Outcome | None:
        await trio.sleep(0.005)  # what a write takes
        return outcome if any(map(is_bad, lines)) else None

    rig.sink.answer = answer
    return rig


def append(rig: DeliveryRig, *, bad: int, shape: str = "one shape") -> None:
    """One batch, of which so many lines are bad."""
    seq = rig.log.last_seq + 1
    lines = [
        BAD_LINES[shape](seq, n) if bad and n % (POINTS // bad) == 3 else good_line(seq, n)
        for n in range(POINTS)
    ]
    rig.log.append(POINTS, lines="".join(lines).encode(), accepted_ns=START_NS)


def good_line(seq: int, n: int) -> str:
    return f"m,host=h{n} v={n},seq={seq}i {START_NS + n}\n"


def assert_each_point_went_where_it_should(rig: DeliveryRig) -> None:
    every = rig.log.all_lines()
    assert sorted(letter.line for letter in rig.state.letters) == sorted(filter(is_bad, every))
    assert set(rig.sink.confirmed) == {line for line in every if not is_bad(line)}


@pytest.mark.parametrize(
    ("outcome", "shape"),
    [
        *((FAILED, shape) for shape in BAD_LINES),
        (CLOSED, "one shape"),
        (PLAIN_400, "one shape"),
        (DENIED, "one shape"),
        (DENIED, "the shape of good ones"),
    ],
    ids=lambda each: each if isinstance(each, str) else each.reason,
)
@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_forty_of_44_batches_with_a_bad_line_each_are_done_within_minutes(
    autojump_clock: trio.testing.MockClock, outcome: Outcome, shape: str, in_flight_max: int
) -> None:
    rig = rig_that_answers(outcome, in_flight_max=in_flight_max)
    for number in range(44):
        append(rig, bad=0 if number % 11 == 5 else 1, shape=shape)
    async with rig.running():
        await rig.state.reached(44)
    # With one write at a time the bad points of one series wait for each other.
    assert trio.current_time() < MINUTES_S * (2 if in_flight_max == 1 else 1)
    assert_each_point_went_where_it_should(rig)


@pytest.mark.parametrize(
    ("outcome", "shape", "bad"),
    [
        *((FAILED, shape, 1) for shape in BAD_LINES),
        (FAILED, "one shape", 10),
        (CLOSED, "one shape", 1),
        (DENIED, "one shape", 1),
        (DENIED, "one shape", 10),
        (DENIED, "the shape of good ones", 1),
    ],
    ids=lambda each: each if isinstance(each, str | int) else each.reason,
)
async def test_good_points_go_on_though_every_single_batch_has_bad_ones(
    autojump_clock: trio.testing.MockClock, outcome: Outcome, shape: str, bad: int
) -> None:
    """A batch a second, each with 1 % or 10 % bad points: nothing ever passes as it is."""
    rig = rig_that_answers(outcome)
    waits_s = []
    async with rig.running():
        for _ in range(60):
            append(rig, bad=bad, shape=shape)
            seq, begun_s = rig.log.last_seq, trio.current_time()
            line = good_line(seq, POINTS - 1).encode()
            with trio.move_on_after(20.0):
                await rig.sink.took(line)
            waits_s.append(trio.current_time() - begun_s)
            await trio.sleep(max(0.0, begun_s + 1.0 - trio.current_time()))
        appended_s = trio.current_time()
        await rig.state.reached(rig.log.last_seq)
    assert trio.current_time() - appended_s < MINUTES_S
    assert_each_point_went_where_it_should(rig)
    assert max(waits_s) < 15.0, waits_s
    if shape == "one shape":
        assert sorted(waits_s)[len(waits_s) // 2] <= 0.2
        assert sorted(waits_s)[-10] <= 1.0


@pytest.mark.parametrize("outcome", [FAILED, CLOSED, DENIED], ids=lambda outcome: outcome.reason)
async def test_good_points_wait_no_longer_behind_many_refused_ones_of_their_batch(
    autojump_clock: trio.testing.MockClock, outcome: Outcome
) -> None:
    """So many that samples are taken; they come first in the very first batch, and nothing was ever confirmed."""
    rig = rig_that_answers(outcome)
    lines = [BAD_LINES["one shape"](1, n) if n < 70 else good_line(1, n) for n in range(POINTS)]
    rig.log.append(POINTS, lines="".join(lines).encode(), accepted_ns=START_NS)
    async with rig.running():
        with trio.fail_after(1.0):
            await rig.sink.took(good_line(1, POINTS - 1).encode())
        await rig.state.reached(1)
    assert_each_point_went_where_it_should(rig)


async def test_refused_points_are_searched_for_behind_the_good_ones_of_their_batch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = rig_that_answers(DENIED)
    append(rig, bad=0)
    lines = [BAD_LINES["one shape"](2, n) if n < 10 else good_line(2, n) for n in range(POINTS)]
    async with rig.running():
        await rig.state.reached(1)
        rig.log.append(POINTS, lines="".join(lines).encode(), accepted_ns=START_NS)
        writes = len(rig.sink.writes)
        await rig.sink.took(lines[-1].encode())
        # The batch and its control twice, the refused ones and theirs, and these.
        assert len(rig.sink.writes) - writes <= 8
        await rig.state.reached(2)
    assert_each_point_went_where_it_should(rig)


@pytest.mark.parametrize("outcome", [FAILED, CLOSED, DENIED], ids=lambda outcome: outcome.reason)
async def test_what_one_batch_taught_divides_those_that_failed_before_it(
    autojump_clock: trio.testing.MockClock, outcome: Outcome
) -> None:
    rig = rig_that_answers(outcome)
    for _ in range(20):
        append(rig, bad=10)
    async with rig.running():
        with trio.fail_after(0.2):
            for seq in range(1, 21):
                await rig.sink.took(good_line(seq, POINTS - 1).encode())
        await rig.state.reached(20)
    assert_each_point_went_where_it_should(rig)


@pytest.mark.parametrize("outcome", [FAILED, DENIED], ids=lambda outcome: outcome.reason)
async def test_a_sink_that_takes_nothing_is_not_asked_for_each_point(
    autojump_clock: trio.testing.MockClock, outcome: Outcome
) -> None:
    """An outage, or a wrong token, from the very start."""
    rig = rig_that_answers(outcome)
    rig.sink.answer = lambda _lines: outcome
    for _ in range(20):
        append(rig, bad=0)
    async with rig.running():
        await trio.sleep(60.0)
        assert len(rig.sink.writes) < 150
        await trio.sleep(600.0)
        assert len(rig.sink.writes) < 150 + 600
    assert rig.state.letters == []


@pytest.mark.parametrize("shape", BAD_LINES)
async def test_restarts_every_two_minutes_delay_it_and_lose_no_progress(
    autojump_clock: trio.testing.MockClock, shape: str
) -> None:
    """Evidence against a single point is begun anew; what was confirmed, parked or learnt is not done again."""
    rig = rig_that_answers(FAILED)
    for number in range(22):
        append(rig, bad=0 if number % 11 == 5 else 1, shape=shape)
    lives = 0
    while rig.state.cursor("fake").seq < rig.log.last_seq:
        lives += 1
        assert lives <= 5
        settled = rig.state.cursor("fake").settled
        async with rig.running():
            with trio.move_on_after(120.0):
                await rig.state.reached(rig.log.last_seq)
        assert rig.state.cursor("fake").settled > settled
    assert_each_point_went_where_it_should(rig)
    assert len(rig.state.letters) == 20


async def test_a_control_that_fails_takes_back_what_speaks_against_a_point(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An overload in the midst of an investigation, in the same words: no good point is parked."""
    rig = rig_that_answers(FAILED)
    refusing, dice = rig.sink.answer, random.Random(3)

    async def answer(lines: list[bytes]) -> Outcome | None:
        outcome = refusing(lines)
        assert isinstance(outcome, Awaitable)
        return await outcome or (
            FAILED if 40.0 < trio.current_time() < 400.0 and dice.random() < 0.7 else None
        )

    rig.sink.answer = answer
    async with rig.running():
        for number in range(44):
            append(rig, bad=1 if number % 4 == 0 else 0)
            await trio.sleep(3.0)
        await rig.state.reached(44)
    assert trio.current_time() > 100.0
    assert_each_point_went_where_it_should(rig)


@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_point_that_replaces_an_earlier_one_of_the_batch_is_written_after_it(
    autojump_clock: trio.testing.MockClock, in_flight_max: int
) -> None:
    """The first of each two is in the half with the bad point, which fails, and has to be divided further."""
    rig = rig_that_answers(FAILED, in_flight_max=in_flight_max)
    lines = [f"m,host=h{n % 20} v={n},seq=1i {START_NS}\n" for n in range(40)]
    lines[3] = BAD_LINES["the shape of good ones"](1, 3)
    rig.log.append(40, lines="".join(lines).encode())
    async with rig.running():
        append(rig, bad=0)
        await rig.state.reached(2)
    assert_each_point_went_where_it_should(rig)
    last = {line.split(b" ")[0]: line for line in rig.sink.confirmed if b"seq=1i" in line}
    assert [last[b"m,host=h%d" % n] for n in range(20)] == [line.encode() for line in lines[20:]]


async def test_what_is_learnt_of_many_shapes_makes_no_point_be_tried_more_often(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points of more shapes than are remembered fail for half a minute: too short to be held against them."""
    monkeypatch.setattr(learnt, "PATTERNS_MAX", 8)
    rig = rig_that_answers(FAILED)

    def answer(lines: list[bytes]) -> Outcome | None:
        return FAILED if trio.current_time() < 40.0 and any(map(is_bad, lines)) else None

    rig.sink.answer = answer
    lines = [f"old,kind=old,tag{n}=1 v={n},seq=1i {START_NS + n}\n" for n in range(30)]
    lines += [good_line(1, n) for n in range(30, POINTS)]
    rig.log.append(POINTS, lines="".join(lines).encode(), accepted_ns=START_NS)
    async with rig.running():
        await rig.state.reached(1)
    assert rig.state.letters == []
    assert set(rig.sink.confirmed) == set(rig.log.all_lines())
    # Those to find each, and about eight tries and as many controls of each.
    assert len(rig.sink.writes) < 30 * 20


@pytest.mark.parametrize("apart", ["the first", "the second"])
@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_a_point_set_apart_by_its_shape_keeps_its_turn_among_those_of_its_time(
    autojump_clock: trio.testing.MockClock, in_flight_max: int, apart: str
) -> None:
    """A shape was refused until its schema was mended: now its points pass, and must not undo those that follow."""
    rig = rig_that_answers(FAILED, in_flight_max=in_flight_max)
    append(rig, bad=0)
    append(rig, bad=1)
    async with rig.running():
        await rig.state.reached(2)
        assert len(rig.state.letters) == 1
        rig.sink.answer = lambda _lines: None
        both = [BAD_LINES["one shape"](3, 1), f"old,kind=old v=7,other=1i {START_NS + 1}\n"]
        both = both if apart == "the first" else both[::-1]
        rig.log.append(3, lines="".join([*both, good_line(3, 2)]).encode(), accepted_ns=START_NS)
        await rig.state.reached(3)
    assert [line.decode() for line in rig.sink.confirmed if line.decode() in both] == both


@pytest.mark.parametrize("outcome", [FAILED, DENIED], ids=lambda outcome: outcome.reason)
async def test_what_is_written_again_to_compare_with_undoes_no_point_that_was_replaced_since(
    autojump_clock: trio.testing.MockClock, outcome: Outcome
) -> None:
    """With one write in flight a batch that follows often goes between the choice of a control and its turn."""
    rig = rig_that_answers(outcome, in_flight_max=1)
    rig.settings = structs.replace(rig.settings, batch_wait_s_max=0.001)
    values = [f"m,host=h v={n} {START_NS}\n".encode() for n in range(100)]
    rig.log.append(1, lines=values[0], accepted_ns=START_NS)
    bad = "".join(BAD_LINES["many shapes"](n, n) for n in range(20)).encode()
    rig.log.append(20, lines=bad, accepted_ns=START_NS)
    async with rig.running():
        for value in values[1:]:
            rig.log.append(1, lines=value, accepted_ns=START_NS)
            await rig.sink.took(value)
        await rig.state.reached(rig.log.last_seq)
    written = list(map(values.index, rig.sink.confirmed))
    assert written == sorted(written)


@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("in_flight_max", [1, 4])
async def test_no_point_is_parked_where_every_other_write_is_denied(
    autojump_clock: trio.testing.MockClock, in_flight_max: int, begin: int
) -> None:
    """Two servers in turn, one of which has a wrong token."""
    rig = rig_that_answers(DENIED, in_flight_max=in_flight_max)
    writes = begin

    def answer(_lines: list[bytes]) -> Outcome | None:
        nonlocal writes
        writes += 1
        return DENIED if writes % 2 else None

    rig.sink.answer = answer
    async with rig.running():
        for _ in range(20):
            append(rig, bad=0)
            await trio.sleep(1.0)
        await trio.sleep(300.0)
    assert rig.state.letters == []


async def test_a_batch_that_keeps_its_worker_is_not_tried_for_each_thing_that_is_learnt(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails for half a minute, while refusals of other points, with reasons, teach something ten times a second."""
    monkeypatch.setattr(overtaking, "INVESTIGATED_MAX", 0)
    rig = rig_that_answers(FAILED)
    failing = good_line(1, 0).encode()

    def answer(lines: list[bytes]) -> Outcome | None:
        if failing in lines:
            return FAILED if trio.current_time() < 40.0 else None
        typed = [line for line in lines if b'="x"' in line]
        if not typed:
            return None
        field = typed[0].split(b" ")[1].partition(b"=")[0].decode()
        return Rejected("a conflict", 400, dropped=1, hint=Named("typed", field=field, given="string"))

    rig.sink.answer = answer
    rig.log.append(1, lines=failing, accepted_ns=START_NS)
    async with rig.running():
        await rig.sink.wrote(1)
        for n in range(300):
            lines = [f'typed f{n}="x" {START_NS}\n', good_line(n, 1)]
            rig.log.append(2, lines="".join(lines).encode(), accepted_ns=START_NS)
            await trio.sleep(0.1)
        await rig.state.reached(rig.log.last_seq)
    assert failing not in {letter.line for letter in rig.state.letters}
    assert sum(failing in lines for _, lines in rig.sink.writes) < 20
