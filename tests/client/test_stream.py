"""One connection: what the node says comes out as typed values, what goes wrong as two kinds of errors."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest
import trio

from tests.client.fake_node import FakeNode, fake_node
from wal_ingest.client.errors import StreamClosed, Unreachable
from wal_ingest.client.messages import Ack, Refusal, StoredFrame
from wal_ingest.client.stream import open_stream
from wal_ingest.errors import ConfigError

URL = "ws://node.example:8400"
A, B = b"m f=1 1\n", b"m f=2 2\nm f=3 3\n"


async def refused_opening(node: FakeNode, **options: Any) -> Exception:
    with pytest.raises((Unreachable, StreamClosed)) as caught:
        async with open_stream(URL, dial=node.dial, **options):
            pytest.fail("a stream was opened")
    return caught.value


async def test_frames_are_acknowledged_with_points_and_seq() -> None:
    async with fake_node() as node, open_stream(URL, client_id="me", dial=node.dial) as stream:
        assert (stream.welcome.durable, stream.welcome.window_frames) == (0, 32)
        await stream.send(1, A)
        await stream.send(5, gzip.compress(B), encoding="gzip")
        assert await stream.receive() == Ack(1, points=1, seq=1)
        assert await stream.receive() == Ack(5, points=2, seq=2)
        assert [stored.lines for stored in node.stored] == [A, B]


async def test_a_welcome_tells_what_is_stored() -> None:
    async with fake_node() as node:
        node.take(B, client_id="me", number=7)
        async with open_stream(URL, client_id="me", dial=node.dial) as stream:
            assert stream.welcome.durable == 7
            assert stream.welcome.stored == [StoredFrame(7, 1, 2, zlib.crc32(B))]


async def test_a_refusal_names_the_frame_and_the_stream_goes_on() -> None:
    async with fake_node() as node, open_stream(URL, dial=node.dial) as stream:
        node.refuse = lambda lines: {"error": "line 1: no", "line": 1} if lines == A else None
        await stream.send(1, A)
        await stream.send(2, B)
        assert await stream.receive() == Refusal(1, 400, "line 1: no", line=1)
        assert await stream.receive() == Ack(2, points=2, seq=1)


async def test_client_id_destination_and_token_are_said() -> None:
    async with fake_node() as node:
        async with open_stream(URL + "/base/", client_id="a&b", token="secret", org="o", dial=node.dial):
            request = node.openings[0]
        assert request.path == "/base/stream?client_id=a%26b&org=o"
        assert (b"authorization", b"Bearer secret") in request.headers
        assert request.proposed_subprotocols == ("wal-ingest.v1",)


async def test_a_closed_stream_says_code_reason_and_wait() -> None:
    async with fake_node() as node, open_stream(URL, dial=node.dial) as stream:
        await node.close(1013, "retry after 7 s: too much")
        with pytest.raises(StreamClosed) as caught:
            await stream.receive()
        assert (caught.value.code, caught.value.retry_after_s) == (1013, 7)
        with pytest.raises(StreamClosed, match="too much"):
            await stream.send(1, A)


async def test_a_broken_connection_is_a_closed_stream() -> None:
    async with fake_node() as node, open_stream(URL, dial=node.dial) as stream:
        await node.drop()
        with pytest.raises(StreamClosed) as caught:
            await stream.receive()
        assert caught.value.code == 1006


async def test_answers_before_the_close_are_received() -> None:
    async with fake_node() as node, open_stream(URL, dial=node.dial) as stream:
        await stream.send(1, A)
        await trio.testing.wait_all_tasks_blocked()
        await node.close(1012)
        assert await stream.receive() == Ack(1, points=1, seq=1)
        with pytest.raises(StreamClosed):
            await stream.receive()


async def test_a_node_that_is_away_is_unreachable() -> None:
    async with fake_node() as node:
        node.unreachable = True
        assert "Connection refused" in str(await refused_opening(node))


@pytest.mark.parametrize("status", [401, 404, 503])
async def test_an_opening_that_is_answered_with_a_status_says_it(status: int) -> None:
    async with fake_node() as node:
        node.reject = (status, {"Retry-After": "9"})
        error = await refused_opening(node)
        assert isinstance(error, Unreachable)
        assert (error.status, error.retry_after_s) == (status, 9)


async def test_a_close_instead_of_a_welcome_says_its_code() -> None:
    async with fake_node() as node:
        node.greeting = (1008, "the token is wrong")
        error = await refused_opening(node)
        assert isinstance(error, StreamClosed)
        assert (error.code, error.reason) == (1008, "the token is wrong")


@pytest.mark.parametrize(
    "greeting", ["hello", '{"type":"ack","number":1,"points":1,"seq":1}', '{"type":"x"}']
)
async def test_what_is_no_welcome_closes_the_stream(greeting: str) -> None:
    async with fake_node() as node:
        node.greeting = greeting
        error = await refused_opening(node)
        assert isinstance(error, StreamClosed)
        assert error.code == 1002


async def test_a_server_without_the_sub_protocol_is_not_a_node() -> None:
    async with fake_node() as node:
        node.subprotocol = None
        assert "does not speak wal-ingest.v1" in str(await refused_opening(node))


async def test_a_connection_that_breaks_at_any_byte_of_the_opening_is_unreachable_or_closed() -> None:
    """And within no time: the clock is not a virtual one here."""
    seen = set()
    async with fake_node() as node:
        for cut in range(0, 500, 3):
            node.cut_after_bytes = (10**6, cut)
            try:
                with trio.fail_after(5):
                    async with open_stream(URL, dial=node.dial) as stream:
                        await stream.send(1, A)
                        await stream.receive()
                        seen.add("answered")
            except (Unreachable, StreamClosed) as exc:
                seen.add(type(exc).__name__)
    assert seen == {"Unreachable", "StreamClosed", "answered"}


async def test_a_node_that_does_not_answer_is_given_up_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def dial(*_: object) -> trio.abc.Stream:
        return trio.testing.memory_stream_pair()[0]

    with pytest.raises(Unreachable, match="no stream after 3 s"):
        async with open_stream(URL, dial=dial, connect_s_max=3):
            pytest.fail("a stream was opened")
    assert trio.current_time() == pytest.approx(3)


async def test_a_node_that_falls_silent_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    async with fake_node() as node:

        async def dial(address: Any, tls: Any) -> trio.abc.Stream:
            stream = await node.dial(address, tls)
            assert isinstance(stream, trio.StapledStream)
            return Deaf(stream, deaf_after_s=50)

        with pytest.raises(StreamClosed, match="silent for 40 s"):
            async with open_stream(URL, dial=dial, ping_s=20) as stream:
                await stream.receive()
        assert 60 <= trio.current_time() <= 81


class Deaf(trio.abc.HalfCloseableStream):
    """A stream that nothing is received from any more after a time."""

    def __init__(self, stream: trio.abc.Stream, *, deaf_after_s: float) -> None:
        self._stream = stream
        self._deaf_at_s = trio.current_time() + deaf_after_s

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if trio.current_time() < self._deaf_at_s:
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.mark.parametrize(
    "url", ["http://host", "ws://", "host:8400", "ws://user:pw@host", "ws://host:x", "ws://host?a=b c"]
)
async def test_a_url_that_is_none_is_refused_before_anything_is_tried(url: str) -> None:
    with pytest.raises(ConfigError):
        async with open_stream(url):
            pytest.fail("a stream was opened")


@pytest.mark.parametrize("client_id", ["a b", "x" * 129, "é"])
async def test_a_client_id_that_is_none_is_refused(client_id: str) -> None:
    with pytest.raises(ConfigError, match="client_id"):
        async with open_stream(URL, client_id=client_id):
            pytest.fail("a stream was opened")


async def test_leaving_says_goodbye() -> None:
    async with fake_node() as node:
        async with open_stream(URL, dial=node.dial):
            assert node.closes == []
        assert node.closes == [1000]


async def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    async with fake_node() as node:
        with pytest.raises(KeyError):
            async with open_stream(URL, dial=node.dial):
                raise KeyError("mine")


async def test_cancellation_leaves_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with fake_node() as node:
        node.silent = True
        with trio.move_on_after(1):
            async with open_stream(URL, dial=node.dial) as stream:
                await stream.receive()
        assert trio.current_time() == pytest.approx(1)
