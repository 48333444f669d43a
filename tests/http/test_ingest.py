"""What the write routes answer and store, over a fake WAL and through real ASGI scopes."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import trio
import trio.testing

from tests.http.rig import LINE, NOW_NS, FakeWal, ask, front
from wal_ingest.errors import AppendQueueFull, Stopping, WalBroken, WalFull
from wal_ingest.http.body import BodyBudget, Hold, read_body
from wal_ingest.http.checking import INLINE_BYTES_MAX, thread_door
from wal_ingest.settings import KIB, MIB, ServerSettings
from wal_ingest.wal.entry import Destination

LP = {"Content-Type": "text/plain"}
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
SERVER = {"serverId": "web-17", "cpu": 0.5, "ram": 0.25, "timestamp": 1_763_800_000_000}


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


ACCEPTED = [
    # endpoint, headers, body, status, lines stored
    ("/metrics", LP, LINE, 202, LINE),
    ("/metrics", {"Content-Type": "text/plain; charset=utf-8"}, LINE, 202, LINE),
    ("/metrics", {}, LINE, 202, LINE),
    ("/metrics?precision=s", LP, b"m f=1 5\n", 202, b"m f=1 5000000000\n"),
    ("/metrics?precision=", LP, b"m f=1 5", 202, b"m f=1 5\n"),
    ("/metrics", LP, b"m f=1", 202, b"m f=1 %d\n" % NOW_NS),
    ("/api/v2/write", {}, LINE, 204, LINE),
    ("/api/v2/write", JSON, LINE, 204, LINE),
    ("/api/v2/write?precision=us", {}, b"m f=1 5\n", 204, b"m f=1 5000\n"),
    ("/api/v2/write?precision=ms", {}, b"m f=1 5\n", 204, b"m f=1 5000000\n"),
    ("/write", {"Content-Type": "application/x-www-form-urlencoded"}, LINE, 204, LINE),
    ("/write?precision=n", {}, b"m f=1 5\n", 204, b"m f=1 5\n"),
    ("/write?precision=u", {}, b"m f=1 5\n", 204, b"m f=1 5000\n"),
    ("/write?precision=%C2%B5", {}, b"m f=1 5\n", 204, b"m f=1 5000\n"),
    ("/write?precision=m", {}, b"m f=1 5\n", 204, b"m f=1 300000000000\n"),
    ("/write?precision=h", {}, b"m f=1 5\n", 204, b"m f=1 18000000000000\n"),
    ("/api/v2/write", {}, b"", 204, b""),
    ("/write", {}, b"# only a comment\n\n", 204, b""),
]


@pytest.mark.parametrize(("target", "headers", "body", "status", "stored"), ACCEPTED)
async def test_what_is_accepted_is_stored_and_answered_in_the_endpoints_manner(
    target: str, headers: dict[str, str], body: bytes, status: int, stored: bytes
) -> None:
    whole = front()
    answer = await ask(whole.app, "POST", target, body, headers)
    assert answer.status == status
    assert whole.wal.lines == stored
    if status == 202:
        assert json.loads(answer.body) == {"received": True, "points": 1, "seq": 1}
        assert answer.headers["content-type"] == "application/json"
    else:
        assert (answer.body, answer.headers) == (b"", {})


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (JSON, as_json(SERVER)),
        ({}, b"  " + as_json(SERVER)),
        ({}, as_json([SERVER])),
        (NDJSON, as_json(SERVER) + b"\n"),
        ({"Content-Type": "application/jsonl"}, as_json(SERVER)),
        ({"Content-Type": "Application/NDJSON; charset=UTF-8"}, as_json(SERVER)),
    ],
)
async def test_json_is_taken_by_its_content_type_or_its_first_character(
    headers: dict[str, str], body: bytes
) -> None:
    whole = front()
    answer = await ask(whole.app, "POST", "/metrics", body, headers)
    assert answer.status == 202, answer.body
    assert whole.wal.lines.startswith(b"server_metrics,server_id=web-17 ")
    assert whole.wal.lines.endswith(b" 1763800000000000000\n")


async def test_json_times_are_milliseconds_unless_the_query_says_otherwise() -> None:
    whole = front()
    body = as_json(SERVER | {"timestamp": 7})
    for precision, time_ns in (("", 7_000_000), ("?precision=s", 7_000_000_000), ("?precision=ns", 7)):
        answer = await ask(whole.app, "POST", f"/metrics{precision}", body, JSON)
        assert answer.status == 202
        assert whole.wal.appends[-1][0].lines.endswith(b" %d\n" % time_ns)


REFUSED: list[tuple[str, dict[str, str], bytes, int, dict[str, Any]]] = [
    ("/metrics", LP, b"", 400, {"error": "the body has no points"}),
    ("/metrics", LP, b"# nothing\n", 400, {"error": "the body has no points"}),
    ("/metrics", LP, LINE + b"cpu usage=\n", 400, {"line": 2}),
    ("/metrics", JSON, b"[]", 400, {}),
    ("/metrics", JSON, as_json([SERVER, {"serverId": ""}]), 400, {"index": 1}),
    ("/metrics", NDJSON, as_json(SERVER) + b"\n{}\n", 400, {"line": 2}),
    ("/metrics", JSON, b"{", 400, {}),
    ("/metrics?precision=h", LP, LINE, 400, {}),
    ("/metrics?precision=%FF", LP, LINE, 400, {}),
    ("/metrics?" + "a=1&" * 40, LP, LINE, 400, {}),
    ("/metrics?bucket=" + "b" * 1025, LP, LINE, 400, {}),
    ("/metrics", {"Content-Type": "application/x-www-form-urlencoded"}, LINE, 415, {}),
    ("/metrics", {"Content-Type": "text/plain; charset=latin-1"}, LINE, 415, {}),
    ("/metrics", LP | {"Content-Encoding": "br"}, LINE, 415, {}),
    ("/metrics", LP | {"Content-Encoding": "gzip"}, LINE, 400, {}),
    ("/metrics", LP | {"Content-Length": "99999999999"}, LINE, 413, {}),
    ("/api/v2/write", {}, b"cpu usage=\n", 400, {"code": "invalid"}),
    ("/api/v2/write?precision=m", {}, LINE, 400, {"code": "invalid"}),
    ("/api/v2/write", {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08", 400, {"code": "invalid"}),
    ("/api/v2/write", {"Content-Encoding": "br"}, LINE, 415, {"code": "unsupported media type"}),
    ("/api/v2/write", {"Content-Length": "99999999999"}, LINE, 413, {"code": "request too large"}),
    ("/write", {}, b"cpu usage=\n", 400, {}),
    ("/write?precision=days", {}, LINE, 400, {}),
]


@pytest.mark.parametrize(("target", "headers", "body", "status", "says"), REFUSED)
async def test_what_is_refused_says_why_and_stores_nothing(
    target: str, headers: dict[str, str], body: bytes, status: int, says: dict[str, Any]
) -> None:
    whole = front()
    answer = await ask(whole.app, "POST", target, body, headers)
    assert answer.status == status, answer.body
    said = json.loads(answer.body)
    assert said == said | says
    if target.startswith("/api"):
        assert set(said) == {"code", "message"}
        assert answer.headers["x-platform-error-code"] == said["code"]
    elif target.startswith("/write"):
        assert set(said) == {"error"}
        assert answer.headers["x-influxdb-error"].isascii()
    else:
        assert isinstance(said["error"], str)
    assert whole.wal.appends == []
    assert whole.app.budget.held_bytes == 0


async def test_the_place_of_a_malformed_line_is_told_with_line_and_column() -> None:
    answer = await ask(front().app, "POST", "/metrics", LINE * 3 + b"cpu usage=x 1\n", LP)
    said = json.loads(answer.body)
    assert (said["line"], type(said["column"])) == (4, int)
    assert "line 4, column" in said["error"]


async def test_a_refused_form_says_which_content_types_there_are() -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await ask(front().app, "POST", "/metrics", as_json(SERVER), headers)
    assert answer.status == 415
    for known in ("Content-Type: application/json", "application/x-ndjson", "text/plain"):
        assert known in json.loads(answer.body)["error"]


async def test_a_reason_with_any_bytes_in_it_fits_into_a_header() -> None:
    body = 'm,t=a b="\u2028ü\x7f\x01'.encode() + b"\xff\r\nX-Evil: 1\n"
    answer = await ask(front().app, "POST", "/write", body)
    value = answer.headers["x-influxdb-error"]
    assert answer.status == 400
    assert value.isprintable()
    assert value.isascii()


@pytest.mark.parametrize("target", ["/metrics", "/api/v2/write", "/write"])
@pytest.mark.parametrize("error_type", [WalFull, AppendQueueFull, Stopping, WalBroken])
async def test_a_wal_that_cannot_take_it_is_answered_503_with_retry_after(
    target: str, error_type: type[WalFull]
) -> None:
    whole = front()
    whole.wal.error = error_type("no room", retry_after_s=7)
    answer = await ask(whole.app, "POST", target, LINE, LP)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "7"
    assert "connection" not in answer.headers
    assert b"no room" in answer.body


@pytest.mark.parametrize(
    ("target", "key"), [("/metrics", "error"), ("/api/v2/write", "message"), ("/write", "error")]
)
async def test_an_unexpected_error_is_answered_500_without_its_details(target: str, key: str) -> None:
    whole = front()
    whole.wal.error = RuntimeError("secret details")
    answer = await ask(whole.app, "POST", target, LINE, LP)
    assert answer.status == 500
    assert "secret" not in json.loads(answer.body)[key]
    assert whole.app.budget.held_bytes == 0
    whole.wal.error = None
    assert (await ask(whole.app, "POST", target, LINE, LP)).status in (202, 204)


@pytest.mark.parametrize(
    ("target", "method"),
    [
        (target, method)
        for target in ("/metrics", "/api/v2/write", "/write")
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS")
        if not (target == "/metrics" and method in ("GET", "HEAD"))  # that is Prometheus asking
    ],
)
async def test_write_routes_take_post_only(target: str, method: str) -> None:
    whole = front()
    answer = await ask(whole.app, method, target, LINE, LP)
    assert answer.status == 405
    assert answer.headers["allow"] == ("GET, HEAD, POST" if target == "/metrics" else "POST")
    assert whole.wal.appends == []


@pytest.mark.parametrize(
    ("target", "destination"),
    [
        ("/api/v2/write?org=o&bucket=b", Destination("o", "b")),
        ("/api/v2/write?orgID=0123&bucket=b%20c", Destination("0123", "b c")),
        ("/api/v2/write?bucket=first&bucket=second", Destination("", "first")),
        ("/api/v2/write", Destination()),
        ("/write?db=d", Destination("", "d")),
        ("/write?db=d&rp=week&u=me&p=secret", Destination("", "d/week")),
        ("/api/v3/write_lp?db=d", Destination("", "d")),
        ("/api/v3/write_lp?org=o&db=d%20e&precision=nanosecond", Destination("o", "d e")),
        ("/api/v3/write_lp?org=&db=d&no_sync=true", Destination("", "d")),
        ("/metrics", Destination()),
    ],
)
async def test_the_entry_carries_source_destination_and_time(target: str, destination: Destination) -> None:
    whole = front()
    await ask(whole.app, "POST", target, LINE, LP)
    [[entry]] = whole.wal.appends
    assert (entry.source, entry.destination, entry.accepted_ns) == ("10.0.0.7", destination, NOW_NS)


async def test_a_large_body_becomes_entries_of_a_thousand_in_one_append() -> None:
    whole = front()
    body = b"".join(b"m f=%d %d\n" % (n, n + 1) for n in range(2_500))
    answer = await ask(whole.app, "POST", "/metrics", body, LP)
    assert json.loads(answer.body) == {"received": True, "points": 2_500, "seq": 3}
    assert [[entry.points for entry in entries] for entries in whole.wal.appends] == [[1000, 1000, 500]]
    assert whole.wal.lines == body


async def test_one_time_of_acceptance_serves_the_whole_request() -> None:
    times = iter(range(NOW_NS, NOW_NS + 100))
    whole = front(now_ns=lambda: next(times))
    await ask(whole.app, "POST", "/metrics", b"m f=1\n" * 2_000, LP)
    [entries] = whole.wal.appends
    assert {entry.accepted_ns for entry in entries} == {NOW_NS}
    assert {line.split()[-1] for line in whole.wal.lines.splitlines()} == {b"%d" % NOW_NS}


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
async def test_a_body_in_pieces_is_the_same_body(pieces: int) -> None:
    whole = front()
    body = b"".join(b"m f=%d %d\n" % (n, n + 1) for n in range(1_000))
    size = -(-len(body) // pieces)
    cut = [body[start : start + size] for start in range(0, len(body), size)]
    answer = await ask(whole.app, "POST", "/metrics", cut, LP)
    assert answer.status == 202
    assert whole.wal.lines == body


@pytest.mark.parametrize("lines", [10, 20_000], ids=["inline", "in a thread"])
async def test_a_gzip_body_is_decompressed_wherever_it_is_checked(lines: int) -> None:
    doors = 0

    async def door(work: Any, /) -> Any:
        nonlocal doors
        doors += 1
        return work()

    whole = front(in_thread=door)
    body = b"".join(b"m,host=a,service=b f=%d %d\n" % (n, n + 1) for n in range(lines))
    answer = await ask(whole.app, "POST", "/api/v2/write", gzip.compress(body), {"Content-Encoding": "gzip"})
    assert answer.status == 204
    assert whole.wal.lines == body
    assert (doors > 0) == (len(body) > INLINE_BYTES_MAX)
    assert whole.app.budget.held_bytes == 0


@pytest.mark.parametrize(
    ("body", "headers", "in_thread"),
    [
        (b"m,host=a f=1 1\n" * 10_000, LP, False),
        (b"m,host=a f=1 1\n" * 10_000 + b"m,host f=1", LP, True),
        (b"m,host f=1", LP, False),
        (b"[" + b",".join([b'{"serverId":"a","cpu":1,"ram":1}'] * 100) + b"]", JSON, False),
        (b"[" + b",".join([b'{"serverId":"a","cpu":1,"ram":1}'] * 4_000) + b"]", JSON, True),
    ],
    ids=["good lines", "a bad line among many", "a bad line", "a little JSON", "much JSON"],
)
async def test_what_takes_long_to_check_is_checked_in_a_thread(
    body: bytes, headers: dict[str, str], in_thread: bool
) -> None:
    doors = 0

    async def door(work: Any, /) -> Any:
        nonlocal doors
        doors += 1
        return work()

    assert len(body) <= INLINE_BYTES_MAX
    await ask(front(in_thread=door).app, "POST", "/metrics", body, headers)
    assert (doors > 0) == in_thread


async def test_the_real_thread_door_brings_values_and_errors_back() -> None:
    door = thread_door(1)
    assert await door(lambda: 42) == 42
    with pytest.raises(ZeroDivisionError):
        await door(lambda: 1 // 0)


@pytest.mark.parametrize("limit_kib", [16, 1024])
async def test_a_gzip_bomb_is_answered_413(limit_kib: int) -> None:
    whole = front(ServerSettings(body_bytes_max=limit_kib * KIB))
    bomb = gzip.compress(b"\n" * (8 * MIB))
    for target in ("/metrics", "/api/v2/write", "/write"):
        answer = await ask(whole.app, "POST", target, bomb, LP | {"Content-Encoding": "gzip"})
        assert answer.status == 413
        assert b"server.body_bytes_max" in answer.body
    assert whole.app.budget.held_bytes == 0


async def test_a_body_over_the_limit_is_refused_at_the_piece_that_passes_it() -> None:
    whole = front(ServerSettings(body_bytes_max=10 * KIB))
    answer = await ask(whole.app, "POST", "/metrics", [b"x" * KIB] * 50, LP)
    assert answer.status == 413
    assert answer.headers["connection"] == "close"


async def test_a_body_that_stalls_is_answered_408(autojump_clock: trio.testing.MockClock) -> None:
    settings = ServerSettings(body_s_max=30.0)
    whole = front(settings)
    answered: list[dict[str, Any]] = []
    first = True

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": b"m f", "more_body": True}
        if answered:
            return {"type": "http.disconnect"}
        await trio.sleep_forever()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    scope = {"type": "http", "method": "POST", "path": "/metrics", "query_string": b"", "headers": []}
    started = trio.current_time()
    await whole.app(scope, receive, send)
    assert answered[0]["status"] == 408
    assert trio.current_time() - started == pytest.approx(30.0)
    assert whole.app.budget.held_bytes == 0


async def test_a_client_that_goes_away_in_its_body_stores_nothing_and_is_not_answered() -> None:
    whole = front()
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": LINE, "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(f"answered {message}")

    scope = {"type": "http", "method": "POST", "path": "/metrics", "query_string": b"", "headers": []}
    await whole.app(scope, receive, send)
    assert whole.wal.appends == []
    assert whole.app.budget.held_bytes == 0


async def test_bodies_beyond_the_common_bound_are_answered_503_until_others_are_done() -> None:
    whole = front(ServerSettings(bodies_bytes_max=MIB))
    whole.wal.gate = trio.Event()
    body = LINE * (700 * KIB // len(LINE))
    answers = []

    async def write() -> None:
        answers.append((await ask(whole.app, "POST", "/metrics", body, LP)).status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await whole.wal.waiting.wait()
        assert whole.app.budget.held_bytes >= len(body)
        refused = await ask(whole.app, "POST", "/metrics", body, LP)
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert b"server.bodies_bytes_max" in refused.body
        whole.wal.gate.set()
    assert answers == [202]
    assert whole.app.budget.held_bytes == 0
    assert (await ask(whole.app, "POST", "/metrics", body, LP)).status == 202


async def test_a_cancelled_request_gives_its_bytes_back() -> None:
    whole = front()
    whole.wal.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, whole.app, "POST", "/metrics", LINE, LP)
        await whole.wal.waiting.wait()
        assert whole.app.budget.held_bytes == len(LINE)
        nursery.cancel_scope.cancel()
    assert whole.app.budget.held_bytes == 0
    assert whole.wal.appends == []


async def test_a_body_of_single_bytes_is_held_in_little_more_than_its_size() -> None:
    pieces = 0

    async def receive() -> dict[str, Any]:
        nonlocal pieces
        pieces += 1
        return {"type": "http.request", "body": b"x", "more_body": pieces < 5_000}

    hold = Hold(BodyBudget(MIB))
    assert await read_body(receive, hold, bytes_max=MIB, body_s_max=1) == b"x" * 5_000


async def test_the_answer_follows_the_append_and_never_precedes_it() -> None:
    order: list[str] = []

    class Ordered(FakeWal):
        async def append(self, entries: Any) -> Any:
            await trio.lowlevel.checkpoint()
            receipt = await super().append(entries)
            order.append("appended")
            return receipt

    whole = front(appender=Ordered())

    async def send(message: dict[str, Any]) -> None:
        order.append(message["type"])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": LINE, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/metrics", "query_string": b"", "headers": []}
    await whole.app(scope, receive, send)
    assert order == ["appended", "http.response.start", "http.response.body"]
