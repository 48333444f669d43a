"""The buffer between writers and the node: batching, numbering, the window, settling, resuming. Pure.

Invariants:

1. Every point handed over is in exactly one place: in the batch that fills, in a frame that waits, in a frame that was
   sent on this connection. It leaves when the node said that it is durable, or that it will never take it.
2. Numbers rise in the order of sending, and none is given to another body once it was sent.
3. Nothing is held beyond `buffer_points_max` and `buffer_bytes_max`: what does not fit is not taken.

How it resumes: the node's welcome lists the frames that it holds. A frame of ours that is among them, number and
checksum, is settled. Any other is sent again: under its number if that is above all that are durable (the node then has
not seen it, or not stored it), else under a new one.

It rests on the window: the welcome lists at most `STORED_MAX` frames, so no more may be unanswered at once, or one that
is durable could be missing from the list and would be stored twice.
"""

from __future__ import annotations

from collections import deque

from wal_ingest.client import frames
from wal_ingest.client.errors import PointsRefused
from wal_ingest.client.frames import Frame, Write
from wal_ingest.client.messages import Ack, Refusal, Welcome
from wal_ingest.errors import BadRequest, BodyTooLarge
from wal_ingest.points import Lines
from wal_ingest.stream_numbers import highest_after, leaves_room

STORED_MAX = 64
_HEADER_BYTES_MAX = 1_024

# What an error may say that is no verdict on the points: they are sent again.
_TRY_AGAIN = frozenset({408, 429})


class OutOfStep(Exception):
    """The node's words do not fit what was sent: the stream must be opened again, for the welcome says what holds."""


