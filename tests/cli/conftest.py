"""Fixtures of the tests that run commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flusher.sinks.http_fake import FakeInfluxDB, fake_influxdb


@pytest.fixture
def database() -> Iterator[FakeInfluxDB]:
    """A fake InfluxDB that takes everything, until the test gives it another answer."""
    with fake_influxdb() as fake:
        yield fake
