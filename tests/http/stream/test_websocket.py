"""The WebSocket under a stream: pings, silence, peers that do not read, and peers that break the protocol."""

from __future__ import annotations

import gc
import socket
import weakref

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.rig import LINE, Peer, post, until, within
from tests.http.stream.rig import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_MASK,
    PING,
    PONG,
    TEXT,
    Client,
    Closed,
    Node,
    frame,
    message,
    node,
    upgrade,
    ws,
)
from tests.http.stream.test_session import ack
from wal_ingest.http.hypercorn_mends.websocket import WebSocket
from wal_ingest.settings import ServerSettings


async def test_a_ping_is_answered_with_what_it_carried_also_in_the_middle_of_a_message() -> None:
    data = message(1)
    async with node() as whole:
        client = await whole.stream()
        await client.raw(ws(PING, b"x" * 125) + ws(TEXT, data[:5], fin=False) + ws(PING))
        assert await client.ws_frame() == (PONG, b"x" * 125)
        assert await client.ws_frame() == (PONG, b"")
        await client.raw(ws(PONG, b"nobody asked") + ws(CONTINUATION, data[5:]))
        assert await client.next() == ack(1)


async def test_pings_are_answered_while_nothing_is_stored() -> None:
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.raw(frame(1) + ws(PING, b"?"))
        assert await client.ws_frame() == (PONG, b"?")
        gate.set()
        assert await client.next() == ack(1)


async def test_a_silent_peer_is_asked_and_one_that_answers_is_kept() -> None:
    async with node(ServerSettings(stream_ping_s=0.1)) as whole:
        client = await whole.stream()
        for _ in range(4):
            opcode, payload = await client.ws_frame()
            assert opcode == PING
            await client.raw(ws(PONG, payload))
        await client.send(1)
        assert await client.next() == ack(1)


async def test_a_peer_that_stays_silent_is_dropped() -> None:
    async with node(ServerSettings(stream_ping_s=0.1)) as whole:
        client = await whole.stream("client_id=a")
        assert await client.ws_frame() == (PING, b"")
        with within(1):
            closed = await client.closed()
        assert (closed.code, closed.reason) == (1001, "no answer to a ping within 0.1 s")
        await until(lambda: whole.is_empty)


async def test_a_peer_that_sends_is_not_asked() -> None:
    async with node(ServerSettings(stream_ping_s=0.5)) as whole:
        client = await whole.stream()
        for number in range(1, 15):
            await client.send(number)
            opcode, _payload = await client.ws_frame()
            assert opcode == TEXT, "its answer, and no ping"
            await trio.sleep(0.05)


async def test_a_peer_whose_frames_we_do_not_read_is_not_taken_for_silent() -> None:
    settings = ServerSettings(stream_ping_s=0.05, stream_window_frames_max=1, stop_s_max=2.0)
    async with node(settings) as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        for number in range(2, 6):  # what is read while the application is busy, and what is not
            await client.send(number)
            await trio.sleep(0.06)
        gate.set()
        told: list[int] = []
        while 5 not in told:
            opcode, payload = await client.ws_frame()
            assert opcode in (TEXT, PING)
            if opcode == TEXT:
                told.append(int(payload.split(b'"number":')[1].split(b",")[0]))
        assert told == sorted(told)


async def deaf(whole: Node, target: str) -> Peer:
    """A connection whose peer has next to no room for what it is told, and never reads it."""
    peer_socket = trio.socket.socket()
    peer_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    await peer_socket.connect(("127.0.0.1", whole.server.port))
    stream = trio.SocketStream(peer_socket)
    whole.server.streams.append(stream)
    peer = Peer(stream)
    await peer.send(upgrade(target))
    return peer


# What each of these is answered with is larger than it is itself.
QUESTIONS = {
    "refusals": ws(BINARY, b'{"x":1}\n', mask=NO_MASK) * 500,
    "pings": ws(PING, b"x" * 125, mask=NO_MASK) * 500,
}


@pytest.mark.parametrize("kind", QUESTIONS)
async def test_a_peer_that_never_reads_is_dropped_after_the_limit_and_holds_nobody_up(kind: str) -> None:
    async with node(ServerSettings(answer_s_max=0.2, stop_s_max=2.0)) as whole:
        peer = await deaf(whole, "/stream?client_id=deaf")
        await until(lambda: whole.streams.count == 1)
        dropped = trio.Event()

        async def ask() -> None:
            try:
                while True:
                    await peer.send(QUESTIONS[kind])
            except trio.BrokenResourceError:
                dropped.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            for _ in range(3):
                await whole.answers_others()
            with within(10):
                await dropped.wait()
        await until(lambda: whole.is_empty)


