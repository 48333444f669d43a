"""HTTP/1.1 and nothing else: h11 with its limits kept, and an answer in one piece."""

from __future__ import annotations

from itertools import chain
from typing import Any

import h11
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.typing import H11SendableEvent

from wal_ingest.http.hypercorn_mends.config import ServerConfig
from wal_ingest.http.hypercorn_mends.unparsed import (
    BLANK_BYTES_MAX,
    OPENING_BYTES_MAX,
    Refused,
    Unparsed,
    body_of,
    check_opening,
    reason_of,
)
from wal_ingest.http.hypercorn_mends.websocket import WebSocket
from wal_ingest.http.hypercorn_mends.wire import Wire
from wal_ingest.http.refusals import new_request_id


class _H11Connection(h11.Connection):
    """An h11 connection that skips blank lines before a request, and refuses what is not HTTP/1.x or too large.

    `error` is what the parser raised, for the answer.
    """

    def __init__(self, header_bytes_max: int) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=header_bytes_max)
        self._header_bytes_max = header_bytes_max
        self._blank_bytes = 0
        self._ended = False
        self.error: h11.RemoteProtocolError | None = None

    def receive_data(self, data: bytes) -> None:
        # What follows a request that said `Connection: close` is nobody's. h11 would call it an error, and
        # hypercorn would answer that error with a 400 in the place of the request's own answer.
        if self.their_state is not h11.MUST_CLOSE:
            self._ended = not data
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        state = self.their_state
        if state is h11.MUST_CLOSE:
            return h11.NEED_DATA
        try:
            if state is h11.IDLE and not self._may_begin():
                return h11.NEED_DATA
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._blank_bytes = 0
                self._check_request(event)
        except h11.RemoteProtocolError as exc:
            self.error = exc
            if self.their_state is not h11.ERROR:
                self._process_error(self.their_role)
            raise
        return event

    def _may_begin(self) -> bool:
        """Skips blank lines before a request line (RFC 9112 §2.2); false while half of one has arrived.

        Raises Refused when another protocol begins here.
        """
        buffer = self._receive_buffer
        opening = bytes(buffer._data[:OPENING_BYTES_MAX])
        while opening[:1] in (b"\r", b"\n"):
            if opening == b"\r" and not self._ended:
                return False
            blank = 2 if opening[:2] == b"\r\n" else 1
            if (opening[:1] == b"\r" and opening[1:2] not in (b"\n", b"")) or (
                self._blank_bytes + blank > BLANK_BYTES_MAX
            ):
                raise Refused(
                    "bytes other than a few blank lines came before the request line", error_status_hint=400
                )
            self._blank_bytes += blank
            buffer.maybe_extract_at_most(blank)
            opening = bytes(buffer._data[:OPENING_BYTES_MAX])
        check_opening(opening)
        return True

    def _check_request(self, event: h11.Request) -> None:
        if event.http_version[:2] != b"1.":
            raise Refused("only HTTP/1.1 is available here", error_status_hint=505)
        # Four bytes a line for ": " and CRLF; fourteen for " HTTP/1.1", a blank, CRLF and CRLF.
        headers = event.headers.raw_items()
        header_bytes = 14 + len(event.method) + len(event.target) + 4 * len(headers)
        if header_bytes + sum(map(len, chain.from_iterable(headers))) > self._header_bytes_max:
            raise Refused(
                "the request line and headers are larger than "
                f"{self._header_bytes_max} bytes (server.header_bytes_max)",
                error_status_hint=431,
            )


class Http1(H11Protocol):
    """Hypercorn's HTTP/1.1, without a way into HTTP/2, writing an answer in one piece."""

    config: ServerConfig
    wire: Wire

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

    @property
    def lent(self) -> WebSocket | None:
        """The WebSocket that has the reading of this connection from now on, if there is one."""
        stream = self.stream
        return stream if isinstance(stream, WebSocket) and stream.lent else None

    def forget(self) -> None:
        """The connection is over, and nothing runs that was part of it."""
        vars(self).clear()

    async def handle(self, event: Event) -> None:
        if isinstance(event, Closed):
            # The reader often comes here just after its reading was cancelled: by an answer that the peer did not take,
            # or by our own close. If it were cancelled here too, the application would wait for the rest of a body,
            # for ever if it had answered already, and the connection would stay open.
            with self.config.shields.shield(self.config.answer_s_max):
                await super().handle(event)
            return
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

    async def _send_error_response(self, status_code: int) -> None:
        """Answers a request that the parser refused as any other refusal: a reason, an id, a line in the log."""
        error = getattr(self.connection, "error", None)
        reason = reason_of(error or h11.RemoteProtocolError(""))
        refused = Unparsed(new_request_id(), status_code, reason, self.client[0] if self.client else "")
        self.config.on_unparsed(refused)
        body = body_of(reason)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", refused.request_id),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        # The method of a request that could not be read is unknown: even a HEAD gets the reason.
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _maybe_recycle(self) -> None:
        with self.config.shields.shield(self.config.answer_s_max) as shield:
            await super()._maybe_recycle()
        if shield.cancelled_caught:
            await self.send(Closed())
