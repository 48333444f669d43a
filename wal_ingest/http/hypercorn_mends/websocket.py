"""A WebSocket on a connection: frames handed on as they come, pings, and an end that says why.

What differs from hypercorn's own, and why:

* Its message limit counted characters, held the whole message, and knew nothing of what others hold. Here every piece
  of a message goes to the application as it arrives, which counts it; nothing is read while the application is busy.
* It agreed to permessage-deflate, whose inflater has no limit (a bomb), and which keeps some 300 KiB for each
  connection. It is never agreed to: what is sent here says for itself how it is compressed.
* It closed a connection that broke the protocol without a word. Now the close code says what was wrong.
* Its pings asked for nothing: a peer that is gone for good kept its connection. Now a silent one is asked, and dropped.
* It waited for ever to tell an application that had ended already of the end, and a task that waits for room to say
  something could not be told of it by the very task that makes the room. Now the end is that of the channel: telling
  it waits for nobody, and it comes behind all that was told before.
* It told an application nothing at all when bytes came before the answer to their handshake. Now that is an end too.

The application gets `{"type": "websocket.receive", "pieces": [(data, is_last), …]}`: all that one read brought, where
`data` is bytes also of a text message, and `is_last` says that a message ends with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.protocol.events import Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.typing import ASGISendEvent, WebsocketAcceptEvent
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

# Frames of one read, of which twenty thousand fit into it, that are taken apart before the other tasks have their turn.
_FRAMES_IN_A_TURN = 64


class WebSocket(WSStream):
    """One WebSocket, from its handshake to its end."""

    def __init__(self, app: Any, config: Any, *rest: Any) -> None:
        # The same configuration, but for how much may wait for the application: one read.
        super().__init__(_told_of_the_end(app), config.for_websockets, *rest)
        self._ping_scope = trio.CancelScope()
        self._heard_s = 0.0
        self._handing_on = False

    async def handle(self, event: Event) -> None:
        """One event of the connection."""
        if isinstance(event, StreamClosed):
            self._ping_scope.cancel()
            self.closed = True
        elif isinstance(event, Data) and not self.closed and self.handshake.accepted:
            self._heard_s = trio.current_time()
            if self.connection.state is ConnectionState.CLOSED:
                return  # what follows the two closes is nobody's
        try:
            await super().handle(event)
        except UnicodeDecodeError:
            if not isinstance(event, Request):
                raise
            await self._refuse_handshake()
        if self.closed:
            self._hang_up()

    async def _refuse_handshake(self) -> None:
        """A header of the handshake is not ASCII, of which hypercorn makes an error of the connection."""
        self.scope = {}  # type: ignore[typeddict-item]  # for the access line, which is not written
        self.closed = True
        await self._send_error_response(400)

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """What the application says; None when it has ended."""
        if message is None:
            self._hang_up()
        await super().app_send(message)

    @property
    def _channel(self) -> trio.MemorySendChannel[Any]:
        """The way to the application; `app_put` is its method."""
        channel: trio.MemorySendChannel[Any] = self.app_put.__self__  # type: ignore[union-attr]
        return channel

    def _hang_up(self) -> None:
        """Nothing more is told to the application, and whoever waits to tell it something goes on."""
        if self.app_put is not None:
            self._channel.close()

    async def _tell(self, event: Any) -> None:
        """Hands an event to the application, and waits until it has room, or is told nothing more."""
        try:
            try:
                self._channel.send_nowait(event)
            except trio.WouldBlock:
                await self._channel.send(event)
        except trio.ClosedResourceError:
            pass

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        self.handshake.extensions = None
        self._heard_s = trio.current_time()
        await super()._accept(message)

    async def _handle_events(self) -> None:
        self._handing_on = True
        pieces: list[tuple[bytes, bool]] = []
        end: CloseConnection | None = None
        for count, event in enumerate(self.connection.events(), 1):
            if self.closed:
                break
            if count % _FRAMES_IN_A_TURN == 0:
                await trio.lowlevel.checkpoint()
            if isinstance(event, Message):
                data = event.data.encode() if isinstance(event.data, str) else event.data
                pieces.append((data, event.message_finished))
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                end = event
                break
        if pieces:
            # Held up here while the application is busy: then nothing more is read of this connection.
            await self._tell({"type": "websocket.receive", "pieces": pieces})
        self._handing_on = False
        self._heard_s = trio.current_time()
        if end is not None:
            if self.connection.state is ConnectionState.REMOTE_CLOSING:
                await self._send_wsproto_event(end.response())
            elif self.connection.state is ConnectionState.OPEN:
                # The peer broke the protocol, and is told how.
                await self._send_wsproto_event(CloseConnection(code=end.code, reason=end.reason))
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_pings(self) -> None:
        """Asks a peer that has been silent, and drops it when it stays so."""
        every_s = self.config.websocket_ping_interval
        assert every_s is not None
        gone = False
        with self._ping_scope:
            while not gone:
                silent_s = 0.0 if self._handing_on else trio.current_time() - self._heard_s
                if silent_s < every_s:
                    await trio.sleep(every_s - silent_s)
                    continue
                asked_s = trio.current_time()
                await self._send_wsproto_event(Ping())
                await trio.sleep(every_s)
                # Not by how long it has been silent: an answer comes sooner than a sleep is late.
                gone = self._heard_s < asked_s and not self._handing_on
        if gone and not self.closed:
            reason = f"no answer to a ping within {every_s:g} s"
            await self._send_wsproto_event(CloseConnection(code=CloseReason.GOING_AWAY, reason=reason))
            await self.send(StreamClosed(stream_id=self.stream_id))


def _told_of_the_end(app: Any) -> Any:
    """The same application, for which the end of the channel is that of the WebSocket."""

    async def run(scope: Any, receive: Callable[[], Awaitable[Any]], *rest: Any) -> None:
        async def receive_or_end() -> Any:
            try:
                return await receive()
            except trio.EndOfChannel:
                return {"type": "websocket.disconnect", "code": CloseReason.ABNORMAL_CLOSURE.value}

        await app(scope, receive_or_end, *rest)

    return run
