"""What may be handed over as points."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from influxdb_client.client.write import point as influxdb_point
from influxdb_client.domain.write_precision import WritePrecision

from wal_ingest.client.given import Points, lines_of
from wal_ingest.errors import PointError

Point: Any = influxdb_point.Point
NOW_NS = 1_700_000_000_000_000_000


def data_of(points: Points) -> bytes:
    lines = lines_of(points, now_ns=NOW_NS, line_bytes_max=1_000)
    assert lines.points == lines.data.count(b"\n")
    return lines.data


@pytest.mark.parametrize(
    "points",
    [
        "m f=1 1\nm f=2 2",
        b"m f=1 1\nm f=2 2\n",
        ["m f=1 1", b"m f=2 2"],
        ["m f=1 1\n", "m f=2 2\n"],
        (text for text in ("m f=1 1", "# a comment\n\nm f=2 2")),
    ],
)
def test_text_and_bytes_one_line_or_many_alone_or_in_a_row(points: Any) -> None:
    assert data_of(points) == b"m f=1 1\nm f=2 2\n"


def test_points_of_influxdb_client_keep_their_times_whatever_their_unit() -> None:
    moment = datetime(2026, 11, 25, 12, tzinfo=UTC)
    points = [
        Point("m").field("f", 1).time(5, WritePrecision.NS),
        Point("m").field("f", 2).time(5, WritePrecision.MS),
        Point("m").field("f", 3).time(5, WritePrecision.S),
        Point("m").field("f", 4).time(moment, WritePrecision.US),
        Point("m").field("f", 5),
    ]
    assert data_of(points) == (
        b"m f=1i 5\nm f=2i 5000000\nm f=3i 5000000000\n"
        b"m f=4i %d\nm f=5i %d\n" % (int(moment.timestamp()) * 10**9, NOW_NS)
    )
    assert data_of(points[1]) == b"m f=2i 5000000\n"


def test_a_point_without_fields_is_refused_rather_than_dropped() -> None:
    with pytest.raises(PointError, match="without fields"):
        data_of(Point("m").tag("a", "b"))


def test_a_line_that_is_bad_is_named() -> None:
    with pytest.raises(PointError) as caught:
        data_of(["m f=1 1", "m f=x 2"])
    assert (caught.value.line, caught.value.column) == (2, 5)


def test_half_a_surrogate_pair_is_invalid() -> None:
    with pytest.raises(PointError, match="invalid UTF-8"):
        data_of('m f="\udc80" 1')


def test_nothing_is_no_points() -> None:
    assert data_of([]) == data_of("") == data_of(["", "\n"]) == b""
