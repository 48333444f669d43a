"""Lines that databases read differently, delivered into real ones: each comes back as it was meant, or is parked.

What was meant is read by the tests' own decoder. A point with a line feed in a string goes in a batch of its own.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
import trio

from tests.flusher.test_real_influxdb import deliver
from tests.flusher.twins import START_NS, MemoryLog
from tests.points.decoder import Point, decode
from tests.rigs.influxdb import InfluxDB
from tests.rigs.victoria_metrics import VictoriaMetrics, series_name
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.flusher.sinks.influxdb_names import LOST
from wal_ingest.settings import InfluxDBSettings

ORDINARY = [b'odd_plain,n=%d v=%d.5,s="a, b=c"' % (n, n) for n in range(20)]

ONE_LINE = [
    rb"odd_run,p=C:\\ x v=1",
    rb"odd_run,p=east\\  v=2",
    rb"odd_run,p=\\\\\\\,\\\= v=3",
    rb"odd_run,p\\q=C:\\dir v=4",
    rb"odd_run,p=a\\\\\\\\b v=5",
    rb"odd_single,p=C:\dir,q=a\ b\,c\=d,r=\n v=1",
    rb"odd\=name=,p=a v=1",
    rb"odd\"name,p=a\"b v=1",
    rb"odd\\name,p=a v=1",
    rb"odd_key,p=a k\\\=w=1,k\\\\x=2,k\ y=3",
    b"odd_control,p=a\tb v=1",
    b"odd_control,p=a\x00b v=2",
    b"odd_control,p=a\x1b[31m\x7fb v=3",
    b"odd_control,p=a\rb v=4",
    b"odd_control\t\x00\x01,p=a v\tw=1",
    b'odd_quote,p="a,q="b" v=1',
    b'odd"quote,p=a "v"=1',
    rb'odd_string,p=a s="C:\\",t="\"x\", y=5 \\\" ",v=1',
    b"odd_number,p=a v=1.,w=.5,x=-.5,y=-1.,z=1.e3",
]
# InfluxDB 1.6 confirms these, and then no query finds them.
MEASUREMENT_RUNS = [
    rb"odd\\ name,p=a v=1",
    rb"odd\\,name,p=a v=1",
    rb"odd\\\ name,p=b v=1",
    rb"odd\\\\\,name,p=a v=1",
]
# Nor these, whose names it reads otherwise than the tests' decoder.
OTHER_MEASUREMENT_RUNS = [
    rb"odd\\=name,p=a v=1",
    rb"odd\\\=name,p=a v=1",
    rb"odd\\\"name,p=a v=1",
]
# InfluxDB takes these backslashes for escapes, which the tests' decoder does not.
MEANT = {rb"odd\=name": rb"odd=name", rb"odd\"name": rb'odd"name', rb"v\"w": rb'v"w'}
SEVERAL_LINES = [
    b'odd_lines,p=a s="one\ntwo",v=1',
    b'odd_lines,p=b v=1,s="one\nodd_forged x=5 1763800000000000000\n"',
    b'odd_lines,p=C:\\\\\\ x s="\n\n# \r\n\\"\n",v=2',
]
UNREADABLE = [
    (b'odd_quote,p=c v"w=1', b" 1763800000000000000", "a field key with an odd number of quotes"),
    (rb"odd_quote,p=d v\"w=2", b" 1763800000000000000", "a field key with an odd number of quotes"),
    (b"odd_reserved,__name__=a v=1", b" 1763800000000000000", "a tag with the key __name__"),
    (b"odd_early v=1", b" -1763800000000000000", "a time before 1970"),
]


def timed(lines: list[bytes]) -> list[bytes]:
    return [b"%b %d\n" % (line, START_NS + n * 1_000_000) for n, line in enumerate(lines)]


# The decoder takes no control characters: they stand in for themselves while it reads.
STAND_INS = {n: 0xE000 + n for n in [*range(0x20), 0x7F]}
THEMSELVES = {stand_in: n for n, stand_in in STAND_INS.items()}


def meant(line: bytes) -> Point:
    """The point of one canonical line, by the tests' own decoder."""
    for written, text in MEANT.items():
        line = line.replace(written, text)
    (point,) = decode(line[:-1].decode().translate(STAND_INS).encode() + b"\n")
    return Point(
        point.name.translate(THEMSELVES),
        tuple((key.translate(THEMSELVES), value.translate(THEMSELVES)) for key, value in point.tags),
        tuple(
            (key.translate(THEMSELVES), kind, value.translate(THEMSELVES) if kind == "string" else value)
            for key, kind, value in point.fields
        ),
        point.time,
    )


def number(kind: str, value: Any) -> float:
    if kind == "float":
        return float(struct.unpack(">d", value)[0])
    return 0.0 if kind == "string" else float(value)


