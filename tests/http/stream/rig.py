"""What the tests of the stream share: a front door over a WAL that knows its streams, and hand-made WebSocket frames.

No library speaks for the client here: one that keeps to the protocol cannot send what breaks it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import Any

import trio

from tests.http.rig import (
    LINE,
    NOW_NS,
    FakeWal,
    Peer,
    Receipt,
    Running,
    front,
    get,
    inline,
    post,
    running,
    within,
)
from wal_ingest.errors import ComeBackLater, CommitTooSlow
from wal_ingest.http.appending import Appended
from wal_ingest.http.body import BodyBudget
from wal_ingest.http.checking import Checker
from wal_ingest.http.stream.streams import Streams
from wal_ingest.settings import ServerSettings
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.streams import Positions

SUBPROTOCOL = "wal-ingest.v1"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x5a\xa5\x0f\xf0"

Message = dict[str, Any]


class MarkingWal(FakeWal):
    """A fake WAL that remembers how far each stream has come, in the table that the real one has."""

    def __init__(self) -> None:
        super().__init__()
        self._mutex = threading.Lock()
        self.positions = Positions(clients_max=1_000, mutex=self._mutex)
        self.tries = 0
        self.under_way = 0
        self.under_way_max = 0
        # While the disk hangs every append is given up at once; it lands when this is set.
        self.disk_goes_on: trio.Event | None = None

    async def append(self, entries: Sequence[NewEntry]) -> Receipt:
        self.tries += 1
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            receipt = await super().append(entries)
        finally:
            self.under_way -= 1
        with self._mutex:
            for seq, entry in enumerate(entries, receipt.first_seq):
                if entry.mark is not None:
                    self.positions.apply(entry.mark, seq, entry.points, entry.accepted_ns)
        return receipt

    def submit(self, entries: Sequence[NewEntry], told: Callable[[Appended | ComeBackLater], None]) -> None:
        """Refuses at once what it would refuse, as the real one does; else `append`, in a task of its own."""
        if self.disk_goes_on is not None:
            trio.lowlevel.spawn_system_task(self._give_up_and_land, self.disk_goes_on, entries, told)
            return
        if self.error is not None and self.gate is None:
            self.tries += 1
            raise self.error

        async def append() -> None:
            outcome: Appended | ComeBackLater
            try:
                outcome = await self.append(entries)
            except ComeBackLater as exc:
                outcome = exc
            told(outcome)

        trio.lowlevel.spawn_system_task(append)

    async def _give_up_and_land(
        self,
        disk_goes_on: trio.Event,
        entries: Sequence[NewEntry],
        told: Callable[[Appended | ComeBackLater], None],
    ) -> None:
        has_landed = False
        told(CommitTooSlow("not committed within 10 s", retry_after_s=10, is_open=lambda: not has_landed))
        await disk_goes_on.wait()
        await self.append(entries)
        has_landed = True

    def shut(self) -> trio.Event:
        """Lets every append wait from now on, until the event is set."""
        self.gate, self.waiting = trio.Event(), trio.Event()
        return self.gate


class Closed(Exception):
    """The server closed the WebSocket: `code` is 1005 when it did not say one."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


def masked(payload: bytes, mask: bytes = MASK) -> bytes:
    return bytes(byte ^ key for byte, key in zip(payload, cycle(mask), strict=False))


def ws(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    length: int | None = None,
) -> bytes:
    """One frame of RFC 6455 §5.2, right or wrong: `mask` None leaves it unmasked, `length` is what it says it has."""
    said = len(payload) if length is None else length
    first = fin << 7 | reserved << 4 | opcode
    bit = 0 if mask is None else 0x80
    if said < 126:
        head = bytes([first, bit | said])
    elif said < 1 << 16:
        head = bytes([first, bit | 126]) + said.to_bytes(2, "big")
    else:
        head = bytes([first, bit | 127]) + said.to_bytes(8, "big")
    if mask is None:
        return head + payload
    return head + mask + (masked(payload, mask) if mask.strip(b"\0") else payload)


# Large payloads are sent under it: masking them byte by byte would take longer than the test.
NO_MASK = b"\0\0\0\0"


def message(number: int, body: bytes = LINE, **header: object) -> bytes:
    """What a frame of the protocol is made of: its header line, and its body."""
    return json.dumps({"number": number, **header}).encode() + b"\n" + body


def frame(number: int, body: bytes = LINE, **header: object) -> bytes:
    """A frame of the protocol as one binary message on the wire."""
    return ws(BINARY, message(number, body, **header), mask=NO_MASK)


FLOOD_BODY = LINE * 25


@cache
def flood() -> bytes:
    """Frames 2, 3, …: several times what is read of a connection while its application is busy.

    Each is 1 KiB long: what was read is still stored, and thousands of small frames with a rest between them take long.
    """
    return b"".join(frame(number, FLOOD_BODY) for number in range(2, 3_000))


