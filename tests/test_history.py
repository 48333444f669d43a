"""The hour's history: rates, quantiles, and forecasts that say nothing rather than something wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.history import (
    BOUNDS_S,
    STEPS_MAX,
    Commits,
    Durations,
    History,
    Rates,
    Sample,
    SinkSample,
    Step,
    quantile,
)

NO_APPENDS = Durations().counts()
CLASS_WIDTH = 1.25


def sample(at_s: float, points: float = 0, **others: object) -> Sample:
    """A moment at which nothing has happened but what is given."""
    known: dict[str, object] = {
        "requests": 0,
        "bytes": 0,
        "commits": 0,
        "entries": 0,
        "appends": NO_APPENDS,
        "wal_bytes": 0,
    }
    return Sample(at_s=at_s, points=int(points), **(known | others))  # type: ignore[arg-type]


def watched(seconds: int, at: Callable[[int], Sample], *, every_s: int = 1) -> History:
    """A history that was given the sample of every second, both ends included."""
    history = History()
    for second in range(0, seconds + 1, every_s):
        history.add(at(second))
    return history


def sink(waiting: float, passed: float) -> Mapping[str, SinkSample]:
    return {"influxdb": SinkSample(int(waiting), int(passed), int(passed))}


# -- quantiles ------------------------------------------------------------------------------------------


@given(
    st.lists(st.floats(min_value=0.00011, max_value=BOUNDS_S[-1]), min_size=1, max_size=300),
    st.sampled_from([0.01, 0.5, 0.99, 1.0]),
)
def test_a_quantile_is_off_by_the_width_of_a_class_at_the_most(durations: list[float], part: float) -> None:
    counted = Durations()
    for seconds in durations:
        counted.record(seconds)
    found = quantile(counted.counts(), part)
    true = sorted(durations)[math.ceil(part * len(durations)) - 1]
    assert found is not None
    assert true / CLASS_WIDTH * 0.999 <= found <= true * CLASS_WIDTH * 1.001


def test_the_quantile_of_nothing_is_not_known() -> None:
    assert quantile(NO_APPENDS, 0.5) is None


def test_a_duration_beyond_the_last_bound_is_given_as_that_bound() -> None:
    counted = Durations()
    counted.record(1e9)
    assert quantile(counted.counts(), 0.99) == BOUNDS_S[-1]


# -- rates ----------------------------------------------------------------------------------------------


def test_rates_are_those_of_the_last_ten_seconds() -> None:
    def at(second: int) -> Sample:
        busy = max(0, second - 40)
        return sample(second, busy * 500, requests=busy * 5, bytes=busy * 7000)

    assert watched(40, at).rates() == Rates(0, 0, 0)
    assert watched(45, at).rates() == Rates(2.5, 250, 3500)
    assert watched(60, at).rates() == Rates(5, 500, 7000)


def test_a_history_that_has_seen_one_moment_knows_no_rates() -> None:
    history = watched(0, lambda second: sample(second, 100, sinks=sink(3, 97)))
    assert history.rates() == Rates(0, 0, 0)
    assert history.commits() == Commits(None, None, 0.0, None)
    assert history.confirmed_per_s("influxdb") == 0
    assert history.catch_up_s("influxdb") is None
    assert history.full_in_s() is None
    assert History().full_in_s() is History().disk_full_in_s() is None


def test_a_sample_that_is_not_later_is_ignored() -> None:
    history = watched(20, lambda second: sample(second, second * 10))
    history.add(sample(20, 10_000))
    history.add(sample(3, 10_000))
    assert history.rates().points_per_s == 10


def test_commits_are_told_of_the_last_minute() -> None:
    counted = Durations()
    history = History()
    for second in range(121):
        for _ in range(10):
            counted.record(0.050 if second <= 60 else 0.004)
        history.add(sample(second, commits=second * 4, entries=second * 40, appends=counted.counts()))
    told = history.commits()
    assert (told.per_s, told.entries_per_commit) == (4, 10)
    assert told.p50_s == pytest.approx(0.004, rel=0.25)
    assert told.p99_s == pytest.approx(0.004, rel=0.25)


# -- the hour -------------------------------------------------------------------------------------------


def test_a_step_has_what_came_in_over_it_and_the_sizes_at_its_end() -> None:
    counted = Durations()
    counted.record(9.0)  # before the step: not its business

    def at(second: int) -> Sample:
        counted.record(0.02)
        return sample(
            second,
            second * 100,
            wal_bytes=second * 7,
            appends=counted.counts(),
            sinks=sink(50 - second, second * 90),
        )

    history = watched(25, at)
    assert history.end_s == 20
    first, second = history.steps
    assert (first.points_per_s, first.wal_bytes, dict(first.sinks)) == (100, 70, {"influxdb": (40, 90)})
    assert (second.points_per_s, second.wal_bytes) == (100, 140)
    assert first.append_p99_s == pytest.approx(0.02, rel=0.25)
    assert history.sink_names() == ["influxdb"]


def test_a_step_without_appends_knows_no_quantile() -> None:
    assert [step.append_p99_s for step in watched(10, lambda second: sample(second)).steps] == [None]


def test_steps_in_which_nobody_looked_are_not_known() -> None:
    history = watched(10, lambda second: sample(second, second))
    history.add(sample(35, 35))
    for second in range(36, 41):
        history.add(sample(second, second))
    assert [step.points_per_s for step in history.steps] == [1, None, None, 1]
    assert history.steps[1] == Step()


@given(st.lists(st.floats(min_value=0.01, max_value=20_000), min_size=1, max_size=60))
def test_whatever_the_pauses_the_hour_stays_an_hour_and_ends_before_the_last_look(
    pauses: list[float],
) -> None:
    history, at_s = History(), 0.0
    for pause in pauses:
        at_s += pause
        history.add(sample(at_s, at_s * 3_000_000))
        assert len(history.steps) <= STEPS_MAX
        assert history.end_s <= at_s < history.end_s + 10.001
        for step in history.steps:
            assert step.points_per_s is None or step.points_per_s == pytest.approx(3_000_000, rel=0.01)


def test_an_hour_of_samples_leaves_an_hour_of_steps_and_a_minute_of_samples() -> None:
    history = watched(5_000, lambda second: sample(second, second))
    assert len(history.steps) == STEPS_MAX
    assert len(history._recent) <= 62


# -- when the WAL is full -------------------------------------------------------------------------------


def test_the_time_to_full_follows_from_the_growth_of_the_last_minute() -> None:
    def at(second: int) -> Sample:
        return sample(second, wal_room=1_000_000 - 100 * second, disk_room=500_000 - 100 * second)

    history = watched(100, at)
    assert history.full_in_s() == pytest.approx(4_900), "at its own growth, by the nearer of the two limits"
    assert history.disk_full_in_s() == pytest.approx(4_900)


def test_a_disk_that_others_fill_leaves_the_wal_without_a_time_to_full() -> None:
    history = watched(60, lambda second: sample(second, wal_room=1e6, disk_room=100_000 - 900 * second))
    assert history.full_in_s() is None
    assert history.disk_full_in_s() == pytest.approx(46_000 / 900)


@pytest.mark.parametrize("growth", [0, -50, 0.0001])
def test_a_wal_that_does_not_grow_to_speak_of_has_no_time_to_full(growth: float) -> None:
    history = watched(100, lambda second: sample(second, wal_room=1e6 - growth * second))
    assert history.full_in_s() is None
    assert history.disk_full_in_s() is None


def test_a_wal_that_goes_up_and_down_has_no_time_to_full_though_it_just_went_up() -> None:
    def at(second: int) -> Sample:
        return sample(second, wal_room=1_000_000 - 1_000 * (second % 20))

    assert [watched(seconds, at).full_in_s() for seconds in range(30, 120)] == [None] * 90


def test_a_trend_of_less_than_half_a_minute_is_no_trend() -> None:
    def at(second: int) -> Sample:
        return sample(second, wal_room=1_000 - second, disk_room=1_000 - second)

    assert (watched(29, at).full_in_s(), watched(29, at).disk_full_in_s()) == (None, None)
    assert watched(30, at).full_in_s() == pytest.approx(970)


def test_a_wal_that_began_to_fill_some_seconds_ago_has_a_time_to_full() -> None:
    def at(second: int) -> Sample:
        return sample(second, wal_room=1_000_000 - 1_000 * max(0, second - 100))

    assert watched(115, at).full_in_s() is None
    told = watched(130, at).full_in_s()
    assert told is not None
    assert 970 <= told <= 3_000


def test_a_limit_that_is_reached_is_zero_seconds_away() -> None:
    history = watched(5, lambda second: sample(second, wal_room=10_000, disk_room=0))
    assert history.full_in_s() == history.disk_full_in_s() == 0


# -- when a sink has caught up --------------------------------------------------------------------------


def test_a_sink_for_which_nothing_waits_has_caught_up() -> None:
    history = watched(1, lambda second: sample(second, 100, sinks=sink(0, 100)))
    assert history.catch_up_s("influxdb") == 0


def test_the_time_to_catch_up_is_what_waits_by_what_is_gained() -> None:
    def at(second: int) -> Sample:
        accepted, passed = 1_000_000 + 100 * second, 400 * second
        return sample(second, accepted, sinks=sink(accepted - passed, passed))

    history = watched(60, at)
    assert history.confirmed_per_s("influxdb") == 400
    assert history.catch_up_s("influxdb") == pytest.approx((1_000_000 - 300 * 60) / 300)


@pytest.mark.parametrize("passed_per_s", [0, 50, 100])
def test_a_sink_that_gains_nothing_falls_behind(passed_per_s: int) -> None:
    def at(second: int) -> Sample:
        accepted, passed = 1_000_000 + 100 * second, passed_per_s * second
        return sample(second, accepted, sinks=sink(accepted - passed, passed))

    assert watched(60, at).catch_up_s("influxdb") is None


def test_a_sink_that_keeps_pace_a_second_behind_does_not_fall_behind() -> None:
    def at(second: int) -> Sample:
        return sample(second, 100 * second, sinks=sink(100 if second else 0, max(0, 100 * (second - 1))))

    assert watched(60, at).catch_up_s("influxdb") == pytest.approx(1)


def test_what_has_only_just_come_in_is_no_backlog() -> None:
    history = watched(60, lambda second: sample(second, second // 60, sinks=sink(second // 60, 0)))
    assert history.catch_up_s("influxdb") == pytest.approx(10)


def test_the_rates_of_less_than_five_seconds_are_no_estimate() -> None:
    def at(second: int) -> Sample:
        return sample(second, 1_000_000, sinks=sink(1_000_000 - 100 * second, 100 * second))

    assert watched(4, at).catch_up_s("influxdb") is None
    assert watched(5, at).catch_up_s("influxdb") == pytest.approx(999_500 / 100)


def test_a_sink_that_nobody_knows_has_no_figures() -> None:
    history = watched(60, lambda second: sample(second, second))
    history.add(sample(61, 61, sinks=sink(5, 0)))
    assert history.catch_up_s("postgresql") is None
    assert history.catch_up_s("influxdb") is None, "it came a moment ago"
    assert history.confirmed_per_s("influxdb") == 0
