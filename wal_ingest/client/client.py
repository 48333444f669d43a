"""What a program holds to send points: writes in, receipts out, over a stream or HTTP alike.

Invariants:

1. A receipt is given only for points that the node said are durable; a refusal only for points that it will never take.
2. A write that was taken is delivered or refused, unless the client is closed before (then that is told, with how much
   it is), or its process ends: the buffer is memory.
3. Nothing is in a writer's way but the room in the buffer: `write_nowait` never blocks, and opening a client does not
   wait for the node.
4. Whoever waits for a receipt gets it, or an error, also when the client is left.

What was sent when a connection broke is settled by the next welcome, so a stream stores no frame twice. Over HTTP such
a request is sent again, and may be stored twice: harmless, because every line carries its time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import trio

from wal_ingest.client.delivery import Connect, Delivery, State, log
from wal_ingest.client.errors import BufferFull, NotDelivered, PointsRefused
from wal_ingest.client.frames import Write
from wal_ingest.client.given import Points, lines_of
from wal_ingest.client.outbox import Outbox
from wal_ingest.points import Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much, how large and how long; each default suits a server that reports on itself."""

    buffer_points_max: int = 1_000_000
    """Points that may wait for the node."""
    buffer_bytes_max: int = 64 << 20
    """Bytes that may wait: lines while a frame fills, compressed behind that."""
    frame_points_max: int = 1_000
    frame_bytes_max: int = 1 << 20
    """Bytes of a frame's lines before they are compressed."""
    frame_wait_s_max: float = 0.05
    """How long a point waits for others to share its frame."""
    line_bytes_max: int = 2 << 20
    """Longest single line; the node's own limit is the same, unless somebody changed it."""
    connect_s_max: float = 10.0
    ack_s_max: float = 30.0
    """How long the node may leave what was sent unanswered; then the connection is given up."""
    close_s_max: float = 10.0
    """How long leaving the client waits for everything to be durable."""
    retry_s_min: float = 0.25
    retry_s_max: float = 30.0
    hold_s: float = 15.0
    """The wait between two tries while token, address or parameters are wrong."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The points are durable. None of their entries has a higher seq than this; None where the node does not say it."""

    points: int
    seq: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """Where a client stands. `last_error` is why the node is away, empty when it is not; `acked_points` are durable."""

    state: State
    last_error: str
    waiting_points: int
    waiting_bytes: int
    acked_points: int
    refused_points: int
    reconnects: int


