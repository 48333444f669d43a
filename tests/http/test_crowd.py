"""At the limit of connections the idlest is closed for a new one, and health checks are still answered."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.rig import Running, front, get, post, running, within
from tests.http.stream.rig import node
from wal_ingest.http.body import BodyBudget
from wal_ingest.http.hypercorn_mends import Crowd, connections_max, crowd
from wal_ingest.http.hypercorn_mends.crowd import SPARE_CONNECTIONS, OncePerSecond
from wal_ingest.settings import ServerSettings


class Dummy:
    def __init__(self, closed: Callable[[], None] = lambda: None) -> None:
        self.close_idle = closed


def test_without_an_idle_connection_a_few_more_are_served_and_then_none() -> None:
    crowd = Crowd(1, monotonic_s=lambda: 0.0)
    served = 0
    with structlog.testing.capture_logs() as lines:
        while crowd.enter(connection := Dummy()):
            crowd.busy(connection)
            served += 1
    assert served == 1 + SPARE_CONNECTIONS
    assert len(lines) == 1


def test_one_that_was_heard_a_moment_ago_stays_where_few_are_idle() -> None:
    now_s = 0.0
    room_made = 0
    closed = []

    def make_room() -> None:
        nonlocal room_made
        room_made += 1

    crowd = Crowd(2, make_room=make_room, monotonic_s=lambda: now_s)
    at_work = Dummy(lambda: closed.append("at work"))
    with structlog.testing.capture_logs():
        for connection in (at_work, Dummy()):
            assert crowd.enter(connection)
            crowd.busy(connection)
        crowd.idle(at_work)
        now_s = 0.5
        for _ in range(3):
            new = Dummy()
            assert crowd.enter(new)
            crowd.busy(new)
        assert (closed, room_made) == ([], 3)
        now_s = 1.0
        assert crowd.enter(Dummy())
        assert (closed, room_made) == (["at work"], 3)


def test_where_many_are_idle_the_idlest_is_closed_however_short_that_is() -> None:
    closed: list[int] = []
    crowd = Crowd(20, monotonic_s=lambda: 0.0)
    with structlog.testing.capture_logs():
        for number in range(25):
            assert crowd.enter(Dummy(partial(closed.append, number)))
    assert closed == [0, 1, 2, 3, 4]


def test_no_more_than_the_spare_ones_are_let_in_whatever_is_idle() -> None:
    """What was closed for others has its descriptor closed, but may be counted for a moment."""
    crowd = Crowd(20, monotonic_s=lambda: 0.0)
    with structlog.testing.capture_logs():
        let_in = [crowd.enter(Dummy()) for _ in range(60)]
    assert sum(let_in) == 20 + SPARE_CONNECTIONS
    assert not any(let_in[20 + SPARE_CONNECTIONS :])


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_connection_that_is_closed_for_another_has_no_descriptor_any_more() -> None:
    door = front(ServerSettings(connections_max=10))
    with within(20), structlog.testing.capture_logs():
        async with running(door.app, door.settings) as server:
            before = descriptors()
            peers = []
            for _ in range(40):
                peers.append(peer := await server.connect())
                # In the middle of a request: others are lingered for, so that they can read why.
                await peer.send(b"POST /metrics HTTP/1.1\r\n")
                await wait_all_tasks_blocked()
            theirs = descriptors() - before - len(peers)
            assert theirs <= 10 + 2


async def test_above_the_limit_a_request_is_answered_and_a_stream_is_refused_with_a_retry() -> None:
    settings = ServerSettings(connections_max=4, stop_s_max=2.0)
    async with node(settings) as whole:
        with structlog.testing.capture_logs():
            streams = [await whole.stream() for _ in range(4)]
            closed = await (await whole.open()).closed()
            assert closed.code == 1013
            assert closed.reason.startswith("retry after 10 s: too many connections are open")
            for number in range(1, 4):
                peer = await whole.server.connect()
                await peer.send(get("/healthz"))
                assert (await peer.answer()).status == 200
                await streams[0].send(number)
                assert (await streams[0].next())["type"] == "ack"


async def has_room_again(server: Running) -> None:
    """Waits for a new connection to be served: an answer that closes one is read before the server has closed it."""
    while True:
        peer = await server.connect()
        await peer.send(get("/healthz"))
        try:
            assert (await peer.answer()).status == 200
        except (EOFError, trio.BrokenResourceError):
            continue
        return


async def test_a_body_that_has_stalled_gives_way_when_connections_are_too_many() -> None:
    now_s = 0.0
    settings = ServerSettings(connections_max=3, stop_s_max=2.0)
    budget = BodyBudget(settings.bodies_bytes_max, monotonic_s=lambda: now_s)
    door = front(settings, budget=budget)
    with within(10), structlog.testing.capture_logs():
        async with running(door.app, settings, make_room=budget.drop_stalled) as server:
            stalled = []
            for _ in range(3 + SPARE_CONNECTIONS):
                stalled.append(peer := await server.connect())
                await peer.send(post("/write")[:-1])
                await wait_all_tasks_blocked()
            assert await (await server.connect()).end() == b""
            now_s = 1.5
            await server.connect()
            answered = await stalled[0].answer()
            assert answered.status == 503
            assert b"stalled while others had no room" in answered.body
            await has_room_again(server)


def test_the_default_leaves_descriptors_for_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft in (200, 1_024, 1_048_576):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, soft=soft: (soft, soft))
        assert 8 <= connections_max(0) <= soft - 64 - SPARE_CONNECTIONS
    assert connections_max(7) == 7


async def test_the_idlest_connection_is_closed_for_a_new_one_and_a_busy_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crowd, "_IDLE_S_MIN", 0.0)
    door = front(ServerSettings(connections_max=3))
    with within(10):
        async with running(door.app, door.settings) as server:
            busy = await server.connect()
            await busy.send(post("/write")[:-1])
            idle = [await server.connect() for _ in range(2)]
            for peer in idle:
                await peer.send(get("/ping"))
                assert (await peer.answer()).status == 204
            new = await server.connect()
            await new.send(get("/healthz"))
            assert (await new.answer()).status == 200
            assert await idle[0].end() == b""
            await idle[1].send(get("/ping"))
            assert (await idle[1].answer()).status == 204
            await busy.send(b"\n")
            assert (await busy.answer()).status == 204


async def test_two_hundred_idle_connections_leave_the_health_checks_answered() -> None:
    door = front(ServerSettings(connections_max=20))
    with within(20), structlog.testing.capture_logs():
        async with running(door.app, door.settings) as server:
            for _ in range(200):
                await server.connect()
            for path in ("/healthz", "/readyz"):
                peer = await server.connect()
                await peer.send(get(path))
                assert (await peer.answer()).status == 200


def test_an_accept_without_descriptors_is_logged_once_a_second_without_a_traceback() -> None:
    now_s = 0.0
    once = OncePerSecond(lambda: now_s)
    record = logging.makeLogRecord({"msg": "accept returned EMFILE", "exc_info": (None, None, None)})
    passed = []
    for tenth in range(20):
        now_s = tenth / 10
        passed.append(once.filter(record))
    assert sum(passed) == 2
    assert record.exc_info is None
