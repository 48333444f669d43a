"""The requests of the last minutes: counted by status, forgotten after the window, in bounded memory."""

from __future__ import annotations

from wal_ingest.service.recent import SPACING_S, WINDOW_S, OddTimes, RecentOddTimes, RecentRequests


def test_refusals_are_counted_by_status_and_only_on_the_routes_that_take_points() -> None:
    recent = RecentRequests(["/write"])
    recent.refused("/write", 400)
    recent.refused("/write", 401)
    recent.refused("/favicon.ico", 404)
    assert recent.counts() == (0, {400: 1, 401: 1}), "before the first sample"
    recent.sample(1000.0, 7)
    assert recent.counts() == (7, {400: 1, 401: 1})


def test_what_is_older_than_the_window_is_forgotten() -> None:
    recent = RecentRequests(["/write"])
    recent.refused("/write", 400)
    for second in range(int(WINDOW_S + SPACING_S) + 1):
        if second == 200:
            recent.refused("/write", 401)
        recent.sample(1000.0 + second, second)
    accepted, refused = recent.counts()
    assert refused == {401: 1}
    assert WINDOW_S <= accepted <= WINDOW_S + SPACING_S


def test_memory_is_bounded() -> None:
    recent = RecentRequests(["/write"])
    for second in range(5000):
        recent.refused("/write", 400)
        recent.sample(float(second), second)
    assert len(recent._kept) <= WINDOW_S / SPACING_S + 2


def test_implausible_times_are_counted_by_source_and_only_for_the_window() -> None:
    recent = RecentOddTimes()
    recent.noticed(0.0, "10.0.0.7", "time_past", "seconds", 3)
    recent.noticed(200.0, "10.0.0.7", "time_past", "seconds", 4)
    recent.noticed(200.0, "10.0.0.8", "time_future", "", 9)
    recent.noticed(200.0, "10.0.0.9", "not_utf8", "", 100)
    seconds = OddTimes("10.0.0.7", "time_past", "seconds", 7)
    future = OddTimes("10.0.0.8", "time_future", "", 9)
    assert recent.listed(201.0) == [future, seconds]
    assert seconds.says == "from 10.0.0.7 with times before 1990: this looks like seconds"
    assert future.says == "from 10.0.0.8 with times more than a day ahead"
    assert recent.listed(WINDOW_S + SPACING_S)[1].points == 4
    assert recent.listed(200.0 + WINDOW_S + SPACING_S) == []
    assert not recent._spans


def test_memory_of_implausible_times_is_bounded() -> None:
    recent = RecentOddTimes(sources_max=3)
    for second in range(2000):
        recent.noticed(float(second), f"source-{second % 5}", "time_past", "", 1)
    assert {odd.source for odd in recent.listed(2000.0)} == {"source-2", "source-3", "source-4"}
    assert all(len(spans) <= WINDOW_S / SPACING_S + 2 for spans in recent._spans.values())
