"""A proxy between the server and its database that does what databases and networks do on bad days.

It knows enough HTTP to answer in the database's place, and enough line protocol to find poisoned lines. What it does
is decided by its `weather`, which may be changed at any time; each request meets the weather of its arrival.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from types import TracebackType

import h11
import trio

_MARK = b",poison="
_READ_BYTES = 64 * 1024
_UPSTREAM_S_MAX = 20.0


@dataclass(frozen=True, slots=True)
class Weather:
    """What becomes of the share `chance` of all writes; the others pass.

    `status` is answered in the database's place, with `headers` and `message`; with `points_max` only to writes that
    have more lines. Otherwise the write is passed on, after `delay_s`. `ending` is how the answer reaches the server:
    "whole", "half" (cut off in the middle), "reset" (never), "early reset" (nor was the write passed on).

    `page` is sent as it is, with its content type, where the answer is no database's: another server has the address.
    """

    name: str
    chance: float = 1.0
    status: int = 0
    message: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    points_max: int = 0
    delay_s: float = 0.0
    ending: str = "whole"
    page: tuple[str, str] | None = None


FAIR = Weather("fair", chance=0.0)

REFUSALS = {
    "whole": "400: nothing of the write was written, as InfluxDB 2 does it",
    "partial": "400: the others were written, as InfluxDB 1 does it",
    "partial 500": "500: the others were written, as InfluxDB 2.0.0 to 2.0.4 did it",
    "filter": "403 from a filter on the way, which never saw a database",
}
"""The ways in which a write with poison in it may be refused."""
USUAL_REFUSALS = ("whole", "partial")


class _Reset(Exception):
    """The connection ends with a reset."""


class Proxy:
    """Runs from entering to leaving, in a thread of its own, on a port that it keeps.

    `listen(False)` refuses connections and breaks those that there are. `struck` counts the writes that met each
    weather, and those with poison ("400"). `refusals` are names in `REFUSALS`: one is drawn for each write with poison.
    """

    def __init__(self, database_port: int, *, seed: int) -> None:
        self.weather = FAIR
        self.refusals: Sequence[str] = USUAL_REFUSALS
        self.port = 0
        self.struck: Counter[str] = Counter()
        self._database_port = database_port
        self._dice = Random(f"proxy/{seed}")
        self._changed = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._everything: trio.CancelScope | None = None
        self._sitting = trio.CancelScope()
        self._wanted = trio.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main), daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        assert self._changed.wait(10), "the proxy does not listen"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._end)
        self._thread.join(10)

    def _end(self) -> None:
        assert self._everything is not None
        self._everything.cancel()

    def listen(self, wanted: bool) -> None:
        """Takes connections, or refuses them; returns when it is so."""
        assert self._token is not None
        self._changed.clear()
        self._token.run_sync_soon(self._wanted.set if wanted else self._sitting.cancel)
        assert self._changed.wait(10), "the proxy does not do as it is told"

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as self._everything:
            while True:
                with trio.CancelScope() as self._sitting:
                    await self._sit()
                self._wanted = trio.Event()
                self._changed.set()
                await self._wanted.wait()

    async def _sit(self) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._changed.set()
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(self._serve, listeners, handler_nursery=nursery)

    async def _serve(self, stream: trio.SocketStream) -> None:
        side = _Side(stream, h11.Connection(h11.SERVER))
        # Whatever ends one connection ends no other: breaking them is what this is for.
        with contextlib.suppress(
            OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError
        ):
            try:
                while await self._answer(side):
                    side.connection.start_next_cycle()
            except _Reset:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()

    async def _answer(self, side: _Side) -> bool:
        """Takes one request and answers it; false when the connection is over."""
        weather = self.weather
        got = await side.receive()
        if got is None:
            return False
        request, body = got
        assert isinstance(request, h11.Request)
        struck = self._dice.random() < weather.chance
        if struck:
            self.struck[weather.name] += 1
            if weather.ending == "early reset":
                raise _Reset
            await trio.sleep(weather.delay_s)
            if weather.status and _lines_of(request, body) > weather.points_max:
                await side.send(_answer_of(weather))
                return side.reusable
        response, answer = await self._judge(request, body)
        if struck and weather.ending == "reset":
            raise _Reset
        if struck and weather.ending == "half":
            await side.send((response, answer), part=self._dice.random())
            return False
        await side.send((response, answer))
        return side.reusable

    async def _judge(self, request: h11.Request, body: bytes) -> _Answer:
        """The database's answer; for a write with poison in it, what a stricter database would have said."""
        lines = _unpacked(request, body)
        if _MARK not in lines:
            return await self._pass_on(request, body)
        self.struck["400"] += 1
        every = lines.splitlines(keepends=True)
        good = [line for line in every if _MARK not in line]
        dropped = len(every) - len(good)
        said = 'field type conflict: input field "value" is type float, already exists as type string'
        way = self._dice.choice(self.refusals)
        if way == "filter":
            page = ("text/html", "<html><h1>403 Forbidden</h1>Request blocked</html>")
            return _answer_of(Weather("filter", status=403, page=page))
        if way == "whole":
            return _made_up(400, f"unable to write: {said}", ())
        if good:
            plain = h11.Request(method="POST", target=request.target, headers=[(b"host", b"database")])
            response, answer = await self._pass_on(plain, b"".join(good))
            if response.status_code != 204:
                return response, answer
        status = 500 if way == "partial 500" else 400
        return _made_up(status, f"partial write: {said} dropped={dropped}", ())

    async def _pass_on(self, request: h11.Request, body: bytes) -> _Answer:
        """The database's own answer. Raises `_Reset` when there is none."""
        passed = [(name, value) for name, value in request.headers if name in (b"host", b"content-encoding")]
        headers = [*passed, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        try:
            with trio.fail_after(_UPSTREAM_S_MAX):
                stream = await trio.open_tcp_stream("127.0.0.1", self._database_port)
                async with stream:
                    side = _Side(stream, h11.Connection(h11.CLIENT))
                    head = h11.Request(method=request.method, target=request.target, headers=headers)
                    await side.send((head, body))
                    got = await side.receive()
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, h11.ProtocolError) as exc:
            raise _Reset from exc
        if got is None:
            raise _Reset
        response, answer = got
        assert isinstance(response, h11.Response)
        kept = [(name, value) for name, value in response.headers if name.startswith((b"content-", b"x-"))]
        return h11.Response(status_code=response.status_code, headers=kept), answer


