"""Peers on a stream that mean harm, or were cut off: the others are answered, and nothing is left of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.rig import LINE, Peer, until, within
from tests.http.stream.hostility import (
    ATTACKS,
    BOMBS,
    HEADERS,
    STORED_BEHIND,
    WELL_MEANT,
    WELL_MEANT_FRAMES,
    mutations,
)
from tests.http.stream.rig import BINARY, NO_MASK, SUBPROTOCOL, Node, message, node, upgrade, ws
from tests.http.test_hostile import reset
from wal_ingest.settings import KIB, ServerSettings

SETTINGS = ServerSettings(stop_s_max=2.0, body_s_max=5.0)


@asynccontextmanager
async def besieged(node_settings: ServerSettings = SETTINGS) -> AsyncIterator[Node]:
    """A node of which nothing is left at the end; no attack came as far as the last fence, or was a failure of ours."""
    with structlog.testing.capture_logs() as lines:
        async with node(node_settings) as whole:
            yield whole
            await whole.answers_others()
            await until(lambda: whole.is_empty)
    assert [line for line in lines if is_failure(line)] == []


def is_failure(line: MutableMapping[str, Any]) -> bool:
    return line["event"] in ("a connection was dropped", "a request failed") or line["log_level"] == "error"


async def attack(
    whole: Node, data: bytes, *, end: str, subprotocol: str = SUBPROTOCOL, client_id: str = "x"
) -> None:
    """One connection that sends what it likes, and ends one way or another."""
    peer = await whole.server.connect()
    try:
        await peer.send(upgrade(f"/stream?client_id={client_id}", subprotocol=subprotocol))
        assert (await peer.answer(head_only=True)).status == 101
        async with trio.open_nursery() as nursery:
            if end == "reads":
                nursery.start_soon(drained, peer)
            await peer.send(data)
            if end == "reads":
                await peer.stream.send_eof()
    except (trio.BrokenResourceError, EOFError):
        pass
    reset(peer) if end == "resets" else await peer.stream.aclose()


async def drained(peer: Peer) -> None:
    try:
        while await peer.stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_leaves_nothing_behind(name: str) -> None:
    async with besieged() as whole:
        for subprotocol in (SUBPROTOCOL, ""):
            for end in ("reads", "closes", "resets"):
                await attack(whole, ATTACKS[name], end=end, subprotocol=subprotocol)


async def test_attacks_all_at_once_on_one_client_id_leave_nothing_behind() -> None:
    async with besieged() as whole, trio.open_nursery() as nursery:
        for number, data in enumerate(ATTACKS.values()):
            nursery.start_soon(partial(attack, whole, data, end=("closes", "resets")[number % 2]))


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_a_413_and_the_stream_goes_on(name: str) -> None:
    async with besieged() as whole:
        client = await whole.stream()
        for number in (1, 2):
            await client.send(number, body=BOMBS[name], encoding=name.split()[0])
            told = await client.next()
            assert (told["number"], told["status"]) == (number, 413)
            assert whole.budget.held_bytes == 0
        await client.send(3)
        assert (await client.next())["type"] == "ack"
        await client.hang_up()


async def test_every_bad_header_is_answered_and_the_stream_goes_on() -> None:
    async with besieged() as whole:
        client = await whole.stream()
        answered = 0
        for header in HEADERS:
            for data in (header, header + b"\n", header + b"\n" + LINE, header + b"\0"):
                await client.raw(ws(BINARY, data))
                told = await client.next()
                assert told["type"] in ("error", "ack")
                answered += told["type"] == "error"
        assert answered >= 4 * len(HEADERS) - 2
        await client.send(1_000)
        await client.acked(1_000)
        await client.hang_up()


@pytest.mark.parametrize("first", range(3))
async def test_traffic_cut_at_every_byte_stores_just_the_frames_that_were_whole(first: int) -> None:
    ends = list(accumulate(map(len, WELL_MEANT_FRAMES), initial=0))
    async with besieged() as whole:
        for cut in range(first, len(WELL_MEANT) + 1, 3):
            stored = whole.wal.seq
            await attack(whole, WELL_MEANT[:cut], end="reads", client_id=f"cut-{cut}")
            await until(lambda: whole.is_empty)
            assert whole.wal.seq - stored == STORED_BEHIND[bisect_right(ends, cut) - 1]


async def test_a_handshake_cut_at_every_byte_leaves_nothing_behind() -> None:
    head = upgrade()
    async with besieged() as whole:
        for cut in range(len(head)):
            peer = await whole.server.connect()
            await peer.send(head[:cut])
            reset(peer) if cut % 2 else await peer.stream.aclose()
        assert whole.wal.seq == 0


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_traffic_leaves_nothing_behind(seed: int) -> None:
    async with besieged() as whole:
        for number, data in enumerate(mutations(seed, 60)):
            await attack(whole, data, end=("closes", "resets", "reads")[number % 3])


frames = st.builds(
    ws,
    st.integers(0, 15),
    st.one_of(st.binary(max_size=130), st.sampled_from([message(1), message(2), b'{"number":3}\nm v=1'])),
    fin=st.booleans(),
    reserved=st.sampled_from([0, 0, 0, 0, 1, 2, 4]),
    mask=st.sampled_from([b"abcd", b"abcd", b"\0\0\0\0", None]),
    length=st.one_of(st.none(), st.none(), st.integers(0, 2**20)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(frames, max_size=8), st.sampled_from(["reads", "closes", "resets"]))
async def test_whatever_frames_there_are_nothing_is_left_behind(sent: list[bytes], end: str) -> None:
    async with besieged() as whole:
        await attack(whole, b"".join(sent), end=end)


async def test_a_message_without_an_end_costs_no_more_than_the_limit() -> None:
    async with besieged(ServerSettings(body_bytes_max=64 * KIB, stop_s_max=2.0)) as whole:
        client = await whole.stream()
        held: list[int] = []
        await client.raw(ws(BINARY, b"{", fin=False))

        async def send_for_ever() -> None:
            while True:
                await client.raw(ws(0, b"x" * 1_000, fin=False, mask=NO_MASK) * 10)
                held.append(whole.budget.held_bytes)

        with pytest.raises(trio.BrokenResourceError), trio.fail_after(3):
            await send_for_ever()
        assert 0 < max(held) <= 66 * KIB


async def test_hundreds_of_connections_that_never_finish_a_frame_are_given_up() -> None:
    async with besieged(ServerSettings(body_s_max=0.5, stop_s_max=2.0)) as whole:
        for _ in range(200):
            client = await whole.stream()
            await client.raw(ws(BINARY, message(1, LINE * 20))[:-1])
        await until(lambda: whole.budget.held_bytes > 0)
        with within(3):
            await until(lambda: whole.is_empty)