def as_samples(points: list[Point]) -> dict[str, dict[int, float]]:
    """What VictoriaMetrics keeps of points that it reads as they are meant."""
    found: dict[str, dict[int, float]] = {}
    for point in points:
        for key, kind, value in point.fields:
            series = series_name({"__name__": f"{point.name}_{key}", **dict(point.tags)})
            found.setdefault(series, {})[point.time // 1_000_000] = number(kind, value)
    return found


def rows_in(influxdb: InfluxDB, database: str) -> list[tuple[Any, ...]]:
    """All points of a database as (name, tags, fields, time)."""
    return sorted(
        (
            series["name"],
            tuple(sorted((k, v) for k, v in series.get("tags", {}).items() if v)),
            tuple(
                sorted((k, v) for k, v in zip(series["columns"][1:], row[1:], strict=True) if v is not None)
            ),
            row[0],
        )
        for series in influxdb.query("SELECT * FROM /.*/ GROUP BY *", database=database)
        for row in series["values"]
    )


def as_rows(points: list[Point]) -> list[tuple[Any, ...]]:
    return sorted(
        (
            point.name,
            point.tags,
            tuple(
                sorted(
                    (k, value if kind == "string" else number(kind, value)) for k, kind, value in point.fields
                )
            ),
            point.time,
        )
        for point in points
    )


def sink_at(url: str, *, bucket: str = "b", server: str = "auto") -> InfluxDBSink:
    settings = InfluxDBSettings(url=url, bucket=bucket, server=server)
    return InfluxDBSink(settings, run_sync=trio.to_thread.run_sync, now_ns=time.time_ns)


async def test_victoriametrics_reads_every_kind_as_it_is_meant_or_the_point_is_parked_with_a_reason(
    victoria_metrics: VictoriaMetrics,
) -> None:
    good = timed([*ORDINARY, *ONE_LINE, *MEASUREMENT_RUNS])
    bad = [line + when + b"\n" for line, when, _ in UNREADABLE]
    log = MemoryLog()
    mixed = [line for pair in zip(good, [*bad, *[b""] * len(good)], strict=False) for line in pair if line]
    log.append(len(mixed), lines=b"".join(mixed))
    state = await deliver(sink_at(victoria_metrics.url), log, points_max=1000)
    assert {letter.line for letter in state.letters} == set(bad)
    for line, when, why in UNREADABLE:
        (reason,) = [letter.reason for letter in state.letters if letter.line == line + when + b"\n"]
        assert reason == f"VictoriaMetrics does not read {why} as InfluxDB does; parked, not sent"
    expected = as_samples([meant(line) for line in good])
    assert victoria_metrics.values('{__name__=~"odd.*"}') == expected


async def test_the_time_zero_is_not_read_as_the_present(victoria_metrics: VictoriaMetrics) -> None:
    log = MemoryLog()
    log.append(1, lines=b"zero v=1.5 0\n")
    await deliver(sink_at(victoria_metrics.url), log)
    assert victoria_metrics.values("zero_v") == {"zero_v": {0: 1.5}}


async def test_a_string_with_line_feeds_costs_victoriametrics_no_number_and_makes_no_other_series(
    victoria_metrics: VictoriaMetrics,
) -> None:
    lines = [line.replace(b"odd_", b"feed_") for line in timed(SEVERAL_LINES)]
    log = MemoryLog()
    for line in lines:
        log.append(1, lines=line)
    state = await deliver(sink_at(victoria_metrics.url), log, points_max=1)
    assert state.letters == []
    expected = as_samples([meant(line) for line in lines])
    assert victoria_metrics.values('{__name__=~"feed_.*"}') == expected


@pytest.mark.parametrize("server", ["auto", "influxdb"])
async def test_influxdb_gets_every_kind_as_it_lies_and_reads_it_as_it_is_meant(
    influxdb: InfluxDB, server: str
) -> None:
    database = influxdb.fresh_database()
    lines = [*timed([*ORDINARY, *ONE_LINE]), *(line + when + b"\n" for line, when, _ in UNREADABLE)]
    log = MemoryLog()
    log.append(len(lines), lines=b"".join(lines))
    sink = sink_at(influxdb.url, bucket=database, server=server)
    state = await deliver(sink, log, points_max=1000)
    assert state.letters == []
    assert rows_in(influxdb, database) == as_rows([meant(line) for line in lines])


async def test_influxdb_keeps_the_line_feeds_of_strings(influxdb: InfluxDB) -> None:
    database = influxdb.fresh_database()
    log = MemoryLog()
    for line in timed(SEVERAL_LINES):
        log.append(1, lines=line)
    state = await deliver(sink_at(influxdb.url, bucket=database), log, points_max=1)
    assert state.letters == []
    assert rows_in(influxdb, database) == as_rows([meant(line) for line in timed(SEVERAL_LINES)])


@pytest.mark.parametrize("server", ["auto", "influxdb"])
async def test_a_measurement_that_influxdb_would_lose_is_parked_with_a_reason_and_the_others_are_written(
    influxdb: InfluxDB, server: str
) -> None:
    database = influxdb.fresh_database()
    good = timed([*ORDINARY, *ONE_LINE])
    bad = timed([*MEASUREMENT_RUNS, *OTHER_MEASUREMENT_RUNS])
    mixed = [line for pair in zip(good, [*bad, *[b""] * len(good)], strict=False) for line in pair if line]
    log = MemoryLog()
    log.append(len(mixed), lines=b"".join(mixed))
    log.append(1, lines=bad[0])
    sink = sink_at(influxdb.url, bucket=database, server=server)
    state = await deliver(sink, log, points_max=1000)
    assert sorted(letter.line for letter in state.letters) == sorted([*bad, bad[0]])
    assert {letter.reason for letter in state.letters} == {LOST}
    assert rows_in(influxdb, database) == as_rows([meant(line) for line in good])
