"""Connections that mean harm, or were cut off: the server goes on answering the others, and stops in time."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.http.rig import LINE, Peer, Running, front, get, lifespan, post, running, until, within
from wal_ingest.http.hypercorn_mends import LINGER_S_MAX
from wal_ingest.settings import KIB, MIB, ServerSettings

UPGRADE = get(
    "/stream",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
)
H2C_UPGRADE = get(
    "/healthz",
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
)
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2_EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
# Ten streams, each a `POST /metrics` whose body never comes: HPACK indices 3 (POST), 6 (http), and literals.
_H2_FIELDS = b"\x83\x86\x04\x08/metrics\x41\x01x"
H2_OPEN_STREAMS = b"".join(
    len(_H2_FIELDS).to_bytes(3, "big") + b"\x01\x04" + stream.to_bytes(4, "big") + _H2_FIELDS
    for stream in range(3, 23, 2)
)
CHUNKED_HEAD = (
    b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def still_answers(server: Running) -> None:
    """A new connection is served at once, both by the write route and by the admin app."""
    with within(5):
        peer = await server.connect()
        await peer.send(post("/metrics"))
        assert (await peer.answer()).status == 202
        await peer.send(get("/healthz"))
        assert (await peer.answer()).status == 200


async def byte_after_upgrade(server: Running) -> None:
    peer = await server.connect()
    await peer.send(UPGRADE + b"\x00")
    # Which of the two it is depends on who comes first: the byte, or the application's refusal.
    assert (await peer.answer()).status in (400, 404)


async def byte_after_refused_upgrade(server: Running) -> None:
    peer = await server.connect()
    await peer.send(UPGRADE)
    assert (await peer.answer()).status == 404
    await peer.send(b"\xff" * 100)


async def upgrade_in_single_bytes(server: Running) -> None:
    peer = await server.connect()
    for byte in UPGRADE + b"\x81\x00":
        await peer.send(bytes([byte]))
    assert (await peer.answer()).status in (400, 404)


async def broken_upgrade(server: Running) -> None:
    peer = await server.connect()
    await peer.send(get("/stream", "Connection: Upgrade", "Upgrade: websocket"))
    assert (await peer.answer()).status == 400


async def upgrade_and_reset(server: Running) -> None:
    peer = await server.connect()
    await peer.send(UPGRADE + b"\x81")
    reset(peer)


async def h2c_upgrade_is_ignored(server: Running) -> None:
    peer = await server.connect()
    await peer.send(H2C_UPGRADE)
    assert (await peer.answer()).status == 200


async def h2c_upgrade_dropped_with_a_stream_open(server: Running) -> None:
    peer = await server.connect()
    await peer.send(H2C_UPGRADE + H2_PREFACE + H2_EMPTY_SETTINGS + H2_OPEN_STREAMS)
    await peer.stream.receive_some()
    reset(peer)


async def h2_by_prior_knowledge(server: Running) -> None:
    peer = await server.connect()
    await peer.send(H2_PREFACE + H2_EMPTY_SETTINGS)
    assert (await peer.answer()).status == 505


async def h2_by_prior_knowledge_dropped_with_streams_open(server: Running) -> None:
    peer = await server.connect()
    await peer.send(H2_PREFACE + H2_EMPTY_SETTINGS + H2_OPEN_STREAMS)
    await peer.stream.receive_some()
    reset(peer)


async def half_a_head(server: Running) -> None:
    peer = await server.connect()
    await peer.send(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Le")


async def half_a_head_and_reset(server: Running) -> None:
    peer = await server.connect()
    await peer.send(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Le")
    reset(peer)


async def half_a_body(server: Running) -> None:
    peer = await server.connect()
    await peer.send(post("/metrics", LINE * 10)[:-20])


async def half_a_body_and_reset(server: Running) -> None:
    peer = await server.connect()
    await peer.send(post("/metrics", LINE * 10)[:-20])
    reset(peer)


async def malformed_chunking(server: Running) -> None:
    peer = await server.connect()
    await peer.send(CHUNKED_HEAD + b"5\r\nhello there\r\n")
    assert (await peer.answer()).status == 400


async def no_http_at_all(server: Running) -> None:
    peer = await server.connect()
    await peer.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert (await peer.answer()).status == 400


async def endless_body_to_the_admin_app(server: Running) -> None:
    peer = await server.connect()
    await peer.send(CHUNKED_HEAD.replace(b"POST /metrics", b"POST /healthz") + chunk(b"x" * 1000) * 100)
    assert (await peer.answer()).status == 405


async def send_for_ever(peer: Peer) -> None:
    """Goes on sending, slowly, until the connection breaks."""
    while True:
        await peer.send(chunk(b"x" * 100))
        await trio.sleep(0.01)


def reset(peer: Peer) -> None:
    """Drops the connection with RST instead of FIN."""
    peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    peer.stream.socket.close()


HOSTILE = [
    byte_after_upgrade,
    byte_after_refused_upgrade,
    upgrade_in_single_bytes,
    broken_upgrade,
    upgrade_and_reset,
    h2c_upgrade_is_ignored,
    h2c_upgrade_dropped_with_a_stream_open,
    h2_by_prior_knowledge,
    h2_by_prior_knowledge_dropped_with_streams_open,
    half_a_head,
    half_a_head_and_reset,
    half_a_body,
    half_a_body_and_reset,
    malformed_chunking,
    no_http_at_all,
    endless_body_to_the_admin_app,
]


@pytest.mark.parametrize("attack", HOSTILE, ids=lambda attack: attack.__name__)
async def test_others_are_answered_and_the_stop_is_in_time(
    attack: Callable[[Running], Awaitable[None]],
) -> None:
    settings = ServerSettings(stop_s_max=0.5)
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            bystander = await server.connect()
            await bystander.send(get("/healthz"))
            assert (await bystander.answer()).status == 200
            for _ in range(3):
                await attack(server)
            await still_answers(server)
            await bystander.send(post("/metrics"))
            assert (await bystander.answer()).status == 202
            assert whole.app.budget.held_bytes <= 3 * len(LINE) * 10
            server.shutdown.set()
            with within(2):
                await server.stopped.wait()
    assert whole.app.budget.held_bytes == 0


async def test_a_refused_handshake_leaves_no_connection_behind() -> None:
    settings = ServerSettings()
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            for early in (UPGRADE + b"\x00", get("/s", "Connection: Upgrade", "Upgrade: websocket"), UPGRADE):
                peer = await server.connect()
                await peer.send(early)
                assert (await peer.answer()).status in (400, 404)
                assert await peer.end() == b""


async def test_a_client_that_never_reads_its_answers_does_not_hold_up_the_stop() -> None:
    settings = ServerSettings(stop_s_max=1.0)
    with within(10):
        async with running(_long_answer, settings) as server:
            peer = await server.connect()
            await peer.send(get("/"))
            await _STARTED[-1].wait()
            began_s = trio.current_time()
            server.shutdown.set()
            await server.stopped.wait()
            assert trio.current_time() - began_s < 2
            assert _ENDED[-1].is_set()


async def test_a_client_that_never_reads_its_answer_is_dropped_after_the_limit() -> None:
    settings = ServerSettings(answer_s_max=0.2)
    with within(10):
        async with running(_long_answer, settings) as server:
            peer = await server.connect()
            await peer.send(get("/"))
            with within(5):
                await _STARTED[-1].wait()
                await _ENDED[-1].wait()
            with pytest.raises((EOFError, trio.BrokenResourceError)):
                await peer.answer()


_STARTED: list[trio.Event] = []
_ENDED: list[trio.Event] = []


async def _long_answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application whose answer is larger than any socket buffer."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    _STARTED[-1].set()
    try:
        body = b"x" * (32 * MIB)
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    finally:
        _ENDED[-1].set()


@pytest.fixture(autouse=True)
def _events() -> None:
    _STARTED.append(trio.Event())
    _ENDED.append(trio.Event())


@pytest.mark.parametrize("pieces", [1, 40], ids=["at once", "in pieces"])
@pytest.mark.parametrize("kib", [17, 40, 300])
async def test_headers_over_the_limit_are_answered_431(kib: int, pieces: int) -> None:
    settings = ServerSettings()
    whole = front(settings)
    head = get("/healthz", *(f"X-Filler-{number}: {'x' * 1000}" for number in range(kib)))
    size = len(head) // pieces + 1
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            for start in range(0, len(head), size):
                await peer.send(head[start : start + size])
            assert (await peer.answer()).status == 431
            assert await peer.end() == b""
            await still_answers(server)


async def test_headers_just_under_the_limit_are_served() -> None:
    settings = ServerSettings()
    whole = front(settings)
    head = get("/healthz", "X-Filler: ")
    head = get("/healthz", "X-Filler: " + "x" * (16 * KIB - len(head)))
    assert len(head) == 16 * KIB
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(head)
            assert (await peer.answer()).status == 200


@pytest.mark.parametrize("chunk_bytes", [1, 100, 8_000])
async def test_a_chunked_body_over_the_limit_is_answered_413_while_it_is_still_coming(
    chunk_bytes: int,
) -> None:
    settings = ServerSettings(body_bytes_max=64 * KIB)
    whole = front(settings)
    piece = chunk(b"x" * chunk_bytes) * (80_000 // chunk_bytes)
    with within(20):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(CHUNKED_HEAD + piece)
            answer = await peer.answer()
            assert answer.status == 413
            assert answer.headers["connection"] == "close"
            assert b"server.body_bytes_max" in answer.body
            assert await peer.end() == b""
            assert whole.wal.appends == []
            await still_answers(server)


async def test_a_length_over_the_limit_is_answered_413_before_the_body() -> None:
    settings = ServerSettings(body_bytes_max=64 * KIB)
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(post("/metrics", b"x" * 100_000)[:200])
            assert (await peer.answer()).status == 413
            assert await peer.end() == b""


async def test_a_client_that_sends_all_of_a_refused_body_can_still_read_why() -> None:
    settings = ServerSettings(body_bytes_max=64 * KIB)
    whole = front(settings)
    with within(20):
        async with running(whole.app, settings) as server:
            for _ in range(5):
                peer = await server.connect()
                await peer.send(post("/metrics", b"x" * (8 * MIB)))
                assert (await peer.answer()).status == 413


async def test_a_peer_that_keeps_its_side_open_is_closed_after_the_linger() -> None:
    settings = ServerSettings(body_bytes_max=64 * KIB)
    whole = front(settings)
    with within(LINGER_S_MAX + 5):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(CHUNKED_HEAD + chunk(b"x" * 80_000))
            assert (await peer.answer()).status == 413
            with pytest.raises(trio.BrokenResourceError):  # RST: nobody reads there any more
                await send_for_ever(peer)


async def test_a_stalled_body_is_answered_408_and_stores_nothing() -> None:
    settings = ServerSettings(body_s_max=0.2)
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(post("/metrics", LINE * 2)[:-5])
            answer = await peer.answer()
            assert answer.status == 408
            assert b"server.body_s_max" in answer.body
            assert await peer.end() == b""
            assert whole.wal.appends == []
            assert whole.app.budget.held_bytes == 0
            await still_answers(server)


async def test_pipelined_requests_are_answered_in_order() -> None:
    settings = ServerSettings()
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(
                post("/metrics") + get("/healthz") + post("/api/v2/write") + post("/metrics") * 50
            )
            assert [(await peer.answer()).status for _ in range(3)] == [202, 200, 204]
            answers = [await peer.answer() for _ in range(50)]
            assert [answer.body for answer in answers] == [
                b'{"received": true, "points": 1, "seq": %d}\n' % seq for seq in range(3, 53)
            ]


async def test_requests_pipelined_behind_a_close_are_dropped_with_the_connection() -> None:
    settings = ServerSettings()
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(post("/metrics", LINE, "Connection: close") + post("/metrics") * 3)
            assert (await peer.answer()).status == 202
            assert await peer.end() == b""
            assert len(whole.wal.appends) == 1


async def test_an_idle_connection_is_closed_after_keep_alive_s() -> None:
    settings = ServerSettings(keep_alive_s=0.2)
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            silent, served = await server.connect(), await server.connect()
            await served.send(get("/healthz"))
            assert (await served.answer()).status == 200
            assert await silent.end() == b""
            assert await served.end() == b""


async def test_a_busy_connection_outlives_keep_alive_s() -> None:
    settings = ServerSettings(keep_alive_s=0.1)
    whole = front(settings)
    whole.wal.gate = trio.Event()
    with within(10):
        async with running(whole.app, settings) as server:
            busy, idle = await server.connect(), await server.connect()
            await busy.send(post("/metrics"))
            await whole.wal.waiting.wait()
            assert await idle.end() == b""  # so the time is up
            whole.wal.gate.set()
            assert (await busy.answer()).status == 202


async def test_a_client_that_closes_its_sending_side_is_still_answered() -> None:
    settings = ServerSettings()
    whole = front(settings)
    whole.wal.gate = trio.Event()
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(post("/metrics"))
            await peer.stream.send_eof()
            await whole.wal.waiting.wait()
            whole.wal.gate.set()
            assert (await peer.answer()).status == 202
            assert await peer.end() == b""


async def test_an_application_that_raises_is_answered_500_and_its_neighbours_live_on() -> None:
    async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        raise ExceptionGroup("several", [RuntimeError("one"), ValueError("two")])

    settings = ServerSettings()
    with within(10):
        async with running(broken, settings) as server:
            for _ in range(3):
                peer = await server.connect()
                await peer.send(get("/"))
                assert (await peer.answer()).status == 500
            assert not server.stopped.is_set()


async def test_expect_100_continue_is_answered_before_the_body() -> None:
    settings = ServerSettings()
    whole = front(settings)
    head, body = post("/metrics", LINE, "Expect: 100-continue").split(b"\r\n\r\n")
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(head + b"\r\n\r\n")
            assert (await peer.answer()).status == 100
            await peer.send(body)
            assert (await peer.answer()).status == 202


async def test_answers_say_the_date_and_not_the_server() -> None:
    settings = ServerSettings()
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(post("/metrics"))
            answer = await peer.answer()
            assert set(answer.headers) == {"content-type", "content-length", "date"}


async def test_a_reset_while_the_body_is_coming_stores_nothing() -> None:
    settings = ServerSettings()
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(post("/metrics", LINE * 100)[:-1])
            await until(lambda: whole.app.budget.held_bytes > 0)
            reset(peer)
            await until(lambda: whole.app.budget.held_bytes == 0)
            assert whole.wal.appends == []


@pytest.mark.parametrize("token", ["", "of-the-fleet"])
async def test_connections_whose_peers_close_in_the_middle_of_a_body_are_closed(token: str) -> None:
    # With a token they are answered 401 before their bodies, and what is left of these is only discarded.
    settings = ServerSettings(write_token=token)
    whole = front(settings)
    begun = ended = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal begun, ended
        begun += scope["type"] == "http"
        try:
            await whole.app(scope, receive, send)
        finally:
            ended += scope["type"] == "http"

    with within(20):
        async with running(app, settings) as server:
            for _ in range(40):
                peer = await server.connect()
                await peer.send(post("/metrics", b"x" * 100)[:-100])
                await peer.stream.aclose()
            await until(lambda: begun == ended == 40)
    assert (begun, ended) == (40, 40)
    assert whole.app.budget.held_bytes == 0
    assert whole.wal.appends == []
