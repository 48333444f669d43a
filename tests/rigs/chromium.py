"""A real Chromium, headless, whose pages tell what went wrong in them and whom they talked to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.rigs.processes import find_program

if TYPE_CHECKING:  # imported late, since a machine without it skips these tests
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

# Longest that anything asked of a page may take; most takes a hundredth of that.
PAGE_S_MAX = 20.0

_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violation: ${event.violatedDirective} ${event.blockedURI}`));
"""


@contextmanager
def running_chromium() -> Iterator[Browser]:
    """A browser; it ends with the block."""
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox does not work for root, and a container's small /dev/shm ends its tabs.
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_program("chromium"), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page and everything that it complained of: errors, failed requests, violations of its policy.

    `requested` is every address that it asked for.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requested: list[str] = []
        page.set_default_timeout(PAGE_S_MAX * 1000)
        page.add_init_script(_REPORT_VIOLATIONS)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", self._asked)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _asked(self, request: Request) -> None:
        self.requested.append(request.url)

    def text(self, selector: str) -> str:
        """The text that is seen at the first match."""
        return self.page.locator(selector).first.inner_text()

    def wait_for_text(self, selector: str, part: str) -> None:
        """Waits until the element's text contains `part`."""
        from playwright.sync_api import expect

        expect(self.page.locator(selector).first).to_contain_text(part, timeout=PAGE_S_MAX * 1000)

    def overflows(self) -> list[str]:
        """Everything that sticks out on the right of the window, as tag, id and class."""
        found: list[str] = self.page.evaluate(_STICKING_OUT)
        return found


_STICKING_OUT = """() => {
  const edge = document.documentElement.clientWidth;
  const out = [...document.body.querySelectorAll("*:not(.unseen)")]
    .filter((one) => one.getBoundingClientRect().right > edge + 0.5)
    .map((one) => `${one.tagName}#${one.id}.${one.getAttribute("class")}`);
  return document.documentElement.scrollWidth > edge ? ["the page scrolls sideways", ...out] : out;
}"""


@contextmanager
def watched_page(
    browser: Browser, *, width: int = 1280, height: int = 900, dark: bool = False, touch: bool = False
) -> Iterator[Watched]:
    """A fresh page in a fresh context, of that size in CSS pixels."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=touch,
        timezone_id="UTC",
    )
    try:
        yield Watched(context.new_page())
    finally:
        context.close()
