"""A large body is read in large pieces: after each read the reader lets more arrive. Small ones never wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.http.rig import LINE, front, post, running
from wal_ingest.errors import BodyTooSlow
from wal_ingest.http import body as body_module
from wal_ingest.http.body import BodyBudget, Hold, TooManyBodies, read_body, unhurried
from wal_ingest.http.hypercorn_mends import LARGE_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX
from wal_ingest.settings import KIB, MIB

FROM_BYTES = 256 * KIB
WAIT_S = body_module._UNHURRIED_S


class Body:
    """A body that is read, from pieces that are there at once."""

    def __init__(self, pieces: Sequence[int], *, s_max: float = 30.0, bytes_per_s_min: int = 0) -> None:
        self.hold = Hold(BodyBudget(64 * MIB))
        self.reads = 0
        self.result: bytes | Exception | None = None
        self._left = list(pieces)
        self._s_max = s_max
        self._bytes_per_s_min = bytes_per_s_min

    async def _receive(self) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        piece = bytes(self._left.pop(0))
        return {"type": "http.request", "body": piece, "more_body": bool(self._left)}

    async def read(self) -> None:
        try:
            self.result = await read_body(
                self._receive,
                self.hold,
                bytes_max=32 * MIB,
                body_s_max=self._s_max,
                bytes_per_s_min=self._bytes_per_s_min,
            )
        except (BodyTooSlow, TooManyBodies) as exc:
            self.result = exc


@pytest.mark.parametrize("pieces", [[100], [64 * KIB] * 4, [FROM_BYTES - 2, 1, 1], [1] * 1_000, [32 * MIB]])
async def test_a_body_below_256_kib_and_one_that_is_there_whole_never_wait(
    mock_clock: MockClock, pieces: list[int]
) -> None:
    # The clock stands still: a wait would never end.
    body = Body(pieces)
    with trio.move_on_after(0):
        await unhurried(FROM_BYTES - 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.read)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert body.result == bytes(sum(pieces))


async def test_from_256_kib_on_each_read_is_followed_by_a_wait(mock_clock: MockClock) -> None:
    body = Body([128 * KIB] * 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.read)
        for reads in (2, 3, 4):
            await wait_all_tasks_blocked()
            assert (body.reads, body.result) == (reads, None)
            mock_clock.jump(WAIT_S)
        await wait_all_tasks_blocked()
        # Nothing follows the last piece, so nothing waits for it.
        assert body.result == bytes(640 * KIB)


async def test_a_connection_still_brings_128_mib_a_second(autojump_clock: MockClock) -> None:
    body = Body([LARGE_RECEIVE_BYTES_MAX] * 64)
    began_s = trio.current_time()
    await body.read()
    assert body.result == bytes(32 * MIB)
    assert trio.current_time() - began_s == pytest.approx(0.25, rel=0.02)


async def sizes_read(request: bytes, rest: bytes, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each read of a connection asked for, while a request and a second one came on it."""
    asked: list[int] = []
    original = trio.SocketStream.receive_some

    async def receive_some(stream: trio.SocketStream, bytes_max: int | None = None) -> bytes:
        if bytes_max in (RECEIVE_BYTES_MAX, LARGE_RECEIVE_BYTES_MAX):  # the server's, not the client's
            asked.append(bytes_max)
        return bytes(await original(stream, bytes_max))

    monkeypatch.setattr(trio.SocketStream, "receive_some", receive_some)
    door = front()
    async with running(door.app, door.settings) as server:
        peer = await server.connect()
        for sent in (request, rest):
            await peer.send(sent)
            assert (await peer.answer()).status == 204
    return asked


async def test_within_a_large_body_reads_are_larger_and_after_it_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = LINE * (MIB // len(LINE))
    asked = await sizes_read(post("/write", large), post("/write"), monkeypatch)
    assert asked[0] == RECEIVE_BYTES_MAX
    assert LARGE_RECEIVE_BYTES_MAX in asked
    assert asked[-1] == RECEIVE_BYTES_MAX


async def test_usual_requests_are_never_read_in_large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = post("/write", LINE * (200 * KIB // len(LINE)))
    assert set(await sizes_read(usual, usual, monkeypatch)) == {RECEIVE_BYTES_MAX}


async def test_the_time_of_a_body_ends_within_a_wait(autojump_clock: MockClock) -> None:
    body = Body([FROM_BYTES] * 100, s_max=3.5 * WAIT_S)
    began_s = trio.current_time()
    await body.read()
    assert isinstance(body.result, BodyTooSlow)
    assert "server.body_s_max" in str(body.result)
    assert trio.current_time() - began_s == pytest.approx(3.5 * WAIT_S)
    assert body.reads == 4


async def test_a_large_body_in_single_bytes_is_below_the_least_rate_all_the_same(
    autojump_clock: MockClock,
) -> None:
    # One byte after each wait: 500 bytes a second.
    body = Body([FROM_BYTES, *[1] * 10_000], bytes_per_s_min=1_000)
    began_s = trio.current_time()
    await body.read()
    assert isinstance(body.result, BodyTooSlow)
    assert "server.body_bytes_per_s_min" in str(body.result)
    assert trio.current_time() - began_s == pytest.approx(10.0)


async def test_a_body_may_be_dropped_for_others_within_a_wait(mock_clock: MockClock) -> None:
    body = Body([FROM_BYTES, 1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.read)
        await wait_all_tasks_blocked()
        assert body.hold.budget.held_bytes == FROM_BYTES
        body.hold.drop()
        await wait_all_tasks_blocked()
    assert isinstance(body.result, TooManyBodies)
    assert body.reads == 1
    assert body.hold.budget.held_bytes == 0
