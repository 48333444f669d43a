"""One stream: frames in, and an answer to each after it is durable.

Invariants:

1. An ack is sent only after the append that holds the frame's entries returned, or for a frame that the WAL is known
   to hold already (same number, same body), with the seq that it has there.
2. Frames are stored in the order in which they came, one append under way at the most: behind a frame whose append
   failed nothing was stored, so the stream's end in the WAL is always where its sender has to go on.
3. A frame that is refused is answered with its reason, before any ack that passes it, and ends nothing.
4. What a stream holds is bounded: `stream_window_frames_max`, `stream_window_bytes_max`, and its share of the budget of
   all bodies. At a bound nothing more is read from it; it is for TCP to tell the sender.

Who does what: the connection's task reads, checks, and puts frames in line. What stands there is submitted to the WAL
at once when no append of this stream is under way, up to a limit (so that a flood on one stream does not make the
commits of the others long); when it is durable, the acks are written and the next are submitted, in the very call that
tells of it. While a commit is under way the reader goes on: the commit in progress is the gathering window, as it is
in the WAL's writer. So a frame takes one turn of the scheduler to be submitted and one to be acked, and no task of its
own. The application's task only does what has to wait: the welcome, answers that the socket has no room for, an append
queue that is full, and the end.

An end has a code and a reason. The reader is cancelled first; what stands in line then is still committed and answered
(at a stop), or dropped unanswered (where the stream was replaced, or the WAL takes nothing): the sender sends it again.

Cancellation (the server's deadline) leaves appends whose outcome the sender is not told: it sends them again, and is
told then that they are there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import trio

from wal_ingest.errors import (
    AppendQueueFull,
    BodyTooLarge,
    BodyTooSlow,
    ComeBackLater,
    CommitTooSlow,
    Stopping,
)
from wal_ingest.http import answers
from wal_ingest.http.appending import Appended
from wal_ingest.http.asgi import Send
from wal_ingest.http.body import BodyPace, Hold, stalled, unhurried
from wal_ingest.http.hypercorn_mends import LARGE_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX, More, Pieces
from wal_ingest.http.stream import protocol
from wal_ingest.http.stream.intake import ROUTE, Asked, Door, Intake, Item
from wal_ingest.http.stream.pace import Share

# What one append of one stream takes: enough for the cost of it to be shared, little enough for the others' sake.
APPEND_FRAMES_MAX = 256
APPEND_BYTES_MAX = 256 * 1024

# Checked frames of so many bytes, and the other tasks have their turn.
_TURN_BYTES = 64 * 1024
# What a piece costs beside its bytes: there may be twenty thousand of them in one read.
_PIECE_BYTES = 128

# The append queue empties within milliseconds, so a stream waits rather than sending its client away.
_QUEUE_FULL_WAIT_S = 0.02


def _never() -> bool:
    return False


class Speaker(Protocol):
    """The WebSocket, as far as a session knows it: `wal_ingest.http.hypercorn_mends.websocket` tells what these do."""

    def listen(self, listener: Session) -> None: ...

    def say(self, text: str) -> bool: ...


class Session:
    """One stream, from its welcome to its close."""

    def __init__(self, door: Door, asked: Asked, speaker: Speaker, send: Send) -> None:
        self._door = door
        self._asked = asked
        self._speaker = speaker
        self._send = send
        self._intake = Intake(door, asked)
        self._share = Share(door.pace)
        self._line: deque[Item] = deque()
        # Frames and bytes without an answer: those in line and those in the append under way.
        self._open_frames = 0
        self._open_bytes = 0
        # The message that is arriving, and what it counts for: for its source only while it is not whole.
        self._message = bytearray()
        self._hold = Hold(door.budget)
        # How fast it must come, None between messages; and when more of it must be there, or all.
        self._pace: BodyPace | None = None
        self._due_s = math.inf
        self._turn_bytes = 0
        self._room = trio.Event()
        # What is said, but waits for the peer to have room; and the frames that it answers.
        self._unsaid: deque[str] = deque()
        self._answered: list[Item] = []
        self._reading = trio.CancelScope()
        self._begun = False
        self._is_reading = False
        self._reader_done = False
        self._gone = False
        self._drop = False
        self._over = False
        self._appending = False
        self._append_began_s = 0.0
        self._queue_is_full = False
        self._bug: Exception | None = None
        self._end: tuple[int, str] | None = None
        # Something has to be done in the application's task.
        self._wake = trio.Event()
        # Nothing of this stream can reach the WAL any more, or nobody waits for that.
        self.settled = trio.Event()
        self._may_still_land: Callable[[], bool] = _never

    async def run(self) -> None:
        """Serves the stream until its peer goes or `end` is called, and closes it then.

        Cancellation: see the module's text.
        """
        self._begun = True
        try:
            if not self._asked.plain and self._end is None:
                await self._welcome()
            self._speaker.listen(self)
            while not self._is_done():
                await self._wake.wait()
                self._wake = trio.Event()
                await self._say_unsaid()
                if self._queue_is_full:
                    await trio.sleep(_QUEUE_FULL_WAIT_S)
                    self._queue_is_full = False
                    self._pump()
            if self._bug is not None:
                raise self._bug
        finally:
            self._over = True
            self._reading.cancel()
            self._let_go_of_all()
            if self._appending:  # cancelled
                self._may_still_land = lambda: self._appending
            self.settled.set()
        if not self._gone:
            code, reason = self._end or (protocol.NORMAL, "")
            await self._send(
                {"type": "websocket.close", "code": code, "reason": protocol.close_reason(reason)}
            )

    def may_still_store(self) -> bool:
        """Whether something of this stream may become durable that is not yet."""
        return not self.settled.is_set() or self._may_still_land()

    def _let_go_of_all(self) -> None:
        """Gives back the memory of what came, but will not be stored."""
        self._drop_message()
        self._let_go(self._line)
        self._line.clear()

    def _drop_message(self) -> None:
        """Gives back the memory of a message that is not whole."""
        self._door.budget.arrived(self._hold)
        self._hold.release()
        self._message = bytearray()

    def _let_go(self, items: Iterable[Item]) -> None:
        for item in items:
            item.hold.release()

    def _is_done(self) -> bool:
        if self._is_reading or self._appending:
            return False
        if self._bug is not None:
            return True
        is_read = self._reader_done or self._end is not None
        return is_read and not self._unsaid and (self._drop or not self._line)

    def end(self, code: int, reason: str, *, drop: bool = False) -> None:
        """Ends the stream: what stands in line is still stored and answered, or with `drop` let go of."""
        if self._end is None:
            self._end = (code, reason)
        self._drop = self._drop or drop
        # One that was replaced before it began waits itself for the one before it, and settles behind that.
        if self._drop and self._begun and not self._appending:
            self.settled.set()
        self._reading.cancel()
        self._wake.set()

    async def _welcome(self) -> None:
        settings = self._door.settings
        await self._send_text(
            protocol.welcome(
                self._intake.begin(),
                window_frames=settings.stream_window_frames_max,
                frame_bytes_max=settings.body_bytes_max,
            )
        )

    async def _send_text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    def _say(self, text: str) -> None:
        """Says something at once, or behind what is to be said before it."""
        if self._unsaid or not self._speaker.say(text):
            self._unsaid.append(text)
            self._wake.set()

    async def _say_unsaid(self) -> None:
        """Says what had no room, and goes on with what waited for that."""
        if not self._unsaid:
            return
        while self._unsaid:
            await self._send_text(self._unsaid[0])
            self._unsaid.popleft()
        answered, self._answered = self._answered, []
        self._close_frames(answered)
        self._pump()

    # -- the reader ------------------------------------------------------------------------------------

    async def take(self, pieces: Pieces) -> None:
        """See `Listener`."""
        with self._guarded():
            await self._take_pieces(pieces)

    async def read(self, more: More) -> None:
        """See `Listener`."""
        try:
            with self._guarded():
                await self._read(more)
        finally:
            self._reader_done = True
            self._drop_message()
            self._wake.set()

    def ended(self) -> None:
        """See `Listener`."""
        self._gone = self._reader_done = True
        self._reading.cancel()
        self._wake.set()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Around all that is read: it ends with the stream, and what it raises ends the stream."""
        self._reading = trio.CancelScope()
        if self._end is not None or self._gone or self._is_shut:
            self._reading.cancel()
        self._is_reading = True
        try:
            with self._reading:
                yield
        except BodyTooLarge as exc:
            self.end(protocol.TOO_BIG, str(exc))
        except BodyTooSlow as exc:
            self._intake.count_refusal(None, exc)
            self.end(protocol.POLICY, str(exc))
        except ComeBackLater as exc:
            self._come_back(exc)
        except Exception as exc:  # told in the application's task, whose log says which one it was
            self._bug = exc
        finally:
            self._is_reading = False
            self._wake.set()
            if self._over:
                self._let_go_of_all()

    async def _read(self, more: More) -> None:
        """Takes what each read of the connection brings, until the peer has gone or is given up."""
        budget = self._door.budget
        while True:
            if self._pace is not None:
                pieces = await self._rest_of_frame(self._pace, more)
            else:
                if not budget.has_room:
                    await budget.room()
                pieces = await more(RECEIVE_BYTES_MAX)
            if pieces is None:
                self._gone = self._end is None
                return
            self._turn_bytes = 0
            await self._take_pieces(pieces)
            # A stream that waits for its next frame does not keep the last one in memory.
            del pieces

    async def _rest_of_frame(self, pace: BodyPace, more: More) -> Pieces | None:
        hold = self._hold
        pieces = None
        if not hold.was_dropped:
            with trio.CancelScope(deadline=self._due_s) as hold.reading:
                is_large = await unhurried(len(self._message))
                pieces = await more(LARGE_RECEIVE_BYTES_MAX if is_large else RECEIVE_BYTES_MAX)
        if hold.was_dropped:
            raise stalled("the frame")
        if hold.reading is not None and hold.reading.cancelled_caught:
            raise pace.too_slow("the frame")
        return pieces

    async def _take_pieces(self, pieces: Pieces) -> None:
        # A stream that is over takes nothing more, also of what was read already.
        await trio.lowlevel.checkpoint_if_cancelled()
        for data, is_last in pieces:
            if self._turn_bytes > _TURN_BYTES:
                self._turn_bytes = 0
                await trio.lowlevel.checkpoint()
            if not is_last:
                self._begin_message()
            self._count(len(data))
            self._turn_bytes += len(data) + _PIECE_BYTES
            if not is_last:
                self._message += data
                self._arrived_in_part()
                continue
            await self._take(self._whole_message(data))

    def _begin_message(self) -> None:
        """From its first piece on a message that is not whole has a pace, and counts for its source."""
        if self._pace is None:
            settings = self._door.settings
            self._pace = BodyPace(settings.body_bytes_per_s_min, settings.body_s_max)
            self._due_s = self._pace.end_s
            self._hold.source = self._asked.source

    def _arrived_in_part(self) -> None:
        assert self._pace is not None
        self._due_s = self._pace.deadline_s(len(self._message), self._due_s)
        self._door.budget.arrived_in_part(self._hold)

    def _whole_message(self, last: bytes) -> bytes:
        if self._pace is None:
            return last
        self._message += last
        whole = bytes(self._message)
        self._message = bytearray()
        self._pace, self._due_s = None, math.inf
        self._hold.whole()
        return whole

    def _count(self, more: int) -> None:
        bytes_max, before = self._door.settings.body_bytes_max, len(self._message)
        # The header line is not counted as body, but it is no way around the limit either.
        if before + more > bytes_max + protocol.HEADER_BYTES_MAX:
            raise BodyTooLarge("the frame", limit_bytes=bytes_max, setting="server.body_bytes_max")
        self._hold.take(more)

    async def _take(self, message: bytes) -> None:
        """One whole message: checked, put in line with what it holds, and the window kept."""
        began_s = self._door.monotonic_s()
        item = await self._intake.item(message, self._hold)
        # What was decompressed and checked counts: a flood of frames must not take turn after turn of the others.
        self._turn_bytes += item.lines_bytes
        rest_s = self._share.spend(began_s)
        self._line.append(item)
        self._hold = Hold(self._door.budget, self._asked.source)
        self._open_frames += 1
        self._open_bytes += item.lines_bytes
        self._pump()
        settings = self._door.settings
        # One that rests also waits for its answers: what it has in line would hold the others up behind a slow commit.
        frames_max = 1 if rest_s else settings.stream_window_frames_max
        while self._open_frames >= frames_max or self._open_bytes >= settings.stream_window_bytes_max:
            self._room = trio.Event()
            await self._room.wait()
            await trio.lowlevel.checkpoint_if_cancelled()
        if rest_s:
            await trio.sleep(rest_s)

    # -- storing and answering -------------------------------------------------------------------------

    def _pump(self) -> None:
        """Submits what stands in line, unless an append or an answer of this stream is under way."""
        while self._line and not (self._appending or self._unsaid or self._queue_is_full or self._is_shut):
            batch = self._batch()
            try:
                self._submit(batch)
            except BaseException:
                self._let_go(batch)
                raise

    @property
    def _is_shut(self) -> bool:
        """Whether nothing more of this stream may reach the WAL."""
        return self._drop or self._over or self._bug is not None

    def _submit(self, batch: list[Item]) -> None:
        entries = [entry for item in batch for entry in item.entries]
        if not entries:
            self._answer(batch, 0)
            return
        try:
            self._door.appender.submit(entries, partial(self._told, batch))
        except AppendQueueFull:
            # Nothing was stored, and it passes.
            self._line.extendleft(reversed(batch))
            self._queue_is_full = True
            self._wake.set()
        except ComeBackLater as exc:
            self._not_stored(batch, exc)
        else:
            self._append_began_s = self._door.monotonic_s()
            self._appending = True

    def _told(self, batch: list[Item], outcome: Appended | ComeBackLater) -> None:
        """What became of the append under way."""
        self._appending = False
        if isinstance(outcome, CommitTooSlow):
            self._may_still_land = outcome.is_open
        if self._over:  # cancelled meanwhile: there is nobody to tell
            self._let_go(batch)
            return
        try:
            if isinstance(outcome, ComeBackLater):
                self._not_stored(batch, outcome)
            else:
                self._door.observer.appended(self._door.monotonic_s() - self._append_began_s)
                self._answer(batch, outcome.first_seq)
                self._pump()
        except Exception as exc:  # told in the application's task; here it would be the end of the whole node
            self._let_go(batch)
            self._bug = exc
            self._reading.cancel()
        if self._reader_done or self._end is not None or self._bug is not None:
            if self._drop and not self._appending:
                # Whoever waits for this stream to let go need not wait for its answers to be read.
                self.settled.set()
            self._wake.set()

    def _not_stored(self, batch: list[Item], exc: ComeBackLater) -> None:
        self._let_go(batch)
        self._come_back(exc)
        first = next(item.number for item in batch if item.entries)
        self._say(protocol.error(first, answers.problem_of(exc)))

    def _batch(self) -> list[Item]:
        batch: list[Item] = []
        size = 0
        while self._line and len(batch) < APPEND_FRAMES_MAX and size < APPEND_BYTES_MAX:
            item = self._line.popleft()
            size += item.lines_bytes
            batch.append(item)
        return batch

    def _answer(self, batch: list[Item], first_seq: int) -> None:
        """Tells the sender: each refusal, and one ack for all that is durable (in plain mode, one for each frame)."""
        seq = first_seq - 1
        number = points = last_seq = 0
        for item in batch:
            item.hold.release()
            if item.refusal:
                self._say(item.refusal)
                continue
            if item.entries:
                seq += len(item.entries)
                item.stored_seq = seq
                self._door.observer.answered(ROUTE, "accepted", item.points, item.body_bytes)
            if self._asked.plain:
                self._say(protocol.ack(item.number, points=item.points, seq=item.stored_seq))
                continue
            number, last_seq = item.number, item.stored_seq
            points += item.points
        if number:
            self._say(protocol.ack(number, points=points, seq=last_seq))
        if self._unsaid:
            self._answered += batch
        else:
            self._close_frames(batch)

    def _close_frames(self, batch: list[Item]) -> None:
        """Frames that were answered make room for others."""
        self._open_frames -= len(batch)
        self._open_bytes -= sum(item.lines_bytes for item in batch)
        self._room.set()

    def _come_back(self, exc: ComeBackLater) -> None:
        """Sends the client away for a while: nothing more is taken of it."""
        if isinstance(exc, Stopping):
            self.end(protocol.STOPPING, str(exc), drop=True)
            return
        self._door.observer.answered(ROUTE, "unavailable", 0, 0)
        self._door.refusals.refused(self._intake.name(None), ROUTE, 503, str(exc), self._asked.source)
        self.end(protocol.TRY_AGAIN_LATER, f"retry after {exc.retry_after_s} s: {exc}", drop=True)
