"""A sink's life in the node: paused, resumed, amended between two deliveries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import trio

from tests.flusher.fake_sink import FakeSink
from tests.flusher.rig import SETTINGS
from tests.flusher.twins import MemoryLog, now_ns
from tests.wal.factories import open_store
from wal_ingest.errors import OperatorNeeded
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.outcome import Misconfigured
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress, SinkState
from wal_ingest.service.sinks import SinkRunner, sink_makers
from wal_ingest.settings import ArchiveSettings, InfluxDBSettings, Settings
from wal_ingest.wal.store import Store


class Rig:
    """A runner over a log in memory and a real state file. Every sink it makes writes to the same place."""

    def __init__(self, directory: Path) -> None:
        self.store: Store = open_store(directory)
        self.log = MemoryLog()
        self.sinks: list[FakeSink] = []
        self.required = True
        self.opening: Exception | None = None
        self.kept: list[bytes] = []
        self.confirmed = trio.Event()
        self.runner = SinkRunner(self._sink, self._delivery, self.store, now_ns=now_ns)

    def _sink(self) -> FakeSink:
        sink = FakeSink(required=self.required)
        sink.confirmed = self.kept
        sink.opening = self.opening
        self.sinks.append(sink)
        return sink

    def _delivery(self, sink: Sink, progress: Progress) -> Delivery:
        return Delivery(
            sink,
            self.log,
            self.store,
            SETTINGS,
            run_sync=trio.to_thread.run_sync,
            now_ns=now_ns,
            rng=Random(7),
            confirmed=lambda _name: self.confirmed.set(),
            progress=progress,
        )

    async def reached(self, seq: int) -> None:
        """Returns when the durable cursor is at `seq`."""
        while self.store.cursor("fake").seq < seq:
            self.confirmed = trio.Event()
            if self.store.cursor("fake").seq < seq:
                await self.confirmed.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SinkRunner]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.runner.run)
            yield self.runner
            self.runner.stop()
        self.store.close()


async def test_a_paused_sink_gets_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as runner:
        rig.log.append(10)
        await rig.reached(1)
        await runner.pause()
        assert runner.status().state is SinkState.PAUSED
        assert rig.sinks[0].closed == 1
        rig.log.append(10)
        await trio.testing.wait_all_tasks_blocked()
        assert rig.store.cursor("fake").seq == 1
        await runner.resume()
        await rig.reached(2)
        assert runner.status().state in (SinkState.DELIVERING, SinkState.IDLE)
        assert runner.status().confirmed_points == 20
    assert rig.kept == rig.log.all_lines()


async def test_a_pause_outlives_the_node(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as runner:
        await runner.pause()
    again = Rig(tmp_path)
    again.log.append(10)
    async with again.running() as runner:
        assert runner.status().state is SinkState.PAUSED
        await trio.testing.wait_all_tasks_blocked()
        assert again.kept == []
        await runner.resume()
        await again.reached(1)


async def test_an_amendment_is_made_between_two_deliveries_and_the_next_goes_on_from_it(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    gate = trio.Event()

    async def hold(_lines: list[bytes]) -> None:
        await gate.wait()

    rig.sinks[0].answer = lambda lines: hold(lines)
    async with rig.running() as runner:
        rig.log.append(10)
        await rig.sinks[0].wrote(1)
        seen: list[int] = []

        def change() -> str:
            seen.append(rig.sinks[0].in_flight)
            cursor = rig.store.cursor("fake").expired_to(seq=2, points_after=20)
            rig.store.commit_cursor("fake", cursor)
            return "done"

        rig.log.append(10)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def amend() -> None:
                assert await runner.amend(change) == "done"

            await trio.testing.wait_all_tasks_blocked()
            assert seen == []  # the write under way is waited for
            gate.set()
        assert seen == [0]
        rig.log.append(10)
        await rig.reached(3)
    assert rig.kept == [
        *rig.log.entries[0].lines().splitlines(True),
        *rig.log.entries[2].lines().splitlines(True),
    ]


async def test_an_amendment_leaves_a_paused_sink_paused(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as runner:
        await runner.pause()
        assert await runner.amend(lambda: 7) == 7
        rig.log.append(10)
        await trio.testing.wait_all_tasks_blocked()
        assert runner.status().state is SinkState.PAUSED
    assert rig.kept == []


async def test_a_sink_for_which_all_was_given_up_is_in_trouble_no_more(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.sinks[0].answer = lambda _lines: Misconfigured("unauthorized", 401)
    async with rig.running() as runner:
        rig.log.append(10)
        while runner.status().state is not SinkState.HOLDING:
            await trio.testing.wait_all_tasks_blocked()

        def give_up() -> None:
            rig.store.commit_cursor("fake", rig.store.cursor("fake").expired_to(seq=1, points_after=10))

        await runner.amend(give_up)
        await trio.testing.wait_all_tasks_blocked()
        assert runner.status().state is SinkState.IDLE
    assert rig.kept == []


async def test_an_optional_sink_that_broke_down_is_tried_again_when_an_operator_resumes_it(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.required, rig.opening = False, OperatorNeeded("its folder is gone")
    rig.runner = SinkRunner(rig._sink, rig._delivery, rig.store, now_ns=now_ns)
    async with rig.running() as runner:
        rig.log.append(10)
        while runner.status().state is not SinkState.FAILED:
            await trio.testing.wait_all_tasks_blocked()
        assert runner.status().last_error == "its folder is gone"
        rig.opening = None
        rig.sinks[-1].opening = None
        await runner.resume()
        await rig.reached(1)
    assert rig.kept == rig.log.all_lines()


async def test_a_stop_ends_a_paused_sink_too(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with rig.running() as runner:
        await runner.pause()
    assert runner.status().in_flight == 0


def test_the_archive_is_on_where_nothing_else_is(tmp_path: Path) -> None:
    influxdb = InfluxDBSettings(url="http://127.0.0.1:1", bucket="b")
    assert list(sink_makers(Settings(), tmp_path)) == ["archive"]
    assert list(sink_makers(Settings(influxdb=influxdb), tmp_path)) == ["influxdb"]
    both = Settings(influxdb=influxdb, archive=ArchiveSettings(enabled="on"))
    assert [make().name for make in sink_makers(both, tmp_path).values()] == ["influxdb", "archive"]
