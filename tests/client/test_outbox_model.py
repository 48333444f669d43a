"""The buffer against a model of the node: connections that break at any moment, answers that are lost, refusals.

Whatever happens: a write is settled exactly once, as durable only if the node holds it, as refused only if it is bad;
no point is stored twice; in the end nothing waits.
"""

from __future__ import annotations

import zlib
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from wal_ingest.client.frames import Write
from wal_ingest.client.messages import Ack, Refusal, StoredFrame, Welcome
from wal_ingest.client.outbox import Outbox
from wal_ingest.points import Lines


class Node:
    """What the node holds, and what is on its way to it and from it."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, bytes]] = []
        self.arriving: deque[tuple[int, bytes]] = deque()
        self.answers: deque[Ack | Refusal] = deque()
        self.highest_ever = 0

    def welcome(self, window_frames: int) -> Welcome:
        stored = [
            StoredFrame(number, seq, body.count(b"\n"), zlib.crc32(body))
            for seq, (number, body) in enumerate(self.stored, 1)
        ]
        durable = max((number for number, _ in self.stored), default=0)
        return Welcome(durable, len(stored), stored[-64:], window_frames, 1 << 20)

    def process(self, *, busy: bool) -> None:
        number, body = self.arriving.popleft()
        durable = max((held for held, _ in self.stored), default=0)
        if (number, body) in self.stored[-64:]:
            seq = self.stored.index((number, body)) + 1
            self.answers.append(Ack(number, body.count(b"\n"), seq))
        elif number <= durable:
            self.answers.append(Refusal(number, 409, "the number cannot be used"))
        elif busy:
            self.answers.append(Refusal(number, 503, "later"))
        elif len(body) > 200:
            self.answers.append(Refusal(number, 413, "too large"))
        elif b"bad" in body:
            self.answers.append(Refusal(number, 400, "bad"))
        else:
            self.stored.append((number, body))
            self.answers.append(Ack(number, body.count(b"\n"), len(self.stored)))

    def coalesce(self) -> None:
        """Acks next to each other become the last of them: they are cumulative."""
        out: deque[Ack | Refusal] = deque()
        for answer in self.answers:
            if out and isinstance(answer, Ack) and isinstance(out[-1], Ack):
                out[-1] = Ack(answer.number, out[-1].points + answer.points, answer.seq)
            else:
                out.append(answer)
        self.answers = out

    def lines(self) -> list[bytes]:
        return [line for _, body in self.stored for line in body.split(b"\n")[:-1]]


class Machine(RuleBasedStateMachine):
    writes = Bundle("writes")

    def __init__(self) -> None:
        super().__init__()
        self.box = Outbox(
            frame_points_max=6,
            frame_bytes_max=400,
            frame_wait_s_max=1,
            buffer_points_max=10_000,
            buffer_bytes_max=1 << 20,
        )
        self.node = Node()
        self.connected = False
        self.now_s = 0.0
        self.lines: dict[Write, list[bytes]] = {}
        self.settled: list[Write] = []
        self.sent_numbers: list[int] = []

    @rule(points=st.integers(1, 15), bad=st.sampled_from([False, False, False, True]), long=st.booleans())
    def write(self, points: int, bad: bool, long: bool) -> None:
        name = "bad" if bad else "long" + "x" * 60 if long else "m"
        mine = [b"%s%d-%d f=1 1" % (name.encode(), len(self.lines), index) for index in range(points)]
        data = b"".join(line + b"\n" for line in mine)
        self.lines[self.box.add(Lines(data, points), now_s=self.now_s)] = mine

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: not self.connected)
    @rule(window_frames=st.sampled_from([1, 2, 3, 32, 70]))
    def connect(self, window_frames: int) -> None:
        self.connected = True
        self.sent_numbers = []
        self.note(self.box.welcomed(self.node.welcome(window_frames)))

    @precondition(lambda self: self.connected)
    @rule(frames=st.integers(1, 5))
    def send(self, frames: int) -> None:
        for _ in range(frames):
            frame = self.box.next_frame(self.now_s)
            if frame is None:
                return
            assert not self.sent_numbers or frame.number > self.sent_numbers[-1], (
                "numbers rise on a connection"
            )
            self.sent_numbers.append(frame.number)
            self.node.arriving.append((frame.number, frame.lines()))

    @precondition(lambda self: self.node.arriving)
    @rule(frames=st.integers(1, 5), busy=st.sampled_from([False, False, False, True]))
    def process(self, frames: int, busy: bool) -> None:
        for _ in range(min(frames, len(self.node.arriving))):
            self.node.process(busy=busy)

    @precondition(lambda self: self.connected and self.node.answers)
    @rule(answers=st.integers(1, 5), coalesced=st.booleans())
    def receive(self, answers: int, coalesced: bool) -> None:
        if coalesced:
            self.node.coalesce()
        for _ in range(min(answers, len(self.node.answers))):
            answer = self.node.answers.popleft()
            self.note(self.box.acked(answer) if isinstance(answer, Ack) else self.box.refused(answer))

    @precondition(lambda self: self.connected)
    @rule(arrived=st.integers(0, 5))
    def lose_the_connection(self, arrived: int) -> None:
        """The node still works on some of what was on its way; nobody hears the answers."""
        for _ in range(min(arrived, len(self.node.arriving))):
            self.node.process(busy=False)
        self.node.arriving.clear()
        self.node.answers.clear()
        self.connected = False
        self.box.lost()

    def note(self, settled: list[Write]) -> None:
        self.settled += settled
        held = self.node.lines()
        for write in settled:
            refused = {line for part in write.refused for line in part.lines.split(b"\n")[:-1]}
            for line in self.lines[write]:
                assert (line in held) != (line in refused), "settled: durable or refused, and never both"
                assert not line.startswith(b"m") or line not in refused, "a good line is not refused"

    @invariant()
    def nothing_is_settled_or_stored_twice(self) -> None:
        assert len(set(self.settled)) == len(self.settled)
        held = self.node.lines()
        assert len(set(held)) == len(held)

    @invariant()
    def what_is_held_is_what_is_not_settled(self) -> None:
        assert self.box.points == sum(write.unsettled for write in self.lines)
        assert self.box.acked_points + self.box.refused_points + self.box.points == sum(
            write.points for write in self.lines
        )

    def teardown(self) -> None:
        if not self.connected:
            self.connect(32)
        for _ in range(1_000):
            self.now_s += 2
            self.send(100)
            if self.node.arriving:
                self.process(100, busy=False)
            if not self.node.answers:
                break
            self.receive(100, coalesced=False)
        assert set(self.settled) == set(self.lines)
        assert (self.box.points, self.box.bytes, self.box.unanswered) == (0, 0, 0)


TestOutboxModel = Machine.TestCase
TestOutboxModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
