"""Odd lines among ordinary ones, through every door of a real node: each point comes back, or is parked with a reason.

For each door one batch of 1,000 lines as Telegraf sends it, with one line of each odd kind in it.
"""

from __future__ import annotations

import json
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.flusher.test_odd_lines import UNREADABLE, as_samples
from tests.points.decoder import Point, decode
from tests.points.test_read_back_from_influxdb import untyped
from tests.rigs.influxdb import InfluxDB
from tests.rigs.odd_lines import BATCH, ODD, START_NS, ordinary
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, run_command, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics

BAD = b'bad,host=a s="open 1\n'
ROUTES = [
    ("/write?db=any", 204),
    ("/write?db=any&accept_partial=false", 204),
    ("/api/v2/write?org=any&bucket=any", 204),
    ("/api/v2/write?org=any&bucket=any&accept_partial=true", 204),
    ("/api/v3/write_lp?db=any&precision=nanosecond", 204),
    ("/metrics", 202),
]
PARTIAL = [
    ("/write?db=any", 400),
    ("/api/v2/write?org=any&bucket=any&accept_partial=true", 422),
    ("/api/v3/write_lp?db=any&precision=nanosecond", 400),
]
TO = ["/stream", "/api/v2/write"]


class Batches:
    """Batches of different times, and all that was sent in them as it should be stored."""

    def __init__(self) -> None:
        self.stored: list[bytes] = []

    def next(self) -> bytes:
        """The next batch, as it is sent."""
        first = len(self.stored)
        lines = [line.rpartition(b" ")[0] for line in ordinary()]
        sent = lines.copy()
        for place, odd in enumerate(ODD.values()):
            sent[place * 80], lines[place * 80] = odd.sent, odd.stored
        times = [b" %d\n" % (START_NS + (first + n) * 1_000_000) for n in range(BATCH)]
        self.stored += [line + time for line, time in zip(lines, times, strict=True)]
        return b"".join(line + time for line, time in zip(sent, times, strict=True))

    def points(self) -> list[Point]:
        return decode(b"".join(self.stored))


def status_of(service: Service, target: str, body: bytes) -> int:
    request = urllib.request.Request(
        f"{service.url}{target}", data=body, headers={"Content-Type": "text/plain"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


def through_every_door(service: Service, folder: Path) -> Batches:
    """Sends a batch through each door."""
    batches = Batches()
    for target, status in ROUTES:
        assert status_of(service, target, batches.next()) == status, target
    for target, status in PARTIAL:
        first, second = batches.next(), batches.next()
        assert status_of(service, target, first + BAD + second) == status, target
    for path in TO:
        file = folder / f"{path.rpartition('/')[2]}.lp"
        file.write_bytes(batches.next())
        scheme = "ws" if path == "/stream" else "http"
        ran = run_command("send", file, "--to", f"{scheme}://127.0.0.1:{service.port}")
        assert ran.returncode == 0, ran.stderr
    return batches


def points_of(influxdb: InfluxDB, database: str) -> list[Point]:
    """All points of a database, a measurement at a time."""
    found: list[Point] = []
    names = [
        row[0] for each in influxdb.query("SHOW MEASUREMENTS", database=database) for row in each["values"]
    ]
    for name in names:
        for series in influxdb.query(f'SELECT * FROM "{name}" GROUP BY *', database=database):
            tags = tuple(sorted((key, value) for key, value in series.get("tags", {}).items() if value))
            for row in series["values"]:
                cells = dict(zip(series["columns"], row, strict=True))
                time = cells.pop("time")
                fields = tuple((key, value) for key, value in sorted(cells.items()) if value is not None)
                found.append(Point(name, tags, plain(fields), time))
    return sorted(found)


def plain(fields: Any) -> Any:
    return tuple(
        (key, type(value) is str, str(value) if type(value) is str else float(value)) for key, value in fields
    )


def as_found(points: list[Point]) -> list[Point]:
    """Points as InfluxDB's answers show them: numbers are numbers."""

    def shown(kind: str, value: Any) -> Any:
        return struct.unpack(">d", value)[0] if kind == "float" else value

    return sorted(
        point._replace(fields=plain((key, shown(kind, value)) for key, kind, value in point.fields))
        for point in untyped(points)
    )


@pytest.mark.timeout(300)
@pytest.mark.needs("influxdb")
def test_every_point_of_every_door_comes_back_out_of_influxdb(influxdb: InfluxDB, tmp_path: Path) -> None:
    bucket = influxdb.fresh_database()
    settings = to_influxdb(influxdb.url, bucket=bucket, influxdb__destination="settings")
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        batches = through_every_door(service, tmp_path)
        told = service.wait_drained("influxdb")
        assert service.stop() == 0
    assert told["sinks"]["influxdb"]["parked"] == 0
    found, expected = points_of(influxdb, bucket), as_found(batches.points())
    assert len(found) == len(expected) == BATCH * (len(ROUTES) + 2 * len(PARTIAL) + len(TO))
    assert found == expected


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
def test_every_point_of_every_door_comes_back_out_of_victoriametrics_or_is_parked(tmp_path: Path) -> None:
    """With lines that VictoriaMetrics cannot read: they are accepted, and parked with a reason."""
    bad = [line + time + b"\n" for line, time, _ in UNREADABLE]
    (tmp_path / "vm").mkdir()
    with (
        VictoriaMetrics(tmp_path / "vm") as database,
        Service(tmp_path / "data", logs=tmp_path, settings=to_influxdb(database.url)) as service,
    ):
        batches = through_every_door(service, tmp_path)
        assert status_of(service, "/write?db=any", b"".join(bad)) == 204
        told = service.wait_drained("influxdb")
        assert service.stop() == 0
        assert told["sinks"]["influxdb"]["parked"] == len(bad)
        expected = as_samples(batches.points())
        wait_until(
            lambda: database.count('{__name__!=""}') >= sum(map(len, expected.values())), "all are shown"
        )
        assert database.values('{__name__!=""}') == expected
    letters = json.loads(
        run_command("dead-letters", "show", "--json", "--data-dir", tmp_path / "data").stdout
    )
    assert sorted(letter["line"] for letter in letters) == sorted(line.decode().rstrip("\n") for line in bad)
    for line, time, why in UNREADABLE:
        reason = f"VictoriaMetrics does not read {why} as InfluxDB does; parked, not sent"
        assert [each["reason"] for each in letters if each["line"] == (line + time).decode()] == [reason]
