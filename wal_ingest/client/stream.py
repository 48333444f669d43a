"""One connection to `GET /stream`: frames out, answers in, nothing tried again.

The low-level face, for whoever numbers and keeps his frames himself; the only importer of trio_websocket. Invariants:

1. What goes wrong below comes out as `Unreachable` (no stream was opened) or `StreamClosed` (it ended), nothing else.
2. A peer that is gone is noticed: after `ping_s` of silence it is pinged, and after as long again it is given up.
3. Leaving the block ends every task of the connection, and closes the socket.

trio_websocket waits for the whole time-out when the peer hangs up during the opening handshake, and lets errors of
its reader out into the nursery that it was given. So the connection runs in a task of its own, over a stream that
tells when the peer hung up and when it was last heard.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream

from wal_ingest.client import peer
from wal_ingest.client.address import Address, stream_address
from wal_ingest.client.errors import ABNORMAL, PROTOCOL_ERROR, StreamClosed, Unreachable
from wal_ingest.client.messages import SUBPROTOCOL, Ack, Answer, Refusal, Welcome, frame_of, read_message
from wal_ingest.confirmation import foreign_answer, hint_for, refusal_of

# Messages of the node are small, but for the welcome with its 64 frames.
_MESSAGE_BYTES_MAX = 1 << 20
# Answers that wait for `receive`; while they do, pongs are still seen.
_MESSAGES_MAX = 1_024
# As much of an answer as shows what answers.
_BEGINNING_BYTES = 512

log = logging.getLogger(__name__)

Dial = Callable[[Address, ssl.SSLContext | None], Awaitable[trio.abc.Stream]]
"""Opens a byte stream to an address, with TLS when it says so; raises OSError when it cannot."""


async def dial_tcp(address: Address, tls: ssl.SSLContext | None) -> trio.abc.Stream:
    """Connects over TCP, and TLS for wss:// (`tls` None: the system's certificates)."""
    if not address.tls:
        return await trio.open_tcp_stream(address.host, address.port)
    context = tls or ssl.create_default_context()
    stream = await trio.open_ssl_over_tcp_stream(
        address.host, address.port, ssl_context=context, https_compatible=True
    )
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


class StreamConnection:
    """An open stream. Any number of tasks may send; one receives.

    `welcome` is the node's first message: where this client_id stands.
    """

    def __init__(self, connection: WebSocketConnection, wire: _Wire, welcome: Welcome) -> None:
        self._connection = connection
        self._wire = wire
        self.welcome = welcome

    async def send(
        self,
        number: int,
        body: bytes,
        *,
        encoding: str = "identity",
        format: str = "lines",  # noqa: A002 - the header's word
        precision: str = "",
    ) -> None:
        """Sends a frame; `body` is already in its encoding. Numbers rise within a client_id.

        The caller keeps to `welcome.window_frames`: beyond it the node does not read, and this waits.
        That it returns says nothing about the frame: only an `Ack` does. Raises StreamClosed.

        **Cancellation:** a frame may be on its way in part, so the stream is of no more use: leave the block.
        """
        await self.send_frame(frame_of(number, body, encoding=encoding, format=format, precision=precision))

    async def send_frame(self, frame: bytes) -> None:
        """`send` for a whole frame, header line included (see `messages.frame_of`)."""
        try:
            await self._connection.send_message(frame)
        except ConnectionClosed as exc:
            raise _closed(exc, self._wire) from None
        except Exception as exc:
            # After a violation of the protocol by the peer, the library trips over its own state.
            raise StreamClosed(ABNORMAL, "the connection broke") from exc

    async def receive(self) -> Answer:
        """The node's next answer. Raises StreamClosed when there is none any more.

        **Cancellation:** no answer is lost; call it again.
        """
        try:
            text = await self._connection.get_message()
        except ConnectionClosed as exc:
            raise _closed(exc, self._wire) from None
        message = _read(text)
        if isinstance(message, Ack | Refusal):
            return message
        raise StreamClosed(PROTOCOL_ERROR, "the node said welcome twice")


