"""The status page in a real Chromium, over nodes that are well, in trouble, silent, new, or hostile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.page import scenarios
from tests.page.node import FakeNode
from tests.page.scenarios import History, Status
from tests.rigs.chromium import Watched, watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.needs("chromium")

SCENARIOS: dict[str, tuple[Status, History]] = {
    "healthy": (scenarios.healthy(), scenarios.history("influxdb")),
    "sink away": (scenarios.sink_away(), scenarios.history("influxdb", "kafka")),
    "WAL full": (scenarios.wal_full(), scenarios.history("influxdb")),
    "just started": (scenarios.just_started(), scenarios.history("archive", values=0)),
}


@contextmanager
def opened(
    chromium: Browser, status: Status, history: History, **how: Any
) -> Iterator[tuple[FakeNode, Watched]]:
    """The page over a node that says this, with the first answer shown and the plots drawn."""
    with FakeNode(status, history) as node, watched_page(chromium, **how) as watched:
        watched.page.clock.install()
        watched.page.goto(node.url)
        watched.page.wait_for_selector("body:not(.waiting)")
        watched.page.wait_for_selector("#plot-append .cursor", state="attached")
        yield node, watched


def ask_again(watched: Watched) -> None:
    """Lets the page's clock go on to its next question."""
    watched.page.clock.run_for(2_100)


def words(text: str) -> str:
    """A text with plain spaces."""
    return " ".join(text.replace("\u202f", " ").split())


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_complains_nothing_sticks_out_and_nobody_else_is_asked(
    chromium: Browser, scenario: str, width: int
) -> None:
    with opened(chromium, *SCENARIOS[scenario], width=width, dark=width == 360) as (node, watched):
        assert watched.complaints == []
        assert watched.overflows() == []
        mine = {url for url in watched.requested if url.startswith(node.url)}
        assert {url for url in watched.requested if not url.startswith("data:")} == mine


def test_the_sentence_is_at_the_top_in_its_colour_and_is_spoken(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["WAL full"]) as (_, watched):
        assert words(watched.text("#verdict")).startswith("NOT taking points: the WAL is full")
        assert watched.page.get_attribute("#banner", "data-level") == "bad"
        assert watched.page.text_content("#said") == watched.page.text_content("#verdict")
        assert watched.page.title().startswith("ACT")


@pytest.mark.parametrize(
    ("level", "title", "colour"),
    [("good", "OK", "2e9e5b"), ("attention", "Look", "d98e04"), ("bad", "ACT", "d6322d")],
)
def test_sentence_title_and_icon_are_those_of_the_nodes_own_verdict(
    chromium: Browser, level: str, title: str, colour: str
) -> None:
    status = scenarios.healthy(
        verdict={
            "level": level,
            "sentence": "As the node says",
            "remedies": [{"says": "Do this:", "run": "wal-ingest x"}],
            "key": "k",
        }
    )
    with opened(chromium, status, scenarios.history("influxdb")) as (_, watched):
        assert watched.text("#verdict") == "As the node says"
        assert words(watched.text("#advice")) == "Do this: wal-ingest x"
        assert watched.page.get_attribute("#banner", "data-level") == level
        assert watched.page.title().startswith(title)
        assert colour in (watched.page.get_attribute("#icon", "href") or "")


def test_a_sink_in_trouble_shows_its_state_its_lag_and_its_last_error(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["sink away"]) as (_, watched):
        cards = watched.page.locator(".sink")
        assert cards.count() == 2
        card = words(cards.first.inner_text())
        for said in (
            "retrying",
            "since 02:13",
            "1.2 M points",
            "18 min",
            "Parked 412",
            "connection refused",
            "not now",
        ):
            assert said in card
        assert card.endswith("connection refused")
        assert "4,874,409,642 accepted = 4,873,205,117 delivered + 1,204,113 waiting + 412 parked" in card
        assert "optional" not in card
        assert "optional" in cards.nth(1).inner_text()
        assert "wal-ingest sink resume kafka" in words(watched.text("#advice"))
        assert "412 points influxdb" in words(watched.text("#dead"))
        assert "field type conflict" in watched.text("#dead")
        assert "sink pause (sink=kafka) by ada (uid 1000, pid 4711)" in watched.text("#events")


