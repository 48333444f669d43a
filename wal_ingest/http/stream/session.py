"""One stream: frames in, and an answer to each after it is durable.

Invariants:

1. An ack is sent only after the append that holds the frame's entries returned, or for a frame that the WAL is known
   to hold already (same number, same body), with the seq that it has there.
2. Frames are stored in the order in which they came, one append under way at the most: behind a frame whose append
   failed nothing was stored, so the stream's end in the WAL is always where its sender has to go on.
3. A frame that is refused is answered with its reason, before any ack that passes it, and ends nothing.
4. What a stream holds is bounded: `stream_window_frames_max`, `stream_window_bytes_max`, and its share of the budget of
   all bodies. At a bound nothing more is read from it; it is for TCP to tell the sender.

Two tasks: the reader checks frames and puts them in line; the committer takes all that stand in line, up to a limit
(so that a flood on one stream does not make the commits of the others long), appends them at once, and answers. While a
commit is under way the reader goes on: the commit in progress is the gathering window, as it is in the WAL's writer.

An end has a code and a reason. The reader is cancelled first; what stands in line then is still committed and answered
(at a stop), or dropped unanswered (where the stream was replaced, or the WAL takes nothing): the sender sends it again.

Cancellation (the server's deadline) leaves appends whose outcome the sender is not told: it sends them again, and is
told then that they are there.
"""

from __future__ import annotations

import math
from collections import deque

import trio

from wal_ingest.errors import (
    AppendQueueFull,
    BodyTooLarge,
    ComeBackLater,
    Stopping,
)
from wal_ingest.http import answers
from wal_ingest.http.appending import Appended
from wal_ingest.http.asgi import Send
from wal_ingest.http.body import Hold, Receive
from wal_ingest.http.stream import protocol
from wal_ingest.http.stream.intake import ROUTE, Asked, Door, Intake, Item

# What one append of one stream takes: enough for the cost of it to be shared, little enough for the others' sake.
APPEND_FRAMES_MAX = 256
APPEND_BYTES_MAX = 256 * 1024

# Checked frames of so many bytes, and the other tasks have their turn.
_TURN_BYTES = 64 * 1024
# What a piece costs beside its bytes: there may be twenty thousand of them in one read.
_PIECE_BYTES = 128

# The append queue empties within milliseconds, so a stream waits rather than sending its client away.
_QUEUE_FULL_WAIT_S = 0.02


