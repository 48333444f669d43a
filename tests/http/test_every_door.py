"""A batch of 1,000 lines as Telegraf sends it, with one odd line in it: by no door are the 999 others lost.

An odd line is one that InfluxDB takes: it is stored too. A line that is bad for InfluxDB as well is left out where
InfluxDB leaves it out; where a request is stored whole or not at all the sender is told, and nothing is acknowledged.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.rig import ask, front
from tests.http.stream.rig import node
from tests.points.decoder import decode
from tests.rigs.odd_lines import BATCH, ODD, PLACE, START_NS, Odd, batch_with, ordinary
from wal_ingest.points import split_points

BAD = {
    "NaN": b"bad,host=a v=NaN",
    "an open quote": b'bad,host=a s="open',
    "a tag key twice": b"bad,host=a,host=b v=1",
    "an even run in a measurement": rb"bad\\ name,host=a v=1",
}
PARTIAL = [
    ("/write?db=m", 400),
    ("/write?db=m&accept_partial=true", 400),
    ("/api/v2/write?bucket=b&accept_partial=true", 422),
    ("/api/v3/write_lp?db=m&precision=nanosecond", 400),
]
WHOLE = [
    "/write?db=m&accept_partial=false",
    "/api/v2/write?bucket=b",
    "/api/v2/write?bucket=b&accept_partial=false",
    "/api/v3/write_lp?db=m&accept_partial=false",
    "/metrics",
]
LP = {"Content-Type": "text/plain"}
odd_kinds = pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
bad_kinds = pytest.mark.parametrize("bad", BAD.values(), ids=BAD)


def check_entries(entries: list[Any], expected: bytes, points: int) -> None:
    """The entries hold exactly these lines, and each says rightly how many points it has."""
    assert b"".join(entry.lines for entry in entries) == expected
    assert sum(entry.points for entry in entries) == points
    for entry in entries:
        assert len(split_points(entry.lines, entry.points)) == entry.points


@odd_kinds
@pytest.mark.parametrize("target", [*(target for target, _ in PARTIAL), *WHOLE])
async def test_a_batch_with_an_odd_line_is_stored_whole_by_every_route(target: str, odd: Odd) -> None:
    whole = front()
    answer = await ask(whole.app, "POST", target, batch_with(odd.sent), LP)
    assert answer.status in (202, 204), answer.body
    check_entries([entry for each in whole.wal.appends for entry in each], batch_with(odd.stored), BATCH)


@odd_kinds
async def test_a_batch_with_an_odd_line_is_stored_whole_by_a_frame(odd: Odd) -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.send(1, body=batch_with(odd.sent))
        (answer,) = await client.acked(1)
        assert answer["points"] == BATCH
        check_entries([entry for each in whole.wal.appends for entry in each], batch_with(odd.stored), BATCH)


@odd_kinds
@bad_kinds
@pytest.mark.parametrize(("target", "status"), PARTIAL)
async def test_a_bad_line_beside_an_odd_one_costs_itself_only_where_good_lines_are_taken(
    target: str, status: int, odd: Odd, bad: bytes
) -> None:
    whole = front()
    sent = batch_with(odd.sent)
    answer = await ask(whole.app, "POST", target, sent + b"%b %d\n" % (bad, START_NS), LP)
    assert answer.status == status
    check_entries([entry for each in whole.wal.appends for entry in each], batch_with(odd.stored), BATCH)
    assert b"dropped=1" in answer.body or b"partial write of line protocol occurred" in answer.body


@bad_kinds
@pytest.mark.parametrize("target", WHOLE)
async def test_where_a_request_is_stored_whole_or_not_at_all_the_bad_line_is_named(
    target: str, bad: bytes
) -> None:
    whole = front()
    answer = await ask(whole.app, "POST", target, batch_with(bad), LP)
    assert answer.status == 400
    assert whole.wal.appends == []
    assert str(PLACE + 1) in answer.body.decode()


# The same as JSON. Backslashes, tabs and line feeds are what the text is made of.
POINTS: dict[str, dict[str, Any]] = {
    "a line feed in a string": {"measurement": "log", "fields": {"s": 'a\n"b" cpu v=1 1\n\\'}},
    "a tab in a tag": {"measurement": "m", "tags": {"t": "a\tb"}, "fields": {"v": 1.0}},
    "a NUL and an escape in a tag": {"measurement": "m", "tags": {"t": "\x00\x1b[0m"}, "fields": {"v": 1.0}},
    "a Windows path": {"measurement": "m", "tags": {"t": "C:\\ x\\,=y"}, "fields": {"v": 1.0}},
    "not ASCII": {"measurement": "m", "tags": {"t": "°C"}, "fields": {"s": "Büro\u2028"}},
    "a string of 1 MB": {"measurement": "m", "fields": {"s": "y, =" * 250_000}},
}


def json_batch(odd: dict[str, Any]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = [
        {"measurement": "cpu", "tags": {"host": f"web{n}"}, "fields": {"v": n + 0.5}, "timestamp": n}
        for n in range(BATCH)
    ]
    points[PLACE] = {**odd, "timestamp": PLACE}
    return points


def as_array(points: list[dict[str, Any]]) -> bytes:
    return json.dumps(points).encode()


def as_ndjson(points: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(point).encode() + b"\n" for point in points)


def as_telegraf(points: list[dict[str, Any]]) -> bytes:
    """As the `outputs.http` of Telegraf writes JSON."""
    metrics = [
        {
            "name": p["measurement"],
            "tags": p.get("tags", {}),
            "fields": p["fields"],
            "timestamp": p["timestamp"],
        }
        for p in points
    ]
    return json.dumps({"metrics": metrics}).encode()


FORMS = {
    "json": (as_array, "application/json"),
    "ndjson": (as_ndjson, "application/x-ndjson"),
    "telegraf": (as_telegraf, "application/json"),
}


def check_json(lines: bytes, odd: dict[str, Any]) -> None:
    points = decode(lines)
    assert len(points) == BATCH
    point = points[PLACE]
    assert dict(point.tags) == odd.get("tags", {})
    assert {key: value for key, kind, value in point.fields if kind == "string"} == {
        key: value for key, value in odd["fields"].items() if isinstance(value, str)
    }


@pytest.mark.parametrize("odd", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("form", FORMS)
async def test_a_batch_of_json_with_an_odd_point_is_stored_whole(form: str, odd: dict[str, Any]) -> None:
    write, content_type = FORMS[form]
    whole = front()
    answer = await ask(
        whole.app, "POST", "/metrics?precision=ms", write(json_batch(odd)), {"Content-Type": content_type}
    )
    assert answer.status == 202, answer.body[:300]
    check_json(whole.wal.lines, odd)


@pytest.mark.parametrize("odd", POINTS.values(), ids=POINTS)
@pytest.mark.parametrize("form", ["json", "ndjson"])
async def test_a_frame_of_json_with_an_odd_point_is_stored_whole(form: str, odd: dict[str, Any]) -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.send(1, body=FORMS[form][0](json_batch(odd)), format=form)
        await client.acked(1)
        check_json(whole.wal.lines, odd)


def test_the_batch_is_what_it_says() -> None:
    lines = ordinary()
    assert len(lines) == BATCH
    assert len(decode(b"".join(lines))) == BATCH