@asynccontextmanager
async def open_stream(
    url: str,
    *,
    client_id: str = "",
    token: str = "",
    org: str = "",
    bucket: str = "",
    precision: str = "",
    tls: ssl.SSLContext | None = None,
    connect_s_max: float = 10.0,
    close_s_max: float = 5.0,
    ping_s: float = 20.0,
    dial: Dial = dial_tcp,
) -> AsyncIterator[StreamConnection]:
    """Opens the stream of the node at `url` (ws:// or wss://), and closes it at the end of the block.

    `client_id` says who sends, so that `welcome` tells what of it is durable; without one there is no resume. The
    whole opening, welcome included, takes at most `connect_s_max`. `dial` is there for tests.

    Raises ConfigError for a URL or client_id that is none; Unreachable when no stream could be opened; StreamClosed
    when the node closed it before it said welcome (1008: a wrong token). In the block only `send` and `receive` raise.

    **Cancellation:** leaves at once, without the closing handshake.
    """
    address = stream_address(url, client_id=client_id, org=org, bucket=bucket, precision=precision)
    headers = [(b"authorization", b"Bearer " + token.encode())] if token else []
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:
        link = _Link(address, headers, ping_s=ping_s)
        try:
            connection = await link.open(nursery, dial, tls, connect_s_max)
            try:
                yield connection
            finally:
                await link.close(close_s_max)
        except BaseException as exc:
            # Kept until the nursery is done: it would wrap it into a group.
            error = exc
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error


class _Wire(trio.abc.Stream):
    """The byte stream below; knows when the peer was last heard, and tells when it hung up."""

    def __init__(self, stream: trio.abc.Stream, hung_up: Callable[[], None]) -> None:
        self._stream = stream
        self._hung_up = hung_up
        self.heard_s = trio.current_time()
        self.gave_up = ""
        # What was answered first, as far as it was read.
        self.beginning = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except BaseException:
            self._hung_up()
            raise
        if not data:
            self._hung_up()
        self.heard_s = trio.current_time()
        if len(self.beginning) < _BEGINNING_BYTES:
            self.beginning += bytes(data[:_BEGINNING_BYTES])
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Link:
    """The connection's own task, and what it found out."""

    def __init__(self, address: Address, headers: list[tuple[bytes, bytes]], *, ping_s: float) -> None:
        self._address = address
        self._headers = headers
        self._ping_s = ping_s
        self._opening = trio.CancelScope()
        self._rejected: ConnectionRejected | None = None
        self._connection: WebSocketConnection | None = None
        self._known = trio.Event()
        self._wire: _Wire | None = None

    async def open(
        self, nursery: trio.Nursery, dial: Dial, tls: ssl.SSLContext | None, connect_s_max: float
    ) -> StreamConnection:
        """Connects, and waits for the welcome."""
        deadline_s = trio.current_time() + connect_s_max
        self._opening.deadline = deadline_s
        with self._opening:
            try:
                wire = _Wire(await dial(self._address, tls), self._hung_up)
            except (OSError, trio.BrokenResourceError) as exc:
                raise peer.unreachable(self._address, exc, tls=self._address.tls) from exc
            self._wire = wire
            nursery.start_soon(self._run, wire)
            await self._known.wait()
        if self._connection is None:
            raise self._why_not(deadline_s, connect_s_max)
        # Asked after the scope: a node may accept, say why not, and hang up, all in one packet.
        if self._connection.subprotocol != SUBPROTOCOL:
            what = f"{self._address}: this is not a wal-ingest node: what answers there does not speak {SUBPROTOCOL}"
            raise Unreachable(what, wrong_peer=True, hint=peer.CHECK_ADDRESS)
        with trio.move_on_at(deadline_s):
            return StreamConnection(self._connection, wire, await _welcome(self._connection, wire))
        raise self._why_not(deadline_s, connect_s_max)

    def _why_not(self, deadline_s: float, connect_s_max: float) -> Unreachable:
        if self._rejected is not None:
            return _unreachable(self._address, self._rejected)
        if trio.current_time() >= deadline_s:
            return peer.closed(self._address, f"no stream after {connect_s_max:g} s", tls=self._address.tls)
        beginning = self._wire.beginning if self._wire is not None else b""
        if beginning:
            return peer.not_http(self._address, beginning)
        words = "the connection was closed during the opening handshake"
        return peer.closed(self._address, words, tls=self._address.tls)

    def _hung_up(self) -> None:
        if self._connection is None:
            self._opening.cancel()

    async def _run(self, wire: _Wire) -> None:
        """Keeps the connection. Ends without an error whatever comes of it: `get_message` tells."""
        try:
            async with trio.open_nursery() as inner:
                self._connection = await wrap_client_stream(
                    inner,
                    wire,  # type: ignore[arg-type]  # any stream will do
                    self._address.authority,
                    self._address.target,
                    subprotocols=[SUBPROTOCOL],
                    extra_headers=self._headers,
                    message_queue_size=_MESSAGES_MAX,
                    max_message_size=_MESSAGE_BYTES_MAX,
                    receive_buffer_size=None,
                )
                self._known.set()
                await self._keep_alive(self._connection, wire)
        except* ConnectionRejected as group:
            self._rejected = next(exc for exc in group.exceptions if isinstance(exc, ConnectionRejected))
        except* ConnectionClosed:
            pass
        except* Exception as group:
            # The library's reader does not foresee everything that a peer may send.
            log.warning("the stream to %s broke in a way of its own: %r", self._address, group.exceptions)
        finally:
            self._known.set()
            await trio.aclose_forcefully(wire)

    async def _keep_alive(self, connection: WebSocketConnection, wire: _Wire) -> None:
        """Pings after silence; gives the connection up when nothing comes back."""
        while True:
            # Moments, not lengths: what is left of a length may be too little to move the clock on.
            ping_at_s = wire.heard_s + self._ping_s
            if trio.current_time() < ping_at_s:
                await trio.sleep_until(ping_at_s)
                continue
            with trio.move_on_after(self._ping_s) as waiting:
                await connection.ping()
            if waiting.cancelled_caught and trio.current_time() - wire.heard_s >= self._ping_s:
                wire.gave_up = f"the node was silent for {trio.current_time() - wire.heard_s:.0f} s"
                await trio.aclose_forcefully(wire)
                return

    async def close(self, close_s_max: float) -> None:
        """The closing handshake, as far as the peer takes part."""
        if self._connection is not None:
            with trio.move_on_after(close_s_max):
                await self._connection.aclose()


