"""Bodies that stop short take no memory from others: shares, a least rate, and stalled ones give way."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.http.rig import LINE, Peer, front, post, running, until, within
from wal_ingest.errors import BodyTooSlow
from wal_ingest.http.body import BodyBudget, Hold, TooManyBodies, read_body
from wal_ingest.settings import KIB, MIB, ServerSettings


async def read(pieces: list[tuple[float, int]], hold: Hold, rate: int = 1024) -> bytes:
    """Reads a body whose pieces come after so many seconds each; the last is the end."""
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        wait_s, count = left.pop(0)
        await trio.sleep(wait_s)
        return {"type": "http.request", "body": bytes(count), "more_body": bool(left)}

    return await read_body(receive, hold, bytes_max=32 * MIB, body_s_max=30, bytes_per_s_min=rate)


@pytest.mark.parametrize(
    ("pieces", "ends_at_s"),
    [
        ([(0, MIB), (20, 1)], 10.0),
        ([(0, MIB), *[(1.0, 500)] * 25], 10.0),
        ([(0, MIB), (9, 10 * KIB), (11, 1)], 19.0),
    ],
)
async def test_a_large_body_below_the_least_rate_is_refused(
    autojump_clock: trio.testing.MockClock, pieces: list[tuple[float, int]], ends_at_s: float
) -> None:
    began_s = trio.current_time()
    with pytest.raises(BodyTooSlow, match="body_bytes_per_s_min"):
        await read(pieces, Hold(BodyBudget(64 * MIB)))
    # A large body is read a little later than it comes.
    assert trio.current_time() - began_s == pytest.approx(ends_at_s, abs=0.01)


@pytest.mark.parametrize(
    ("pieces", "rate"),
    [
        ([(0, 1_000), (29, 1)], 1024),
        ([(29, MIB)], 1024),
        ([(0, MIB), (9, 10 * KIB), (9, 10 * KIB), (9, 1)], 1024),
        ([(0, MIB), (29, 1)], 0),
    ],
)
async def test_a_small_body_and_one_at_the_least_rate_may_take_their_time(
    autojump_clock: trio.testing.MockClock, pieces: list[tuple[float, int]], rate: int
) -> None:
    hold = Hold(BodyBudget(64 * MIB))
    assert len(await read(pieces, hold, rate)) == sum(count for _, count in pieces)


def test_one_source_with_several_bodies_holds_at_most_a_third() -> None:
    budget = BodyBudget(9 * MIB)
    holds = [Hold(budget, "a") for _ in range(3)]
    holds[0].take(2 * MIB)
    holds[1].take(MIB)
    with pytest.raises(TooManyBodies):
        holds[2].take(1)
    other = Hold(budget, "b")
    other.take(3 * MIB)
    holds[0].release()
    holds[2].take(MIB)
    for hold in (*holds, other):
        hold.release()
    assert budget.held_bytes == 0
    # A single body may be as large as the settings allow.
    holds[0].take(9 * MIB)


async def test_stalled_bodies_do_not_keep_streams_waiting_for_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    budget = BodyBudget(8 * MIB, monotonic_s=trio.current_time)
    for source in "abc":
        hold = Hold(budget, source)
        hold.take(2 * MIB)
        budget.arrived_in_part(hold)
    began_s = trio.current_time()
    await budget.room()
    assert trio.current_time() - began_s <= 2.0


async def test_a_body_that_holds_nothing_gives_way_to_connections_and_not_to_memory() -> None:
    now_s = 0.0
    budget = BodyBudget(MIB, monotonic_s=lambda: now_s)
    nothing, some = Hold(budget, "a"), Hold(budget, "b")
    some.take(MIB)
    for hold in (nothing, some):
        budget.arrived_in_part(hold)
    now_s = 1.5
    Hold(budget, "c").take(MIB)
    assert (nothing.was_dropped, some.was_dropped) == (False, True)
    with pytest.raises(TooManyBodies):
        Hold(budget, "c").take(1)
    assert not nothing.was_dropped
    assert budget.drop_stalled()
    assert nothing.was_dropped
    assert not budget.drop_stalled()


async def test_eight_large_bodies_that_stop_short_hold_up_no_neighbour() -> None:
    settings = ServerSettings(body_bytes_max=MIB, bodies_bytes_max=8 * MIB)
    now_s = 0.0
    budget = BodyBudget(settings.bodies_bytes_max, monotonic_s=lambda: now_s)
    door = front(settings, budget=budget)
    sent = bytes(MIB - 1)

    def holds(count: int) -> bool:
        return budget.held_bytes >= count

    async def stop_short(peer: Peer) -> None:
        await peer.send(post("/write", sent + b"x")[:-1])

    with within(10):
        async with running(door.app, settings) as server:
            for count in range(2):
                await stop_short(await server.connect())
                await until(partial(holds, (count + 1) * len(sent)))
            # The source holds its third; the rest is free for other sources.
            assert budget.held_bytes <= settings.bodies_bytes_max // 3
            with pytest.raises(TooManyBodies):
                Hold(budget, "127.0.0.1").take(MIB)
            other = Hold(budget, "10.0.0.1")
            other.take(settings.bodies_bytes_max // 2)
            other.release()
            # The same source has room too as soon as its other bodies have stalled.
            now_s = 2.0
            neighbour = await server.connect()
            began_s = trio.current_time()
            await neighbour.send(post("/write", LINE * 100))
            assert (await neighbour.answer()).status == 204
            assert trio.current_time() - began_s < 1.0
    assert budget.held_bytes == 0
