"""What InfluxDB 1 takes is taken, and a real InfluxDB 1.6 reads what is stored as the tests' own decoder does."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence

import pytest

from tests.points.decoder import Point, decode, field
from tests.rigs.influxdb import InfluxDB
from wal_ingest.errors import PointError
from wal_ingest.flusher.sinks.influxdb_names import lost_names
from wal_ingest.points import Precision, split_points
from wal_ingest.points.line_protocol import accept_good_lines, accept_line_protocol

NOW = 1_763_800_000_000_000_000

# Bodies that InfluxDB 1.6 and 2.8 answer with 204. With each, how many points there are.
TAKEN = [
    (rb"m,p=C:\\ x v=1", 1),
    (rb"cpu,regions=\\ east value=1.0", 1),
    (rb"cpu,regions=east\\  value=1.0", 1),
    (rb"cpu,regions=eas\\ t value=1.0", 1),
    (rb"u,s=\\,\,\t e=1", 1),
    (rb"u,s=\\,\,\=ast e=1", 1),
    (rb"m\,x,a\\ b=c,d\\\\\\=e=f\\\\\\\\\,g v=1", 1),
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


def run_in(place: str, run: int, special: str) -> bytes:
    """A line with so many backslashes before a special character, after one of its own."""
    name = "a" + "\\" * run + special + "b"
    return {
        "measurement": f"{name},t=u v=1 5\n",
        "tag key": f"m,{name}=u v=1 5\n",
        "tag value": f"m,t={name} v=1 5\n",
        "field key": f"m,t=u {name}=1 5\n",
    }[place].encode()


PLACES = ("measurement", "tag key", "tag value", "field key")


@pytest.mark.parametrize("special", [" ", ",", "=", '"', "x"])
@pytest.mark.parametrize("run", range(1, 8))
@pytest.mark.parametrize("place", PLACES)
def test_every_run_of_backslashes_is_read_back_or_refused_or_parked_by_the_sink(
    influxdb: InfluxDB, place: str, run: int, special: str
) -> None:
    """What InfluxDB answers 204 to and does not give back never goes to it."""
    line, after = run_in(place, run, special), b"after unlike=1 1\n"
    database = influxdb.fresh_database()
    status = write(influxdb, database, line + after)
    found = points_in(influxdb, database)
    lines = accept_good_lines(line, precision=Precision.NS, now_ns=NOW, line_bytes_max=1024).lines
    parked = lost_names(lines.data, 1) if lines.points else []
    if status == 204 and len(found) == 2:
        assert lines.data == line
        assert parked == []
        # To InfluxDB a backslash before a quote, and before an equals sign in a measurement, is an escape.
        escapes = {"measurement": '="', "field key": '"'}.get(place, "")
        plain = line.replace(b"\\" + special.encode(), special.encode()) if special in escapes else line
        assert sorted(found) == sorted([*untyped(decode(plain)), *decode(after)])
    else:
        assert lines.points == 0 or parked == [0]
        assert (parked == [0]) == (
            place == "measurement" and special in ' ,="' and run > 1 and lines.points == 1
        )


@pytest.mark.parametrize("special", [" ", ",", "="])
@pytest.mark.parametrize("place", ["measurement", "field key"])
def test_an_even_run_that_influxdb_loses_or_refuses_is_refused_with_place_reason_and_remedy(
    place: str, special: str
) -> None:
    line = run_in(place, 2, special)
    with pytest.raises(PointError) as refused:
        accept_line_protocol(line, precision=Precision.NS, now_ns=NOW, line_bytes_max=1024)
    assert (refused.value.line, refused.value.column) == (1, line.index(b"\\") + 1)
    assert f"an even number of backslashes before a space, comma or '=' in a {place}: InfluxDB" in str(
        refused.value
    )
    assert "write '/' for the backslashes" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "kept", "by_influxdb"),
    [
        (b'a v=1 1\nbad s="open 2\nb v=1 3\nc v=1 4\n', "abc", "a"),
        (b'a v=1 1\nbad s="open 2\nb v=1 3\nlog msg=" p" 4\nc v=1 5\n', ["a", "b", "c", "log"], "a"),
        (b'a v=1 1\nbad f="x\nfake v=1 1\ny",u=oops\nb v=1 3\n', "ab", "ab"),
        (b"a v=1 1\nbad v=NaN 2\nb v=1 3\n", "ab", "ab"),
    ],
)
def test_of_a_body_with_a_bad_record_as_much_is_taken_as_by_influxdb_and_after_an_open_quote_more(
    influxdb: InfluxDB, body: bytes, kept: Sequence[str], by_influxdb: str
) -> None:
    database = influxdb.fresh_database()
    assert write(influxdb, database, body) == 400
    assert sorted(point.name for point in points_in(influxdb, database)) == list(by_influxdb)
    taken = accept_good_lines(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=1024)
    assert sorted(point.name for point in decode(taken.lines.data)) == list(kept)
    assert taken.dropped == 1
