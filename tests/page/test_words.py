"""Numbers and times in words, and the arithmetic of the plots, as the browser runs them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from tests.page import scenarios
from tests.page.node import FakeNode
from tests.rigs.chromium import Watched, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.needs("chromium")

MINUTE_MS = 60_000


@pytest.fixture(scope="module")
def watched(chromium: Browser) -> Iterator[Watched]:
    """A page whose modules a test can call."""
    with FakeNode(scenarios.healthy(), scenarios.history()) as node, watched_page(chromium) as watched:
        watched.page.goto(node.url)
        yield watched


def call(watched: Watched, module: str, name: str, *arguments: object) -> Any:
    """What a function of one of the page's modules gives; narrow spaces come back as plain ones."""
    found = watched.page.evaluate(
        "async ([module, name, given]) => (await import(module))[name](...given)",
        [f"/status-{module}.js", name, list(arguments)],
    )
    return found.replace("\u202f", " ") if isinstance(found, str) else found


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("count", 0, "0"),
        ("count", 0.04, "0.04"),
        ("count", 7, "7"),
        ("count", 999, "999"),
        ("count", 999.7, "1 k"),
        ("count", 1000, "1 k"),
        ("count", 12_345, "12.3 k"),
        ("count", 999_999, "1 M"),
        ("count", 1_204_113, "1.2 M"),
        ("count", 4_873_205_117, "4.87 G"),
        ("count", 10**17, "100000 T"),
        ("count", None, "–"),
        ("bytes", 0, "0 B"),
        ("bytes", 1023, "1023 B"),
        ("bytes", 1536, "1.5 KiB"),
        ("bytes", 53_687_091_200, "50 GiB"),
        ("bytes", None, "–"),
        ("milliseconds", 0.421, "0.42 ms"),
        ("milliseconds", 4.87, "4.87 ms"),
        ("milliseconds", 153.2, "153 ms"),
        ("milliseconds", 2500, "2.5 s"),
        ("milliseconds", None, "–"),
        ("duration", 0, "0 s"),
        ("duration", -3, "0 s"),
        ("duration", 0.42, "0.4 s"),
        ("duration", 9.97, "10 s"),
        ("duration", 59.6, "1 min"),
        ("duration", 250, "4 min 10 s"),
        ("duration", 2410, "40 min"),
        ("duration", 3600, "1 h"),
        ("duration", 11_520, "3 h 12 min"),
        ("duration", 187_200, "2 d 4 h"),
        ("duration", None, "–"),
    ],
)
def test_numbers_are_told_with_their_unit(watched: Watched, name: str, value: object, words: str) -> None:
    assert call(watched, "words", name, value) == words


@pytest.mark.parametrize(
    ("moment", "seconds", "words"),
    [
        ("2026-11-23T02:13:05+00:00", False, "02:13"),
        ("2026-11-23T02:13:05+00:00", True, "02:13:05"),
        ("2026-11-22T02:13:05Z", False, "22 Nov 02:13"),
        ("no time", False, "–"),
    ],
)
def test_times_name_the_day_when_it_is_not_today(
    watched: Watched, moment: str, seconds: bool, words: str
) -> None:
    now = "2026-11-23T03:00:00+00:00"
    assert call(watched, "words", "clock", moment, now, {"seconds": seconds}) == words


@pytest.mark.parametrize(
    ("highest", "options", "ticks"),
    [
        (0, {}, [0, 0.5, 1]),
        (4.1, {}, [0, 2, 4, 6]),
        (482_000, {}, [0, 200_000, 400_000, 600_000]),
        (400, {}, [0, 100, 200, 300, 400]),
        (5 * 2**30, {"binary": True, "least": 1024}, [0, 2 * 2**30, 4 * 2**30, 6 * 2**30]),
        (0, {"binary": True, "least": 1024}, [0, 256, 512, 768, 1024]),
    ],
)
def test_the_axis_of_values_has_round_ticks_and_reaches_over_the_highest(
    watched: Watched, highest: float, options: dict[str, object], ticks: list[float]
) -> None:
    assert call(watched, "plot", "valueTicks", highest, options) == ticks


@pytest.mark.parametrize(
    ("minutes", "pixels", "every"), [(60, 460, 10), (60, 230, 20), (5, 460, 1), (60, 20, 30)]
)
def test_the_axis_of_time_has_round_minutes_that_do_not_run_into_each_other(
    watched: Watched, minutes: int, pixels: int, every: int
) -> None:
    start = 30 * MINUTE_MS + 1
    ticks = call(watched, "plot", "timeTicks", start, start + minutes * MINUTE_MS, pixels)
    assert [tick % (every * MINUTE_MS) for tick in ticks] == [0] * len(ticks)
    assert {later - one for one, later in pairwise(ticks)} <= {every * MINUTE_MS}


@pytest.mark.parametrize(
    ("values", "line", "area"),
    [
        ([1, 2, None, 4, 5], "M0 1L1 2M3 4L4 5", "M0 1L1 2V9H0ZM3 4L4 5V9H3Z"),
        ([None, 2, None], "M1 2h0", "M1 2V9H1Z"),
        ([None, None], "", ""),
        ([], "", ""),
    ],
)
def test_what_is_not_known_is_a_gap(
    watched: Watched, values: list[float | None], line: str, area: str
) -> None:
    drawn = watched.page.evaluate(
        """async (values) => {
            const { linePath, areaPath } = await import("/status-plot.js");
            const same = (value) => value;
            return [linePath(values, same, same), areaPath(values, same, same, 9)];
        }""",
        values,
    )
    assert drawn == [line, area]
