"""The samples for Telegraf and Vector: read as their programs read them, and their requests, as those send them.

Neither program is here, so the requests are made by hand: path, query, headers and body as in their sources.
"""

from __future__ import annotations

import gzip
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.rigs.service import Service
from wal_ingest.config import FIELDS

ROOT = Path(__file__).parent.parent.parent
TELEGRAF = tomllib.loads((ROOT / "ops/telegraf/telegraf.conf").read_text())
VECTOR = yaml.safe_load((ROOT / "ops/vector/vector.yaml").read_text())
DEFAULT_URL = f"http://{FIELDS['server.bind'].default}"
BATCH_POINTS = FIELDS["flusher.batch_points_max"].default


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One node for all requests."""
    folder = tmp_path_factory.mktemp("agents")
    with Service(folder / "data", logs=folder) as service:
        yield service


def status(request: urllib.request.Request) -> int:
    with urllib.request.urlopen(request, timeout=30) as answer:
        code: int = answer.status
        return code


def test_telegraf_sends_to_the_default_address_whole_batches_and_waits_for_the_sync() -> None:
    [output] = TELEGRAF["outputs"]["influxdb_v2"]
    assert output["urls"] == [DEFAULT_URL]
    assert TELEGRAF["agent"]["metric_batch_size"] == BATCH_POINTS
    assert TELEGRAF["agent"]["metric_buffer_limit"] > 10 * BATCH_POINTS
    assert float(output["timeout"].removesuffix("s")) > FIELDS["wal.commit_wait_s_max"].default


def test_a_request_as_telegraf_makes_it_is_taken(service: Service) -> None:
    [output] = TELEGRAF["outputs"]["influxdb_v2"]
    query = urllib.parse.urlencode({"bucket": output["bucket"], "org": output["organization"]})
    url = f"{output['urls'][0].replace(DEFAULT_URL, service.url)}/api/v2/write?{query}"
    assert output["content_encoding"] == "gzip"
    assert output["influx_uint_support"] is True
    request = urllib.request.Request(
        url,
        data=gzip.compress(b"cpu,cpu=cpu-total,host=web-17 usage_idle=98.2,n=3u 1763800000000000000\n"),
        headers={
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Encoding": "gzip",
            "Authorization": f"Token {output['token']}",
            "User-Agent": "Telegraf/1.36.0",
        },
    )
    assert status(request) == 204


def test_vector_sends_to_the_default_address_whole_batches_and_waits_for_the_sync() -> None:
    sink = VECTOR["sinks"]["wal_ingest"]
    assert sink["type"] == "influxdb_metrics"
    assert sink["endpoint"] == DEFAULT_URL
    # Version 2 of the API: with `database` it would be version 1, with both an error.
    assert {"org", "bucket", "token"} <= set(sink)
    assert "database" not in sink
    assert set(sink["inputs"]) <= set(VECTOR["sources"])
    assert sink["batch"]["max_events"] == BATCH_POINTS
    assert sink["request"]["timeout_secs"] > FIELDS["wal.commit_wait_s_max"].default
    # Vector refuses a smaller one.
    assert sink["buffer"]["max_size"] >= 268435488
    assert sink["buffer"]["when_full"] == "block"


def test_a_health_check_and_a_request_as_vector_makes_them_are_taken(service: Service) -> None:
    sink = VECTOR["sinks"]["wal_ingest"]
    endpoint = sink["endpoint"].replace(DEFAULT_URL, service.url)
    for path in ("/health", "/ping"):  # the one or the other, by version
        assert status(urllib.request.Request(endpoint + path)) in (200, 204)
    query = urllib.parse.urlencode({"org": sink["org"], "bucket": sink["bucket"], "precision": "ns"})
    request = urllib.request.Request(
        f"{endpoint}/api/v2/write?{query}",
        data=b"host.cpu_seconds_total,cpu=0,metric_type=counter value=12.5 1763800000000000000\n"
        b"host.load1,metric_type=gauge value=0.4 1763800000000000000",
        headers={"Content-Type": "text/plain", "Authorization": f"Token {sink['token']}"},
    )
    assert status(request) == 204
