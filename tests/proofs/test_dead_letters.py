"""A real InfluxDB refuses points: they end as dead letters with its own reason, and no neighbour with them."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest

from tests.rigs.influxdb import InfluxDB
from tests.rigs.service import Service, to_influxdb
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.state import read_dead_letters


def _post(service: Service, lines: list[str]) -> None:
    body = ("\n".join(lines) + "\n").encode()
    url = f"{service.url}/api/v2/write?org=any&bucket=any&precision=ns"
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        assert answer.status == 204


def _dead_letters(service: Service) -> list[DeadLetter]:
    return list(read_dead_letters(service.data_dir / "state.lmdb", "influxdb"))


@pytest.mark.needs("influxdb")
def test_a_type_conflict_is_parked_with_influxdbs_reason_and_the_rest_of_the_batch_written(
    influxdb: InfluxDB, tmp_path: Path
) -> None:
    bucket = influxdb.fresh_database()
    now = time.time_ns()
    settings = to_influxdb(influxdb.url, bucket=bucket)
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        _post(service, [f"temp,room=first value=20.5 {now}"])
        service.wait_drained("influxdb")
        conflict = f'temp,room=bad value="hot" {now}'
        good = [f"temp,room=r{n} value={n}.5 {now + n}" for n in range(40)]
        _post(service, [*good[:17], conflict, *good[17:]])
        told = service.wait_drained("influxdb")
        assert service.stop() == 0

        assert told["sinks"]["influxdb"]["parked"] == 1
        (letter,) = _dead_letters(service)
    assert letter.line.decode() == conflict + "\n"
    assert "field type conflict" in letter.reason
    assert 'field "value"' in letter.reason
    assert letter.status == 400
    rows = influxdb.rows(bucket, "SELECT * FROM temp")
    assert len(rows) == 41
    assert {row["time"]: row["value"] for row in rows if row["room"] != "first"} == {
        now + n: n + 0.5 for n in range(40)
    }


@pytest.mark.needs("influxdb")
def test_a_partial_write_parks_the_points_outside_the_retention_and_no_other(
    influxdb: InfluxDB, tmp_path: Path
) -> None:
    bucket = influxdb.fresh_database()
    influxdb.query(
        f'CREATE RETENTION POLICY "hour" ON "{bucket}" DURATION 1h REPLICATION 1 SHARD DURATION 1h DEFAULT'
    )
    now = time.time_ns()
    long_ago = now - 48 * 3_600 * 1_000_000_000
    settings = to_influxdb(influxdb.url, bucket=bucket)
    old = [f"level,tank=old n={n}i {long_ago + n}" for n in range(3)]
    new = [f"level,tank=new n={n}i {now + n}" for n in range(30)]
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        _post(service, [*new[:5], old[0], *new[5:29], old[1], old[2], new[29]])
        told = service.wait_drained("influxdb")
        assert service.stop() == 0

        assert told["sinks"]["influxdb"]["parked"] == 3
        letters = _dead_letters(service)
    assert [letter.line.decode() for letter in letters] == [line + "\n" for line in old]
    assert all("points beyond retention policy" in letter.reason for letter in letters)
    rows = influxdb.rows(bucket, "SELECT * FROM level")
    assert [(row["time"], row["n"]) for row in rows] == [(now + n, n) for n in range(30)]