class Session:
    """One stream, from its welcome to its close."""

    def __init__(self, door: Door, asked: Asked, receive: Receive, send: Send) -> None:
        self._door = door
        self._asked = asked
        self._receive = receive
        self._send = send
        self._intake = Intake(door, asked)
        self._line: deque[Item] = deque()
        # Frames and bytes without an answer: those in line and those in the append under way.
        self._open_frames = 0
        self._open_bytes = 0
        # The message that is arriving, and what it counts for.
        self._message = bytearray()
        self._hold = Hold(door.budget)
        # When it must be whole; infinite between messages.
        self._whole_at_s = math.inf
        self._turn_bytes = 0
        self._moved = trio.Event()
        self._room = trio.Event()
        self._reading = trio.CancelScope()
        self._begun = False
        self._reader_done = False
        self._gone = False
        self._drop = False
        self._appending = False
        self._end: tuple[int, str] | None = None
        # Nothing of this stream can reach the WAL any more.
        self.settled = trio.Event()

    async def run(self) -> None:
        """Serves the stream until its peer goes or `end` is called, and closes it then.

        Cancellation: see the module's text.
        """
        self._begun = True
        try:
            if not self._asked.plain and self._end is None:
                await self._welcome()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._commit)
                with self._reading:
                    await self._read()
                self._reader_done = True
                self._moved.set()
        finally:
            for item in self._line:
                item.hold.release()
            self.settled.set()
        if not self._gone:
            code, reason = self._end or (protocol.NORMAL, "")
            await self._send(
                {"type": "websocket.close", "code": code, "reason": protocol.close_reason(reason)}
            )

    def end(self, code: int, reason: str, *, drop: bool = False) -> None:
        """Ends the stream: what stands in line is still stored and answered, or with `drop` let go of."""
        if self._end is None:
            self._end = (code, reason)
        self._drop = self._drop or drop
        # One that was replaced before it began waits itself for the one before it, and settles behind that.
        if self._drop and self._begun and not self._appending:
            self.settled.set()
        self._reading.cancel()
        self._moved.set()

    async def _welcome(self) -> None:
        settings = self._door.settings
        await self._say(
            protocol.welcome(
                self._intake.begin(),
                window_frames=settings.stream_window_frames_max,
                frame_bytes_max=settings.body_bytes_max,
            )
        )

    async def _say(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    # -- the reader ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Takes messages off the connection until it ends."""
        try:
            while await self._read_once():
                pass
        except BodyTooLarge as exc:
            self.end(protocol.TOO_BIG, str(exc))
        except ComeBackLater as exc:
            self._come_back(exc)
        finally:
            self._hold.release()

    async def _read_once(self) -> bool:
        """Takes what one read of the connection brought; false at its end.

        A function of its own, so that a stream that waits for its next frame does not keep the last one in memory.
        """
        pieces = await self._next()
        if pieces is None:
            return False
        for data, is_last in pieces:
            self._count(len(data))
            self._turn_bytes += len(data) + _PIECE_BYTES
            if self._turn_bytes > _TURN_BYTES:
                self._turn_bytes = 0
                await trio.lowlevel.checkpoint()
            if not is_last:
                self._message += data
                if self._whole_at_s == math.inf:
                    self._whole_at_s = trio.current_time() + self._door.settings.body_s_max
                continue
            whole = bytes(self._message) + data if self._message else data
            self._message = bytearray()
            self._whole_at_s = math.inf
            await self._take(whole)
        return True

    async def _next(self) -> list[tuple[bytes, bool]] | None:
        """The pieces that one read of the connection brought; None when the peer has gone or was given up."""
        if self._whole_at_s < math.inf:
            with trio.move_on_at(self._whole_at_s) as scope:
                event = await self._receive()
            if scope.cancelled_caught:
                limit_s = self._door.settings.body_s_max
                reason = f"the frame did not arrive within {limit_s:g} seconds (server.body_s_max)"
                self.end(protocol.POLICY, reason)
                return None
        else:
            await self._door.budget.room()
            event = await self._receive()
        if event["type"] == "websocket.disconnect":
            self._gone = True
            return None
        pieces: list[tuple[bytes, bool]] = event["pieces"]
        return pieces

    def _count(self, more: int) -> None:
        bytes_max, before = self._door.settings.body_bytes_max, len(self._message)
        # The header line is not counted as body, but it is no way around the limit either.
        if before + more > bytes_max + protocol.HEADER_BYTES_MAX:
            raise BodyTooLarge("the frame", limit_bytes=bytes_max, setting="server.body_bytes_max")
        self._hold.take(more)

    async def _take(self, message: bytes) -> None:
        """One whole message: checked, put in line with what it holds, and the window kept."""
        item = await self._intake.item(message, self._hold)
        # What was decompressed and checked counts: a flood of frames must not take turn after turn of the others.
        self._turn_bytes += item.lines_bytes
        self._line.append(item)
        self._hold = Hold(self._door.budget)
        self._open_frames += 1
        self._open_bytes += item.lines_bytes
        self._moved.set()
        settings = self._door.settings
        while (
            self._open_frames >= settings.stream_window_frames_max
            or self._open_bytes >= settings.stream_window_bytes_max
        ):
            self._room = trio.Event()
            await self._room.wait()

    # -- the committer ---------------------------------------------------------------------------------

    async def _commit(self) -> None:
        """Stores what stands in line, and answers it, until the reader has ended and nothing stands there."""
        while True:
            while not self._line:
                if self._reader_done:
                    return
                self._moved = trio.Event()
                await self._moved.wait()
            if self._drop or not await self._commit_once():
                return

    async def _commit_once(self) -> bool:
        """Stores and answers some of what stands in line; false when the WAL takes nothing.

        A function of its own, so that a stream that waits for its next frame does not keep the last ones in memory.
        """
        batch = self._batch()
        self._appending = True
        try:
            appended = await self._append(batch)
        except ComeBackLater as exc:
            self._come_back(exc)
            first = next(item.number for item in batch if item.entries)
            await self._say(protocol.error(first, answers.problem_of(exc)))
            return False
        finally:
            self._appending = False
            if self._drop:
                # Whoever waits for this stream to let go need not wait for its answers to be read.
                self.settled.set()
            for item in batch:
                item.hold.release()
        await self._answer(batch, appended)
        self._open_frames -= len(batch)
        self._open_bytes -= sum(item.lines_bytes for item in batch)
        self._room.set()
        return True

    def _batch(self) -> list[Item]:
        batch: list[Item] = []
        size = 0
        while self._line and len(batch) < APPEND_FRAMES_MAX and size < APPEND_BYTES_MAX:
            item = self._line.popleft()
            size += item.lines_bytes
            batch.append(item)
        return batch

    async def _append(self, batch: list[Item]) -> Appended | None:
        """Makes a batch durable; None when there is nothing in it to store. Raises ComeBackLater."""
        entries = [entry for item in batch for entry in item.entries]
        if not entries:
            return None
        door = self._door
        began_s = door.monotonic_s()
        while True:
            try:
                appended = await door.appender.append(entries)
                break
            except AppendQueueFull:
                # Nothing was stored, and it passes; but whoever replaced this stream need not wait for that.
                if self._drop:
                    raise
                await trio.sleep(_QUEUE_FULL_WAIT_S)
        door.observer.appended(door.monotonic_s() - began_s)
        return appended

    async def _answer(self, batch: list[Item], appended: Appended | None) -> None:
        """Tells the sender: each refusal, and one ack for all that is durable (in plain mode, one for each frame)."""
        seq = 0 if appended is None else appended.first_seq - 1
        number = points = last_seq = 0
        for item in batch:
            if item.refusal:
                await self._say(item.refusal)
                continue
            if item.entries:
                seq += len(item.entries)
                item.stored_seq = seq
                self._door.observer.answered(ROUTE, "accepted", item.points, item.body_bytes)
            if self._asked.plain:
                await self._say(protocol.ack(item.number, points=item.points, seq=item.stored_seq))
                continue
            number, last_seq = item.number, item.stored_seq
            points += item.points
        if number:
            await self._say(protocol.ack(number, points=points, seq=last_seq))

    def _come_back(self, exc: ComeBackLater) -> None:
        """Sends the client away for a while: nothing more is taken of it."""
        if isinstance(exc, Stopping):
            self.end(protocol.STOPPING, str(exc), drop=True)
            return
        self._door.observer.answered(ROUTE, "unavailable", 0, 0)
        self._door.refusals.refused(self._intake.name(None), ROUTE, 503, str(exc), self._asked.source)
        self.end(protocol.TRY_AGAIN_LATER, f"retry after {exc.retry_after_s} s: {exc}", drop=True)
