"""One scrape of a real server for all tests of queries."""

from __future__ import annotations

import urllib.request

import pytest

from tests.ops.exposed import Exposed, exposed_in
from tests.rigs.service import Service


@pytest.fixture(scope="session")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Exposed:
    """The series that `wal-ingest serve` exposes."""
    folder = tmp_path_factory.mktemp("exposed")
    with (
        Service(folder / "data", logs=folder) as service,
        urllib.request.urlopen(f"{service.url}/metrics", timeout=10) as answer,
    ):
        return exposed_in(answer.read().decode())
