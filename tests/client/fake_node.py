"""A node in this process: it speaks `wal-ingest.v1`, keeps what it stored, and has the faults it is told to have."""

from __future__ import annotations

import json
import ssl
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NoReturn
from urllib.parse import parse_qs, urlsplit

import httpx
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from wal_ingest.client.address import Address
from wal_ingest.points.encoding import decode_body

SUBPROTOCOL = "wal-ingest.v1"
STORED_MAX = 64

Reason = dict[str, object]


@dataclass(frozen=True)
class Stored:
    """A frame, or a POST, that the node holds."""

    client_id: str
    number: int
    seq: int
    lines: bytes

    @property
    def points(self) -> int:
        return self.lines.count(b"\n")


@dataclass
class FakeNode:
    """What the node is told to do, and what it holds."""

    stored: list[Stored] = field(default_factory=list)
    openings: list[WebSocketRequest] = field(default_factory=list)
    window_frames: int = 32
    frame_bytes_max: int = 32 << 20
    reject: tuple[int, dict[str, str]] | None = None
    """Answers the opening handshake with an HTTP status, and headers."""
    greeting: tuple[int, str] | str | None = None
    """Closes instead of saying welcome, or says this instead."""
    unreachable: bool = False
    subprotocol: str | None = SUBPROTOCOL
    refuse: Callable[[bytes], Reason | None] = lambda _lines: None
    """What is wrong with a body, if anything."""
    store: bool = True
    """Whether frames are stored and answered; else they are read, and nothing happens."""
    silent: bool = False
    """Reads nothing from a connection that was opened."""
    cut_after_bytes: tuple[int, int] | None = None
    """The next connection breaks after so many bytes from the client, or to it."""
    received: trio.Event = field(default_factory=trio.Event)
    dials: int = 0
    closes: list[int] = field(default_factory=list)
    """The codes that connections ended with."""
    frames_read: int = 0
    connections: list[WebSocketConnection] = field(default_factory=list)
    _nursery: trio.Nursery | None = None

    # -- what a test does -----------------------------------------------------------------------------

    async def dial(self, address: Address, tls: ssl.SSLContext | None) -> trio.abc.Stream:
        """Connects a client, without a socket: a virtual clock jumps only when nobody waits for the system."""
        await trio.lowlevel.checkpoint()
        self.dials += 1
        if self.unreachable or self._nursery is None:
            raise ConnectionRefusedError(111, "Connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        if self.cut_after_bytes is not None:
            upwards, downwards = self.cut_after_bytes
            self.cut_after_bytes = None
            self._nursery.start_soon(self._serve, Cut(ours, downwards, upwards))
        else:
            self._nursery.start_soon(self._serve, ours)
        return theirs

    async def close(self, code: int, reason: str = "") -> None:
        """Closes every connection with a code."""
        for connection in self.connections[:]:
            await connection.aclose(code, reason)

    async def drop(self) -> None:
        """Every connection breaks, without a word."""
        for connection in self.connections[:]:
            await trio.aclose_forcefully(connection._stream)

    @property
    def lines(self) -> list[bytes]:
        """Every line that was stored, in the order of storing."""
        return [line for stored in self.stored for line in stored.lines.split(b"\n")[:-1]]

    # -- the node -------------------------------------------------------------------------------------

    async def _serve(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            try:
                request = await wrap_server_stream(nursery, stream)
                self.openings.append(request)
                if self.reject is not None:
                    status, headers = self.reject
                    extra = [(name.encode(), value.encode()) for name, value in headers.items()]
                    await request.reject(status, extra_headers=extra)
                    return
                connection = await request.accept(subprotocol=self.subprotocol)
                self.connections.append(connection)
                try:
                    await self._talk(connection, request)
                except ConnectionClosed as exc:
                    self.closes.append(exc.reason.code if exc.reason else 0)
                    # Whoever closes it waits for the reader, which ends with this task.
                    await connection._close_handshake.wait()
                finally:
                    self.connections.remove(connection)
            except ConnectionClosed:
                pass
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)

    async def _talk(self, connection: WebSocketConnection, request: WebSocketRequest) -> None:
        query = parse_qs(urlsplit(request.path).query)
        client_id = query.get("client_id", [""])[0]
        if isinstance(self.greeting, tuple):
            await connection.aclose(*self.greeting)
            return
        await connection.send_message(self.greeting or json.dumps(self._welcome(client_id)))
        if self.silent:
            await trio.sleep_forever()
        while True:
            frame = await connection.get_message()
            assert isinstance(frame, bytes)
            self.frames_read += 1
            self.received.set()
            self.received = trio.Event()
            if self.store:
                await connection.send_message(json.dumps(self._answer(client_id, frame)))

    def _welcome(self, client_id: str) -> dict[str, object]:
        held = [frame for frame in self.stored if frame.client_id == client_id] if client_id else []
        stored = [[frame.number, frame.seq, frame.points, zlib.crc32(frame.lines)] for frame in held]
        return {
            "type": "welcome",
            "durable": held[-1].number if held else 0,
            "seq": held[-1].seq if held else 0,
            "stored": stored[-STORED_MAX:],
            "window_frames": self.window_frames,
            "frame_bytes_max": self.frame_bytes_max,
        }

    def _answer(self, client_id: str, frame: bytes) -> dict[str, object]:
        header, _, body = frame.partition(b"\n")
        asked = json.loads(header)
        number = asked["number"]
        lines = decode_body(body, asked.get("encoding", "identity"), bytes_max=self.frame_bytes_max)
        held = [other for other in self.stored if other.client_id == client_id] if client_id else []
        for other in held[-STORED_MAX:]:
            if other.number == number and other.lines == lines:
                return {"type": "ack", "number": number, "points": other.points, "seq": other.seq}
        if held and number <= held[-1].number:
            return {"type": "error", "number": number, "status": 409, "error": "the number was used"}
        reason = self.refuse(lines)
        if reason is not None:
            return {"type": "error", "number": number, "status": 400, **reason}
        stored = self.take(lines, client_id=client_id, number=number)
        return {"type": "ack", "number": number, "points": stored.points, "seq": stored.seq}

    def take(self, lines: bytes, *, client_id: str = "", number: int = 0) -> Stored:
        """Stores lines, however they came."""
        stored = Stored(client_id, number, len(self.stored) + 1, lines)
        self.stored.append(stored)
        return stored


class HttpDoor(httpx.AsyncBaseTransport):
    """The same node's `POST /metrics`, for httpx, without a socket."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.requests: list[httpx.Request] = []
        self.points_max = 1_000_000

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        node = self._node
        self.requests.append(request)
        if node.unreachable:
            raise httpx.ConnectError("Connection refused")
        if node.reject is not None:
            status, headers = node.reject
            return httpx.Response(status, headers=headers, json={"error": "not now"})
        body = await request.aread()
        encoding = request.headers.get("content-encoding", "identity")
        lines = decode_body(body, encoding, bytes_max=node.frame_bytes_max)
        node.received.set()
        node.received = trio.Event()
        if not node.store:
            await trio.sleep_forever()
        if lines.count(b"\n") > self.points_max:
            return httpx.Response(413, json={"error": "too large"})
        reason = node.refuse(lines)
        if reason is not None:
            return httpx.Response(400, json=reason)
        stored = node.take(lines)
        return httpx.Response(202, json={"received": True, "points": stored.points, "seq": stored.seq})


class Cut(trio.abc.Stream):
    """A stream that breaks for both sides after so many bytes one way or the other."""

    def __init__(self, stream: trio.abc.Stream, sent_bytes_max: int, received_bytes_max: int) -> None:
        self._stream = stream
        self._sent_left = sent_bytes_max
        self._received_left = received_bytes_max

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(bytes(data[: self._sent_left]))
        self._sent_left -= len(data)
        if self._sent_left < 0:
            await self._break()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if data and len(data) > self._received_left:
            data = data[: self._received_left]
            self._received_left = 0
            if not data:
                await self._break()
            return data
        self._received_left -= len(data)
        return data

    async def _break(self) -> NoReturn:
        await trio.aclose_forcefully(self._stream)
        raise trio.BrokenResourceError("the cable was cut")

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def fake_node() -> AsyncIterator[FakeNode]:
    """Serves until the end of the block."""
    node = FakeNode()
    async with trio.open_nursery() as nursery:
        node._nursery = nursery
        yield node
        nursery.cancel_scope.cancel()
