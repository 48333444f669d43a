"""Hypercorn on Trio, mended: the one module that knows Hypercorn and h11.

Invariants:

1. Nothing that one connection does ends the server, or another connection.
2. Nothing holds off a stop beyond the deadline: every shield in here is in `Shields`, and can be cut.
3. A connection in any state ends by itself within a named time, whatever its peer does or leaves undone.
4. A connection speaks HTTP/1.1 for its whole life.

Why each mend is there (hypercorn 0.18; a test in tests/http shows each symptom gone):

* *One byte sent straight after a WebSocket upgrade ended the process* (hypercorn issue 225). A connection's task
  lives in the server's nursery, so any exception that it lets out cancels every other connection and the
  listener. `Connection.run` is the fence: it logs and drops what is the connection's own, and lets through
  what is not (Cancelled, KeyboardInterrupt, SystemExit), also when they come mixed in one exception group.
* *HTTP/2 over plain TCP is the second crash path*, and slower here. `_Http1` is created directly, not
  through hypercorn's `ProtocolWrapper`, so nothing can switch protocol: an `Upgrade: h2c` is ignored,
  which RFC 9110 §7.8 allows, and the prior-knowledge preface is answered 505.
* *The header limit held only for headers that trickle in*: h11 compares the limit with what is
  incomplete after a read, and a read takes 64 KiB. `_H11Connection` measures every finished header too.
* *quart-trio cancels its own request when it hears `http.disconnect`*, which hypercorn sends in the middle of
  recycling the connection for the next request. The cancellation then left the connection neither idle nor
  closed: no keep-alive time-out, and a stop that took its whole grace. `_maybe_recycle` is
  shielded, which mends it for every application and not for one wrapper's.
* *A peer that never reads its answer held the process for ever*: sends were shielded without an end. Here a
  send ends after `answer_s_max`, and at once when the shields are cut.
* *A refusal was lost when the peer was still sending*: closing a socket with unread data makes the
  kernel send RST, and the peer's own kernel then discards the 413 that it had received. `_close` sends
  FIN first and goes on reading and discarding for a short while (RFC 9112 §9.6).
* *The answer was written in three pieces* (head, body, nothing): they leave together now. And *each request
  started and cancelled two timer tasks*; now one task a connection waits, and its deadline moves.

The seam is private: hypercorn promises nothing about these names, so `check_seam` looks for them at start
and refuses any other hypercorn by name.
"""

from __future__ import annotations

import importlib.metadata
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol
from wsgiref.handlers import format_date_time

import h11
import hypercorn.trio.run as hypercorn_run
import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.logging import Logger
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState, H11SendableEvent
from hypercorn.utils import parse_socket_addr

from wal_ingest.errors import ConfigError

# The largest piece read from a socket at once.
RECEIVE_BYTES_MAX = 64 * 1024

# After our FIN: how long, and how much, is still read and discarded so that the peer can read our answer.
LINGER_S_MAX = 2.0
LINGER_BYTES_MAX = 64 * 1024 * 1024

# A connection is worth more than a thousand requests: reconnecting costs the fleet more than it gives.
_REQUESTS_PER_CONNECTION_MAX = 2**62

_log = structlog.get_logger("wal_ingest.http")


class Shields:
    """Every shield against cancellation that is held now; `cut` ends them all, and all that come after."""

    def __init__(self) -> None:
        self._held: set[trio.CancelScope] = set()
        self._is_cut = False

    @contextmanager
    def shield(self, s_max: float) -> Iterator[trio.CancelScope]:
        """Holds cancellation off for `s_max` seconds at the most; `cancelled_caught` tells whether it ran out."""
        with trio.move_on_after(s_max, shield=not self._is_cut) as scope:
            if self._is_cut:
                scope.cancel()
            self._held.add(scope)
            try:
                yield scope
            finally:
                self._held.discard(scope)

    def cut(self) -> None:
        """Ends every shield now."""
        self._is_cut = True
        for scope in self._held:
            scope.cancel()


