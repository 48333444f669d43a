"""What each dialect's clients depend on: partial writes, precisions, text, paths, and statements before a write."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import pytest

from tests.http.rig import NOW_NS, ask, front, running, within
from tests.http.test_refusals import Noted
from wal_ingest.errors import BodyTooSlow
from wal_ingest.http import answers
from wal_ingest.http.requests import Dialect
from wal_ingest.settings import ServerSettings
from wal_ingest.wal.entry import Destination

T = 1_763_800_000_000_000_000
GOOD = b"good v=1 %d\n" % T
MIXED = GOOD + b"bad v=NaN 2\n" + b"good v=2 %d\n" % (T + 1)
KEPT = GOOD + b"good v=2 %d\n" % (T + 1)
PARTIAL = [
    ("/write?db=m", {}, 400),
    ("/api/v3/write_lp?db=m", {}, 400),
    ("/api/v2/write?accept_partial=true", {}, 422),
    ("/api/v2/write", {"partial_writes": "always"}, 422),
    ("/write?accept_partial=true", {"partial_writes": "never"}, 400),
]
WHOLE = [
    ("/api/v2/write", {}),
    ("/write?accept_partial=false", {}),
    ("/api/v3/write_lp?accept_partial=false", {}),
    ("/write", {"partial_writes": "never"}),
    ("/metrics", {"partial_writes": "always"}),
]
LP = {"Content-Type": "text/plain"}


@pytest.mark.parametrize(("target", "settings", "status"), PARTIAL)
async def test_good_lines_are_stored_before_the_bad_ones_are_reported(
    target: str, settings: dict[str, Any], status: int
) -> None:
    noted = Noted()
    whole = front(ServerSettings(**settings), observer=noted)
    answer = await ask(whole.app, "POST", target, MIXED, LP)
    assert answer.status == status
    assert whole.wal.lines == KEPT
    route = target.partition("?")[0]
    assert noted.answers == [(route, "partial", 2, len(MIXED))]
    assert noted.refusals == [(route, "malformed", "10.0.0.7", 1)]
    assert b"bad v=NaN 2" in answer.body
    said = json.loads(answer.body)
    if "/v3/" not in target:
        words = said.get("error") or said["message"]
        assert "partial write: unable to parse 'bad v=NaN 2': " in words
        assert words.endswith(" dropped=1")
    else:
        assert said["error"] == "partial write of line protocol occurred"
        assert [(each["original_line"], each["line_number"]) for each in said["data"]] == [("bad v=NaN 2", 2)]


@pytest.mark.parametrize(("target", "settings"), WHOLE)
async def test_elsewhere_a_request_with_a_bad_line_is_refused_whole(
    target: str, settings: dict[str, Any]
) -> None:
    whole = front(ServerSettings(**settings))
    answer = await ask(whole.app, "POST", target, MIXED, LP)
    assert answer.status == 400
    assert b"line 2" in answer.body
    assert whole.wal.appends == []


async def test_without_a_good_line_nothing_is_called_a_partial_write() -> None:
    whole = front()
    answer = await ask(whole.app, "POST", "/write", b"bad v=NaN 2\n")
    assert answer.status == 400
    assert json.loads(answer.body)["error"].startswith("unable to parse 'bad v=NaN 2': ")
    assert whole.wal.appends == []


@pytest.mark.parametrize("target", ["/write", "/api/v2/write", "/api/v3/write_lp", "/metrics"])
async def test_one_line_of_latin_1_among_a_thousand_loses_none(target: str) -> None:
    noted = Noted()
    whole = front(observer=noted)
    good = b"".join(b"cpu,host=h%d usage=1 %d\n" % (n, T + n) for n in range(999))
    odd = b'snmp,place=Z\xc3\xbcrich alias="B\xfcro \xb0C" %d\n' % T
    answer = await ask(whole.app, "POST", target, good + odd, LP)
    assert answer.status in (202, 204)
    assert whole.wal.lines == good + 'snmp,place=Zürich alias="Büro °C" '.encode() + b"%d\n" % T
    assert noted.oddities == [(target, "not_utf8", "10.0.0.7", 1)]


@pytest.mark.parametrize("target", ["/write", "/metrics"])
async def test_a_byte_order_mark_is_dropped(target: str) -> None:
    whole = front()
    assert (await ask(whole.app, "POST", target, b"\xef\xbb\xbf" + GOOD, LP)).status in (202, 204)
    assert whole.wal.lines == GOOD
    body = b'\xef\xbb\xbf{"serverId":"a","cpu":1,"ram":1}'
    for headers in ({}, {"Content-Type": "application/json"}, {"Content-Type": "application/x-ndjson"}):
        assert (await ask(whole.app, "POST", "/metrics", body, headers)).status == 202


async def test_utf_16_is_refused_by_name() -> None:
    answer = await ask(front().app, "POST", "/write", GOOD.decode().encode("utf-16"))
    assert answer.status == 400
    assert b"UTF-16" in answer.body


@pytest.mark.parametrize(
    ("target", "time", "stored"),
    [
        ("/write?precision=us", T, T),
        ("/write?precision=us", T // 1000, T),
        ("/write?precision=u", T // 1000, T),
        ("/api/v3/write_lp", T, T),
        ("/api/v3/write_lp?precision=auto", T // 10**9, T),
        ("/api/v3/write_lp?precision=auto", T // 10**6, T),
        ("/api/v3/write_lp?precision=auto", T // 10**3, T),
        ("/api/v3/write_lp?precision=second", T // 10**9, T),
        ("/api/v3/write_lp?precision=millisecond&no_sync=true", T // 10**6, T),
        ("/api/v3/write_lp?precision=microsecond", T // 10**3, T),
        ("/api/v3/write_lp?precision=nanosecond", T, T),
    ],
)
async def test_times_are_read_in_the_unit_that_the_client_means(target: str, time: int, stored: int) -> None:
    whole = front()
    assert (await ask(whole.app, "POST", target, b"m f=1 %d\n" % time)).status == 204
    assert whole.wal.lines == b"m f=1 %d\n" % stored


@pytest.mark.parametrize("length", ["chunked", "of known length"])
async def test_influxdb_3_clients_send_gzip_with_and_without_a_length_and_a_bearer_token(length: str) -> None:
    settings = ServerSettings(write_token="right")
    whole = front(settings)
    body = gzip.compress(GOOD)
    with within(5):
        async with running(whole.app, settings) as server:
            for token, status in (("wrong", 401), ("right", 204)):
                peer = await server.connect()
                await peer.send(v3_request(body, token, chunked=length == "chunked"))
                assert (await peer.answer()).status == status
    [[entry]] = whole.wal.appends
    assert (entry.lines, entry.destination) == (GOOD, Destination("o", "d"))


def v3_request(body: bytes, token: str, *, chunked: bool) -> bytes:
    """A write as InfluxDB 3's clients send it; chunked, the body is cut in the middle."""
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    lines = [
        "POST /api/v3/write_lp?org=o&db=d&precision=nanosecond HTTP/1.1",
        "Host: x",
        "Content-Encoding: gzip",
        f"Authorization: Bearer {token}",
        length,
    ]
    parts = [body[:10], body[10:], b""]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return "\r\n".join([*lines, "", ""]).encode() + (chunks if chunked else body)


