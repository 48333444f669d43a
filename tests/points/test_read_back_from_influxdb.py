"""What InfluxDB 1 takes is taken, and a real InfluxDB 1.6 reads what is stored as the tests' own decoder does."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.points.decoder import Point, decode, field
from tests.rigs.influxdb import InfluxDB
from wal_ingest.points import Precision, split_points
from wal_ingest.points.line_protocol import accept_line_protocol

NOW = 1_763_800_000_000_000_000

# Bodies that InfluxDB 1.6 and 2.8 answer with 204. With each, how many points there are.
TAKEN = [
    (rb"m,p=C:\\ x v=1", 1),
    (rb"cpu,regions=\\ east value=1.0", 1),
    (rb"cpu,regions=east\\  value=1.0", 1),
    (rb"cpu,regions=eas\\ t value=1.0", 1),
    (rb"u,s=\\,\,\t e=1", 1),
    (rb"u,s=\\,\,\=ast e=1", 1),
    (rb"m\\,x,a\\ b=c,d\\\\\\=e=f\\\\\\\\\,g v=1", 1),
    (b'cpu value="4\n2"', 1),
    (b'cpu,host=serverA,region=us-east value=1.0,str="foo\nbar" 1000000000', 1),
    (b'u r="o\n"', 1),
    (b'log msg="a\r\n# b\n\n m v=1\n\\\\\n\\"" 2\nlog msg="c" 3', 2),
    (rb'm,t=a\\ b,u="c" f="x y" 5', 1),
    (b'm,t=a\\\\ b f="x\ny\tz\x00\x1b" 5\nn g=1 6', 2),
    (b"cpu,host=a\tb value=1 7", 1),
    (b"cpu,host=a\x00b v=1 7", 1),
    (b"\tcpu value=1 7\n\x00", 1),
    (b"cpu,host=\x1b[31mred v=1 7", 1),
    (b"cpu \t\x00value=1 \t7\n# \x01\n", 1),
    (b"c\rpu,h\x7f=\x01 \x02v\x03=1 7", 1),
    (b'"\x0bf=" e=1i 7', 1),
    (b'm s="' + b"x" * 1_000_000 + b'" 7', 1),
]


def points_in(influxdb: InfluxDB, database: str) -> list[Point]:
    """All points of a database. Integers and floats both come as JSON numbers."""
    found = []
    # A field must have one type in all measurements, or this query leaves some out.
    for series in influxdb.query("SELECT * FROM /.*/ GROUP BY *", database=database):
        tags = tuple(sorted((key, value) for key, value in series.get("tags", {}).items() if value))
        for row in series["values"]:
            cells = dict(zip(series["columns"], row, strict=True))
            time = cells.pop("time")
            fields = tuple(
                field(key, "string" if isinstance(value, str) else "float", value)
                for key, value in cells.items()
                if value is not None
            )
            found.append(Point(series["name"], tags, tuple(sorted(fields)), time))
    return found


def untyped(points: list[Point]) -> list[Point]:
    return [
        point._replace(
            fields=tuple(
                sorted(
                    field(key, "float", value) if kind == "int" else (key, kind, value)
                    for key, kind, value in point.fields
                )
            )
        )
        for point in points
    ]


def write(influxdb: InfluxDB, database: str, body: bytes) -> int:
    request = urllib.request.Request(f"{influxdb.url}/write?db={database}", data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code


@pytest.mark.parametrize(("body", "points"), TAKEN, ids=[repr(body[:40]) for body, _ in TAKEN])
def test_what_influxdb_takes_is_taken_and_reads_back_the_same(
    influxdb: InfluxDB, body: bytes, points: int
) -> None:
    lines = accept_line_protocol(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=2 << 20)
    assert lines.points == points
    assert len(split_points(lines.data, points)) == points
    sent, stored = influxdb.fresh_database(), influxdb.fresh_database()
    assert write(influxdb, sent, body) == 204
    # Another sender's lines follow in the same body.
    assert write(influxdb, stored, lines.data + b"after unlike=1 1\n") == 204
    read = points_in(influxdb, stored)
    assert sorted(read) == sorted([*untyped(decode(lines.data)), *decode(b"after unlike=1 1\n")])
    if NOW not in {point.time for point in read}:
        assert sorted(points_in(influxdb, sent)) == sorted(untyped(decode(lines.data)))


def test_a_line_that_is_refused_for_its_backslashes_would_swallow_the_next_in_influxdb(
    influxdb: InfluxDB,
) -> None:
    database = influxdb.fresh_database()
    write(influxdb, database, rb'm,a\\ b="x f=1 5' + b"\nafter unlike=1 1\n")
    assert "after" not in {point.name for point in points_in(influxdb, database)}
