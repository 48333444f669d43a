"""One browser for the tests of a module: its own event loop must be gone before other tests run theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.rigs.chromium import running_chromium
from tests.rigs.needs import require

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    require("chromium")
    with running_chromium() as browser:
        yield browser