@pytest.mark.parametrize(
    "target", ["//api/v2/write?bucket=b", "/api/v2/write/", "//write", "/metrics/", "/api/v3//write_lp/"]
)
async def test_doubled_and_final_slashes_of_a_path_do_not_matter(target: str) -> None:
    whole = front()
    assert (await ask(whole.app, "POST", target, GOOD, LP)).status in (202, 204)
    assert whole.wal.lines == GOOD


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("method", "target", "body", "results"),
    [
        ("GET", "/query?q=SHOW+DATABASES", b"", 1),
        ("POST", "/query?q=CREATE+DATABASE+%22a;b%22", b"", 1),
        ("POST", "/query", b"q=create%20database%20x", 1),
        ("POST", "/query/?db=x", b"q=CREATE+RETENTION+POLICY+a+ON+x+DURATION+1d+REPLICATION+1", 1),
        ("POST", "/query", b"q=CREATE+DATABASE+x%3B+SHOW+DATABASES%3B", 2),
    ],
)
async def test_statements_that_clients_send_before_they_write_succeed(
    method: str, target: str, body: bytes, results: int
) -> None:
    answer = await ask(front().app, method, target, body, FORM)
    assert answer.status == 200
    assert json.loads(answer.body) == {"results": [{"statement_id": n} for n in range(results)]}


@pytest.mark.parametrize("statement", ["SELECT+1", "DROP+DATABASE+x", "SHOW+DATABASES%3BDROP+DATABASE+x", ""])
async def test_other_statements_are_refused_in_words(statement: str) -> None:
    answer = await ask(front().app, "GET", f"/query?q={statement}")
    assert answer.status == 400
    assert len(json.loads(answer.body)["error"]) > 20


async def test_an_unknown_path_is_answered_with_those_there_are() -> None:
    answer = await ask(front().app, "GET", "/api/v2/buckets")
    assert answer.status == 404
    said = json.loads(answer.body)
    assert (said["code"], set(said)) == ("not found", {"code", "message"})
    assert "/api/v2/write" in said["message"]
    assert "POST /metrics" in json.loads((await ask(front().app, "GET", "/nope")).body)["error"]


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_slow_body_is_answered_in_the_way_that_makes_the_client_send_it_again(dialect: Dialect) -> None:
    problem = answers.problem_of(BodyTooSlow("slow"), dialect)
    native = dialect is Dialect.NATIVE
    assert (problem.status, problem.retry_after_s) == ((408, None) if native else (503, 1))


async def test_a_body_that_is_no_gzip_is_named_so() -> None:
    answer = await ask(front().app, "POST", "/write", b"cpu v=1", {"Content-Encoding": "gzip"})
    assert b"not gzip" in answer.body


