"""Large bodies: one in memory at a time, sources take turns, and a thread rests while others are served."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import TypeVar

import pytest
import trio
import trio.testing

from tests.http.rig import within
from wal_ingest.errors import BodyTooLarge
from wal_ingest.http.body import BodyBudget, Hold, TooManyBodies
from wal_ingest.http.check import LINES_BYTES_MAX, Reading
from wal_ingest.http.checking import LARGE_BYTES, Checker
from wal_ingest.http.lanes import Lane
from wal_ingest.http.requests import Format
from wal_ingest.settings import MIB, ServerSettings

T = TypeVar("T")
NOW_NS = 1_763_800_000_000_000_000
READING = Reading(Format.LINE_PROTOCOL)


async def test_sources_take_turns_and_none_has_two_places() -> None:
    lane = Lane(2, waiting_max=10)
    order: list[str] = []

    async def body(source: str) -> None:
        await lane.enter(source)
        order.append(source)

    await lane.enter("a")
    async with trio.open_nursery() as nursery:
        for source in ("a", "a", "a", "b", "c"):
            nursery.start_soon(body, source)
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["b"]
        for leaving in ("a", "b", "a", "c", "a"):
            lane.leave(leaving)
            await trio.testing.wait_all_tasks_blocked()
    assert order == ["b", "a", "c", "a", "a"]
    lane.leave("a")
    for source in ("x", "y"):
        await lane.enter(source)


async def test_of_one_source_only_so_many_wait() -> None:
    lane = Lane(1, waiting_max=1)
    await lane.enter("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lane.enter, "a")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(TooManyBodies):
            await lane.enter("a")
        lane.leave("a")


async def test_one_that_gives_up_waiting_takes_no_place() -> None:
    lane = Lane(1, waiting_max=1)
    await lane.enter("a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await lane.enter("b")
    assert scope.cancelled_caught
    lane.leave("a")
    with within(1):
        await lane.enter("c")


async def inline(work: Callable[[], T], /) -> T:
    await trio.lowlevel.checkpoint()
    return work()


def hold_of(source: str) -> Hold:
    return Hold(BodyBudget(256 * MIB), source)


async def test_a_second_large_body_is_decoded_when_the_first_is_released() -> None:
    checker = Checker(ServerSettings(), inline)
    packed = gzip.compress(b"m v=1 1763800000000000000\n" * (2 * LARGE_BYTES // 26))
    first, second = hold_of("a"), hold_of("b")
    await checker.decode(packed, "gzip", first)
    with trio.move_on_after(0) as scope:
        await checker.decode(packed, "gzip", second)
    assert scope.cancelled_caught
    assert second.bytes == 0
    # Usual ones go past it.
    await checker.decode(gzip.compress(bytes(LARGE_BYTES // 2)), "gzip", hold_of("a"))
    first.release()
    assert len(await checker.decode(packed, "gzip", second)) > LARGE_BYTES
    second.release()


async def test_a_thread_rests_while_others_are_served_and_only_then() -> None:
    rests: list[float] = []
    now_s = 0.0
    checker = Checker(ServerSettings(), inline, monotonic_s=lambda: now_s, rest=rests.append)
    large = b"m v=1\n" * 50_000
    await checker.check(large, READING, now_ns=NOW_NS, hold=hold_of("a"))
    assert not rests
    await checker.check(b"m v=1\n", READING, now_ns=NOW_NS, hold=hold_of("b"))
    await checker.check(large, READING, now_ns=NOW_NS, hold=hold_of("a"))
    rested = len(rests)
    assert rested >= len(large) // (64 * 1024)
    assert all(rest >= 0 for rest in rests)
    now_s = 1.0
    await checker.check(large, READING, now_ns=NOW_NS, hold=hold_of("a"))
    assert len(rests) == rested


async def test_points_that_take_too_much_room_as_lines_are_refused() -> None:
    checker = Checker(ServerSettings(), inline)
    line = b"m v=1\n"
    body = line * (LINES_BYTES_MAX // len(line + b" 1763800000000000000") + MIB // len(line))
    hold = hold_of("a")
    with pytest.raises(BodyTooLarge, match=r"twice server\.body_bytes_max"):
        await checker.check(body, Reading(Format.LINE_PROTOCOL), now_ns=NOW_NS, hold=hold)
    hold.release()
