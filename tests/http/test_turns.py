"""What thousands do at the same moment is spread over the turns of the scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.rig import front, get, running
from tests.http.turn_count import TurnCount, counting_turns
from wal_ingest.http.hypercorn_mends.crowd import Crowd
from wal_ingest.http.hypercorn_mends.turns import Turns
from wal_ingest.settings import ServerSettings

CONNECTIONS = 300


class Callers:
    """Tasks that call `Turns.wait`; `turns` are those in which they went on."""

    def __init__(self, waits: Turns, count: TurnCount, nursery: trio.Nursery) -> None:
        self.turns: list[int] = []
        self.went_on: list[trio.CancelScope] = []
        self._waits = waits
        self._count = count
        self._nursery = nursery

    def begin(self, count: int) -> list[trio.CancelScope]:
        """So many more, which call at the same moment; what they are cancelled by."""
        scopes = [trio.CancelScope() for _ in range(count)]
        for scope in scopes:
            self._nursery.start_soon(self._call, scope)
        return scopes

    async def _call(self, scope: trio.CancelScope) -> None:
        with scope:
            await self._waits.wait()
            self.turns.append(self._count.turn)
            self.went_on.append(scope)

    @property
    def by_turn(self) -> list[int]:
        """How many went on in each turn in which some did."""
        counted = Counter(self.turns)
        return [counted[turn] for turn in sorted(counted)]


@asynccontextmanager
async def turns_of(at_once: int) -> AsyncIterator[Callers]:
    waits = Turns(at_once)
    with counting_turns() as count:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits.run)
            yield Callers(waits, count, nursery)
            nursery.cancel_scope.cancel()


async def next_turn() -> None:
    """Returns after all tasks that were started just now have run."""
    for _ in range(2):
        await trio.lowlevel.checkpoint()


async def all_blocked() -> None:
    """Waits until nothing is left to do in any turn; fails where that never is."""
    with trio.fail_after(10):
        await wait_all_tasks_blocked()


async def test_of_many_at_once_so_many_go_on_in_a_turn_and_the_others_in_later_ones() -> None:
    async with turns_of(3) as callers:
        callers.begin(10)
        await all_blocked()
        assert callers.by_turn == [3, 3, 3, 1]


@pytest.mark.parametrize(("at_once", "count"), [(1, 5), (8, 8), (8, 9), (8, 1_000)])
async def test_all_get_through_so_many_in_every_other_turn(at_once: int, count: int) -> None:
    async with turns_of(at_once) as callers:
        callers.begin(count)
        await all_blocked()
        assert len(callers.turns) == count
        # Every other one: the loop of `run` has two checkpoints.
        assert max(callers.turns) - min(callers.turns) <= 2 * -(-count // at_once)


@pytest.mark.parametrize("seed", range(20))
async def test_of_those_that_come_all_the_time_no_turn_has_more_than_two_rounds(seed: int) -> None:
    """What is left of one round may be used in the turn in which `run` begins the next, before it does."""
    random = Random(seed)
    async with turns_of(8) as callers:
        begun = 0
        for _ in range(50):
            count = random.randint(0, 16)
            callers.begin(count)
            begun += count
            await trio.lowlevel.checkpoint()
        await all_blocked()
        assert len(callers.turns) == begun
        assert max(callers.by_turn) <= 2 * 8


async def test_callers_within_the_room_of_a_turn_do_not_wait() -> None:
    async with turns_of(3) as callers:
        for _ in range(3):
            await all_blocked()
            before = len(callers.turns)
            callers.begin(3)
            await next_turn()
            assert len(callers.turns) == before + 3


async def test_a_cancelled_caller_takes_no_place() -> None:
    async with turns_of(2) as callers:
        scopes = callers.begin(8)
        await next_turn()
        assert callers.by_turn == [2]
        for scope in [scope for scope in scopes if scope not in callers.went_on][:4]:
            scope.cancel()
        await all_blocked()
        assert callers.by_turn == [2, 2]


async def test_no_turns_are_begun_without_callers() -> None:
    async with turns_of(2) as callers:
        for _ in range(2):
            callers.begin(5)
            await all_blocked()
        assert len(callers.turns) == 10


async def test_a_request_beside_many_ends_is_answered_after_a_few_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = 0
    leave = Crowd.leave

    def counted(*arguments: object) -> None:
        nonlocal ended
        ended += 1
        leave(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Crowd, "leave", counted)
    settings = ServerSettings()
    async with running(front(settings).app, settings) as server:
        good = await server.connect()
        peers = [await server.connect() for _ in range(CONNECTIONS)]
        for peer in (good, *peers):
            await peer.send(get("/healthz"))
            assert (await peer.answer()).status == 200
        await wait_all_tasks_blocked()
        with counting_turns() as count:
            # Without a checkpoint: the server finds all of it in one turn.
            for peer in peers:
                peer.stream.socket.close()
            await good.send(get("/healthz"))
            assert (await good.answer()).status == 200
            turns, ended_before = count.turn, ended
            with trio.fail_after(10):
                while ended < CONNECTIONS:
                    await trio.lowlevel.checkpoint()
            turns_of_all = count.turn
    print(f"answered after {turns} turns and {ended_before} ends; all had ended after {turns_of_all} turns")
    assert turns <= 20
    assert ended_before < CONNECTIONS / 2
    assert turns_of_all >= CONNECTIONS // 8
