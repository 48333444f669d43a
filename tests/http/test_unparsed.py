"""What the HTTP parser refuses has an answer, a line and a count; blank lines between requests are no error."""

from __future__ import annotations

import json

import pytest
import structlog.testing

from tests.http.rig import LINE, front, get, post, running, within
from tests.http.test_refusals import OURS, Noted
from wal_ingest.http.hypercorn_mends.unparsed import BLANK_BYTES_MAX

WRITE = post("/write?db=m")
# Like a ClientHello: the record's header, then what a client of TLS 1.3 begins with.
CLIENT_HELLO = bytes.fromhex("160301020001000 1fc0303".replace(" ", "")) + bytes(range(1, 250))

REFUSED = {
    "a ClientHello": (CLIENT_HELLO, 400, "TLS was sent to a plain-HTTP port"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2 is not available"),
    "a PROXY line alone": (b"PROXY TCP4 10.0.0.1 10.0.0.2 5 8400\r\n", 400, "PROXY protocol"),
    "a PROXY line and a request": (b"PROXY TCP4 10.0.0.1 10.0.0.2 5 8400\r\n" + WRITE, 400, "PROXY protocol"),
    "PROXY version 2": (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), 400, "PROXY protocol"),
    "a long header": (get("/ping", "X-Long: " + "x" * 20_000), 431, "server.header_bytes_max"),
    "a long header without an end": (
        b"GET /ping HTTP/1.1\r\nX: " + b"x" * 20_000,
        431,
        "server.header_bytes_max",
    ),
    "Transfer-Encoding: gzip": (get("/ping", "Transfer-Encoding: gzip"), 501, "Transfer-Encoding: chunked"),
    "a blank before the colon": (get("/ping", "X-A : b"), 400, "blank before the colon"),
    "a blank in the target": (b"POST /write?db=a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "%20"),
    "no Host": (b"GET /ping HTTP/1.1\r\n\r\n", 400, "the Host header is missing"),
    "two lengths": (post("/write", LINE, "Content-Length: 3"), 400, "Content-Length"),
    "HTTP/3": (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505, "HTTP/1.1"),
    "a bad chunk": (
        b"POST /write HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
        "chunk",
    ),
}


@pytest.mark.parametrize(("sent", "status", "words"), REFUSED.values(), ids=REFUSED)
async def test_what_the_parser_refuses_has_a_reason_an_id_a_line_and_a_count(
    sent: bytes, status: int, words: str
) -> None:
    noted = Noted()
    door = front(observer=noted)
    with structlog.testing.capture_logs() as lines, within(5):
        async with running(door.app, door.settings) as server:
            peer = await server.connect()
            await peer.send(sent)
            answer = await peer.answer()
            assert await peer.end() == b""
    reason = json.loads(answer.body)["error"]
    assert answer.status == status
    assert words in reason
    assert OURS.fullmatch(answer.headers["x-request-id"])
    [line] = [line for line in lines if line["event"] == "request refused"]
    assert (line["request_id"], line["reason"]) == (answer.headers["x-request-id"], reason)
    assert (line["route"], line["status"], line["source"]) == ("unparsed", status, "127.0.0.1")
    assert noted.answers == [("unparsed", "invalid", 0, 0)]


async def test_a_header_line_that_is_refused_is_neither_logged_nor_sent_back() -> None:
    door = front()
    with structlog.testing.capture_logs() as lines, within(5):
        async with running(door.app, door.settings) as server:
            peer = await server.connect()
            await peer.send(get("/ping", "Authorization : Bearer s3cr3t"))
            answer = await peer.answer()
    assert lines
    assert "s3cr3t" not in f"{lines} {answer}"


@pytest.mark.parametrize("blank", [b"\r\n", b"\n", b"\r\n\r\n"])
async def test_blank_lines_before_and_between_requests_are_skipped(blank: bytes) -> None:
    door = front()
    with within(5):
        async with running(door.app, door.settings) as server:
            peer = await server.connect()
            await peer.send(blank + WRITE + blank + WRITE + blank + blank)
            assert [(await peer.answer()).status for _ in range(2)] == [204, 204]
            await peer.stream.send_eof()
            assert await peer.end() == b""
    assert door.wal.lines == LINE * 2


async def test_a_blank_line_may_come_in_pieces_and_its_request_later() -> None:
    door = front()
    with within(5):
        async with running(door.app, door.settings) as server:
            peer = await server.connect()
            for piece in (b"\r", b"\n", b"\r\n\r", b"\n" + WRITE[:3], WRITE[3:] + b"\r"):
                await peer.send(piece)
            assert (await peer.answer()).status == 204
            for piece in (b"\n", WRITE):
                await peer.send(piece)
            assert (await peer.answer()).status == 204
            await peer.send(b"\r")
            await peer.stream.send_eof()
            assert await peer.end() == b""


async def test_endless_blank_lines_are_refused() -> None:
    door = front()
    with within(5):
        async with running(door.app, door.settings) as server:
            peer = await server.connect()
            await peer.send(b"\r\n" * (BLANK_BYTES_MAX // 2) + WRITE)
            assert (await peer.answer()).status == 204
            await peer.send(b"\r\n" * (BLANK_BYTES_MAX // 2 + 1))
            assert (await peer.answer()).status == 400
