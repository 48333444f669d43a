"""What goes in over HTTP comes back out of a real database, all of it and equal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.account import account_influxdb, account_victoria_metrics, points_of, samples_of
from tests.rigs.fleet import EVERY_SHAPE, MS, Plan
from tests.rigs.influxdb import InfluxDB
from tests.rigs.load import Load
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics

HOUR_NS = 3_600_000 * MS


def _an_hour_ago() -> int:
    return (time.time_ns() - HOUR_NS) // MS * MS


# How many requests of how many points are sent: every shape by every client in each run, more in the long one.
REQUESTS = pytest.mark.parametrize(
    ("requests", "points"), [(96, 400), pytest.param(200, 1_000, marks=pytest.mark.slow)]
)


def _send_all(service: Service, plan: Plan, requests: int) -> Load:
    """Requests from four clients, every one of them answered 2xx."""
    with Load(service.port, plan, clients=4, requests=requests // 4) as load:
        load.wait(s_max=100)
    refused = [one for one in load.sent if not one.acked]
    assert not refused, f"{refused[0].status} {refused[0].reply!r} for client {refused[0].client}"
    assert points_of(load.sent) == requests * plan.points
    return load


def _wait_for_an_empty_wal(service: Service) -> dict[str, Any]:
    """Nothing waits, and the segments whose points are confirmed are gone."""
    service.wait_drained("influxdb")

    def empty() -> dict[str, Any] | None:
        told = service.status()
        return told if sum(segment["points"] for segment in told["segments"]) == 0 else None

    told = wait_until(empty, "the confirmed segments are gone", s_max=20, every_s=0.3)
    assert told is not None
    return told


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
@REQUESTS
def test_points_in_every_form_come_back_out_of_victoria_metrics_all_and_equal(
    victoria_metrics: VictoriaMetrics, tmp_path: Path, requests: int, points: int
) -> None:
    plan = Plan(f"comeback{requests}", _an_hour_ago(), points=points, shapes=EVERY_SHAPE)
    settings = to_influxdb(victoria_metrics.url)
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        load = _send_all(service, plan, requests)
        told = _wait_for_an_empty_wal(service)
        assert service.stop() == 0

    assert told["sinks"]["influxdb"]["parked"] == 0
    assert told["last_seq"] == requests
    expected = samples_of(load.acked)
    wait_until(
        lambda: victoria_metrics.count(*plan.matches) >= expected,
        f"VictoriaMetrics shows {expected} samples",
        every_s=1,
    )
    account = account_victoria_metrics(victoria_metrics.values(*plan.matches), load.sent)
    account.check()
    assert (account.acked, account.found) == (requests * points, expected)


@pytest.mark.timeout(300)
@pytest.mark.needs("influxdb")
@REQUESTS
def test_points_come_back_out_of_influxdb_with_their_nanoseconds_and_types(
    influxdb: InfluxDB, tmp_path: Path, requests: int, points: int
) -> None:
    bucket = influxdb.fresh_database()
    plan = Plan("rich", _an_hour_ago(), points=points, shapes=EVERY_SHAPE, rich=True)
    settings = to_influxdb(influxdb.url, bucket=bucket)
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        load = _send_all(service, plan, requests)
        told = _wait_for_an_empty_wal(service)
        assert service.stop() == 0

    assert told["sinks"]["influxdb"]["parked"] == 0
    accounts = [
        account_influxdb(_rows(influxdb, bucket, measurement), load.sent, measurement)
        for measurement in plan.measurements
    ]
    for account in accounts:
        account.check()
    assert sum(account.found for account in accounts) == requests * points
    types = {"value": "float", "text": "string", "flag": "boolean", "whole": "integer"}
    assert influxdb.field_types(bucket, "rich") == types
    assert influxdb.field_types(bucket, "rich_json")["text"] == "string"
    assert influxdb.field_types(bucket, "rich_json")["flag"] == "boolean"


def _rows(influxdb: InfluxDB, bucket: str, measurement: str) -> Iterator[dict[str, Any]]:
    """All rows of a measurement, a client at a time, so that no answer is huge."""
    key = "server_id" if measurement == "server_metrics" else "client"
    for client in range(4):
        pattern = f"^rich-{client}-" if measurement == "server_metrics" else f"^{client}$"
        yield from influxdb.rows(bucket, f'SELECT * FROM "{measurement}" WHERE "{key}" =~ /{pattern}/')