def upgrade(target: str = "/stream", *headers: str, subprotocol: str = SUBPROTOCOL) -> bytes:
    """The bytes of a handshake."""
    offers = [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
    return get(
        target,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *offers,
        *headers,
    )


class Client:
    """A WebSocket on a raw connection."""

    def __init__(self, peer: Peer, headers: dict[str, str]) -> None:
        self.peer = peer
        self.headers = headers

    async def send(self, *numbers: int, body: bytes = LINE, **header: object) -> None:
        """Frames of the protocol, in one write."""
        await self.peer.send(b"".join(frame(number, body, **header) for number in numbers))

    async def raw(self, data: bytes) -> None:
        await self.peer.send(data)

    async def ws_frame(self) -> tuple[int, bytes]:
        """The next frame of the server: opcode and payload. It must be whole, and not masked."""
        first, second = await self.peer.exactly(2)
        assert first & 0x80, "the server fragments nothing"
        assert not first & 0x70, "nothing was agreed to that would set a reserved bit"
        assert not second & 0x80, "a server masks nothing"
        length = second
        if length == 126:
            length = int.from_bytes(await self.peer.exactly(2), "big")
        elif length == 127:
            length = int.from_bytes(await self.peer.exactly(8), "big")
        return first & 0x0F, await self.peer.exactly(length)

    async def next(self) -> Message:
        """The next message; pings before it are answered. Raises Closed."""
        opcode, payload = await self.ws_frame()
        while opcode == PING:
            await self.raw(ws(PONG, payload))
            opcode, payload = await self.ws_frame()
        if opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            raise Closed(code, payload[2:].decode())
        assert opcode == TEXT, f"a frame with opcode {opcode}: {payload!r}"
        told: Message = json.loads(payload)
        return told

    async def several(self, count: int) -> list[Message]:
        return [await self.next() for _ in range(count)]

    async def acked(self, number: int) -> list[Message]:
        """Every message up to the ack of a frame."""
        told: list[Message] = []
        while not (told and told[-1]["type"] == "ack" and told[-1]["number"] == number):
            told.append(await self.next())
        return told

    async def closed(self) -> Closed:
        """The close that must be the next thing, and the end of the connection behind it."""
        try:
            told = await self.next()
        except Closed as closed:
            assert await self.peer.end() == b""
            return closed
        raise AssertionError(f"no close but {told}")

    async def hang_up(self) -> None:
        """Closes as it should be done, and waits for the answer."""
        await self.peer.send(ws(CLOSE, (1000).to_bytes(2, "big")))
        opcode, payload = await self.ws_frame()
        assert (opcode, payload[:2]) == (CLOSE, (1000).to_bytes(2, "big"))
        assert await self.peer.end() == b""


@dataclass
class Node:
    """The whole front door on a real port, its streams, and its fake WAL."""

    wal: MarkingWal
    streams: Streams
    budget: BodyBudget
    server: Running

    async def open(
        self, query: str = "", *headers: str, subprotocol: str = SUBPROTOCOL, path: str = "/stream"
    ) -> Client:
        """A WebSocket behind its handshake; the welcome, if any, is yet to be read."""
        peer = await self.server.connect()
        target = f"{path}?{query}" if query else path
        await peer.send(upgrade(target, *headers, subprotocol=subprotocol))
        answer = await peer.answer(head_only=True)
        assert answer.status == 101, answer
        return Client(peer, answer.headers)

    async def welcomed(self, query: str = "", *headers: str) -> tuple[Client, Message]:
        """A stream, and its welcome."""
        client = await self.open(query, *headers)
        told = await client.next()
        assert told["type"] == "welcome"
        return client, told

    async def stream(self, query: str = "", *headers: str) -> Client:
        return (await self.welcomed(query, *headers))[0]

    async def answers_others(self) -> None:
        """A new connection is served at once: over the stream, and over HTTP."""
        with within(5):
            client = await self.stream()
            await client.send(1)
            assert (await client.next())["type"] == "ack"
            await client.hang_up()
            peer = await self.server.connect()
            await peer.send(post("/metrics"))
            assert (await peer.answer()).status == 202
            await peer.stream.aclose()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of any stream."""
        return self.streams.count == 0 and self.budget.held_bytes == 0


@asynccontextmanager
async def node(settings: ServerSettings | None = None, **overrides: Any) -> AsyncIterator[Node]:
    """A node with the given settings, stopped at the end of the block; then nothing of any stream may be left."""
    settings = settings if settings is not None else ServerSettings(stop_s_max=2.0)
    wal = MarkingWal()
    budget = overrides.pop("budget", None) or BodyBudget(settings.bodies_bytes_max)
    arguments: dict[str, Any] = {
        "appender": wal,
        "position": wal.positions.of,
        "settings": settings,
        "now_ns": lambda: NOW_NS,
        "checker": Checker(settings, inline),
        "budget": budget,
    }
    streams = Streams(**(arguments | overrides))
    whole = front(settings, appender=wal, budget=budget, streams=streams)
    with within(20):
        async with running(whole.app, settings) as server:
            yield Node(wal, streams, budget, server)
        assert streams.count == 0
        assert budget.held_bytes == 0
