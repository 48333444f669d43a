"""The database goes away under load and comes back: everything arrives, nothing counts twice."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.rigs.account import account_victoria_metrics, points_of, samples_of
from tests.rigs.fleet import MS, Plan, Shape
from tests.rigs.load import Load
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics

SHAPES = (Shape("lines", gzip=True, timed=True), Shape("v2", gzip=False, timed=True))


def _an_outage_loses_nothing(database: VictoriaMetrics, tmp_path: Path, *, down_s: float) -> None:
    plan = Plan("outage", (time.time_ns() - 7200 * 1000 * MS) // MS * MS, points=40, shapes=SHAPES)
    settings = to_influxdb(database.url, wal__segment_bytes_max=1024 * 1024)
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        with Load(service.port, plan, clients=2) as load:
            load.wait_for_acks(100)
            database.stop()
            at_the_stop = load.acked_so_far
            threading.Event().wait(down_s)  # the outage itself: the one thing here that takes its time
            load.wait_for_acks(at_the_stop + 100)
            assert service.waiting_points("influxdb") > 0
            database.start()
            load.wait_for_acks(load.acked_so_far + 100)
        assert all(one.acked for one in load.sent)
        told = service.wait_drained("influxdb", s_max=90)
        assert service.stop() == 0

    # The WAL's own account: every request is one entry, and the cursor is past exactly those.
    seqs = [one.seq for one in load.sent if one.seq is not None]
    assert len(set(seqs)) == len(seqs)
    assert told["last_seq"] == len(load.sent)
    assert told["sinks"]["influxdb"]["cursor_seq"] == len(load.sent)
    assert told["points_accepted"] == points_of(load.sent)
    assert told["sinks"]["influxdb"]["parked"] == 0
    expected = samples_of(load.sent)
    wait_until(lambda: database.count(*plan.matches) >= expected, f"{expected} samples", every_s=1)
    account_victoria_metrics(database.values(*plan.matches), load.sent).check()


@pytest.mark.needs("victoria-metrics")
def test_a_database_that_was_down_for_seconds_under_load_gets_everything_afterwards(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _an_outage_loses_nothing(database, tmp_path, down_s=6)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.needs("victoria-metrics")
def test_a_database_that_was_down_for_a_minute_under_load_gets_everything_afterwards(tmp_path: Path) -> None:
    with VictoriaMetrics(tmp_path) as database:
        _an_outage_loses_nothing(database, tmp_path, down_s=60)


@pytest.mark.needs("victoria-metrics")
def test_a_database_that_hangs_delays_points_and_loses_none(tmp_path: Path) -> None:
    plan = Plan("hang", (time.time_ns() - 7200 * 1000 * MS) // MS * MS, points=20, shapes=SHAPES)
    with (
        VictoriaMetrics(tmp_path) as database,
        Service(
            tmp_path / "data",
            logs=tmp_path,
            settings=to_influxdb(database.url, influxdb__write_s_max=1),
        ) as service,
    ):
        with Load(service.port, plan, clients=2) as load:
            load.wait_for_acks(30)
            database.process.pause()
            load.wait_for_acks(load.acked_so_far + 300)
            wait_until(lambda: service.waiting_points("influxdb") > 1000, "points wait for the database")
            database.process.resume()
        service.wait_drained("influxdb")
        expected = samples_of(load.sent)
        wait_until(lambda: database.count(*plan.matches) >= expected, f"{expected} samples", every_s=0.5)
        account_victoria_metrics(database.values(*plan.matches), load.sent).check()
