"""The verdict: good only when all of it is true, and a sentence that claims nothing that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.flusher.status import SinkState
from wal_ingest.service.recent import OddTimes
from wal_ingest.service.remedies import CONDITIONS, Level
from wal_ingest.service.verdict import GIVEN_UP_S, Facts, SinkFacts, duration_text, verdict
from wal_ingest.wal.accounts import Account

HOUR_S = 3600.0


def sink(
    state: str = "idle",
    *,
    name: str = "influxdb",
    waiting: int = 0,
    parked: int = 0,
    given_up: int = 0,
    unaccounted: int = 0,
    lag_s: float = 0.0,
    catch_up_s: float | None = 0.0,
    no_room: bool = False,
) -> SinkFacts:
    """A sink that has 100 points, and what else is given."""
    accepted = 100 + waiting + parked + given_up + unaccounted
    account = Account(accepted, 100, waiting, parked, given_up, unaccounted)
    return SinkFacts(name, state, HOUR_S, lag_s, catch_up_s, account, no_room)


def facts(*sinks: SinkFacts, **others: object) -> Facts:
    return replace(Facts(sinks=sinks, accepted=1000), **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "level", "sentence"),
    [
        (facts(sink()), "good", "Taking points; everything delivered"),
        (facts(sink("delivering", waiting=7)), "good", "Taking points; delivery keeps up"),
        (facts(), "good", "Taking points; no sink is configured"),
        (
            facts(sink("retrying", waiting=1_204_113)),
            "attention",
            "Taking points; influxdb is unavailable for 1 h, 1,204,113 points wait, nothing is lost",
        ),
        (
            facts(sink("holding", waiting=7, parked=3, no_room=True)),
            "bad",
            "Taking points; influxdb is held, as its dead letters have no room for 1 h, 7 points wait; 3 points of "
            "influxdb parked; nothing is lost",
        ),
        (
            facts(sink("failed", waiting=1), damaged_files=1),
            "bad",
            "Taking points; influxdb gave up for 1 h, 1 point waits; 1 damaged file set aside",
        ),
        (
            facts(sink("delivering", lag_s=240, waiting=9, catch_up_s=120.0)),
            "good",
            "Taking points; influxdb lags 4 min, caught up in 2 min, nothing is lost",
        ),
        (
            facts(sink("delivering", lag_s=240, waiting=9, catch_up_s=None)),
            "attention",
            "Taking points; influxdb lags 4 min, and falls further, nothing is lost",
        ),
        (
            facts(sink("holding", waiting=4), reasons=["the WAL is full"], full_in_s=0.0),
            "bad",
            "NOT taking points: the WAL is full; influxdb refuses us for 1 h, 4 points wait; nothing is lost",
        ),
        (
            facts(sink(), full_in_s=600.0),
            "bad",
            "Taking points; the WAL is full in 10 min; everything delivered",
        ),
        (
            facts(sink(), disk_full_in_s=2400.0),
            "attention",
            "Taking points; the disk is full in 40 min; everything delivered",
        ),
        (
            facts(sink(unaccounted=3)),
            "bad",
            "Taking points; 3 points of influxdb unaccounted for; the rest is delivered",
        ),
        (
            facts(sink(), missing_points=5),
            "bad",
            "Taking points; 5 points missing in the log; everything delivered",
        ),
        (
            facts(sink(parked=412)),
            "attention",
            "Taking points; 412 points of influxdb parked; the rest is delivered",
        ),
        (
            facts(sink(given_up=12_345), given_up_s=HOUR_S),
            "attention",
            "Taking points; 12,345 points of influxdb given up; the rest is delivered",
        ),
        (
            facts(sink(given_up=12_345), given_up_s=GIVEN_UP_S),
            "good",
            "Taking points; 12,345 points of influxdb given up; the rest is delivered",
        ),
        (
            facts(sink(), refused={400: 50}),
            "attention",
            "Taking points; refused 50 of 1,050 requests of the last 5 min: 50 not understood (400); "
            "everything delivered",
        ),
        (
            facts(sink(), refused={400: 50, 401: 50}, accepted=0),
            "bad",
            "REFUSING ALL 100 requests of the last 5 min: 50 not understood (400), 50 without a valid token (401); "
            "everything delivered",
        ),
        (
            facts(sink(), refused={418: 1500}),
            "bad",
            "Taking points; refused 1,500 of 2,500 requests of the last 5 min: 1,500 with 418; everything delivered",
        ),
        (facts(sink(), refused={503: 9}), "good", "Taking points; everything delivered"),
        (
            facts(sink(), refused={503: 90}),
            "attention",
            "Taking points; refused 90 of 1,090 requests of the last 5 min: 90 to be repeated later (503); "
            "everything delivered",
        ),
        (
            facts(sink("absent", waiting=5)),
            "bad",
            "Taking points; influxdb is missing from the settings for 1 h, 5 points wait, nothing is lost",
        ),
        (
            facts(sink("dreaming")),
            "attention",
            "Taking points; influxdb is dreaming for 1 h, nothing is lost",
        ),
    ],
)
def test_a_sentence_says_how_it_is(given: Facts, level: str, sentence: str) -> None:
    found = verdict(given)
    assert (found.sentence, found.level.word) == (sentence, level)


COUNTS = st.sampled_from([0, 0, 0, 1, 1000])
SINKS = st.builds(
    sink,
    st.sampled_from([*CONDITIONS, "dreaming"]),
    waiting=COUNTS,
    parked=COUNTS,
    given_up=COUNTS,
    unaccounted=COUNTS,
    lag_s=st.sampled_from([0.0, 1000.0]),
    catch_up_s=st.sampled_from([None, 5.0]),
)
FACTS = st.builds(
    Facts,
    reasons=st.lists(st.just("full"), max_size=1),
    sinks=st.lists(SINKS, max_size=2),
    full_in_s=st.sampled_from([None, 0.0, 600.0, 1e6]),
    disk_full_in_s=st.sampled_from([None, 600.0]),
    damaged_files=COUNTS,
    missing_points=COUNTS,
    refused=st.dictionaries(st.sampled_from([400, 401, 413, 429, 503]), COUNTS, max_size=2),
    accepted=COUNTS,
    given_up_s=st.sampled_from([None, 0.0, GIVEN_UP_S + 1]),
)


@given(FACTS)
def test_it_is_good_only_when_nothing_is_refused_parked_lost_or_in_trouble(given: Facts) -> None:
    found = verdict(given)
    if found.level is Level.GOOD:
        answered = given.accepted + sum(given.refused.values())
        later = sum(given.refused.get(status, 0) for status in (429, 503))
        assert sum(given.refused.values()) == later
        assert not later or later < 0.02 * answered
        assert not given.reasons
        assert not given.damaged_files
        assert not given.missing_points
        for one in given.sinks:
            assert CONDITIONS[one.state].level is Level.GOOD
            assert not one.account.parked
            assert not one.account.unaccounted
            assert not one.account.given_up or given.given_up_s is None or given.given_up_s >= GIVEN_UP_S
    if "everything delivered" in found.sentence:
        assert all(one.account.accepted == one.account.delivered for one in given.sinks)
    if "nothing is lost" in found.sentence:
        assert not any(one.account.given_up or one.account.unaccounted for one in given.sinks)


def test_what_must_be_done_comes_with_the_sentence() -> None:
    told = facts(sink("failed"), sink("retrying", name="archive"), sink(name="kafka", parked=1))
    assert [(each.says, each.run) for each in verdict(told).remedies] == [
        ("Repair what influxdb reports, then:", "wal-ingest sink resume influxdb"),
        ("Repair archive; delivery goes on by itself when it is back.", "wal-ingest sink status"),
        ("See why, then retry or drop them:", "wal-ingest dead-letters list --sink kafka"),
    ]


def test_the_key_changes_with_the_state_and_not_with_a_figure() -> None:
    keys = [
        verdict(facts(sink("retrying", waiting=waiting), refused={400: waiting})).key for waiting in (5, 6)
    ]
    assert keys[0] == keys[1] != verdict(facts(sink("paused"))).key


def test_every_state_of_a_sink_has_a_meaning_and_every_bad_one_a_remedy() -> None:
    assert {state.value for state in SinkState} <= CONDITIONS.keys()
    for state, condition in CONDITIONS.items():
        assert (condition.level is Level.GOOD) == (condition.remedy is None), state


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.42, "0.4 s"),
        (9.97, "10 s"),
        (59.6, "1 min"),
        (250, "4 min 10 s"),
        (11_520, "3 h 12 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_implausible_times_are_named_with_their_source_and_the_unit_that_they_look_like() -> None:
    odd = OddTimes("10.0.0.7", "time_past", "seconds", 1204)
    found = verdict(facts(sink(), odd_times=[odd]))
    assert found.level is Level.ATTENTION
    assert found.sentence == (
        "Taking points; 1,204 points of the last 5 min from 10.0.0.7 with times before 1990: this looks like seconds; "
        "everything delivered"
    )
    assert "precision=s" in found.remedies[0].says
    several = verdict(facts(sink("retrying", waiting=1), odd_times=[odd, odd, odd]))
    assert "this looks like seconds, and of 2 more sources" in several.sentence
    # A database may drop such points without a word.
    assert "nothing is lost" not in several.sentence
