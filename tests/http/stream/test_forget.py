"""A stream that an operator has forgotten is closed first, and nothing of it is on its way to the WAL then."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.rig import LINE, until
from tests.http.stream.rig import Node, node
from tests.http.stream.test_session import ack
from wal_ingest.errors import ComeBackLater
from wal_ingest.http.stream import streams

REASON = "retry after 1 s: an operator had this stream forgotten (wal-ingest stream forget)"


async def forget(whole: Node, client_id: str = "a") -> bool:
    """What the node's command does, over the fake WAL; whether the stream was open."""
    async with whole.streams.kept_out(client_id) as was_open:
        with whole.wal._mutex:
            whole.wal.positions.forget(client_id)
    return was_open


async def test_what_was_sent_is_acked_before_the_close_and_the_client_begins_anew() -> None:
    async with node() as whole:
        client = await whole.stream("client_id=a")
        other = await whole.stream("client_id=b")
        gate = whole.wal.shut()
        await client.send(2**52)
        await whole.wal.waiting.wait()
        await client.send(2**52 + 1)
        await wait_all_tasks_blocked(0.02)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forget, whole)
            await wait_all_tasks_blocked(0.02)
            gate.set()
        assert whole.wal.positions.of("a") is None
        assert [each["number"] for each in await client.acked(2**52 + 1)] == [2**52, 2**52 + 1]
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1013, REASON)
        again, welcome = await whole.welcomed("client_id=a")
        assert (welcome["durable"], welcome["stored"]) == (0, [])
        await again.send(1)
        assert await again.next() == ack(1, seq=3)
        await other.send(1)
        assert await other.next() == ack(1, seq=4)


async def test_no_client_comes_back_under_the_id_before_it_is_forgotten() -> None:
    async with node() as whole:
        client = await whole.stream("client_id=a")
        await client.send(1)
        await client.acked(1)
        async with whole.streams.kept_out("a") as was_open:
            assert was_open
            assert (await client.closed()).reason == REASON
            early = await whole.open("client_id=a")
            closed = await early.closed()
            assert (closed.code, closed.reason) == (1013, REASON)
            assert (await whole.welcomed("client_id=b"))[1]["durable"] == 0
        _client, welcome = await whole.welcomed("client_id=a")
        assert welcome["durable"] == 1


async def test_a_stream_that_is_not_open_is_forgotten_at_once() -> None:
    async with node() as whole:
        assert not await forget(whole)
        assert whole.streams.connected() == []
        await whole.stream("client_id=a")
        assert whole.streams.connected() == ["a"]


async def test_what_cannot_be_answered_in_time_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_LEAVE_S_MAX", 0.05)
    async with node() as whole:
        client = await whole.stream("client_id=a")
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        await client.send(2)
        await wait_all_tasks_blocked(0.02)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forget, whole)
            await trio.sleep(0.1)
            await wait_all_tasks_blocked(0.02)
            gate.set()
        # The append under way landed; what was queued after it must be sent again.
        assert await client.next() == ack(1)
        assert (await client.closed()).reason == REASON
        assert whole.wal.lines == LINE
        assert whole.wal.positions.of("a") is None


async def test_while_the_disk_hangs_with_a_frame_nothing_is_forgotten() -> None:
    async with node() as whole:
        whole.wal.disk_goes_on = disk_goes_on = trio.Event()
        client = await whole.stream("client_id=a")
        await client.send(1)
        assert (await client.next())["status"] == 503
        assert (await client.closed()).code == 1013
        with pytest.raises(ComeBackLater, match="the disk has not finished with a frame of 'a'"):
            await forget(whole)
        disk_goes_on.set()
        await until(lambda: len(whole.wal.appends) == 1)
        whole.wal.disk_goes_on = None
        await forget(whole)
        assert (await whole.welcomed("client_id=a"))[1]["durable"] == 0