_Answer = tuple[h11.Response, bytes]
_Head = h11.Request | h11.Response


class _Side:
    """One side of the proxy: whole messages over a stream."""

    def __init__(self, stream: trio.SocketStream, connection: h11.Connection) -> None:
        self.connection = connection
        self._stream = stream

    @property
    def reusable(self) -> bool:
        """Whether another request may come on this connection."""
        return self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE

    async def receive(self) -> tuple[_Head, bytes] | None:
        """The next message, or None when the other side has closed."""
        head: _Head | None = None
        body = bytearray()
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                self.connection.receive_data(await self._stream.receive_some(_READ_BYTES))
            elif isinstance(event, (h11.Request, h11.Response)):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return head, bytes(body)
            elif isinstance(event, h11.ConnectionClosed):
                return None

    async def send(self, message: tuple[_Head, bytes], *, part: float = 1.0) -> None:
        """Sends a message, or its first part, never the whole of it when `part` is below 1."""
        head, body = message
        data = self.connection.send(head) or b""
        if body:
            data += self.connection.send(h11.Data(data=body)) or b""
        data += self.connection.send(h11.EndOfMessage()) or b""
        await self._stream.send_all(data[: int(len(data) * part)])


def _answer_of(weather: Weather) -> _Answer:
    if weather.page is None:
        return _made_up(weather.status, weather.message, weather.headers)
    kind, text = weather.page
    headers = [("Content-Type", kind)] if kind else []
    headers.append(("Content-Length", str(len(text))))
    return h11.Response(status_code=weather.status, headers=headers), text.encode()


def _made_up(status: int, message: str, headers: tuple[tuple[str, str], ...]) -> _Answer:
    body = json.dumps({"code": "made up by the fault proxy", "message": message}).encode()
    every = [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    return h11.Response(status_code=status, headers=every), body


def _unpacked(request: h11.Request, body: bytes) -> bytes:
    packed = any(name == b"content-encoding" and value == b"gzip" for name, value in request.headers)
    return gzip.decompress(body) if packed else body


def _lines_of(request: h11.Request, body: bytes) -> int:
    return _unpacked(request, body).count(b"\n")
