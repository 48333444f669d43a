"""Frames that stop short take no memory from others, and delay no acks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.rig import LINE, post, until, within
from tests.http.stream.rig import (
    BINARY,
    CONTINUATION,
    NO_MASK,
    Client,
    Closed,
    Node,
    frame,
    message,
    node,
    ws,
)
from tests.http.stream.test_session import Refusals, ack
from wal_ingest.http import body
from wal_ingest.http.body import BodyBudget, Hold, TooManyBodies
from wal_ingest.settings import KIB, MIB, ServerSettings

SETTINGS = ServerSettings(body_bytes_max=MIB, bodies_bytes_max=12 * MIB, stop_s_max=2.0)
# One byte is missing.
SHORT = frame(1, (LINE * (MIB // len(LINE)))[: MIB - 1])[:-1]


async def stops_short(whole: Node, data: bytes = SHORT) -> Client:
    client = await whole.stream()
    held = whole.budget.held_bytes
    await client.raw(data)
    await until(
        lambda: whole.budget.held_bytes >= min(held + MIB - KIB, SETTINGS.bodies_bytes_max // 3 - MIB)
    )
    return client


async def told(client: Client) -> str:
    """The reason of the close, whatever is said before it."""
    while True:
        try:
            await client.next()
        except Closed as closed:
            return f"{closed.code}: {closed.reason}"


def budget(now_s: Callable[[], float]) -> BodyBudget:
    return BodyBudget(SETTINGS.bodies_bytes_max, monotonic_s=now_s)


async def acks_at_once(client: Client, number: int) -> None:
    with within(1):
        await client.send(number)
        assert (await client.next())["number"] == number


async def test_one_source_holds_at_most_a_third_with_frames_that_are_not_whole_and_neighbours_are_acked() -> (
    None
):
    held = budget(lambda: 0.0)
    async with node(SETTINGS, budget=held) as whole:
        neighbour = await whole.stream("client_id=neighbour")
        clients = []
        for _ in range(8):
            client = await whole.stream()
            await client.raw(SHORT)
            await wait_all_tasks_blocked(0.05)
            clients.append(client)
            await acks_at_once(neighbour, len(clients))
        assert 3 * MIB < held.held_bytes <= SETTINGS.bodies_bytes_max // 3
        # For them that have no share left it is said at once, and a good frame of one of the others is taken.
        reasons = [await told(client) for client in clients[4:]]
        assert all("too many bodies are being read" in reason for reason in reasons), reasons
        await clients[0].raw(SHORT[-1:])
        other = Hold(held, "10.0.0.1")
        other.take(SETTINGS.bodies_bytes_max // 3)
        other.release()


async def test_a_stalled_frame_is_dropped_for_others_of_its_source_and_its_client_is_notified() -> None:
    now_s = 0.0
    held = budget(lambda: now_s)
    async with node(SETTINGS, budget=held) as whole:
        stalled = [await stops_short(whole) for _ in range(4)]
        now_s = 1.5
        client = await whole.stream()
        await client.raw(SHORT)
        told_of = await told(stalled[0])
        assert (
            told_of
            == "1013: retry after 1 s: the frame stalled while others had no room (server.bodies_bytes_max)"
        )
        await client.raw(b"x" + frame(2))
        assert (await client.next())["type"] in ("ack", "error")
        await whole.answers_others()


async def test_waiting_streams_are_served_once_the_bodies_that_take_the_room_have_stalled() -> None:
    """They are of several sources here, so no share keeps them to a third."""
    now_s = 0.0
    held = budget(lambda: now_s)
    async with node(SETTINGS, budget=held) as whole:
        neighbour = await whole.stream("client_id=neighbour")
        await acks_at_once(neighbour, 1)
        peers = []
        for _ in range(3):
            peer = await whole.server.connect()
            await peer.send(post("/write", bytes(MIB - 1) + b"x")[:-1])
            peers.append(peer)
        await until(lambda: held.held_bytes > 2 * MIB)
        others = Hold(held, "10.0.0.1")
        others.take(4 * MIB)
        assert not held.has_room
        # This was waited for before the room was lost; the next one has to wait for it.
        await acks_at_once(neighbour, 2)
        await neighbour.send(3)
        await wait_all_tasks_blocked(0.1)
        assert len(whole.wal.appends) == 2
        now_s = 2.0
        with within(3):
            assert (await neighbour.next())["number"] == 3
        await acks_at_once(neighbour, 4)
        others.release()


async def test_only_frames_that_are_not_whole_count_for_their_source() -> None:
    settings = ServerSettings(bodies_bytes_max=2 * MIB, body_bytes_max=MIB, stop_s_max=2.0)
    async with node(settings) as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        lines = LINE * (300 * KIB // len(LINE))
        for number in range(1, 6):
            data = message(number, lines)
            half = len(data) // 2
            await client.raw(ws(BINARY, data[:half], fin=False, mask=NO_MASK))
            await client.raw(ws(CONTINUATION, data[half:], mask=NO_MASK))
        await until(lambda: whole.budget.held_bytes > MIB)
        gate.set()
        await client.acked(5)


@pytest.mark.parametrize(
    ("first_bytes", "rate", "code"), [(MIB // 2, 1 << 20, 1008), (1_000, 1 << 20, 0), (MIB // 2, 0, 0)]
)
async def test_a_large_frame_has_a_least_rate_and_a_small_one_may_take_its_time(
    first_bytes: int, rate: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "_PACE_S", 0.2)
    seen = Refusals()
    settings = ServerSettings(body_bytes_per_s_min=rate, stop_s_max=2.0)
    async with node(settings, observer=seen) as whole:
        client = await whole.stream()
        neighbour = await whole.stream()
        whole_frame = frame(1, LINE * (MIB // len(LINE)))
        await client.raw(whole_frame[:first_bytes])
        await trio.sleep(0.6)
        await acks_at_once(neighbour, 1)
        if code:
            assert await told(client) == (
                "1008: the frame arrived at less than 1048576 bytes a second (server.body_bytes_per_s_min)"
            )
            assert seen.reasons == [("/stream", "too_slow")]
        else:
            await client.raw(whole_frame[first_bytes:])
            assert (await client.next())["number"] == 1
        await until(partial(_is_free, whole))


def _is_free(whole: Node) -> bool:
    return whole.budget.held_bytes == 0


async def test_who_waits_for_room_hands_the_watch_over_when_it_leaves() -> None:
    now_s = 0.0
    held = BodyBudget(8 * MIB, monotonic_s=lambda: now_s)
    body_of_others = Hold(held, "a")
    body_of_others.take(5 * MIB)
    held.arrived_in_part(body_of_others)
    done = []

    async def waits(name: str, scope: trio.CancelScope) -> None:
        with scope:
            await held.room()
            done.append(name)

    scopes = {name: trio.CancelScope() for name in ("first", "second", "third")}
    async with trio.open_nursery() as nursery:
        for name, scope in scopes.items():
            nursery.start_soon(waits, name, scope)
            await wait_all_tasks_blocked()  # so that the first one watches
        scopes["first"].cancel()
        await wait_all_tasks_blocked()
        assert done == []
        now_s = 1.5
        await until(lambda: len(done) == 2)
    assert body_of_others.was_dropped
    assert held.held_bytes == 0
    with pytest.raises(TooManyBodies):
        Hold(held, "a").take(9 * MIB)


async def test_a_frame_that_ends_with_its_connection_leaves_nothing() -> None:
    async with node(SETTINGS) as whole:
        client = await stops_short(whole)
        await client.peer.stream.aclose()
        await until(partial(_is_free, whole))
        assert whole.budget._arriving == {}
        other = await whole.stream()
        await other.send(1)
        assert await other.next() == ack(1)
