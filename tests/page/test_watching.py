"""A page that does wrong is seen to: else the other tests of this folder would prove nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.page import scenarios
from tests.page.node import FakeNode
from tests.rigs.chromium import watched_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.needs("chromium")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ("console.error('so loud')", "error: so loud"),
        ("setTimeout(() => { throw new Error('unforeseen') })", "uncaught: unforeseen"),
        (
            "document.body.append(Object.assign(document.createElement('img'), { src: '//a.test/' }))",
            "img-src",
        ),
        ("document.body.setAttribute('onclick', 'alert()'); document.body.click()", "script-src"),
        ("document.body.setAttribute('style', 'color: red')", "style-src"),
        ("fetch('https://a.test/').catch(() => {})", "connect-src"),
    ],
)
def test_what_a_page_does_wrong_is_heard(chromium: Browser, wrong: str, complaint: str) -> None:
    with FakeNode(scenarios.healthy(), scenarios.history()) as node, watched_page(chromium) as watched:
        watched.page.goto(node.url)
        watched.wait_for_text("#verdict", "Taking points")
        assert watched.complaints == []
        with watched.page.expect_event(
            "pageerror" if complaint.startswith("uncaught") else "console",
            lambda _: any(complaint in said for said in watched.complaints),
        ):
            watched.page.evaluate(wrong)
        assert any(complaint in said for said in watched.complaints)


def test_what_sticks_out_is_seen(chromium: Browser) -> None:
    with FakeNode(scenarios.healthy(), scenarios.history()) as node, watched_page(chromium) as watched:
        watched.page.goto(node.url)
        watched.wait_for_text("#verdict", "Taking points")
        assert watched.overflows() == []
        watched.page.evaluate("document.querySelector('.tile').style.minWidth = '2000px'")
        assert any("ARTICLE" in one for one in watched.overflows())
