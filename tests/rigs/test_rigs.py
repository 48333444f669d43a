"""The rigs themselves: a proof that reads a database wrongly proves nothing."""

from __future__ import annotations

import time
import urllib.request

import pytest

from tests.rigs.influxdb import InfluxDB
from tests.rigs.processes import wait_until
from tests.rigs.victoria_metrics import VictoriaMetrics


@pytest.mark.needs("victoria-metrics")
def test_victoria_metrics_gives_back_what_was_written_and_counts_doubles_once(
    victoria_metrics: VictoriaMetrics,
) -> None:
    ms = time.time_ns() // 1_000_000
    line = f'rig,host=a value=1.125,flag=true,n=7i {ms}000001\nrig,host="b" value=2 {ms + 1}999999\n'.encode()
    victoria_metrics.write(line)
    victoria_metrics.write(line)
    match = '{__name__=~"rig_.*"}'
    wait_until(lambda: victoria_metrics.count(match) == 4, "all four samples are there", s_max=15)

    assert victoria_metrics.values(match) == {
        'rig_value{host="a"}': {ms: 1.125},
        'rig_flag{host="a"}': {ms: 1.0},
        'rig_n{host="a"}': {ms: 7.0},
        'rig_value{host=""b""}': {ms + 1: 2.0},
    }
    assert victoria_metrics.samples(match)['rig_value{host="a"}'] == [(ms, 1.125), (ms, 1.125)]


@pytest.mark.needs("influxdb")
def test_influxdb_takes_the_newer_path_and_gives_back_types_and_nanoseconds(influxdb: InfluxDB) -> None:
    database = influxdb.fresh_database()
    body = b'm,host=a f=1.5,i=9007199254740993i,s="x y",b=true 1700000000123456789\n'
    url = f"{influxdb.url}/api/v2/write?org=any&bucket={database}&precision=ns"
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        assert answer.status == 204

    assert influxdb.rows(database, "SELECT * FROM m") == [
        {
            "time": 1700000000123456789,
            "host": "a",
            "f": 1.5,
            "i": 9007199254740993,
            "s": "x y",
            "b": True,
        }
    ]
    assert influxdb.field_types(database, "m") == {
        "f": "float",
        "i": "integer",
        "s": "string",
        "b": "boolean",
    }