FLOODS = {
    "empty pieces": ws(CONTINUATION, fin=False) * 200_000,
    "one-byte pieces": ws(CONTINUATION, b"x", fin=False) * 200_000,
    "pongs": ws(PONG) * 200_000,
    "pings": ws(PING) * 200_000,
    "empty messages": ws(CONTINUATION, b"") + ws(TEXT) * 200_000,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_tiny_frames_does_not_hold_the_others_up(kind: str) -> None:
    async with node(ServerSettings(stop_s_max=1.0)) as whole:
        flooder, other = await whole.stream(), await whole.stream()
        waited_s: list[float] = []

        async def drain() -> None:
            while await flooder.peer.stream.receive_some():
                pass

        async with trio.open_nursery() as nursery:
            await flooder.raw(ws(TEXT, b"{", fin=False))
            nursery.start_soon(flooder.raw, FLOODS[kind])
            nursery.start_soon(drain)
            await trio.sleep(0.05)
            for number in range(1, 6):
                asked_s = trio.current_time()
                await other.send(number)
                assert await other.next() == ack(number)
                waited_s.append(trio.current_time() - asked_s)
            nursery.cancel_scope.cancel()
        # A read of the flood taken in one go is a third of a second, and an answer takes several turns.
        assert sorted(waited_s)[2] < 0.4


async def test_a_peer_that_never_reads_does_not_keep_its_own_next_connection_waiting() -> None:
    async with node(ServerSettings(answer_s_max=30.0, stop_s_max=1.0)) as whole:
        peer = await deaf(whole, "/stream?client_id=a")
        with trio.move_on_after(0.5):
            await until(lambda: whole.streams.count == 1)
            while True:
                await peer.send(QUESTIONS["refusals"])
        with within(2):
            client = await whole.stream("client_id=a")
            await client.send(1)
            assert await client.next() == ack(1)


BROKEN = {
    "unmasked": (ws(TEXT, message(2), mask=None), 1002),
    "reserved bit 1": (ws(TEXT, message(2), reserved=4), 1002),
    "reserved bit 2": (ws(TEXT, message(2), reserved=2), 1002),
    "reserved bit 3": (ws(TEXT, message(2), reserved=1), 1002),
    "reserved bit on a ping": (ws(PING, reserved=4), 1002),
    **{f"unknown opcode {code}": (ws(code, message(2)), 1002) for code in (3, 7, 11, 15)},
    "ping in pieces": (ws(PING, fin=False), 1002),
    "ping of 126 bytes": (ws(PING, b"x" * 126), 1002),
    "close of 126 bytes": (ws(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "close of one byte": (ws(CLOSE, b"\x03"), 1002),
    "close with no code of any kind": (ws(CLOSE, b"\0\0"), 1002),
    "close with a code that is never sent": (ws(CLOSE, (1006).to_bytes(2, "big")), 1002),
    "close with a reserved code": (ws(CLOSE, (1016).to_bytes(2, "big")), 1002),
    "close with a reason that is no UTF-8": (ws(CLOSE, b"\x03\xe8\xff\xfe"), 1007),
    "a continuation of nothing": (ws(CONTINUATION, message(2)), 1002),
    "a message within a message": (ws(TEXT, b"{", fin=False) + ws(TEXT, message(2)), 1002),
    "binary within text": (ws(TEXT, b"{", fin=False) + ws(BINARY, message(2)), 1002),
    "two bytes of length for a short one": (b"\x82\xfe\x00\x05" + NO_MASK + b"hello", 1002),
    "eight bytes of length for a short one": (b"\x82\xff" + bytes(7) + b"\x05" + NO_MASK + b"hello", 1002),
    "a length with the highest bit": (b"\x82\xff\x80" + bytes(7) + NO_MASK, 1002),
    "text that is no UTF-8": (ws(TEXT, b'{"number":2}\n\xff\xfe'), 1007),
    "text with a surrogate": (ws(TEXT, b"\xed\xa0\x80"), 1007),
    "text that ends within a character": (ws(TEXT, b"\xe2\x82"), 1007),
    "text in pieces that ends within a character": (
        ws(TEXT, b"\xe2", fin=False) + ws(CONTINUATION, b"\x82"),
        1007,
    ),
    "a request of HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_peer_that_breaks_the_protocol_is_told_by_the_close(name: str) -> None:
    wrong, code = BROKEN[name]
    async with node() as whole:
        client = await whole.stream("client_id=a")
        await client.send(1)
        assert await client.next() == ack(1)
        await client.raw(wrong)
        assert (await client.closed()).code == code
        await until(lambda: whole.is_empty)
        assert whole.wal.lines == LINE


async def test_text_may_be_cut_within_a_character() -> None:
    data = message(1, 'm v=1,s="€"\n'.encode())
    cut = data.index(b"\xe2") + 1
    async with node() as whole:
        client = await whole.stream()
        await client.raw(ws(TEXT, data[:cut], fin=False) + ws(CONTINUATION, data[cut:]))
        assert await client.next() == ack(1)


async def test_what_follows_a_close_is_nobodys() -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.raw(ws(CLOSE, b"\x03\xe8bye") + frame(1) + b"\xff" * 1_000)
        with pytest.raises(Closed, match="1000 bye"):
            await client.next()
        await client.raw(frame(2) * 100)
        assert await client.peer.end() == b""
        await until(lambda: whole.is_empty)
        assert whole.wal.tries == 0


async def test_a_close_without_a_code_is_answered_without_one() -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.raw(ws(CLOSE))
        assert (await client.closed()).code == 1005


async def test_a_close_of_ours_that_the_peer_does_not_answer_ends_all_the_same() -> None:
    async with node() as whole:
        clients: list[Client] = [await whole.stream() for _ in range(3)]
        whole.streams.stop()
        for client in clients:
            with pytest.raises(Closed, match="1012"):
                await client.next()
        await until(lambda: whole.is_empty)


async def test_acks_that_a_peer_has_no_room_for_come_in_their_order_when_it_reads() -> None:
    settings = ServerSettings(stop_s_max=2.0, stream_window_frames_max=1_000)
    async with node(settings) as whole:
        peer = await deaf(whole, "/stream")
        client = Client(peer, (await peer.answer(head_only=True)).headers)
        assert (await client.next())["type"] == "welcome"
        frames = 3_000
        told: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.raw, b"".join(message_of_its_own(number) for number in range(frames)))
            await until(lambda: any(session._unsaid for session in whole.streams._open))
            while len(told) < frames:
                told.append((await client.next())["number"])
        assert told == list(range(1, frames + 1))
        assert whole.wal.lines == LINE


def message_of_its_own(index: int) -> bytes:
    """A frame that gets an answer of its own: the first is stored, the others are refused."""
    body = LINE if index == 0 else b"x\n"
    return ws(BINARY, message(index + 1, body), mask=NO_MASK)


async def test_a_connection_that_has_ended_leaves_nothing_for_the_collector() -> None:
    async with node() as whole:
        gc.collect()
        gc.disable()
        try:
            left: list[weakref.ref[object]] = []
            # Not one that is replaced: from Python 3.13 on a cancellation keeps its frames until the collector comes.
            for end in ("close", "hang up", "broken"):
                client = await whole.stream("client_id=a")
                await client.send(1)
                await client.next()
                left += [weakref.ref(session) for session in whole.streams._open]
                left += [weakref.ref(session._speaker) for session in whole.streams._open]
                if end == "close":
                    await client.hang_up()
                elif end == "broken":
                    await client.raw(ws(BINARY, b"a", mask=None))
                    await client.closed()
                await client.peer.stream.aclose()
            peer = await whole.server.connect()
            await peer.send(post("/metrics"))
            assert (await peer.answer()).status == 202
            await peer.stream.aclose()
            await until(lambda: whole.is_empty and not any(each() for each in left))
        finally:
            gc.enable()


async def test_a_peer_that_says_no_more_is_told_what_it_waits_for_and_no_failure() -> None:
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1, 2)
        await whole.wal.waiting.wait()
        await client.peer.stream.send_eof()
        await wait_all_tasks_blocked(0.02)
        gate.set()
        assert (await client.acked(2))[-1]["number"] == 2
        assert await client.peer.end() == b""


async def test_one_that_cannot_be_asked_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: WebSocket, _now_s: float, _every_s: float) -> None:
        looked.set()
        raise AttributeError("gone")

    looked = trio.Event()
    monkeypatch.setattr(WebSocket, "look", fail)
    async with node(ServerSettings(stream_ping_s=0.05, stop_s_max=2.0)) as whole:
        await whole.stream()
        await looked.wait()
        await whole.answers_others()


async def test_one_that_waited_to_send_behind_the_close_changes_nothing_about_it() -> None:
    async with node() as whole:
        client = await whole.stream()
        (session,) = whole.streams._open
        wire = session._speaker._wire  # type: ignore[attr-defined]
        # As if the socket had taken all but the last byte, in the very turn in which the stream is ended.
        wire.unsent = b"\x81\x02{}"
        wire._owner.send_unsent()
        session.end(1012, "a stop")
        assert await client.ws_frame() == (TEXT, b"{}")
        assert (await client.closed()).code == 1012
        await until(lambda: whole.is_empty)