def test_the_tiles_show_rates_latency_and_how_full_it_is(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["sink away"]) as (_, watched):
        tiles = [words(text) for text in watched.page.locator(".tile").all_inner_texts()]
        assert tiles[0].startswith("Coming in 482 k points/s")
        assert tiles[1].startswith("Append to durable 4.87 ms p99, last minute p50 1.31 ms")
        assert tiles[2].startswith("WAL 21 GiB of 50 GiB, 42 % Full in 41 min")
        assert tiles[3].startswith("Disk 317 GiB free Refuses below 1 GiB Reaches that in not filling")
        assert watched.page.get_attribute("#wal-bar", "aria-valuenow") == "42.0"


def test_a_new_node_shows_what_it_does_not_know_as_unknown(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["just started"]) as (_, watched):
        assert watched.text("#p99") == "–"
        assert watched.text("#oldest") == "none"
        assert "nothing yet" in watched.text("#plot-rate")
        assert watched.page.is_visible("#no-dead")
        assert watched.page.is_visible("#no-events")


def test_implausible_times_are_shown_by_source_with_the_unit_that_they_look_like(chromium: Browser) -> None:
    odd = {"source": "10.0.0.7", "oddity": "time_past", "looks_like": "seconds", "points": 1204}
    odd["says"] = "from 10.0.0.7 with times before 1990: this looks like seconds"
    status = scenarios.concluded(scenarios.healthy(odd_times=[odd]))
    with opened(chromium, status, scenarios.history("influxdb")) as (_, watched):
        assert watched.page.get_attribute("#banner", "data-level") == "attention"
        assert "this looks like seconds" in watched.text("#verdict")
        assert "1.2 k points 10.0.0.7" in words(watched.text("#odd"))
        assert "this looks like seconds" in watched.text("#odd")
    with opened(chromium, *SCENARIOS["just started"]) as (_, watched):
        assert not watched.page.is_visible("#odd-section")


def test_texts_of_others_never_become_markup(chromium: Browser) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    status = scenarios.sink_away()
    status |= {"ready": False, "reasons": [hostile], "version": hostile, "wal_id": hostile}
    status["sinks"][0] |= {"name": hostile, "state": hostile, "meaning": hostile, "last_error": hostile}
    scenarios.concluded(status)
    status["events"] = status["events"][:1]
    status["events"][0] |= {"source": hostile, "message": hostile * 50}
    status["dead_letters"][0] |= {"sink": hostile, "reason": hostile}
    status["odd_times"] = [
        {"source": hostile, "oddity": "", "looks_like": None, "points": 1, "says": hostile}
    ]
    with opened(chromium, status, scenarios.history(hostile, "kafka"), width=360) as (_, watched):
        assert watched.text("#events .text") == hostile * 50
        assert watched.text("#dead .text") == hostile
        assert watched.text("#odd .text") == hostile
        assert hostile in watched.text("#verdict")
        assert watched.page.locator("img, body script").count() == 0
        assert "owned" not in watched.page.title()
        assert watched.complaints == []
        assert watched.overflows() == []


def test_a_silent_node_is_told_with_since_when_and_the_page_recovers_by_itself(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["healthy"]) as (node, watched):
        node.go_away()
        ask_again(watched)
        watched.wait_for_text("#verdict", "No status from this node since")
        assert "cannot be reached" in watched.text("#verdict")
        assert watched.page.get_attribute("#banner", "data-level") == "bad"
        assert watched.page.locator("body.stale").count() == 1
        assert words(watched.text("#points-rate")) == "482 k"
        assert watched.page.title().startswith("ACT")
        node.come_back()
        ask_again(watched)
        watched.wait_for_text("#verdict", "Taking points")
        assert watched.page.locator("body.stale").count() == 0
        # The browser itself notes the requests that failed; the page adds nothing to that.
        assert all("ERR_CONNECTION_REFUSED" in said for said in watched.complaints)


@pytest.mark.parametrize(("said", "reason"), [({}, "it answers status.json with 500"), ([1], "")])
def test_an_answer_that_is_none_is_told_as_well(chromium: Browser, said: Any, reason: str) -> None:
    with FakeNode(said, scenarios.history()) as node, watched_page(chromium) as watched:
        node.broken = bool(reason)
        watched.page.clock.install()
        watched.page.goto(node.url)
        watched.wait_for_text("#verdict", "No status from this node since")
        assert reason in watched.text("#verdict")
        assert "Does the node run" in watched.text("#advice")
        node.status, node.broken = scenarios.healthy(), False
        ask_again(watched)
        watched.wait_for_text("#verdict", "Taking points")


