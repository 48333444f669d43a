"""The requests of the last minutes: counted by status, forgotten after the window, in bounded memory."""

from __future__ import annotations

from wal_ingest.service.recent import SPACING_S, WINDOW_S, RecentRequests


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
