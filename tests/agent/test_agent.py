"""The agent as a whole: rounds go into the spool whatever the node does, and the end is orderly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import structlog.testing
import trio

from wal_ingest.agent.agent import Agent, Tally, own_probe
from wal_ingest.agent.collect import Collector
from wal_ingest.agent.readings import Reading
from wal_ingest.agent.rounds import phase_ns
from wal_ingest.agent.spool import SPOOL_BYTES_MIN, Spool
from wal_ingest.errors import StorageFailed, WalFull

INTERVAL_NS = 20_000_000


class Rig:
    """An agent that measures one figure, with a courier of the test's own; `measured` counts its rounds."""

    def __init__(self, directory: Path, courier: Callable[[], Awaitable[None]] = trio.sleep_forever) -> None:
        self.spool = Spool(directory, bytes_max=SPOOL_BYTES_MIN, now_ns=time.time_ns)
        self.tally = Tally()
        self.ready = trio.Event()
        self.measured = 0
        self.finds: Sequence[Reading] = [Reading("m", {"a": 1})]
        self.agent = Agent(
            self.spool,
            Collector({"m": self.probe, "agent": own_probe(self.spool, self.tally)}, {"host": "web-17"}),
            courier,
            host="web-17",
            interval_ns=INTERVAL_NS,
            tally=self.tally,
            now_ns=time.time_ns,
            ready=self.ready.set,
        )

    def probe(self) -> Sequence[Reading]:
        self.measured += 1
        return self.finds

    async def settle_all(self) -> None:
        """A node that takes everything."""
        while True:
            await self.spool.settle(await self.spool.wait_read(self.spool.settled_seq))


async def ran(main: Callable[[], Awaitable[int]], spool: Spool) -> int:
    try:
        with trio.fail_after(20):
            return await main()
    finally:
        spool.close()


async def after_rounds(rig: Rig, count: int, then: Callable[[], object]) -> None:
    await rig.ready.wait()
    seq = rig.spool.last_seq
    while rig.spool.last_seq < seq + count:
        await rig.spool.wait_read(rig.spool.last_seq)
    then()


async def test_rounds_are_on_the_hosts_grid_and_the_end_keeps_what_the_node_does_not_have(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    with structlog.testing.capture_logs() as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after_rounds, rig, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
            assert await ran(rig.agent.run, rig.spool) == 0
    again = Rig(tmp_path)
    entries = await again.spool.read(0)
    again.spool.close()
    assert len(entries) >= 5
    times_ns = [int(line.rpartition(b" ")[2]) for entry in entries for line in entry.lines().splitlines()]
    on_grid = [time_ns % INTERVAL_NS == phase_ns("web-17", INTERVAL_NS) for time_ns in times_ns]
    # A machine that is busy may be late for one; then the time is the true one.
    assert sum(on_grid) >= len(on_grid) // 2
    assert times_ns == sorted(times_ns)
    assert [entry["event"] for entry in told] == ["stopping", "stopped"]
    assert told[-1]["waiting_points"] == 2 * len(entries)


async def test_what_the_node_takes_in_time_is_delivered_before_the_end(tmp_path: Path) -> None:
    began_s = trio.current_time()
    rig = Rig(tmp_path)
    rig.agent._courier = rig.settle_all
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after_rounds, rig, 3, lambda: rig.agent.stop("test"))
        assert await ran(rig.agent.run, rig.spool) == 0
    assert rig.spool.settled_seq == rig.spool.last_seq >= 3
    assert trio.current_time() - began_s < 2


async def test_one_round_is_delivered_and_that_is_all(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.agent._courier = rig.settle_all
    assert await ran(rig.agent.run_once, rig.spool) == 0
    assert (rig.measured, rig.spool.settled_seq) == (1, 1)


async def test_one_round_that_nobody_takes_waits_in_the_spool(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    with structlog.testing.capture_logs() as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after_rounds, rig, 1, lambda: rig.agent.stop("test"))
            assert await ran(rig.agent.run_once, rig.spool) == 1
    assert rig.spool.last_seq == 1
    assert "not delivered; it waits in the spool" in [entry["event"] for entry in told]


async def test_a_host_of_which_nothing_can_be_read_is_a_failure_of_the_one_round(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.agent._collector = Collector({}, {})
    assert await ran(rig.agent.run_once, rig.spool) == 1
    assert rig.spool.last_seq == 0


async def test_a_full_spool_misses_rounds_says_so_once_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    append = rig.spool.append
    attempts = 0

    async def full_at_first(lines: Sequence[str]) -> int:
        nonlocal attempts
        attempts += 1
        if attempts in (2, 3, 4):
            raise WalFull("the spool has 7 bytes")
        return await append(lines)

    monkeypatch.setattr(rig.spool, "append", full_at_first)
    with structlog.testing.capture_logs() as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(after_rounds, rig, 3, lambda: rig.agent.stop("test"))
            assert await ran(rig.agent.run, rig.spool) == 0
    assert [entry["event"] for entry in told if entry["log_level"] != "info"] == [
        "rounds are missed: the spool takes no more",
        "rounds are kept again",
    ]
    assert rig.tally.missed == 3
    again = Rig(tmp_path)
    lines = b"".join(entry.lines() for entry in await again.spool.read(0))
    again.spool.close()
    assert b"rounds_missed=3i" in lines


async def test_a_disk_that_fails_ends_the_agent_as_an_operators_matter(tmp_path: Path) -> None:
    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise StorageFailed(tmp_path / "state.lmdb", "Input/output error")

    rig = Rig(tmp_path, fails)
    with pytest.raises(StorageFailed, match="Input/output error"):
        await ran(rig.agent.run, rig.spool)


async def test_the_agent_measures_itself(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tally.missed = 3
    [reading] = own_probe(rig.spool, rig.tally)()
    assert reading.measurement == "agent"
    assert reading.fields["waiting_points"] == 0
    assert reading.fields["rounds_missed"] == 3
    rig.spool.close()


async def test_a_node_that_takes_nothing_for_too_long_ends_the_agent_with_1_and_everything_is_kept(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.agent._give_up_s = 0.2
    rig.agent._reason = lambda: "node: Connection refused"
    with structlog.testing.capture_logs() as told:
        assert await ran(rig.agent.run, rig.spool) == 1
    [gave_up] = [entry for entry in told if entry["event"].startswith("gave up")]
    assert (gave_up["after_s"], gave_up["reason"]) == (0.2, "node: Connection refused")
    assert gave_up["waiting_points"] > 0
    assert rig.spool.settled_seq == 0
    assert rig.spool.last_seq >= 1


async def test_a_node_that_takes_what_there_is_is_never_given_up(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.agent._courier = rig.settle_all
    rig.agent._give_up_s = 5.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(after_rounds, rig, 5, lambda: rig.agent.stop("test"))
        assert await ran(rig.agent.run, rig.spool) == 0