def test_a_change_is_spoken_once_and_figures_are_not(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["sink away"]) as (node, watched):
        spoken = watched.page.text_content("#said")
        later = scenarios.sink_away()
        later["sinks"][0]["waiting_points"] = 7_700_000
        node.status = scenarios.concluded(later)
        ask_again(watched)
        watched.wait_for_text("#verdict", "7,700,000")
        assert watched.page.text_content("#said") == spoken
        node.status = scenarios.healthy()
        ask_again(watched)
        watched.wait_for_text("#said", "delivery keeps up")


def test_a_hidden_tab_asks_nothing_and_a_shown_one_at_once(chromium: Browser) -> None:
    with FakeNode(*SCENARIOS["healthy"]) as node, watched_page(chromium) as watched:
        watched.page.clock.install()
        watched.page.goto(node.url)
        watched.wait_for_text("#verdict", "Taking points")
        _show(watched, hidden=True)
        watched.page.clock.run_for(3_000)
        before = node.asked["/status.json"]
        watched.page.clock.run_for(120_000)
        assert node.asked["/status.json"] == before
        with watched.page.expect_response("**/status.json"):
            _show(watched, hidden=False)
        assert node.asked["/status.json"] == before + 1


def _show(watched: Watched, *, hidden: bool) -> None:
    watched.page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_the_readout_follows_pointer_and_keys_and_leaves_gaps_unknown(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["healthy"]) as (_, watched):
        plot = watched.page.locator("#plot-append svg")
        legend = watched.page.locator("#plot-append .legend")
        assert legend.inner_text().startswith("latest")
        box = plot.bounding_box()
        assert box is not None
        # Nothing is known of the appends in the middle of the hour.
        plot.hover(position={"x": 64 + (box["width"] - 74) * 160 / 359, "y": 60})
        assert words(legend.inner_text()) == "01:57:57 p99 –"
        plot.hover(position={"x": box["width"] - 2, "y": 60})
        assert words(legend.inner_text()).startswith("02:31:07 p99 ")
        watched.page.mouse.move(0, 0)
        assert legend.inner_text().startswith("latest")
        plot.focus()
        plot.press("Home")
        assert words(legend.inner_text()).startswith("01:31:17 p99 ")
        plot.press("ArrowRight")
        assert words(legend.inner_text()).startswith("01:31:27 p99 ")
        label = words(plot.get_attribute("aria-label") or "")
        assert "Append to durable, p99, over 59 min. 01:31:27: p99" in label
        plot.press("Escape")
        assert legend.inner_text().startswith("latest")


def test_a_finger_moves_the_readout(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["healthy"], width=390, touch=True) as (_, watched):
        plot = watched.page.locator("#plot-rate svg")
        plot.tap(position={"x": 64, "y": 50})
        legend = words(watched.text("#plot-rate .legend"))
        assert legend.startswith("01:31:17 accepted ")


def test_a_plot_is_drawn_anew_for_another_width(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["healthy"], width=1280) as (_, watched):
        watched.page.set_viewport_size({"width": 360, "height": 800})
        watched.page.wait_for_function(
            """() => {
                const svg = document.querySelector("#plot-wal svg");
                return Math.abs(svg.viewBox.baseVal.width - svg.getBoundingClientRect().width) < 1;
            }"""
        )
        assert watched.overflows() == []


def test_the_page_is_in_order_for_those_who_do_not_see_it(chromium: Browser) -> None:
    with opened(chromium, *SCENARIOS["sink away"]) as (_, watched):
        page = watched.page
        assert page.get_by_role("status").count() == 1
        assert page.get_by_role("heading", level=1).inner_text() == "wal-ingest"
        assert page.get_by_role("meter", name="WAL").count() == 1
        assert page.get_by_role("img").count() == 4
        assert [words(name) for name in page.get_by_role("heading", level=3).all_inner_texts()] == [
            "influxdb",
            "kafka",
        ]


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_what_is_behind_it(chromium: Browser, dark: bool) -> None:
    with opened(chromium, *SCENARIOS["sink away"], dark=dark) as (_, watched):
        contrasts = watched.page.evaluate(_CONTRASTS)
        assert len(contrasts) > 60
        assert [text for text, contrast in contrasts if contrast < 4.5] == []


# WCAG 2's contrast of every text with the nearest background behind it.
_CONTRASTS = """() => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => rgb(colour).slice(0, 3)
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (rgb(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const one = node.parentElement;
    if (!node.data.trim() || !one.checkVisibility() || one.closest("template, noscript")) continue;
    const style = getComputedStyle(one);
    const text = light(one.closest("svg") ? style.fill : style.color);
    const ground = light(behind(one));
    found.push([node.data.trim(), (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05)]);
  }
  return found;
}"""
