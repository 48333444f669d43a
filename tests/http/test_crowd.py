"""At the limit of connections the idlest is closed for a new one, and health checks are still answered."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable

import pytest
import structlog.testing

from tests.http.rig import front, get, post, running, within
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