class Outbox:
    """Everything that was handed over and is not settled. Times are the caller's, in seconds.

    `points` and `bytes` are what it holds: lines as they are in the batch that fills, compressed in frames.
    """

    def __init__(
        self,
        *,
        frame_points_max: int,
        frame_bytes_max: int,
        frame_wait_s_max: float,
        buffer_points_max: int,
        buffer_bytes_max: int,
    ) -> None:
        self.buffer_points_max = buffer_points_max
        self.buffer_bytes_max = buffer_bytes_max
        self._frame_points_max = min(frame_points_max, buffer_points_max)
        self._frame_bytes_max = min(frame_bytes_max, buffer_bytes_max)
        self._frame_wait_s_max = frame_wait_s_max
        self.points = 0
        self.bytes = 0
        self.acked_points = 0
        self.refused_points = 0
        self._batch: list[tuple[Write, Lines]] = []
        self._batch_points = 0
        self._batch_bytes = 0
        self._batch_since_s = 0.0
        # While a connection is open those with a number come first, rising: they were sent on an earlier one.
        self._waiting: deque[Frame] = deque()
        self._sent: deque[Frame] = deque()
        self._writes: dict[int, Write] = {}
        self._writes_ever = 0
        self._number = 0
        self._window_frames = 0
        self._message_bytes_max = 0

    # -- writers --------------------------------------------------------------------------------------

    def check_size(self, lines: Lines) -> None:
        """Raises BodyTooLarge or BadRequest for a write that never fits, however empty the buffer is."""
        if len(lines.data) > self.buffer_bytes_max:
            raise BodyTooLarge("the write", limit_bytes=self.buffer_bytes_max, setting="buffer_bytes_max")
        if lines.points > self.buffer_points_max:
            raise BadRequest(
                f"the write has {lines.points} points, more than the buffer holds ({self.buffer_points_max}, "
                "buffer_points_max): split it"
            )

    def has_room(self, lines: Lines) -> bool:
        """Whether the write fits now."""
        return (
            self.points + lines.points <= self.buffer_points_max
            and self.bytes + len(lines.data) <= self.buffer_bytes_max
        )

    def add(self, lines: Lines, *, now_s: float, waiter: object = None) -> Write:
        """Takes canonical lines, at least one; the caller has asked `has_room`."""
        self._writes_ever += 1
        write = Write(self._writes_ever, lines.points, waiter, unsettled=lines.points)
        self._writes[write.number] = write
        self.points += lines.points
        self.bytes += len(lines.data)
        pieces = [lines]
        if lines.points > self._frame_points_max or len(lines.data) > self._frame_bytes_max:
            pieces = frames.cut(lines, points_max=self._frame_points_max, bytes_max=self._frame_bytes_max)
        for piece in pieces:
            self._put(write, piece, now_s)
        return write

    def _put(self, write: Write, piece: Lines, now_s: float) -> None:
        if (
            self._batch_points + piece.points > self._frame_points_max
            or self._batch_bytes + len(piece.data) > self._frame_bytes_max
        ):
            self.seal()
        if not self._batch:
            self._batch_since_s = now_s
        self._batch.append((write, piece))
        self._batch_points += piece.points
        self._batch_bytes += len(piece.data)
        if self._batch_points >= self._frame_points_max or self._batch_bytes >= self._frame_bytes_max:
            self.seal()

    def seal(self) -> None:
        """Makes a frame of what waits to fill one, however little it is."""
        if self._batch:
            frame = frames.seal(self._batch)
            self.bytes += len(frame.body) - self._batch_bytes
            self._waiting.append(frame)
            self._batch, self._batch_points, self._batch_bytes = [], 0, 0

    # -- what is left ---------------------------------------------------------------------------------

    @property
    def due_s(self) -> float | None:
        """When there will be something to send that is not there now; None when only an answer or a write helps."""
        if not self._batch or len(self._sent) >= self._window_frames:
            return None
        return self._batch_since_s + self._frame_wait_s_max

    @property
    def unanswered(self) -> int:
        """Frames sent on this connection that the node has not answered."""
        return len(self._sent)

    @property
    def unanswered_points(self) -> int:
        """Points in the frames sent on this connection that the node has not answered."""
        return sum(frame.points for frame in self._sent)

    @property
    def newest(self) -> int:
        """The number of the write that was handed over last."""
        return self._writes_ever

    def writes(self) -> list[Write]:
        """Those that are not settled, oldest first."""
        return list(self._writes.values())

    def settled_up_to(self, number: int) -> bool:
        """Whether every write up to that number is settled."""
        return not self._writes or next(iter(self._writes)) > number

    # -- the connection -------------------------------------------------------------------------------

    def welcomed(self, welcome: Welcome) -> list[Write]:
        """A connection was opened: settles what the node says it holds. Gives the writes that became settled."""
        assert not self._sent, "the connection before this one was not given up"
        self._window_frames = max(1, min(welcome.window_frames, STORED_MAX))
        self._message_bytes_max = welcome.frame_bytes_max
        stored = {(frame.number, frame.crc32): frame for frame in welcome.stored}
        settled: list[Write] = []
        kept, again, unsent = deque[Frame](), deque[Frame](), deque[Frame]()
        for frame in self._waiting:
            held = stored.get((frame.number, frame.crc32)) if frame.number else None
            if held is not None:
                settled += self._durable(frame, held.seq)
            elif frame.number > welcome.durable:
                kept.append(frame)
            elif frame.number:
                frame.number = 0
                again.append(frame)
            else:
                unsent.append(frame)
        self._waiting = kept + again + unsent
        self._number = max(self._number, welcome.durable)
        return settled

    def can_go_on(self, welcome: Welcome) -> bool:
        """Whether the stream has numbers for what is to be sent, after `welcomed`; else `begin_another_stream`."""
        return leaves_room(welcome.durable) and self._number < highest_after(welcome.durable)

    def begin_another_stream(self) -> None:
        """The next welcome is that of a new stream: frames that are not settled get new numbers, from 1 on."""
        self.lost()
        self._number = 0
        for frame in self._waiting:
            frame.number = 0

    def next_frame(self, now_s: float) -> Frame | None:
        """The frame to be sent now, with its number; None when there is none, or the window is full."""
        if len(self._sent) >= self._window_frames:
            return None
        if not self._waiting and self._batch and now_s >= self._batch_since_s + self._frame_wait_s_max:
            self.seal()
        if not self._waiting:
            return None
        frame = self._waiting.popleft()
        while len(frame.body) + _HEADER_BYTES_MAX > self._message_bytes_max and frame.points > 1:
            self._replace(frame, frames.halve(frame))
            frame = self._waiting.popleft()
        if not frame.number:
            frame.number = self._number + 1
        self._number = max(self._number, frame.number)
        self._sent.append(frame)
        return frame

    def acked(self, ack: Ack) -> list[Write]:
        """The node said that everything up to a frame is durable. Raises OutOfStep for one that was not sent."""
        if ack.number > self._number:
            raise OutOfStep(f"the node acknowledged frame {ack.number}, which was not sent")
        settled: list[Write] = []
        while self._sent and self._sent[0].number <= ack.number:
            settled += self._durable(self._sent.popleft(), ack.seq)
        return settled

    def refused(self, refusal: Refusal) -> list[Write]:
        """The node did not take one frame: it is cut up and sent again, or was a single write, which is settled.

        Raises OutOfStep when the node does not know which frame it speaks of, or wants another number for it.
        """
        frame = next((frame for frame in self._sent if frame.number == refusal.number), None)
        if frame is None:
            raise OutOfStep(
                f"the node refused frame {refusal.number}, which is not under way: {refusal.error}"
            )
        self._sent.remove(frame)
        frame.number = 0
        if refusal.status == 409:
            self._put_back([frame])
            raise OutOfStep(f"the node wants another number: {refusal.error}")
        if refusal.status >= 500 or refusal.status in _TRY_AGAIN:
            self._put_back([frame])
        elif refusal.status == 413 and frame.points > 1:
            self._replace(frame, frames.halve(frame))
        elif len(frame.parts) > 1:
            self._replace(frame, frames.cut_by_write(frame))
        else:
            return self._never(frame, refusal)
        return []

    def lost(self) -> None:
        """The connection is gone: what it left unanswered waits for the next welcome, its numbers kept."""
        self._window_frames = 0
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()

    def _replace(self, frame: Frame, pieces: list[Frame]) -> None:
        """Puts a frame's pieces where it was; its number, if it had one, is used up."""
        self.bytes += sum(len(piece.body) for piece in pieces) - len(frame.body)
        self._put_back(pieces)

    def _put_back(self, pieces: list[Frame]) -> None:
        # Behind those that still have a number, which must go out in their order.
        numbered = [frame for frame in self._waiting if frame.number]
        if numbered:
            rest = [frame for frame in self._waiting if not frame.number]
            self._waiting = deque([*numbered, *pieces, *rest])
        else:
            self._waiting.extendleft(reversed(pieces))

    def _durable(self, frame: Frame, seq: int) -> list[Write]:
        self.acked_points += frame.points
        for write, _ in frame.parts:
            if seq:
                write.seq = max(write.seq or 0, seq)
        return self._settle(frame)

    def _never(self, frame: Frame, refusal: Refusal) -> list[Write]:
        self.refused_points += frame.points
        write, _ = frame.parts[0]
        write.refused.append(
            PointsRefused(frame.lines(), points=frame.points, status=refusal.status, reason=refusal.error)
        )
        return self._settle(frame)

    def _settle(self, frame: Frame) -> list[Write]:
        self.points -= frame.points
        self.bytes -= len(frame.body)
        settled = []
        for write, points in frame.parts:
            write.unsettled -= points
            if not write.unsettled:
                del self._writes[write.number]
                settled.append(write)
        return settled