class ServerConfig(Config):
    """Hypercorn's configuration, and what our connections need beside it."""

    def __init__(
        self,
        *,
        header_bytes_max: int,
        keep_alive_s: float,
        answer_s_max: float,
        stop_s_max: float,
        shields: Shields,
    ) -> None:
        self.h11_max_incomplete_size = header_bytes_max
        self.keep_alive_timeout = keep_alive_s
        self.keep_alive_max_requests = _REQUESTS_PER_CONNECTION_MAX
        self.graceful_timeout = stop_s_max
        self.shutdown_timeout = stop_s_max
        self.include_server_header = False
        self.alpn_protocols = ["http/1.1"]
        self.accesslog = None
        self.errorlog = None
        self.logger_class = _Log
        self.answer_s_max = answer_s_max
        self.shields = shields
        self._headers_second = 0
        self._headers: list[tuple[bytes, bytes]] = []

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 -- hypercorn's signature
        """`Date`, which RFC 9110 §6.6.1 asks for, formatted once a second rather than once a request."""
        second = int(time.time())
        if second != self._headers_second:
            self._headers_second = second
            self._headers = [(b"date", format_date_time(second).encode("ascii"))]
        return self._headers


class _Log(Logger):
    """Hypercorn's own messages, said through structlog; access lines are not written at all."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    async def access(self, *_: Any) -> None:
        pass

    async def critical(self, message: str, *args: Any, **_: Any) -> None:
        _log.critical(message % args if args else message)

    async def error(self, message: str, *args: Any, **_: Any) -> None:
        _log.error(message % args if args else message)

    async def warning(self, message: str, *args: Any, **_: Any) -> None:
        _log.warning(message % args if args else message)

    async def info(self, message: str, *args: Any, **_: Any) -> None:
        _log.debug(message % args if args else message)

    async def debug(self, message: str, *args: Any, **_: Any) -> None:
        _log.debug(message % args if args else message)

    async def exception(self, message: str, *args: Any, **_: Any) -> None:
        _log.exception(message % args if args else message)


class _H11Connection(h11.Connection):
    """An h11 connection that refuses a finished header over the limit (431), and all but HTTP/1.x (505)."""

    def __init__(self, header_bytes_max: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=header_bytes_max)
        self._header_bytes_max = header_bytes_max

    def receive_data(self, data: bytes) -> None:
        # What follows a request that said `Connection: close` is nobody's. h11 would call it an error, and
        # hypercorn would answer that error with a 400 in the place of the request's own answer.
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Request):
            if event.http_version[:2] != b"1.":
                raise h11.RemoteProtocolError("HTTP/1.1 is spoken here", error_status_hint=505)
            # Four bytes a line for ": " and CRLF; fourteen for " HTTP/1.1", a blank, CRLF and CRLF.
            headers = event.headers.raw_items()
            header_bytes = 14 + len(event.method) + len(event.target) + 4 * len(headers)
            if header_bytes + sum(map(len, chain.from_iterable(headers))) > self._header_bytes_max:
                raise h11.RemoteProtocolError("the headers are too large", error_status_hint=431)
        return event


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, without a way into HTTP/2, writing an answer in one piece."""

    config: ServerConfig

    def __init__(self, config: ServerConfig, *args: Any) -> None:
        app, *rest = args
        super().__init__(app, config, *rest)
        self.connection = _H11Connection(config.h11_max_incomplete_size)
        self._head = b""

    @property
    def peer_may_be_sending(self) -> bool:
        """Whether more of a request is to be expected than what was read: then a close must linger."""
        between = (h11.IDLE, h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        return self.connection.their_state not in between or bool(self.connection.trailing_data[0])

    async def handle(self, event: Event) -> None:
        await super().handle(event)
        # A handshake that is refused at once (a bad one, or bytes before the answer to it) leaves a stream
        # that is closed and an application that was told nothing: nobody else would close this connection.
        if isinstance(event, RawData) and isinstance(self.stream, WSStream) and self.stream.closed:
            await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        """Switches to nothing: an upgrade to h2c is ignored, and other versions never come this far."""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if isinstance(self.connection, H11WSConnection):
                # Both sides refused the same handshake; the first answer is on its way.
                await self.send(Closed())
                return
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data  # it leaves with the first piece of the body, or with its end
            return
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            await self.send(RawData(data=data))

    async def _maybe_recycle(self) -> None:
        with self.config.shields.shield(self.config.answer_s_max) as shield:
            await super()._maybe_recycle()
        if shield.cancelled_caught:
            await self.send(Closed())


class Connection(TCPServer):
    """One TCP connection: reads, keeps time, writes, and keeps its troubles to itself."""

    config: ServerConfig
    protocol: _Http1  # type: ignore[assignment]  # it stands where ProtocolWrapper stood, with its two methods

    async def run(self) -> None:
        """Serves the connection to its end. Raises nothing of its own; see the module's text."""
        try:
            await self._serve()
        except Exception as exc:
            self._log_trouble(exc)
        except BaseExceptionGroup as group:
            own, others = group.split(Exception)
            if own is not None:
                self._log_trouble(own)
            if others is not None:
                raise others from None

    def _log_trouble(self, exc: BaseException) -> None:
        while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        _log.warning("a connection was dropped", error=f"{type(exc).__name__}: {exc}", client=self._client)

    async def _serve(self) -> None:
        self._client: tuple[str, int] | None = None
        self._busy = False
        self._closing = False
        self._discarded_bytes = 0
        self._idle_scope = trio.CancelScope(deadline=trio.current_time() + self.config.keep_alive_timeout)
        self._read_scope = trio.CancelScope()
        try:
            sock = self.stream.socket
            self._client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as task_group:
                self.protocol = _Http1(
                    self.config,
                    self.app,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    False,
                    self._client,
                    server,
                    self.protocol_send,
                )
                task_group.spawn(self._watch_idle)
                await self._read_data()
                self._idle_scope.cancel()
        except OSError:
            pass  # the peer went away; whatever it was told or not told is its own to find out
        finally:
            await trio.aclose_forcefully(self.stream)

    async def _read_data(self) -> None:
        """Reads until the peer ends; once we are closing, discards what comes until the linger ends."""
        with self._read_scope:
            while True:
                try:
                    data = await self.stream.receive_some(RECEIVE_BYTES_MAX)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
                if not self._closing:
                    await self.protocol.handle(RawData(data))  # type: ignore[arg-type]
                else:
                    self._discarded_bytes += len(data)
                if not data or self._discarded_bytes > LINGER_BYTES_MAX:
                    break
        await self.protocol.handle(Closed())

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            with self.config.shields.shield(self.config.answer_s_max) as shield:
                try:
                    # An uncontended trio.Lock still costs a trip through the scheduler when it is awaited.
                    if self.send_lock.locked():
                        await self.send_lock.acquire()
                    else:
                        self.send_lock.acquire_nowait()
                    try:
                        await self.stream.send_all(event.data)
                    finally:
                        self.send_lock.release()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._abort()
            if shield.cancelled_caught:
                await self._abort()
        elif isinstance(event, Closed):
            await self._close()
            await self.protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._busy = not event.idle
            wait_s = self.config.keep_alive_timeout if event.idle else math.inf
            self._idle_scope.deadline = trio.current_time() + wait_s

    async def _abort(self) -> None:
        """The peer takes no more: nothing to say to it, nothing to wait for."""
        self._closing = True
        self._read_scope.cancel()
        self._idle_scope.cancel()
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        """Sends FIN; a peer in the middle of a request has `LINGER_S_MAX` to read why and close its side."""
        if self._closing:
            return
        self._closing = True
        self._idle_scope.cancel()
        linger_s = LINGER_S_MAX if self.protocol.peer_may_be_sending else 0.0
        self._read_scope.deadline = trio.current_time() + linger_s
        try:
            await self.stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            self._read_scope.cancel()

    async def _watch_idle(self) -> None:
        """Closes the connection when it was idle for too long, or is idle when the server stops.

        A connection that is busy then is closed by `_maybe_recycle`, after its answer.
        """
        with self._idle_scope:
            await self.context.terminated.wait()
        if not self._busy:
            await self._close()


class AsgiApp(Protocol):
    """An ASGI 3 application."""

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None: ...


def check_seam() -> None:
    """Raises ConfigError when the installed hypercorn is not the one whose private seam is known."""
    version = importlib.metadata.version("hypercorn")
    code = hypercorn_run.worker_serve.__code__
    missing = [
        name
        for name in ("_check_protocol", "_send_h11_event", "_maybe_recycle", "_close_stream", "stream_send")
        if not hasattr(H11Protocol, name)
    ]
    if not version.startswith("0.18.") or "TCPServer" not in code.co_names or missing:
        raise ConfigError(
            f"hypercorn {version} is installed, but only 0.18 can be kept from ending on a bad connection",
            hint='pip install "hypercorn==0.18.*"',
        )


async def run_hypercorn(
    app: AsgiApp,
    config: ServerConfig,
    sockets: list[socket.socket],
    *,
    shutdown: trio.Event,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves `app` on sockets that listen already, until `shutdown` and the grace after it.

    Raises ConfigError when hypercorn is another one than the mends were made for.
    """
    check_seam()
    hypercorn_run.TCPServer = Connection  # type: ignore[attr-defined]  # the seam itself
    await hypercorn_run.worker_serve(
        ASGIWrapper(app),  # type: ignore[arg-type]  # the same protocol, spelled with plain dictionaries
        config,
        sockets=Sockets([], sockets, []),
        shutdown_trigger=shutdown.wait,
        task_status=task_status,
    )
