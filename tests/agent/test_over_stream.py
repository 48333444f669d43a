"""Delivery over the stream: what is settled is what the node holds, whatever the connection does between."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import structlog.testing
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agent.rig import fill, open_spool, rounds, text_of
from tests.client.fake_node import FakeNode, fake_node
from wal_ingest.agent.over_stream import OtherNumbers, OverStream
from wal_ingest.agent.spool import Spool
from wal_ingest.client.errors import PROTOCOL_ERROR, REPLACED, StreamClosed, Unreachable
from wal_ingest.client.stream import StreamConnection, open_stream
from wal_ingest.errors import ComeBackLater

URL = "ws://node.example:8400"


def nobody() -> None:
    """Nobody wants to know."""


def over(spool: Spool, node: FakeNode, *, connected: Callable[[], None] = nobody) -> OverStream:
    def connect(client_id: str) -> AbstractAsyncContextManager[StreamConnection]:
        return open_stream(URL, client_id=client_id, dial=node.dial)

    return OverStream(spool, connect, rng=Random(7), connected=connected)


async def ended(spool: Spool, node: FakeNode) -> ComeBackLater:
    """What ended one connection."""
    with pytest.raises(ComeBackLater) as caught, trio.fail_after(20):
        await over(spool, node).deliver()
    return caught.value


@asynccontextmanager
async def delivering(spool: Spool, node: FakeNode) -> AsyncIterator[None]:
    """A courier without patience, for the time of the block."""

    async def run() -> None:
        while True:
            with structlog.testing.capture_logs(), trio.fail_after(20):
                try:
                    await over(spool, node).deliver()
                except ComeBackLater:
                    await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(20):
            yield
        nursery.cancel_scope.cancel()


async def test_what_is_spooled_is_delivered_in_order_as_it_lies(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        await fill(spool, 100)
        async with delivering(spool, node):
            await spool.wait_settled(100)
            await fill(spool, 1, first=101)
            await spool.wait_settled(101)
        assert node.lines == text_of(rounds(101))
        assert [stored.number for stored in node.stored] == list(range(1, 102))
        assert {stored.client_id for stored in node.stored} == {spool.stream_id}


class Counting:
    """A stream that remembers what was sent over it."""

    def __init__(self, stream: StreamConnection) -> None:
        self._stream = stream
        self.welcome = stream.welcome
        self.receive = stream.receive
        self.sent: list[int] = []

    async def send(self, number: int, body: bytes, *, encoding: str) -> None:
        self.sent.append(number)
        await self._stream.send(number, body, encoding=encoding)


async def test_no_more_frames_are_under_way_than_the_node_takes(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node, trio.open_nursery() as nursery:
        node.window_frames, node.store = 3, False
        await fill(spool, 10)
        streams: list[Counting] = []

        @asynccontextmanager
        async def connect(client_id: str) -> AsyncIterator[Counting]:
            async with open_stream(URL, client_id=client_id, dial=node.dial) as stream:
                streams.append(Counting(stream))
                yield streams[0]

        nursery.start_soon(OverStream(spool, connect, rng=Random(7), connected=nobody).deliver)
        with trio.fail_after(20):
            while not streams or len(streams[0].sent) < 3:
                await node.received.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert streams[0].sent == [1, 2, 3]
        await node.connections[0].send_message('{"type":"ack","number":2,"points":4,"seq":2}')
        with trio.fail_after(20):
            while len(streams[0].sent) < 5:
                await node.received.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert streams[0].sent == [1, 2, 3, 4, 5]
        assert spool.settled_seq == 2
        nursery.cancel_scope.cancel()


async def test_nothing_is_stored_twice_when_an_answer_is_lost(tmp_path: Path) -> None:
    async with open_spool(tmp_path / "a") as spool, fake_node() as node:
        await fill(spool, 5)
        # The node has all of them; the agent died before it heard so.
        for entry in await spool.read(0):
            node.take(entry.lines(), client_id=spool.stream_id, number=entry.seq)
        await fill(spool, 1, first=6)
        async with delivering(spool, node):
            await spool.wait_settled(6)
        assert node.lines == text_of(rounds(6))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.integers(0, 6_000), st.integers(100, 6_000)), max_size=6), seed=st.integers()
)
def test_every_round_is_stored_once_wherever_the_cable_is_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, int]], seed: int
) -> None:
    directory = tmp_path_factory.mktemp("spool")

    async def deliver() -> None:
        async with open_spool(directory) as spool, fake_node() as node:
            await fill(spool, 40)
            with structlog.testing.capture_logs() as told:
                for cut in cuts:
                    node.cut_after_bytes = cut
                    with trio.move_on_after(0.05):
                        await ended(spool, node)
                async with delivering(spool, node):
                    await spool.wait_settled(40)
            assert node.lines == text_of(rounds(40))
            assert told == []

    trio.run(deliver)
    shutil.rmtree(directory)


async def test_a_round_that_is_refused_is_kept_with_the_reason_and_the_others_go_on(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        node.refuse = lambda lines: {"error": "line 1: no", "line": 1} if b"n=2 " in lines else None
        await fill(spool, 3)
        with structlog.testing.capture_logs() as told:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(over(spool, node).deliver)
                await spool.wait_settled(3)
                nursery.cancel_scope.cancel()
        [kept] = (tmp_path / "refused").iterdir()
        assert gzip.decompress(kept.read_bytes()).splitlines()[1:] == text_of(rounds(1, first=2))
        assert [(entry["log_level"], entry["reason"]) for entry in told] == [("error", "400: line 1: no")]
        assert node.lines == text_of([*rounds(1), *rounds(1, first=3)])


async def test_a_round_that_was_refused_in_an_earlier_life_is_not_sent_again(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        await fill(spool, 3)
        entries = await spool.read(0)
        spool.refused.keep(entries[1], "400: no")
        stream_id = spool.stream_id
        # The node went on behind it before the agent died.
        for entry in (entries[0], entries[2]):
            node.take(entry.lines(), client_id=stream_id, number=entry.seq)
        await fill(spool, 2, first=4)
        spool.refused.keep((await spool.read(4))[0], "400: no")
        async with delivering(spool, node):
            await spool.wait_settled(5)
        assert spool.stream_id == stream_id
        assert node.lines == text_of([*rounds(1), *rounds(2, first=3)])
        assert spool.refused.files == 2


async def test_a_round_larger_than_the_nodes_frames_is_kept_as_refused(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        node.frame_bytes_max = 1_100
        await spool.append([f"m a={Random(n).random()} {n}\n" for n in range(100)])
        await fill(spool, 1)
        async with delivering(spool, node):
            await spool.wait_settled(2)
        assert node.lines == text_of(rounds(1))
        assert spool.refused.files == 1


async def test_a_spool_from_a_backup_goes_on_as_a_new_stream_and_loses_nothing(tmp_path: Path) -> None:
    async with fake_node() as node:
        async with open_spool(tmp_path / "a") as spool:
            await fill(spool, 2)
            shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns("LOCK"))
            await fill(spool, 3, first=3)
            old_id = spool.stream_id
            async with delivering(spool, node):
                await spool.wait_settled(5)
        async with open_spool(tmp_path / "b") as spool:
            assert (spool.stream_id, spool.last_seq) == (old_id, 2)
            with structlog.testing.capture_logs() as told:
                assert isinstance(await ended(spool, node), OtherNumbers)
            assert "older copy" in told[0]["reason"]
            await fill(spool, 2, first=50)
            async with delivering(spool, node):
                await spool.wait_settled(4)
            assert spool.stream_id.startswith(f"{old_id}.")
        assert set(text_of([*rounds(5), *rounds(2, first=50)])) == set(node.lines)


async def test_a_copied_spool_that_has_other_points_under_the_same_numbers_goes_its_own_way(
    tmp_path: Path,
) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        await fill(spool, 3)
        node.take(b"other a=1 1\n", client_id=spool.stream_id, number=2)
        async with delivering(spool, node):
            await spool.wait_settled(3)
        assert node.lines == [b"other a=1 1", *text_of(rounds(3))]


async def test_a_number_that_cannot_be_used_begins_a_new_stream(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        await fill(spool, 1)
        # A node that forgot to say so in its welcome.
        node.greeting = (
            '{"type":"welcome","durable":0,"seq":0,"stored":[],"window_frames":9,"frame_bytes_max":9999}'
        )
        node.take(b"other a=1 1\n", client_id=spool.stream_id, number=1)
        with structlog.testing.capture_logs() as told:
            assert isinstance(await ended(spool, node), OtherNumbers)
        assert told[0]["reason"] == "the number was used"
        async with delivering(spool, node):
            await spool.wait_settled(1)


async def test_an_agent_whose_place_was_taken_comes_back_under_a_name_of_its_own(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        old_id = spool.stream_id
        connected = trio.Event()

        async def replace() -> None:
            await connected.wait()
            await node.close(REPLACED, "another connection")

        with structlog.testing.capture_logs() as told:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replace)
                with pytest.raises(StreamClosed) as caught, trio.fail_after(20):
                    await over(spool, node, connected=connected.set).deliver()
        assert caught.value.code == REPLACED
        assert spool.stream_id.startswith(f"{old_id}.")
        assert "its spool is a copy" in told[0]["reason"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"type":"ack","number":77,"points":1,"seq":1}', "an answer to frame 77"),
        ('{"type":"error","number":null,"status":400,"error":"no"}', "could not read a header"),
        ('{"type":"error","number":1,"status":418,"error":"no"}', "answered 418"),
    ],
)
async def test_an_answer_that_makes_no_sense_ends_the_connection_and_settles_nothing(
    tmp_path: Path, answer: str, reason: str
) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        node.store = False
        await fill(spool, 1)
        async with trio.open_nursery() as nursery:
            found: list[ComeBackLater] = []

            async def deliver() -> None:
                found.append(await ended(spool, node))

            nursery.start_soon(deliver)
            await node.received.wait()
            await node.connections[0].send_message(answer)
        [exc] = found
        assert isinstance(exc, StreamClosed)
        assert exc.code == PROTOCOL_ERROR
        assert reason in str(exc)
        assert spool.settled_seq == 0


async def test_a_node_that_is_not_there_or_sends_us_away_says_so(tmp_path: Path) -> None:
    async with open_spool(tmp_path) as spool, fake_node() as node:
        node.greeting = (1013, "retry after 7 s: the WAL is full")
        assert (await ended(spool, node)).retry_after_s == 7
        node.unreachable = True
        assert isinstance(await ended(spool, node), Unreachable)
