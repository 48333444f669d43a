"""Bad points among good ones: found by the database's own words, at a cost that is counted here, write by write."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tests.flusher import refusing
from tests.flusher.refusing import RefusingSink, Words, is_old, type_conflict
from tests.flusher.rig import SETTINGS, DeliveryRig
from tests.flusher.twins import START_NS
from wal_ingest.flusher.overtaking import COLLECT_S

THOUSANDS = structs.replace(SETTINGS, batch_points_max=1_000)

TYPED: dict[str, Words] = {
    "influxdb1": refusing.influxdb1,
    "influxdb2": refusing.influxdb2,
    "influxdb2 without count": refusing.influxdb2_without_count,
    "influxdb3": refusing.influxdb3,
    "unparsed": refusing.unparsed,
}
AGED: dict[str, Words] = {"without bound": refusing.retention, "with bound": refusing.retention_with_bound}


def mixed(seq: int, points: int, *, every: int, bad: str = '"x"', old: bool = False) -> bytes:
    """Lines of which every so many-th is bad: of another type, or too old."""
    lines = []
    for n in range(points):
        is_bad = every and n % every == every // 2
        value = bad if is_bad and not old else f"{n}.5"
        time_ns = START_NS - 10**15 - n if is_bad and old else START_NS + seq * 1_000_000 + n
        lines.append(f"m,host=h{n % 100} v={value},seq={seq}i {time_ns}\n")
    return "".join(lines).encode()


def rig_with(sink: RefusingSink, *, bodies: Sequence[bytes]) -> DeliveryRig:
    rig = DeliveryRig(settings=THOUSANDS)
    rig.sink = sink
    for body in bodies:
        rig.log.append(body.count(b"\n"), lines=body)
    return rig


def assert_all_went_where_they_should(rig: DeliveryRig, refused: Callable[[bytes], object]) -> None:
    """Each good line is stored, each bad one is a dead letter, once, and the account adds up."""
    assert isinstance(rig.sink, RefusingSink)
    every = rig.log.all_lines()
    assert rig.sink.taken == {line for line in every if not refused(line)}
    assert sorted(letter.line for letter in rig.state.letters) == sorted(filter(refused, every))
    cursor = rig.state.cursor("fake")
    assert (cursor.seq, cursor.ahead, cursor.reach, cursor.open) == (rig.log.last_seq, 0, 0, ())
    assert cursor.parked == len(rig.state.letters)
    assert cursor.unaccounted == 0
    assert all(f"seq={letter.seq}i".encode() in letter.line for letter in rig.state.letters)


@pytest.mark.parametrize("in_flight_max", [1, 4])
@pytest.mark.parametrize("words", TYPED.values(), ids=TYPED)
async def test_one_percent_of_a_wrong_type_costs_fewer_than_five_writes_per_thousand_points(
    autojump_clock: trio.testing.MockClock, words: Words, in_flight_max: int
) -> None:
    sink = RefusingSink(words, type_conflict, in_flight_max=in_flight_max)
    rig = rig_with(sink, bodies=[mixed(seq, 1_000, every=100) for seq in range(1, 21)])
    await rig.deliver_all()
    assert_all_went_where_they_should(rig, type_conflict)
    assert (len(sink.writes) - 20) / 20 <= 5
    assert all("string" in letter.reason or "invalid number" in letter.reason for letter in rig.state.letters)


@pytest.mark.parametrize("every", [100, 10], ids=["1 %", "10 %"])
async def test_what_was_learnt_makes_later_refusals_nearly_free(
    autojump_clock: trio.testing.MockClock, every: int
) -> None:
    sink = RefusingSink(refusing.influxdb1, type_conflict)
    rig = rig_with(sink, bodies=[mixed(seq, 1_000, every=every) for seq in range(1, 5)])
    async with rig.running():
        await rig.state.reached(4)
        learning = len(sink.writes) - 4
        for seq in range(5, 45):
            body = mixed(seq, 1_000, every=every)
            rig.log.append(1_000, lines=body)
        await rig.state.reached(44)
    assert_all_went_where_they_should(rig, type_conflict)
    assert learning <= 4 * 3
    # One write for up to a thousand points of 40 batches.
    assert len(sink.writes) - 4 - learning - 40 <= 40 // every * 10 + 2


@pytest.mark.parametrize("words", AGED.values(), ids=AGED)
async def test_one_percent_beyond_the_retention_costs_fewer_than_five_writes_per_thousand_points(
    autojump_clock: trio.testing.MockClock, words: Words
) -> None:
    sink = RefusingSink(words, is_old)
    rig = rig_with(sink, bodies=[mixed(seq, 1_000, every=100, old=True) for seq in range(1, 21)])
    await rig.deliver_all()
    assert_all_went_where_they_should(rig, is_old)
    assert (len(sink.writes) - 20) / 20 <= 5
    assert all("retention" in letter.reason.lower() for letter in rig.state.letters)


@pytest.mark.parametrize(
    "words",
    [*TYPED.values(), refusing.wordless],
    ids=[*TYPED, "wordless"],
)
async def test_a_batch_that_is_all_bad_costs_about_twenty_writes_at_most(
    autojump_clock: trio.testing.MockClock, words: Words
) -> None:
    sink = RefusingSink(words, type_conflict)
    rig = rig_with(sink, bodies=[mixed(1, 1_000, every=1)])
    await rig.deliver_all()
    assert_all_went_where_they_should(rig, type_conflict)
    assert len(sink.writes) <= 20


@pytest.mark.parametrize("counted", [0, 1, 1_000], ids=["no count", "always one", "true"])
async def test_a_retention_that_is_known_costs_a_few_writes_for_a_thousand_points_of_many_batches(
    autojump_clock: trio.testing.MockClock, counted: int
) -> None:
    def words(lines: Sequence[bytes]) -> tuple[int, str] | None:
        found = sum(map(is_old, lines))
        dropped = f" dropped={min(counted, found)}" if counted else ""
        return (422, f"partial write: points beyond retention policy{dropped}") if found else None

    sink = RefusingSink(words, is_old)
    rig = rig_with(sink, bodies=[mixed(seq, 1_000, every=100, old=True) for seq in range(1, 5)])
    async with rig.running():
        await rig.state.reached(4)
        learning = len(sink.writes)
        for seq in range(5, 205):
            rig.log.append(1_000, lines=mixed(seq, 1_000, every=100, old=True))
        await rig.state.reached(204)
    assert_all_went_where_they_should(rig, is_old)
    assert learning <= 4 * 14  # each of them is searched, as they come together
    # The batches without them; of each thousand of them all, and the newest by itself.
    assert len(sink.writes) - learning <= 200 + 2 * 2 + 2


@pytest.mark.parametrize("counted", [0, 1, 1_000], ids=["no count", "always one", "true"])
async def test_a_batch_that_is_all_too_old_costs_about_twenty_writes_at_most(
    autojump_clock: trio.testing.MockClock, counted: int
) -> None:
    def words(lines: Sequence[bytes]) -> tuple[int, str] | None:
        dropped = f" dropped={min(counted, len(lines))}" if counted else ""
        return 422, f"partial write: points beyond retention policy{dropped}"

    sink = RefusingSink(words, is_old)
    rig = rig_with(sink, bodies=[mixed(1, 1_000, every=1, old=True)])
    await rig.deliver_all()
    assert_all_went_where_they_should(rig, is_old)
    assert len(sink.writes) <= 20


async def test_each_dead_letter_has_the_reason_of_its_own_line(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bodies = []
    for seq in range(1, 9):
        kinds = ['"x"', "7i", "true"]
        lines = [
            f"m,host=h{n} v={kinds[n % 3] if n % 7 == 3 else '1.5'},seq={seq}i {START_NS + n}\n"
            for n in range(200)
        ]
        bodies.append("".join(lines).encode())
    sink = RefusingSink(refusing.influxdb1, type_conflict)
    rig = rig_with(sink, bodies=bodies)
    await rig.deliver_all()
    assert_all_went_where_they_should(rig, type_conflict)
    for letter in rig.state.letters:
        assert f"is type {type_conflict(letter.line)}," in letter.reason


async def test_two_causes_in_one_batch_are_told_apart(autojump_clock: trio.testing.MockClock) -> None:
    """InfluxDB 1 names and counts only one of them, and does not say that others were dropped too."""

    def words(lines: Sequence[bytes]) -> tuple[int, str] | None:
        return refusing.influxdb1([line for line in lines if not is_old(line)]) or refusing.retention(lines)

    def refused(line: bytes) -> bool:
        return is_old(line) or type_conflict(line) is not None

    good = mixed(1, 500, every=50)
    old = mixed(1, 500, every=50, old=True)
    sink = RefusingSink(words, refused)
    rig = rig_with(sink, bodies=[good + old])
    await rig.deliver_all()
    assert_all_went_where_they_should(rig, refused)
    for letter in rig.state.letters:
        assert ("retention" if is_old(letter.line) else "is type string") in letter.reason


async def test_a_schema_that_was_mended_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    mended = False

    def words(lines: Sequence[bytes]) -> tuple[int, str] | None:
        return None if mended else refusing.influxdb1(lines)

    def refused(line: bytes) -> bool:
        return not mended and type_conflict(line) is not None

    sink = RefusingSink(words, refused)
    rig = rig_with(sink, bodies=[mixed(seq, 1_000, every=10) for seq in range(1, 5)])
    async with rig.running() as delivery:
        await rig.state.reached(4)
        letters = len(rig.state.letters)
        mended = True
        for seq in range(5, 9):
            rig.log.append(1_000, lines=mixed(seq, 1_000, every=10))
        await rig.state.reached(8)
        assert delivery._learnt.patterns((), now_s=trio.current_time()) == []
        writes = len(sink.writes)
        for seq in range(9, 13):
            rig.log.append(1_000, lines=mixed(seq, 1_000, every=10))
        await rig.state.reached(12)
    assert len(rig.state.letters) == letters == 400
    assert len(sink.writes) == writes + 4  # nothing is set apart any longer


async def test_what_was_learnt_survives_a_restart(autojump_clock: trio.testing.MockClock) -> None:
    sink = RefusingSink(refusing.influxdb1, type_conflict)
    rig = rig_with(sink, bodies=[mixed(1, 1_000, every=10)])
    await rig.deliver_all()
    sink.writes.clear()
    for seq in range(2, 6):
        rig.log.append(1_000, lines=mixed(seq, 1_000, every=10))
    await rig.deliver_all()
    assert_all_went_where_they_should(rig, type_conflict)
    assert len(sink.writes) == 4 + 1
    assert all(not any(map(type_conflict, lines)) for _, lines in sink.writes[:4])


async def test_points_like_refused_ones_wait_for_each_other_only_moments(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sink = RefusingSink(refusing.influxdb1, type_conflict)
    rig = rig_with(sink, bodies=[mixed(1, 1_000, every=100)])
    async with rig.running():
        await rig.state.reached(1)
        begun = trio.current_time()
        rig.log.append(1_000, lines=mixed(2, 1_000, every=100))
        await rig.state.reached(2)
        assert trio.current_time() - begun <= COLLECT_S + 2 * SETTINGS.cursor_commit_s + 0.1


@settings(max_examples=80, deadline=None)
@given(
    bodies=st.lists(
        st.lists(
            st.sampled_from(["good", "good", "good", "text", "integer", "old"]), min_size=1, max_size=40
        ),
        min_size=1,
        max_size=8,
    ),
    words=st.sampled_from([*TYPED, "wordless", "without words"]),
    in_flight_max=st.integers(1, 4),
    crash_every=st.integers(3, 50),
    partial=st.booleans(),
)
def test_whatever_is_refused_in_whatever_words_each_point_ends_where_it_should(
    bodies: list[list[str]], words: str, in_flight_max: int, crash_every: int, partial: bool
) -> None:
    """With crashes: every good line is stored, every bad one parked, and no more than once each."""
    writes, crashes = 0, 5
    of_types: Words = {**TYPED, "wordless": refusing.wordless, "without words": _nothing}[words]

    def judge(lines: Sequence[bytes]) -> tuple[int, str] | None:
        nonlocal writes, crashes
        writes += 1
        if writes % crash_every == 0 and crashes:
            crashes -= 1
            raise _Crash
        # Those that number lines number all of them; the others do not see what is too old.
        counted = lines if words == "influxdb3" else [line for line in lines if not is_old(line)]
        return of_types(counted) or refusing.retention(lines)

    def refused(line: bytes) -> bool:
        return is_old(line) or (words != "without words" and type_conflict(line) is not None)

    values = {"good": "1.5", "text": '"x y=1,"', "integer": "3i", "old": "2.5"}

    async def until_done() -> None:
        sink = RefusingSink(judge, refused, in_flight_max=in_flight_max, partial=partial)
        rig = DeliveryRig(settings=structs.replace(SETTINGS, batch_points_max=60))
        rig.sink = sink
        for seq, kinds in enumerate(bodies, start=1):
            lines = [
                f"m,host=h{n % 5} v={values[kind]},seq={seq}i {START_NS - (n + 1) * (1 if kind == 'old' else -1)}\n"
                for n, kind in enumerate(kinds)
            ]
            rig.log.append(len(lines), lines="".join(lines).encode())
        while rig.state.cursor("fake").seq < rig.log.last_seq:
            try:
                await rig.deliver_all()
            except* _Crash:
                pass
        assert_all_went_where_they_should(rig, refused)

    trio.run(until_done, clock=trio.testing.MockClock(autojump_threshold=0))


class _Crash(Exception):
    """The process ends here."""


def _nothing(_lines: Sequence[bytes]) -> None:
    return None