class Client:
    """Takes points and sees to it that the node has them. Made by `open_client`; any number of tasks may use it."""

    def __init__(
        self,
        connect: Connect,
        *,
        client_id: str,
        limits: Limits,
        on_refused: Callable[[PointsRefused], None],
        now_ns: Callable[[], int],
        rng: Random,
    ) -> None:
        self._limits = limits
        self._on_refused = on_refused
        self._now_ns = now_ns
        self._outbox = Outbox(
            frame_points_max=limits.frame_points_max,
            frame_bytes_max=limits.frame_bytes_max,
            frame_wait_s_max=limits.frame_wait_s_max,
            buffer_points_max=limits.buffer_points_max,
            buffer_bytes_max=limits.buffer_bytes_max,
        )
        self._delivery = Delivery(
            self._outbox,
            connect,
            client_id=client_id,
            ack_s_max=limits.ack_s_max,
            retry_s_min=limits.retry_s_min,
            retry_s_max=limits.retry_s_max,
            hold_s=limits.hold_s,
            rng=rng,
            settled=self._settled,
        )
        self._turn = trio.StrictFIFOLock()
        self._progress = trio.Event()
        self._closed = False
        self._left = False

    async def write(self, points: Points) -> Receipt:
        """Waits for room, hands the points over, and waits until they are durable.

        `points` are line protocol (`str` or `bytes`, any number of lines), an object with `to_line_protocol()`, or an
        iterable of these. Lines without a time get this moment's. No points give a receipt over none.

        Raises PointError for a malformed line, at once, BodyTooLarge or BadRequest for more than an empty buffer holds
        (nothing was taken then), PointsRefused when the node will not take them, trio.ClosedResourceError after the
        client was left, and NotDelivered when it is left while this waits.

        **Cancellation:** while it waits for room, nothing was taken. Later the points stay in the buffer and are
        delivered as those of `write_nowait` are; only the receipt is lost.
        """
        lines = self._lines(points)
        if not lines.points:
            await trio.lowlevel.checkpoint()
            return Receipt(0, None)
        settled = trio.Event()
        async with self._turn:
            while not self._outbox.has_room(lines):
                await self._progress.wait()
                self._check_open()
            write = self._add(lines, settled)
        try:
            await settled.wait()
        except BaseException:
            # Nobody waits any more, so a refusal is told where those of `write_nowait` are.
            write.waiter = None
            self._tell_refused(write)
            raise
        if write.refused:
            raise write.refused[0]
        if write.unsettled:
            raise self._not_delivered(write.unsettled)
        return Receipt(write.points, write.seq)

    def write_nowait(self, points: Points) -> None:
        """Hands the points over, or raises BufferFull. Whether the node took them: `flush`, `status`, `on_refused`.

        Otherwise as `write`, which says what `points` are and what else is raised.
        """
        lines = self._lines(points)
        if not lines.points:
            return
        if not self._outbox.has_room(lines):
            raise BufferFull(
                waiting_points=self._outbox.points,
                waiting_bytes=self._outbox.bytes,
                buffer_points_max=self._limits.buffer_points_max,
                buffer_bytes_max=self._limits.buffer_bytes_max,
                last_error=self._delivery.last_error,
            )
        self._add(lines, None)

    async def flush(self) -> None:
        """Waits until every point that was handed over before this call is durable or refused, however long it takes.

        Raises NotDelivered when the client is left while this waits.

        **Cancellation:** changes nothing.
        """
        newest = self._outbox.newest
        self._outbox.seal()
        self._delivery.look()
        await trio.lowlevel.checkpoint()
        while not self._outbox.settled_up_to(newest):
            if self._left:
                raise self._not_delivered(self._outbox.points)
            await self._progress.wait()

    def status(self) -> Status:
        """Where the client stands now."""
        return Status(
            self._delivery.state,
            self._delivery.last_error,
            self._outbox.points,
            self._outbox.bytes,
            self._outbox.acked_points,
            self._outbox.refused_points,
            max(0, self._delivery.connections - 1),
        )

    def _lines(self, points: Points) -> Lines:
        self._check_open()
        lines = lines_of(points, now_ns=self._now_ns(), line_bytes_max=self._limits.line_bytes_max)
        self._outbox.check_size(lines)
        return lines

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the client is closed")

    def _add(self, lines: Lines, waiter: trio.Event | None) -> Write:
        write = self._outbox.add(lines, now_s=trio.current_time(), waiter=waiter)
        self._delivery.look()
        return write

    def _settled(self, writes: list[Write]) -> None:
        for write in writes:
            if isinstance(write.waiter, trio.Event):
                write.waiter.set()
            else:
                self._tell_refused(write)
        # After every answer: part of a write may have made room.
        self._progress.set()
        self._progress = trio.Event()

    def _tell_refused(self, write: Write) -> None:
        for refused in write.refused:
            try:
                self._on_refused(refused)
            except Exception:
                log.exception("on_refused failed for %d points", refused.points)

    # -- for `opening` -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Delivers until cancelled. Raises Replaced."""
        await self._delivery.run()

    async def close(self) -> None:
        """Takes nothing more, and waits for what was taken. Raises NotDelivered.

        **Cancellation:** what was not acknowledged is given up.
        """
        self._closed = True
        self._settled([])
        with trio.move_on_after(self._limits.close_s_max):
            await self.flush()
        if self._outbox.points:
            raise self._not_delivered(self._outbox.points)

    def leave(self) -> None:
        """Nothing is delivered any more: tells whoever waits."""
        self._closed = self._left = True
        for write in self._outbox.writes():
            if isinstance(write.waiter, trio.Event):
                write.waiter.set()
        self._settled([])

    def _not_delivered(self, points: int) -> NotDelivered:
        return NotDelivered(points, last_error=self._delivery.last_error)
