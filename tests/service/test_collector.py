"""When garbage is collected."""

from __future__ import annotations

import gc

import trio
import trio.testing

from wal_ingest.service.collector import Collector


class Interpreter:
    """Counts what is asked of it."""

    def __init__(self, blocks: int = 1_000_000) -> None:
        self.blocks = blocks
        self.made = 999
        self.collected: list[int] = []

    def collector(self) -> Collector:
        return Collector(collect=self.collected.append, made=lambda: self.made, blocks=lambda: self.blocks)


async def test_what_is_new_is_looked_through_ten_times_a_second(
    autojump_clock: trio.testing.MockClock,
) -> None:
    interpreter = Interpreter()
    with trio.move_on_after(3.05):
        await interpreter.collector().run()
    assert interpreter.collected == [2] + [0] * 30


async def test_everything_is_looked_through_when_memory_has_more_than_doubled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    interpreter = Interpreter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interpreter.collector().run)
        await trio.sleep(2.05)
        interpreter.blocks = 4_000_000
        await trio.sleep(2)
        assert interpreter.collected.count(2) == 1
        interpreter.blocks += 1
        await trio.sleep(2)
        assert interpreter.collected.count(2) == 2
        nursery.cancel_scope.cancel()


async def test_what_came_since_the_last_look_is_looked_through_when_it_is_a_good_deal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    interpreter = Interpreter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interpreter.collector().run)
        await trio.sleep(2.05)
        for _ in range(3):
            interpreter.blocks += 500_000
            await trio.sleep(2)
            assert 1 not in interpreter.collected
            interpreter.blocks += 1
            await trio.sleep(2)
            assert interpreter.collected.count(1) == 1
            interpreter.collected.clear()
        nursery.cancel_scope.cancel()


async def test_what_a_burst_makes_is_looked_through_at_once(autojump_clock: trio.testing.MockClock) -> None:
    interpreter = Interpreter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interpreter.collector().run)
        await trio.sleep(0.55)
        interpreter.made = 1_000
        interpreter.blocks += 400_000
        await trio.sleep(0.3)
        interpreter.made = 0
        interpreter.collected.clear()
        # Its looks count: from the last of them on memory may grow by as much again.
        interpreter.blocks += 499_999
        await trio.sleep(2)
        assert interpreter.collected == [0] * 20
        nursery.cancel_scope.cancel()


async def test_what_has_gone_makes_no_room_for_more_than_it_was(
    autojump_clock: trio.testing.MockClock,
) -> None:
    interpreter = Interpreter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interpreter.collector().run)
        for blocks in (4_000_001, 1_000_000):
            interpreter.blocks = blocks
            await trio.sleep(2.05)
        interpreter.collected.clear()
        interpreter.blocks = 1_500_001
        await trio.sleep(2)
        assert interpreter.collected.count(1) == 1
        interpreter.blocks = 4_000_001
        await trio.sleep(2)
        assert interpreter.collected.count(2) == 1
        nursery.cancel_scope.cancel()


async def test_what_is_new_is_looked_through_every_ten_minutes_however_little_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    interpreter = Interpreter()
    with trio.move_on_after(1_250):
        await interpreter.collector().run()
    assert interpreter.collected.count(1) == 2


async def test_behind_it_the_interpreter_is_left_to_itself_again() -> None:
    before = gc.get_threshold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Collector().run)
        await trio.testing.wait_all_tasks_blocked()
        assert gc.get_threshold() != before
        nursery.cancel_scope.cancel()
    gc.unfreeze()
    assert gc.get_threshold() == before


async def test_garbage_of_real_life_is_found() -> None:
    class Knot:
        def __init__(self) -> None:
            self.me = self

    collector = Collector()
    Knot()
    collector.tick()
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Knot)]


async def test_what_lives_after_a_burst_of_real_life_is_out_of_the_way() -> None:
    gc.collect(1)
    gc.disable()
    try:
        kept: list[list[int]] = [[] for _ in range(2_000)]
        Collector().tick()
        assert any(each is kept for each in gc.get_objects(generation=2))
    finally:
        gc.enable()
