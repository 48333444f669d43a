"""One TCP connection: the fence around its exceptions, and every time limit that it has."""

from __future__ import annotations

import math

import structlog
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from wal_ingest.http.body import LARGE_BODY_BYTES
from wal_ingest.http.hypercorn_mends.config import ServerConfig
from wal_ingest.http.hypercorn_mends.http1 import Http1
from wal_ingest.http.hypercorn_mends.wire import (
    LARGE_RECEIVE_BYTES_MAX,
    RECEIVE_BYTES_MAX,
    Wire,
)

# After our FIN: how long, and how much, is still read and discarded so that the peer can read our answer.
LINGER_S_MAX = 2.0
LINGER_BYTES_MAX = 64 * 1024 * 1024

_log = structlog.get_logger("wal_ingest.http")


class Connection(TCPServer):
    """One TCP connection: reads, keeps time, writes, and keeps its troubles to itself."""

    config: ServerConfig
    protocol: Http1  # type: ignore[assignment]  # it stands where ProtocolWrapper stood, with its two methods

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
        self._aborted = False
        self._peer_ended = False
        self._discarded_bytes = 0
        # Read since the request under way began, or the last one ended.
        self._request_bytes = 0
        self._idle_scope = trio.CancelScope(deadline=trio.current_time() + self.config.keep_alive_timeout)
        self._read_scope = trio.CancelScope()
        try:
            if not self.config.crowd.enter(self):
                return
            sock = self.stream.socket
            self._client = parse_socket_addr(sock.family, sock.getpeername())
            server = parse_socket_addr(sock.family, sock.getsockname())
            async with TaskGroup() as task_group:
                self.protocol = Http1(
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
                self._task_group = task_group
                self._wire = self.protocol.wire = Wire(self)
                task_group.spawn(self._watch_idle)
                await self._read_data()
                self._peer_ended = True
                self._idle_scope.cancel()
        except OSError:
            pass  # the peer went away; whatever it was told or not told is its own to find out
        finally:
            self.config.crowd.leave(self)
            await trio.aclose_forcefully(self.stream)
            self._forget()

    def _forget(self) -> None:
        """Lets go of what holds on to each other.

        Else each connection that ends leaves eighty objects for the collector, and five thousand at once stop the node.
        """
        protocol = vars(self).pop("protocol", None)
        if protocol is not None:
            protocol.forget()
        vars(self).pop("_wire", None)
        vars(self).pop("_task_group", None)

    async def _read_data(self) -> None:
        """Reads until the peer ends; once we are closing, discards what comes until the linger ends."""
        with self._read_scope:
            while await self._read_once():
                if self.protocol.lent is not None:
                    self._idle_scope.cancel()  # it asks for itself whether its peer is there
                    await self.protocol.lent.lend()
        await self.protocol.handle(Closed())

    async def _read_once(self) -> bool:
        """Hands one read on; false at the end. A function of its own: whoever waits holds nothing of the last read."""
        try:
            is_large = self._request_bytes >= LARGE_BODY_BYTES
            data = await self.stream.receive_some(LARGE_RECEIVE_BYTES_MAX if is_large else RECEIVE_BYTES_MAX)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        if not data:
            await self.config.ends.wait()
        self._request_bytes += len(data)
        if not self._closing:
            await self.protocol.handle(RawData(data))  # type: ignore[arg-type]
        else:
            self._discarded_bytes += len(data)
        return bool(data) and self._discarded_bytes <= LINGER_BYTES_MAX

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self._aborted:
                return  # each of many small answers would wait its own time for a peer that takes none
            with self.config.shields.shield(self.config.answer_s_max) as shield:
                try:
                    # An uncontended trio.Lock still costs a trip through the scheduler when it is awaited.
                    if self.send_lock.locked():
                        await self.send_lock.acquire()
                    else:
                        self.send_lock.acquire_nowait()
                    try:
                        data, self._wire.unsent = self._wire.unsent + event.data, b""
                        # One that waited for the lock behind the end has nothing to say any more.
                        if data and not self._closing:
                            await self.stream.send_all(data)
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
            self._request_bytes = 0
            if event.idle and self._idle_scope.cancel_called:
                # Its idle time ended in the very moment in which a request came: now there is no one to end it.
                await self._close()
            elif event.idle:
                self.config.crowd.idle(self)
            else:
                self.config.crowd.busy(self)
            wait_s = self.config.keep_alive_timeout if event.idle else math.inf
            self._idle_scope.deadline = trio.current_time() + wait_s

    def send_unsent(self) -> None:
        """See `Owner`."""
        self._task_group.spawn(self.protocol_send, RawData(b""))

    def close_idle(self) -> None:
        """See `Closable`: as when the keep-alive time is over, but nothing more is read of the peer."""
        self._closing = True
        self._idle_scope.cancel()
        self.stream.socket.close()

    async def _abort(self) -> None:
        """The peer takes no more: nothing to say to it, nothing to wait for."""
        self._closing = self._aborted = True
        self._read_scope.cancel()
        self._idle_scope.cancel()
        await self.protocol.handle(Closed())

    async def _close(self) -> None:
        """Sends FIN; a peer in the middle of a request has `LINGER_S_MAX` to read why and close its side."""
        if self._closing:
            return
        self._closing = True
        self._idle_scope.cancel()
        # At the limit of connections others need the descriptor.
        lingers = self.protocol.peer_may_be_sending and not self.config.crowd.is_over
        linger_s = LINGER_S_MAX if lingers else 0.0
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
        # If nothing is read any more, the socket is closed at once: the peer sees the same, for one call less.
        if not self._busy and not self._peer_ended:
            await self._close()
