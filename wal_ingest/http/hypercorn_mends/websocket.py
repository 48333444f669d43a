"""A WebSocket on a connection: messages handed on as they come, pings, and an end that says why.

What differs from hypercorn's own, and why:

* Its message limit counted characters, held the whole message, and knew nothing of what others hold. Here every piece
  of a message goes to the application as it arrives, which counts it; nothing is read while the application is busy.
* A frame went through six layers and four task switches each way, which was two thirds of what it cost. Now the
  application's listener runs in the connection's own task, reads the socket itself, and what it answers is written on
  the spot where the socket takes it.
* It agreed to permessage-deflate, whose inflater has no limit (a bomb), and which keeps some 300 KiB for each
  connection. It is never agreed to: what is sent here says for itself how it is compressed.
* It closed a connection that broke the protocol without a word. Now the close code says what was wrong.
* Its pings asked for nothing: a peer that is gone for good kept its connection. Now a silent one is asked, and dropped.
* It waited for ever to tell an application that had ended already of the end. Now the end waits for nobody.
* It told an application nothing at all when bytes came before the answer to their handshake. Now that is an end too.

An application finds this object in its scope, as `scope["extensions"][EXTENSION]`, accepts as ASGI has it, and calls
`listen`; from then on its listener is given what is read. `receive` tells only of the handshake and of an end before
`listen`. What is longer or has to wait is sent as ASGI has it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio
from hypercorn.protocol.events import Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.typing import ASGISendEvent, WebsocketAcceptEvent
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

from wal_ingest.http.hypercorn_mends.config import ServerConfig
from wal_ingest.http.hypercorn_mends.frames import Skimmer
from wal_ingest.http.hypercorn_mends.wire import Wire

EXTENSION = "wal_ingest.websocket"

# Frames of one read, of which twenty thousand fit into it, that are taken apart before the other tasks have their turn.
_FRAMES_IN_A_TURN = 64

# RFC 6455 §5.5.2, with nothing in it.
_PING = b"\x89\x00"

# A text frame up to here has its length in the second byte, up to there in the two behind it.
_SHORT_BYTES_MAX = 125
_MEDIUM_BYTES_MAX = (1 << 16) - 1

Pieces = list[tuple[bytes, bool]]
"""What one read brought: bytes (also of a text message), and whether a message ends with them."""

More = Callable[[int], Awaitable[Pieces | None]]
"""Waits for what the next read, of up to so many bytes, brings; None at the end of the connection."""


class Listener(Protocol):
    """Who is given what is read.

    `take` and `read` run in the connection's task, one call at a time, and raise nothing but Cancelled.
    """

    async def take(self, pieces: Pieces) -> None:
        """What the first read brought."""
        ...

    async def read(self, more: More) -> None:
        """Reads until `more` gives None, which is the end of the connection, or for as long as it likes."""
        ...

    def ended(self) -> None:
        """The WebSocket is over: nothing is read any more, and what is said is heard by nobody."""
        ...


class WebSocket(WSStream):
    """One WebSocket, from its handshake to its end."""

    config: ServerConfig

    def __init__(self, app: Any, config: Any, *rest: Any) -> None:
        super().__init__(_told_of_the_end(app, self), config, *rest)
        self._heard_s = 0.0
        self._asked_s = 0.0
        self._handing_on = False
        self._peer_ended = False
        self._skimmer = Skimmer()
        # The close that came behind what was read last.
        self._close: CloseConnection | None = None
        self._listener: Listener | None = None
        # Set when there is a listener, or will be none.
        self._listening = trio.Event()
        # Set when nothing more is told to the application.
        self._hung_up = trio.Event()

    @property
    def _wire(self) -> Wire:
        """The connection's; `send` is a method of the protocol that has it."""
        wire: Wire = self.send.__self__.wire  # type: ignore[attr-defined]
        return wire

    async def handle(self, event: Event) -> None:
        """One event of the connection."""
        if isinstance(event, StreamClosed):
            self.closed = True
        elif isinstance(event, Data) and not self.closed and self.handshake.accepted:
            await self._first(event.data)
            return
        try:
            await super().handle(event)
        except UnicodeDecodeError:
            if not isinstance(event, Request):
                raise
            await self._refuse_handshake()
        if self.closed:
            self._hang_up()

    # -- for the application ---------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """From now on `listener` is given what is read, or told at once that it is over."""
        self._listener = listener
        self._listening.set()
        if self._hung_up.is_set():
            listener.ended()

    def say(self, text: str) -> bool:
        """Sends a text message at once; false, and nothing is sent, when it would have to wait for the peer."""
        if self.closed or self.state is not ASGIWebsocketState.CONNECTED:
            return True  # nobody is there to hear it
        payload = text.encode()
        size = len(payload)
        if size <= _SHORT_BYTES_MAX:
            return self._wire.write_now(b"\x81" + size.to_bytes(1, "big") + payload)
        if size <= _MEDIUM_BYTES_MAX:
            return self._wire.write_now(b"\x81\x7e" + size.to_bytes(2, "big") + payload)
        return False

    @property
    def is_one_too_many(self) -> bool:
        """Whether the connection is above the limit, where there is room for short requests alone."""
        return self.config.crowd.is_over

    async def over(self) -> None:
        """Returns when nothing more is read."""
        await self._hung_up.wait()

    # -- for the connection ----------------------------------------------------------------------------

    @property
    def lent(self) -> bool:
        """Whether the reading is the listener's from now on."""
        return self._listener is not None and not self._hung_up.is_set()

    async def lend(self) -> None:
        """Lets the listener read until it or the connection ends; then nothing is read until the application ends."""
        assert self._listener is not None
        self._handing_on = True
        await self._listener.read(self._more)
        await self._hung_up.wait()

    async def _first(self, data: bytes) -> None:
        """What is read while there is no listener yet; held up here until there is one."""
        pieces = await self._pieces(data)
        self._handing_on = True
        if pieces:
            await self._listening.wait()
            if self._listener is not None:
                await self._listener.take(pieces)
        if self._close is not None:
            await self._end(self._close)
        self._handing_on = False
        self._heard_s = trio.current_time()

    async def _more(self, bytes_max: int) -> Pieces | None:
        """What the next reads, of up to so many bytes, bring; None at the end of the WebSocket or its connection."""
        while not self.closed and self._close is None:
            self._heard_s = trio.current_time()
            self._handing_on = False
            data = await self._wire.read(bytes_max)
            self._handing_on = True
            if not data:
                self._peer_ended = True
                await self.config.ends.wait()
                return None
            pieces = await self._pieces(data)
            if pieces:
                return pieces
        if self._close is not None:
            await self._end(self._close)
        return None

    def _hang_up(self) -> None:
        """Nothing more is told to the application, and whoever waits to tell it something goes on."""
        if not self._hung_up.is_set():
            self._hung_up.set()
            self._listening.set()
            self.config.pings.discard(self)
            if self._listener is not None:
                self._listener.ended()

    async def _refuse_handshake(self) -> None:
        """A header of the handshake is not ASCII, of which hypercorn makes an error of the connection."""
        self.scope = {}  # type: ignore[typeddict-item]  # for the access line, which is not written
        self.closed = True
        await self._send_error_response(400)

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """What the application says; None when it has ended."""
        if message is None:
            self._hang_up()
            # A peer that said no more than FIN was told what it may have waited for; now there is nobody to close with.
            self.closed = self.closed or self._peer_ended
        await super().app_send(message)
        if message is None:
            # These hold on to each other; see `Connection._forget`.
            self.app = self.app_put = self._listener = None  # type: ignore[assignment]
            self.scope["extensions"] = {}

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        self.handshake.extensions = None
        self._heard_s = trio.current_time()
        self.config.pings.add(self)
        await super()._accept(message)

    async def _pieces(self, data: bytes) -> Pieces:
        """The pieces of messages in what was read; what else there is in it is answered."""
        self._heard_s = trio.current_time()
        skimmer = self._skimmer
        skimmer.feed(data)
        pieces: Pieces = []
        count = 0
        while self._close is None and not self.closed:
            part = skimmer.next(_FRAMES_IN_A_TURN)
            if part is None:
                break
            if part[1]:
                pieces.append(part)
                count += 1
            else:
                await self._judge(part[0], pieces)
                count += _FRAMES_IN_A_TURN
            if count >= _FRAMES_IN_A_TURN:
                count = 0
                await trio.lowlevel.checkpoint()
        return pieces

    async def _judge(self, data: bytes, pieces: Pieces) -> None:
        """Has wsproto take frames apart that are not just whole messages."""
        self.connection.receive_data(data)
        for event in self.connection.events():
            if self.closed:
                return
            if isinstance(event, Message):
                some = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
                pieces.append((some, event.message_finished))
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                self._close = event
                return

    async def _end(self, close: CloseConnection) -> None:
        """The peer closes, or broke the protocol: then it is told how."""
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            await self._send_wsproto_event(close.response())
        elif self.connection.state is ConnectionState.OPEN:
            await self._send_wsproto_event(CloseConnection(code=close.code, reason=close.reason))
        await self.send(StreamClosed(stream_id=self.stream_id))
        if self.closed:
            self._hang_up()

    # -- for the pings ---------------------------------------------------------------------------------

    def look(self, now_s: float, every_s: float) -> None:
        """See `Pinged`. One whose frames we do not read at this time is not silent."""
        if self._handing_on or self.closed or self._hung_up.is_set():
            return
        if self._heard_s < self._asked_s:
            if now_s - self._asked_s >= every_s:
                self.task_group.spawn(self._drop, f"no answer to a ping within {every_s:g} s")
        elif now_s - self._heard_s >= every_s:
            self._asked_s = now_s
            if not self._wire.write_now(_PING):
                self.task_group.spawn(self._send_wsproto_event, Ping())

    async def _drop(self, reason: str) -> None:
        if not self.closed:
            await self._send_wsproto_event(CloseConnection(code=CloseReason.GOING_AWAY, reason=reason))
            await self.send(StreamClosed(stream_id=self.stream_id))


def _told_of_the_end(app: Any, websocket: WebSocket) -> Any:
    """The same application, which finds the WebSocket in its scope and is told of an end of it."""

    async def run(scope: Any, receive: Callable[[], Awaitable[Any]], *rest: Any) -> None:
        is_first = True

        async def receive_or_end() -> Any:
            nonlocal is_first
            if is_first:
                is_first = False
                return await receive()
            await websocket.over()
            return {"type": "websocket.disconnect", "code": CloseReason.ABNORMAL_CLOSURE.value}

        scope["extensions"][EXTENSION] = websocket
        await app(scope, receive_or_end, *rest)

    return run