# -- times ----------------------------------------------------------------------------------------------


async def test_implausible_times_are_counted_by_source() -> None:
    noted = Noted()
    whole = front(observer=noted)
    await ask(whole.app, "POST", "/write", b"m f=1 1763800000\nm f=1 %d\n" % (NOW_NS + 2 * 86_400 * 10**9))
    body = {"serverId": "s", "cpu": 1, "ram": 1, "timestamp": 1_763_800_000}
    await ask(whole.app, "POST", "/metrics", json.dumps(body).encode())
    assert noted.oddities == [
        ("/write", "time_past", "10.0.0.7", 1),
        ("/write", "time_future", "10.0.0.7", 1),
        ("/metrics", "time_past", "10.0.0.7", 1),
    ]
    assert noted.looks == ["seconds", "", "seconds"]


@pytest.mark.parametrize(
    ("target", "unit_ns", "looks"),
    [
        ("/write", 10**9, "seconds"),
        ("/write", 10**6, "milliseconds"),
        ("/write", 10**3, "microseconds"),
        ("/write?precision=ms", 10**9, "seconds"),
        ("/write", 10**13, ""),
    ],
)
async def test_the_unit_that_implausible_times_look_like_is_reported(
    target: str, unit_ns: int, looks: str
) -> None:
    noted = Noted()
    await ask(front(observer=noted).app, "POST", target, b"m f=1 %d\n" % (NOW_NS // unit_ns))
    assert noted.looks == [looks]


async def test_a_window_of_times_refuses_what_is_outside_and_names_the_unit() -> None:
    settings = ServerSettings(time_window_past_s=86_400.0, time_window_future_s=60.0)
    whole = front(settings)
    answer = await ask(whole.app, "POST", "/metrics", GOOD + b"\nm f=1 1763800000\n", LP)
    assert (answer.status, json.loads(answer.body)["line"]) == (400, 3)
    assert b"this looks like seconds; send precision=s" in answer.body
    answer = await ask(whole.app, "POST", "/write", GOOD + b"m f=1 1763800000\n")
    assert answer.status == 400
    assert b"dropped=1" in answer.body
    assert whole.wal.lines == GOOD


# -- JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
async def test_telegrafs_json_is_taken(unit: int) -> None:
    whole = front()
    one = {
        "name": "cpu",
        "tags": {"host": "a", "empty": ""},
        "fields": {"v": 1.5},
        "timestamp": T // 10**9 * unit,
    }
    for body in (one, {"metrics": [one]}):
        assert (await ask(whole.app, "POST", "/metrics", json.dumps(body).encode())).status == 202
    assert whole.wal.lines == b"cpu,host=a v=1.5 %d\n" % T * 2


@pytest.mark.parametrize("name", ["cpu", "ram"])
async def test_an_integer_of_the_fleets_shape_that_a_float_would_change_is_refused(name: str) -> None:
    point = {"serverId": "a", "cpu": 1, "ram": 1}
    body = json.dumps([point, point | {name: 2**53 + 1}]).encode()
    answer = await ask(front().app, "POST", "/metrics", body)
    assert (answer.status, json.loads(answer.body)["index"]) == (400, 1)


async def test_a_bomb_of_small_objects_is_refused_at_the_first_bad_one() -> None:
    bomb = gzip.compress(b"[" + b"{}," * (10 << 20) + b"{}]", 1)
    began_s = time.perf_counter()
    answer = await ask(front().app, "POST", "/metrics", bomb, {"Content-Encoding": "gzip"})
    assert (answer.status, json.loads(answer.body)["index"]) == (400, 0)
    assert time.perf_counter() - began_s < 2


@pytest.mark.parametrize("bad", [b"{}", b"1", b'{"serverId":"a","cpu":1,"ram":1}}', b""])
async def test_an_array_of_many_slices_is_the_same_as_one_of_a_single(bad: bytes) -> None:
    point = b'{"serverId":"a},{\\"","cpu":1,"ram":1,"timestamp":5}'
    whole = front()
    array = b",\n".join([point] * 5_000)
    assert (await ask(whole.app, "POST", "/metrics", b"[" + array + b"]")).status == 202
    assert whole.wal.lines == b'server_metrics,server_id=a}\\,{" cpu=1.0,ram=1.0 5000000\n' * 5_000
    assert (await ask(whole.app, "POST", "/metrics", b"[" + array + b"," + bad + b"]")).status == 400


async def test_compressed_bodies_of_many_members_are_decoded_in_a_thread() -> None:
    doors = 0

    async def door(work: Any, /) -> Any:
        nonlocal doors
        doors += 1
        return work()

    body = gzip.compress(b"") * 1_000 + gzip.compress(GOOD)
    whole = front(in_thread=door)
    assert (await ask(whole.app, "POST", "/write", body, {"Content-Encoding": "gzip"})).status == 204
    assert (doors, whole.wal.lines) == (1, GOOD)
