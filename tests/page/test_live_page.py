"""The status page of a real node under load: its figures move and nothing complains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.rigs.chromium import watched_page
from tests.rigs.fleet import Plan
from tests.rigs.load import Load
from tests.rigs.processes import wait_until
from tests.rigs.service import Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.needs("chromium")

REQUESTS = 200
PLAN = Plan("page", base_ns=1_763_800_000_000_000_000, points=50)


def test_the_figures_of_a_real_node_move_while_it_takes_points(chromium: Browser, tmp_path: Path) -> None:
    with (
        Service(tmp_path / "data", logs=tmp_path) as node,
        watched_page(chromium) as watched,
    ):
        watched.page.goto(f"{node.url}/")
        watched.wait_for_text("#verdict", "Taking points; everything delivered")
        assert watched.text("#accepted") == "0"
        for total in (10_000, 20_000):
            with Load(node.port, PLAN, clients=1, requests=REQUESTS) as load:
                load.wait(s_max=30)
            watched.page.wait_for_function(
                "(total) => document.querySelector('#accepted').title === total", arg=f"{total:,}"
            )
        watched.page.wait_for_function("document.querySelector('#points-rate').textContent !== '0'")
        watched.page.wait_for_function("document.querySelector('#p99').textContent.endsWith('ms')")
        watched.wait_for_text(".sink", "archive")
        wait_until(
            lambda: any(json.loads(node.get("/history.json"))["points_per_s"]), "the history has a rate"
        )
        watched.page.reload()
        watched.wait_for_text("#plot-rate .legend", "to archive")
        drawn = watched.page.locator("#plot-rate .line").first.get_attribute("d")
        assert drawn is not None
        assert drawn.startswith("M")
        assert watched.complaints == []
        assert {url.split("/")[2] for url in watched.requested if not url.startswith("data:")} == {
            f"127.0.0.1:{node.port}"
        }
