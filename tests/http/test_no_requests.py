"""What never becomes a request is answered, logged and counted; blank lines are skipped; stalled bodies given up."""

from __future__ import annotations

import json
import re
import time

import pytest
import structlog.testing
import trio

from tests.http.rig import LINE, Running, front, get, post, running, within
from wal_ingest.errors import BodyTooSlow
from wal_ingest.http.body import BodyBudget, Hold, TooManyBodies, read_body
from wal_ingest.http.parser_refusals import KINDS, parser_refusal
from wal_ingest.http.refusals import RefusalLog
from wal_ingest.metrics import TURNED_AWAY
from wal_ingest.settings import ServerSettings

SETTINGS = ServerSettings()
CLIENT_HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(60)
NOT_REQUESTS = {
    "tls": (CLIENT_HELLO, 400, "speaks plain HTTP"),
    "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "use HTTP/1.1"),
    "headers_too_large": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 20_000 + b"\r\n\r\n",
        431,
        "server.header_bytes_max",
    ),
    "transfer_encoding": (
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        501,
        "Content-Encoding",
    ),
    "header line": (b"GET / HTTP/1.1\r\nHost: x\r\nX-A : b\r\n\r\n", 400, "before the colon"),
    "request line": (b"POST /write?db=a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "%20"),
    "length": (b"POST /write HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", 400, "one number"),
    "no_host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "Host header"),
    "proxy_protocol": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "PROXY"),
}


@pytest.mark.parametrize("name", NOT_REQUESTS)
async def test_what_is_no_request_is_answered_logged_and_counted(name: str) -> None:
    data, status, words = NOT_REQUESTS[name]
    counted: list[str] = []
    with structlog.testing.capture_logs() as logs:
        async with running(front().app, SETTINGS, turned_away=counted.append) as server:
            peer = await server.connect()
            await peer.send(data)
            answer = await peer.answer()
            await peer.end()
    assert answer.status == status
    assert words in json.loads(answer.body)["error"]
    assert answer.headers["connection"] == "close"
    request_id = answer.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", request_id)
    [line] = [each for each in logs if each["event"] == "request refused"]
    assert (line["request_id"], line["route"], line["status"]) == (request_id, "(no request)", status)
    assert (line["reason"], line["source"]) == (json.loads(answer.body)["error"], "127.0.0.1")
    assert counted == [name if name in KINDS else "malformed"]


def test_every_kind_has_a_metric() -> None:
    assert set(TURNED_AWAY) == {*KINDS, "origin", "host"}


def test_words_that_are_not_known_are_not_passed_on() -> None:
    assert parser_refusal(b"GET", 400, "something new in h11").message == "this is no HTTP/1.1 request"


async def test_many_of_them_write_ten_lines_in_a_second() -> None:
    log = RefusalLog(monotonic_s=lambda: 1.0)
    with structlog.testing.capture_logs() as logs:
        async with running(front().app, SETTINGS, refusals=log) as server:
            for _ in range(12):
                peer = await server.connect()
                await peer.send(b"nonsense\r\n\r\n")
                assert (await peer.answer()).status == 400
    assert len([each for each in logs if each["event"] == "request refused"]) == 10


# -- blank lines -----------------------------------------------------------------------------------------

BLANKS = [b"\r\n", b"\r\n\r\n", b"\n", b"\r\n" * 16]


@pytest.mark.parametrize("blank", BLANKS)
async def test_blank_lines_before_and_between_requests_are_skipped(blank: bytes) -> None:
    async with running(front().app, SETTINGS) as server:
        peer = await server.connect()
        await peer.send(blank + post("/write?db=m") + blank + post("/write?db=m"))
        for _ in range(2):
            assert (await peer.answer()).status == 204
        await peer.send(blank)
        await peer.send(post("/write?db=m"))
        assert (await peer.answer()).status == 204


async def test_a_line_end_that_arrives_in_two_pieces_is_skipped_too() -> None:
    async with running(front().app, SETTINGS) as server:
        peer = await server.connect()
        for piece in (b"\r", b"\n", b"\r", b"\n" + get("/healthz")):
            await peer.send(piece)
        assert (await peer.answer()).status == 200


async def test_blank_lines_after_the_last_request_get_no_answer() -> None:
    async with running(front().app, SETTINGS) as server:
        peer = await server.connect()
        await peer.send(post("/write?db=m") + b"\r\n")
        assert (await peer.answer()).status == 204
        await peer.stream.send_eof()
        assert await peer.end() == b""


async def test_blank_lines_without_end_are_no_request() -> None:
    async with running(front().app, SETTINGS) as server:
        peer = await server.connect()
        with within(5):
            await peer.send(b"\r\n" * 100)
            assert (await peer.answer()).status == 400


# -- large bodies that stop coming -----------------------------------------------------------------------


async def fill(server: Running, count: int, body_bytes: int) -> None:
    """Connections with a body that was announced, came in part, and comes no further."""
    head = (
        f"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {32 << 20}\r\n\r\n"
    ).encode()
    for _ in range(count):
        peer = await server.connect()
        await peer.send(head + bytes(body_bytes))


async def test_bodies_that_stop_short_keep_nobody_else_out() -> None:
    """All of one address; the others' requests come from another loopback address."""
    settings = ServerSettings(bodies_bytes_max=32 << 20, body_bytes_max=32 << 20)
    app = front(settings).app
    async with running(app, settings) as server:
        await fill(server, 8, 6 << 20)
        with within(10):
            while app.budget.held_bytes < 10 << 20:
                await server.breathe()
        assert app.budget.held_bytes <= 16 << 20
        peer = await server.connect(source="127.0.0.2")
        began_s = time.monotonic()
        for _ in range(20):
            await peer.send(post("/metrics", LINE * 1000))
            assert (await peer.answer()).status == 202
        assert (time.monotonic() - began_s) / 20 < 0.5


async def test_a_large_body_that_stops_coming_is_given_up_within_seconds(autojump_clock: object) -> None:
    async def receive() -> dict[str, object]:
        return messages.pop(0) if messages else await _forever()

    async def _forever() -> dict[str, object]:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    budget = BodyBudget(1 << 30)
    messages: list[dict[str, object]] = [
        {"type": "http.request", "body": bytes(1 << 20), "more_body": True} for _ in range(3)
    ]
    began_s = trio.current_time()
    with pytest.raises(BodyTooSlow, match="stopped coming"):
        await read_body(receive, Hold(budget, "a"), bytes_max=1 << 30, body_s_max=30)
    assert 4 < trio.current_time() - began_s <= 10


def test_one_address_holds_half_and_gives_it_back() -> None:
    budget = BodyBudget(100)
    first, second, other = Hold(budget, "a"), Hold(budget, "a"), Hold(budget, "b")
    first.take(30)
    second.take(20)
    with pytest.raises(TooManyBodies, match="of this address"):
        second.take(1)
    other.take(50)
    with pytest.raises(TooManyBodies, match="too many bodies are"):
        other.take(1)
    for hold in (first, second, other):
        hold.release()
        hold.release()
    assert budget.held_bytes == 0
    assert budget._held_by == {}
    # A single body may be larger than the half, when nothing else of its address is there.
    first.take(80)
