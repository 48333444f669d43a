"""What the tests of the front door share: a fake WAL, an ASGI client, and raw bytes over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import trio

from wal_ingest.http.admin import create_admin_app
from wal_ingest.http.checking import Checker
from wal_ingest.http.ingest import Ingest
from wal_ingest.http.server import serve
from wal_ingest.listeners import open_sockets
from wal_ingest.settings import ServerSettings
from wal_ingest.wal.entry import NewEntry

NOW_NS = 1_763_800_000_000_000_000
LINE = b"cpu,host=a usage=0.5 1763800000000000001\n"
T = TypeVar("T")


@dataclass(frozen=True)
class Receipt:
    first_seq: int
    last_seq: int


class FakeWal:
    """An appender that keeps what it was given; `error` makes it refuse, `gate` makes it wait."""

    def __init__(self) -> None:
        self.appends: list[list[NewEntry]] = []
        self.error: Exception | None = None
        self.gate: trio.Event | None = None
        self.waiting = trio.Event()
        self.seq = 0

    async def append(self, entries: Sequence[NewEntry]) -> Receipt:
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.appends.append(list(entries))
        first = self.seq + 1
        self.seq += len(entries)
        return Receipt(first, self.seq)

    @property
    def lines(self) -> bytes:
        return b"".join(entry.lines for entries in self.appends for entry in entries)


async def inline(work: Callable[[], T], /) -> T:
    """The inline twin of the thread door."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass
class Front:
    """The whole front door over a fake WAL."""

    wal: FakeWal
    app: Ingest
    settings: ServerSettings
    reasons: list[str] = field(default_factory=list)


def front(settings: ServerSettings | None = None, **overrides: Any) -> Front:
    """A front door with the given settings, its clock at `NOW_NS`, and its threads inline."""
    settings = settings if settings is not None else ServerSettings()
    wal = FakeWal()
    reasons: list[str] = []
    admin = create_admin_app(readiness=lambda: reasons, now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    arguments: dict[str, Any] = {
        "appender": wal,
        "fallback": admin,
        "settings": settings,
        "now_ns": lambda: NOW_NS,
    }
    arguments["checker"] = Checker(settings, overrides.pop("in_thread", inline))
    return Front(wal, Ingest(**(arguments | overrides)), settings, reasons)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    app: Any,
    method: str,
    target: str,
    body: bytes | Sequence[bytes] = b"",
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request through a real ASGI scope; a sequence of bodies arrives in that many pieces."""
    path, _, query = target.partition("?")
    pieces = [body] if isinstance(body, bytes) else list(body)
    told = trio.Event()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await told.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            told.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.1"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": ("10.0.0.7", 41234),
        "server": ("127.0.0.1", 8400),
        "state": {},
        "extensions": {},
    }
    await app(scope, receive, send)
    start = sent[0]
    told_headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    whole = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(start["status"], told_headers, whole)


@dataclass
class Running:
    """A server on a real port."""

    port: int
    shutdown: trio.Event = field(default_factory=trio.Event)
    stopped: trio.Event = field(default_factory=trio.Event)
    streams: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self) -> Peer:
        """A new connection; it is closed after the test if the test does not close it."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.streams.append(stream)
        return Peer(stream)

    def disconnect(self) -> None:
        """Closes every connection that a test has left open."""
        for stream in self.streams:
            stream.socket.close()


class Peer:
    """A raw client: it sends bytes, and reads one answer after the other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer; an interim one (1xx) is an answer too."""
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            await self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(first.split()[1]), headers, body)

    async def exactly(self, count: int) -> bytes:
        """The next so many bytes, whatever they are."""
        while len(self._buffer) < count:
            await self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    async def end(self) -> bytes:
        """What is left until the server closes its side; then closes ours."""
        while data := await self.stream.receive_some():
            self._buffer += data
        await self.stream.aclose()
        return self._buffer

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError(f"the server closed the connection after {self._buffer!r}")
        self._buffer += data


def post(target: str, body: bytes = LINE, *headers: str, content_type: str = "text/plain") -> bytes:
    """The bytes of a POST with a length."""
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(target: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


@asynccontextmanager
async def running(
    app: Any, settings: ServerSettings, *, make_room: Callable[[], object] = lambda: None
) -> AsyncIterator[Running]:
    """A real server for `app` on a free port; stopped, and waited for, at the end."""
    sockets = open_sockets("127.0.0.1:0")
    port = sockets[0].getsockname()[1]
    server = Running(port)

    # A test may serve a bare ASGI function, which counts nothing.
    on_unparsed = getattr(app, "unparsed", lambda _refused: None)

    async def run(task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(
            app,
            settings=settings,
            shutdown=server.shutdown,
            sockets=sockets,
            on_unparsed=on_unparsed,
            make_room=make_room,
            task_status=task_status,
        )
        server.stopped.set()

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            yield server
            server.disconnect()
            server.shutdown.set()
    finally:
        server.disconnect()


async def lifespan(receive: Any, send: Any) -> None:
    """What an application owes to the server beside its requests."""
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


async def until(condition: Callable[[], bool], *, s_max: float = 5.0) -> None:
    """Waits, by the scheduler's turns and not by luck, until `condition` holds; fails after `s_max`."""
    with trio.fail_after(s_max):
        while not condition():  # noqa: ASYNC110 -- what is waited for belongs to the server and has no event
            await trio.sleep(0.001)


@contextmanager
def within(s_max: float) -> Iterator[None]:
    """Fails when the block takes longer than `s_max` seconds."""
    with trio.fail_after(s_max):
        yield