async def _welcome(connection: WebSocketConnection, wire: _Wire) -> Welcome:
    try:
        welcome = _read(await connection.get_message())
    except ConnectionClosed as exc:
        raise _closed(exc, wire) from None
    if not isinstance(welcome, Welcome):
        raise StreamClosed(PROTOCOL_ERROR, "the node did not say welcome first")
    return welcome


def _read(text: str | bytes) -> Welcome | Answer:
    try:
        return read_message(text)
    except ValueError as exc:
        raise StreamClosed(PROTOCOL_ERROR, str(exc)) from exc


def _closed(exc: ConnectionClosed, wire: _Wire) -> StreamClosed:
    if wire.gave_up:
        return StreamClosed(ABNORMAL, wire.gave_up)
    if exc.reason is None or exc.reason.code == ABNORMAL:
        return StreamClosed(ABNORMAL, "the connection broke")
    return StreamClosed(exc.reason.code, exc.reason.reason or "")


# What a node, or a proxy before it, answers for a while; a status that only a person changes is any other.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def _unreachable(address: Address, rejected: ConnectionRejected) -> Unreachable:
    headers = {bytes(name).lower(): bytes(value) for name, value in rejected.headers or ()}
    status, body = rejected.status_code, bytes(rejected.body or b"")
    if peer.expects_tls(body):
        return Unreachable(
            f"{address}: the port is for TLS", status=status, wrong_peer=True, hint=peer.USE_TLS
        )
    asked = headers.get(b"retry-after", b"")
    passing = status in _PASSING
    words = foreign_answer(status, headers.get(b"content-type", b"").decode(errors="replace"), body)
    said = refusal_of(body)
    words = words or f"answered with HTTP status {status}" + (f": {said}" if said else "")
    return Unreachable(
        f"{address}: {words}",
        status=status,
        retry_after_s=int(asked) if asked.isdigit() and len(asked) < 10 else 0,
        wrong_peer=not passing,
        hint="" if passing else hint_for(status),
    )
