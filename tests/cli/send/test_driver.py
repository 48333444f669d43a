"""The driver against a node in this process: losses, refusals, closes, a signal, a rate."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from zlib import crc32

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.cli.send.test_ledger import piece
from wal_ingest.cli.posting import NotTaken
from wal_ingest.cli.progress import Bar
from wal_ingest.cli.send import driver
from wal_ingest.cli.send.driver import Driver, GaveUp
from wal_ingest.cli.send.job import Job
from wal_ingest.cli.send.ledger import Ledger, LostTrack, Mark
from wal_ingest.cli.send.pieces import Piece
from wal_ingest.cli.sifting import Refused
from wal_ingest.cli.stopping import Interrupted, Stop
from wal_ingest.client.errors import StreamClosed, Unreachable
from wal_ingest.client.messages import Ack, Answer, Refusal, StoredFrame, Welcome
from wal_ingest.errors import ConfigError
from wal_ingest.points.encoding import decode_body


class Unlucky(Random):
    """Every wait is over at once."""

    def random(self) -> float:
        return 0.0


@dataclass
class Node:
    """A node that has the faults it is told to have. `faults` are what connections end with, in turn, and after how
    many frames; None never."""

    faults: list[tuple[Exception, int] | None] = field(default_factory=list)
    bad: set[bytes] = field(default_factory=set)
    refusal: Callable[[int, int], Refusal] = lambda number, at: Refusal(
        number, 400, f"line {at + 1}, column 3: no good", at + 1, 3
    )
    window_frames: int = 32
    stored: list[StoredFrame] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    on_frame: Callable[[int], None] = lambda _count: None
    unanswered_max: int = 0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[NodeLink]:
        await trio.lowlevel.checkpoint()
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None and isinstance(fault[0], Unreachable):
            raise fault[0]
        yield NodeLink(self, fault)


class NodeLink:
    def __init__(self, node: Node, fault: tuple[Exception, int] | None) -> None:
        self._node = node
        self._fault = fault
        self._frames = 0
        self._unanswered = 0
        self._answers_in, self._answers_out = trio.open_memory_channel[Answer](1000)
        durable = max((frame.number for frame in node.stored), default=0)
        self.welcome = Welcome(durable, len(node.stored), node.stored[-64:], node.window_frames, 1 << 20)

    async def send(
        self,
        number: int,
        body: bytes,
        *,
        encoding: str = "identity",
        format: str = "lines",  # noqa: A002 - the header's word
        precision: str = "",
    ) -> None:
        await trio.lowlevel.checkpoint()
        node = self._node
        if self._fault is not None and self._frames >= self._fault[1]:
            raise self._fault[0]
        self._frames += 1
        text = decode_body(body, encoding, bytes_max=1 << 20)
        records = text.splitlines(keepends=True)
        at = next((at for at, record in enumerate(records) if record in node.bad), None)
        self._unanswered += 1
        node.unanswered_max = max(node.unanswered_max, self._unanswered)
        if at is not None:
            self._answers_in.send_nowait(node.refusal(number, at))
            return
        seq = len(node.stored) + 1
        node.stored.append(StoredFrame(number, seq, len(records), crc32(text)))
        node.lines += records
        self._answers_in.send_nowait(Ack(number, len(records), seq))
        node.on_frame(len(node.stored))

    async def receive(self) -> Answer:
        answer = await self._answers_out.receive()
        self._unanswered -= 1
        return answer


@dataclass
class Run:
    """A job, and what was told and kept."""

    told: list[str] = field(default_factory=list)
    kept: Mark = field(default_factory=Mark)
    rejected: list[bytes] = field(default_factory=list)
    on_tell: Callable[[], None] = lambda: None

    def tell(self, words: str) -> None:
        self.told.append(words)
        self.on_tell()

    async def send(
        self,
        node: Node,
        pieces: Iterator[Piece],
        *,
        skips: bool = False,
        rate: float | None = None,
        give_up_s: float | None = None,
        stop: Stop | None = None,
    ) -> None:
        def keep(mark: Mark, texts: list[bytes]) -> None:
            self.kept = mark
            self.rejected += texts

        with stop or Stop(ends=False) as entered:
            job = Job(
                to="ws://node",
                pieces=pieces,
                ledger=Ledger(self.kept, crc32=crc32),
                keep=keep,
                skips=skips,
                points_per_s_max=rate,
                give_up_s=give_up_s,
                stop=entered,
                bar=Bar(),
                tell=self.tell,
            )
            with trio.fail_after(30):
                await Driver(job, node.connect, rng=Unlucky()).run()


def some(count: int) -> Iterator[Piece]:
    return map(piece, range(count))


def every(count: int) -> list[bytes]:
    return [record for each in some(count) for record in each.records]


async def test_everything_is_sent_in_order_and_kept() -> None:
    node, run = Node(), Run()
    await run.send(node, some(100))
    assert node.lines == every(100)
    assert (run.kept.points, run.kept.frames, run.kept.seq) == (300, 100, 100)
    assert run.told == []


async def test_the_window_of_the_node_is_kept_to() -> None:
    node = Node(window_frames=3)
    await Run().send(node, some(30))
    assert node.unanswered_max <= 3
    assert node.lines == every(30)


async def test_losses_cost_nothing_and_are_told_once() -> None:
    gone = Unreachable("node: Connection refused")
    broke = StreamClosed(1006, "the connection broke")
    node = Node(faults=[(gone, 0), (gone, 0), (broke, 7), (broke, 0), (StreamClosed(1012, "stopping"), 20)])
    run = Run()
    await run.send(node, some(100))
    assert node.lines == every(100)
    assert run.told[:2] == [
        "node: Connection refused; going on as soon as it takes points again",
        "ws://node takes points again",
    ]
    assert len(run.told) % 2 == 0


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Unreachable("node: answered with HTTP status 401", status=401), ConfigError, "401"),
        (Unreachable("node: no node", wrong_peer=True), ConfigError, "no node"),
        (StreamClosed(1008, "wrong token"), ConfigError, "wrong token"),
        (StreamClosed(4001, "replaced"), NotTaken, "another wal-ingest send"),
        (StreamClosed(1009, "too large"), NotTaken, "too large"),
    ],
    ids=["401", "wrong peer", "1008", "4001", "1009"],
)
async def test_what_waiting_does_not_mend_ends_it_with_a_hint(
    fault: Exception, kind: type[Exception], words: str
) -> None:
    node, run = Node(faults=[(fault, 5)]), Run()
    with pytest.raises(kind, match=words) as caught:
        await run.send(node, some(10))
    if kind is ConfigError:
        assert getattr(caught.value, "hint", "")
    assert run.kept.place.records <= len(node.lines)


async def test_a_refused_record_ends_it_with_its_place_and_what_was_sent_is_kept() -> None:
    bad = piece(4).records[1]
    node, run = Node(bad={bad}), Run()
    with pytest.raises(Refused, match="f: line 14, column 3: no good"):
        await run.send(node, some(100))
    assert run.kept.place.records == 12
    assert bad not in node.lines
    # Going on with a file for what is rejected brings the others, each once.
    await run.send(node, map(piece, range(4, 100)), skips=True)
    assert sorted(node.lines) == sorted(set(every(100)) - {bad})
    assert run.rejected == [b"# f: line 14, column 3: no good\n" + bad]


async def test_with_a_file_for_them_refused_records_cost_only_themselves() -> None:
    bad = {*piece(4).records, piece(5).records[0], piece(5).records[2], piece(99).records[1]}
    node, run = Node(bad=bad), Run()
    await run.send(node, some(100), skips=True)
    assert sorted(node.lines) == sorted(set(every(100)) - bad)
    assert {text.partition(b"\n")[2] for text in run.rejected} == bad
    assert (run.kept.rejected, run.kept.points) == (6, 294)


@pytest.mark.parametrize(
    ("refusal", "kind", "words"),
    [
        (Refusal(None, 400, "no header"), NotTaken, "could not read a frame: no header"),
        (Refusal(1, 409, "used before"), LostTrack, "used before"),
        (Refusal(1, 413, "too many bytes"), NotTaken, "from line 1 on: too many bytes"),
        (Refusal(1, 415, "unknown"), NotTaken, "refused f: 415: unknown"),
        (Refusal(1, 400, "no points"), NotTaken, "refused f: 400: no points"),
    ],
    ids=lambda each: str(each.status) if isinstance(each, Refusal) else "",
)
async def test_refusals_that_name_no_record_end_it(
    refusal: Refusal, kind: type[Exception], words: str
) -> None:
    node = Node(bad={piece(0).records[0]}, refusal=lambda _number, _at: refusal)
    with pytest.raises(kind, match=words):
        await Run().send(node, some(1), skips=True)


async def test_a_busy_node_is_come_back_to() -> None:
    busy = Refusal(1, 503, "the log is full", retry_after_s=1)
    node = Node(bad={piece(0).records[0]}, refusal=lambda _number, _at: busy)
    run = Run(on_tell=node.bad.clear)
    await run.send(node, some(10))
    assert sorted(node.lines) == sorted(every(10))
    assert run.told[0] == (
        "ws://node: the stream was closed (1013): retry after 1 s: the log is full; going on as soon as it takes "
        "points again"
    )


async def test_a_file_that_ends_badly_is_sent_up_to_there() -> None:
    def pieces() -> Iterator[Piece]:
        yield from some(5)
        raise Refused("f", 16, "bad")

    node, run = Node(), Run()
    with pytest.raises(Refused):
        await run.send(node, pieces())
    assert node.lines == every(5)
    assert run.kept.place.records == 15


async def test_a_signal_ends_it_in_order() -> None:
    stop, node, run = Stop(ends=False), Node(), Run()

    def signal(count: int) -> None:
        if count == 20:
            os.kill(os.getpid(), 15)

    node.on_frame = signal
    with pytest.raises(Interrupted):
        await run.send(node, some(10_000), stop=stop)
    # What was under way is answered, and counted.
    assert run.kept.points == len(node.lines) < 300


async def test_a_signal_ends_waiting_for_a_node_too() -> None:
    node = Node(faults=[(Unreachable("away", retry_after_s=3_000), 0)])
    run = Run(on_tell=lambda: os.kill(os.getpid(), 15))
    with pytest.raises(Interrupted):
        await run.send(node, some(10))
    assert run.told == ["away; going on as soon as it takes points again"]


async def test_a_signal_ends_it_even_where_the_node_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "DRAIN_S_MAX", 0.1)
    node, run = Node(), Run()

    async def send(*_args: object, **_more: object) -> None:
        os.kill(os.getpid(), 15)
        await trio.sleep_forever()

    monkeypatch.setattr(NodeLink, "send", send)
    with pytest.raises(Interrupted):
        await run.send(node, some(10))
    assert run.kept.points == 0


async def test_a_second_signal_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()

    async def send(*_args: object, **_more: object) -> None:
        os.kill(os.getpid(), 2)
        os.kill(os.getpid(), 2)
        await trio.sleep_forever()

    monkeypatch.setattr(NodeLink, "send", send)
    began_s = trio.current_time()
    with pytest.raises(Interrupted):
        await run.send(Node(), some(10))
    assert trio.current_time() - began_s < driver.DRAIN_S_MAX


async def test_a_rate_is_kept_to() -> None:
    began_s = trio.current_time()
    await Run().send(Node(), some(10), rate=60)
    # 30 points: the last three of them begin after 27 of 60 a second.
    assert trio.current_time() - began_s >= 0.45


async def test_a_node_that_forgot_the_stream_is_told_of() -> None:
    run = Run()
    await run.send(Node(), some(3))
    await run.send(Node(), map(piece, range(3, 5)))
    assert run.told == ["ws://node does not know this stream any more: up to 32 frames may be stored twice"]


async def test_a_node_that_is_away_is_given_up_with_what_is_confirmed_and_what_is_not() -> None:
    gone = Unreachable("node: Connection refused", hint="where that is a TLS port, say so")
    node = Node(
        faults=[(StreamClosed(1006, "the connection broke"), 7), *[(gone, 0)] * 1_000_000], window_frames=1
    )
    run = Run()
    with pytest.raises(GaveUp) as caught:
        await run.send(node, some(10), give_up_s=0.3)
    assert str(caught.value) == (
        "gave up: ws://node took nothing for 0.3 s: node: Connection refused; 21 points confirmed, "
        "9 points read and not confirmed"
    )
    assert caught.value.hint == gone.hint
    assert run.kept.points == 21


async def test_a_node_that_answers_nothing_is_given_up() -> None:
    class Silent(NodeLink):
        async def send(self, *_args: object, **_more: object) -> None:
            await trio.lowlevel.checkpoint()

    class SilentNode(Node):
        @asynccontextmanager
        async def connect(self) -> AsyncIterator[NodeLink]:
            yield Silent(self, None)

    with pytest.raises(GaveUp, match=r"took nothing for 0\.2 s; 0 points confirmed, 15 points read"):
        await Run().send(SilentNode(), some(5), give_up_s=0.2)


async def test_a_pipe_that_gives_nothing_for_long_is_no_reason_to_give_up(mock_clock: MockClock) -> None:
    def slow() -> Iterator[Piece]:
        for number in range(3):
            # Everything before it is confirmed. Then longer than the node has: without points for it, no time counts.
            trio.from_thread.run(wait_all_tasks_blocked)
            trio.from_thread.run_sync(mock_clock.jump, 0.4)
            yield piece(number)

    node = Node()
    await Run().send(node, slow(), give_up_s=0.3)
    assert node.lines == every(3)
