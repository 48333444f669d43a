"""Delivery from the outbox to a node: connect, send, settle what is answered, and again.

Invariants:

1. Only one connection at a time, and the outbox hears of its beginning (`welcomed`) and of its end (`lost`).
2. Nothing but `Replaced` ends it: every other failure waits (see `patience`) and tries again, for ever.
3. A node that does not answer is given up after `ack_s_max`, whichever way it is stuck.
4. Where a stream has no numbers to go on with, what is not settled goes under another client_id, `<client_id>.<8 hex
   digits>`. The welcome of the old stream has named the frames that are stored, so none is lost or stored twice.

A connection is a stream's or one of POSTs; both look the same from here.

Cancellation leaves the outbox as it is.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Protocol

import trio

from wal_ingest.client import patience
from wal_ingest.client.errors import (
    ABNORMAL,
    PROTOCOL_ERROR,
    REPLACED,
    PointsRefused,
    Replaced,
    StreamClosed,
    Unreachable,
)
from wal_ingest.client.frames import Write
from wal_ingest.client.messages import Ack, Answer, Welcome
from wal_ingest.client.outbox import Outbox, OutOfStep
from wal_ingest.confirmation import hint_for
from wal_ingest.errors import ComeBackLater

log = logging.getLogger(__name__)

_NOTHING_KNOWN = Welcome(durable=0, seq=0, stored=[], window_frames=1, frame_bytes_max=32 << 20)


class State(enum.Enum):
    """Where the client stands with the node."""

    CONNECTING = "connecting"
    """It tries; over HTTP that lasts until the first answer."""
    CONNECTED = "connected"
    WAITING = "waiting"
    """The node is away: it is tried again soon."""
    MISCONFIGURED = "misconfigured"
    """Token, address or parameters are wrong: everything is kept, and it is tried slowly until somebody mends it."""


class Connection(Protocol):
    """What a stream and a place to post to have in common. `welcome` is None where a node does not say it."""

    @property
    def welcome(self) -> Welcome | None:
        """Where this client stands."""

    async def send(self, number: int, body: bytes, *, encoding: str) -> None:
        """Raises StreamClosed or Unreachable."""

    async def receive(self) -> Answer:
        """Raises StreamClosed or Unreachable."""


Connect = Callable[[str], AbstractAsyncContextManager[Connection]]
"""Opens a connection for a client_id, which a place to post to does not need."""

_CLIENT_ID_CHARS_MAX = 128


class _NoNumbersLeft(ComeBackLater):
    """The welcome leaves the stream no numbers to go on with.

    Unlike `StreamClosed`, this is found out by us.
    """


class Delivery:
    """The task that empties an outbox.

    `settled` is called with the writes that became settled, also with none when there may be room.
    """

    def __init__(
        self,
        outbox: Outbox,
        connect: Connect,
        *,
        client_id: str,
        ack_s_max: float,
        retry_s_min: float,
        retry_s_max: float,
        hold_s: float,
        rng: Random,
        settled: Callable[[list[Write]], None],
    ) -> None:
        self._outbox = outbox
        self._connect = connect
        self._client_id = client_id
        # What the stream is called now.
        self._stream_id = client_id
        self._ack_s_max = ack_s_max
        self._retry_s_min = retry_s_min
        self._retry_s_max = retry_s_max
        self._hold_s = hold_s
        self._rng = rng
        self._settled = settled
        self._failures = 0
        self._work = trio.Event()
        self._overdue = trio.CancelScope()
        self.state = State.CONNECTING
        self.last_error = ""
        self.connections = 0

    def look(self) -> None:
        """There may be something to send."""
        self._work.set()

    async def run(self) -> None:
        """Delivers for ever. Raises Replaced."""
        while True:
            try:
                async with self._connect(self._stream_id) as connection:
                    await self._talk(connection)
            except _NoNumbersLeft as exc:
                await self._begin_another_stream(exc)
                continue
            except (StreamClosed, Unreachable) as exc:
                failure = exc
            self._outbox.lost()
            if isinstance(failure, StreamClosed) and failure.code == REPLACED:
                raise Replaced(self._stream_id, points=self._outbox.points)
            await trio.sleep(self._after(failure))
            self.state = State.CONNECTING

    async def _begin_another_stream(self, why: _NoNumbersLeft) -> None:
        before = self._stream_id
        suffix = f".{self._rng.getrandbits(32):08x}"
        self._stream_id = self._client_id[: _CLIENT_ID_CHARS_MAX - len(suffix)] + suffix
        self._outbox.begin_another_stream()
        log.warning("the stream %s is left for %s: %s", before, self._stream_id, why)
        self._failures += 1
        # In case a node answers so for every stream: a pause before the next try.
        await trio.sleep(self._wait_s(why))

    def _after(self, failure: StreamClosed | Unreachable) -> float:
        self._failures += 1
        held = patience.is_misconfigured(failure)
        if str(failure) != self.last_error:
            # Once for each reason: an outage of hours is one line.
            more = f"; try: {failure.hint}" if failure.hint else ""
            log.warning("the node does not take points, %d wait: %s%s", self._outbox.points, failure, more)
        self.state = State.MISCONFIGURED if held else State.WAITING
        self.last_error = str(failure)
        return self._wait_s(failure)

    def _wait_s(self, failure: ComeBackLater) -> float:
        return patience.wait_s(
            failure,
            self._failures,
            retry_s_min=self._retry_s_min,
            retry_s_max=self._retry_s_max,
            hold_s=self._hold_s,
            rng=self._rng,
        )

    async def _talk(self, connection: Connection) -> None:
        """Keeps a connection busy. Ends with StreamClosed, Unreachable or _NoNumbersLeft, and in no other way."""
        welcome = connection.welcome
        self._settled(self._outbox.welcomed(welcome or _NOTHING_KNOWN))
        if welcome is not None:
            if not self._outbox.can_go_on(welcome):
                raise _NoNumbersLeft(
                    f"no numbers are left above {welcome.durable}, its last frame", retry_after_s=0
                )
            self._connected()
        self._overdue = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, connection)
            try:
                await self._receive(connection)
            except (StreamClosed, Unreachable) as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        raise failure

    def _connected(self) -> None:
        if self.state is not State.CONNECTED:
            self.connections += 1
            self.state = State.CONNECTED
            self.last_error = ""

    async def _send(self, connection: Connection) -> None:
        while True:
            self._work = trio.Event()
            frame = self._outbox.next_frame(trio.current_time())
            if frame is None:
                due_s = self._outbox.due_s
                with trio.move_on_at(math.inf if due_s is None else due_s):
                    await self._work.wait()
                continue
            if self._outbox.unanswered == 1:
                self._overdue.deadline = trio.current_time() + self._ack_s_max
            try:
                await connection.send(frame.number, frame.body, encoding=frame.encoding)
            except (StreamClosed, Unreachable):
                # There may be answers to be received still, and then the reason.
                return

    async def _receive(self, connection: Connection) -> None:
        while True:
            answer = None
            with self._overdue:
                answer = await connection.receive()
            if answer is None:
                raise StreamClosed(ABNORMAL, f"no answer from the node in {self._ack_s_max:g} s")
            # A scope is used once.
            self._overdue = trio.CancelScope()
            self._check_count(connection, answer)
            try:
                settled = (
                    self._outbox.acked(answer) if isinstance(answer, Ack) else self._outbox.refused(answer)
                )
            except OutOfStep as exc:
                raise StreamClosed(PROTOCOL_ERROR, str(exc)) from exc
            if self._outbox.unanswered:
                self._overdue.deadline = trio.current_time() + self._ack_s_max
            self._failures = 0
            self._connected()
            self._settled(settled)
            self._work.set()

    def _check_count(self, connection: Connection, answer: Answer) -> None:
        """Raises Unreachable for a POST that confirms another number of points than were sent."""
        # InfluxDB's endpoints report no number. A stream proved with its welcome that it is a node.
        if connection.welcome is not None or not isinstance(answer, Ack) or not answer.points:
            return
        if answer.points != self._outbox.unanswered_points:
            sent = self._outbox.unanswered_points
            raise Unreachable(
                f"{sent} points were sent, and {answer.points} are confirmed",
                wrong_peer=True,
                hint=hint_for(200),
            )


def log_refusal(refused: PointsRefused) -> None:
    """What becomes of refused points that nobody waits for, unless the caller says otherwise."""
    log.error("%s: %r", refused, refused.lines[:500])
