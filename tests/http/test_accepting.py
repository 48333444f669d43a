"""Accepting connections: several in one turn of the scheduler, and what becomes of each error of accept(2)."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.http.rig import front, get, running, until
from tests.http.turn_count import counting_turns
from wal_ingest.http.hypercorn_mends import accepting
from wal_ingest.http.hypercorn_mends.accepting import TrioForHypercorn, serve_listeners
from wal_ingest.http.hypercorn_mends.crowd import Crowd
from wal_ingest.settings import ServerSettings

AT_ONCE = accepting._AT_ONCE_MAX


class ScriptedSocket(socket.socket):
    """A socket whose next `accept` fails with the first of `errors`, as long as there are some."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


@pytest.fixture
def errors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The errno of each `accept` from now on; it succeeds again when the list is empty."""
    ScriptedSocket.errors = []
    monkeypatch.setattr(accepting, "socket", SimpleNamespace(socket=ScriptedSocket))
    # One line a second is what a server's log has; here each line counts.
    monkeypatch.setattr(logging.getLogger("trio.serve_listeners"), "filters", [])
    return ScriptedSocket.errors


async def listen() -> trio.SocketListener:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=200)
    return listener


@contextmanager
def clients(listener: trio.SocketListener, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that wait in the kernel."""
    opened = []
    try:
        for _ in range(count):
            opened.append(socket.create_connection(listener.socket.getsockname(), timeout=10))
        yield opened
    finally:
        for client in opened:
            client.close()


class Served:
    """The connections that were handled, each by its listener's port; a handler runs until it may end."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.may_end = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        self.ports.append(stream.socket.getsockname()[1])
        await self.may_end.wait()


def hypercorns(
    handle: Callable[[trio.SocketStream], Awaitable[object]], crowd: Crowd | None = None
) -> partial[Awaitable[object]]:
    """A handler as hypercorn makes it: with the application and the configuration, which knows the crowd."""
    crowd = crowd or Crowd(10_000)
    return partial(lambda _app, _config, stream: handle(stream), None, SimpleNamespace(crowd=crowd))


@asynccontextmanager
async def serving(*listeners: trio.SocketListener) -> AsyncIterator[Served]:
    """`serve_listeners` within the block."""
    served = Served()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: serve_listeners(hypercorns(served.handle), listeners, handler_nursery=nursery)
        )
        yield served
        nursery.cancel_scope.cancel()


async def test_a_crowd_is_accepted_several_in_a_turn_and_not_more() -> None:
    listener = await listen()
    turns: list[int] = []
    with clients(listener, 2 * AT_ONCE + 3), counting_turns() as count:

        async def handle(_stream: trio.SocketStream) -> None:
            turns.append(count.turn)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: serve_listeners(hypercorns(handle), [listener], handler_nursery=nursery)
            )
            await until(lambda: len(turns) == 2 * AT_ONCE + 3)
            nursery.cancel_scope.cancel()
    by_turn = Counter(turns)
    assert [by_turn[turn] for turn in sorted(by_turn)] == [AT_ONCE, AT_ONCE, 3]
    assert max(by_turn) - min(by_turn) == 2


async def test_near_the_limit_of_connections_one_is_accepted_in_a_turn() -> None:
    """For each of them another is closed, which takes a few turns."""
    listener = await listen()
    crowd = Crowd(AT_ONCE)
    crowd.count = AT_ONCE
    turns: list[int] = []
    with clients(listener, 5), counting_turns() as count:

        async def handle(_stream: trio.SocketStream) -> None:
            turns.append(count.turn)

        async with trio.open_nursery() as nursery:
            handler = hypercorns(handle, crowd)
            nursery.start_soon(lambda: serve_listeners(handler, [listener], handler_nursery=nursery))
            await until(lambda: len(turns) == 5)
            nursery.cancel_scope.cancel()
    assert max(Counter(turns).values()) == 1


async def test_a_crowd_at_one_listener_takes_no_turn_from_another_one() -> None:
    crowded, quiet = await listen(), await listen()
    port = quiet.socket.getsockname()[1]
    with clients(crowded, 5 * AT_ONCE), clients(quiet, 1):
        async with serving(crowded, quiet) as served:
            await until(lambda: len(served.ports) == 5 * AT_ONCE + 1)
    assert served.ports.index(port) <= AT_ONCE


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_without_descriptors_or_memory_it_logs_rests_and_goes_on(
    number: int, errors: list[int], caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    listener = await listen()
    errors += [number, number]
    with clients(listener, 3):
        async with serving(listener) as served:
            for tries_left in (1, 0):
                await wait_all_tasks_blocked()
                assert (len(errors), served.ports) == (tries_left, [])
                mock_clock.jump(accepting._CAPACITY_REST_S)
            await wait_all_tasks_blocked()
            assert len(served.ports) == 3
    words = f"accept: {os.strerror(number)}; trying again in 0.1 s"
    assert [record.getMessage() for record in caplog.records] == [words, words]


@pytest.mark.parametrize("number", sorted(accepting._OF_THE_CONNECTION), ids=errno.errorcode.__getitem__)
async def test_a_connection_that_ended_before_it_was_accepted_is_passed_over(
    number: int, errors: list[int], caplog: pytest.LogCaptureFixture, mock_clock: MockClock
) -> None:
    listener = await listen()
    errors += [number]
    with clients(listener, 3):
        async with serving(listener) as served:
            # The clock stands still: nothing rests.
            await wait_all_tasks_blocked()
            assert len(served.ports) == 3
    assert caplog.records == []


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT])
async def test_an_error_of_the_listener_ends_the_serving_and_closes_every_listener(
    number: int, errors: list[int]
) -> None:
    listeners = [await listen(), await listen()]
    errors += [number]
    with (
        clients(listeners[0], 1),
        pytest.RaisesGroup(
            pytest.RaisesGroup(pytest.RaisesExc(OSError, check=lambda exc: exc.errno == number))
        ),
    ):
        async with serving(*listeners):
            await trio.sleep(10)
    assert [listener.socket.fileno() for listener in listeners] == [-1, -1]


async def test_a_cancelled_serving_closes_each_descriptor_once() -> None:
    listener = await listen()
    number = listener.socket.fileno()
    async with serving(listener):
        await wait_all_tasks_blocked()
    assert listener.socket.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


async def test_a_connection_is_closed_when_its_handler_ends() -> None:
    listener = await listen()
    with clients(listener, 2) as opened:
        async with serving(listener) as served:
            await until(lambda: len(served.ports) == 2)
            served.may_end.set()
            for client in opened:
                assert await trio.to_thread.run_sync(client.recv, 1) == b""


def test_hypercorn_sees_trio_with_our_serve_listeners() -> None:
    seen = TrioForHypercorn()
    assert seen.serve_listeners is serve_listeners
    assert (seen.open_nursery, seen.sleep) == (trio.open_nursery, trio.sleep)


async def test_a_running_server_accepts_several_connections_in_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns: list[int] = []
    accept = accepting._accept
    with counting_turns() as count:

        def counted(*arguments: object) -> None:
            accept(*arguments)  # type: ignore[arg-type]
            turns.append(count.turn)

        monkeypatch.setattr(accepting, "_accept", counted)
        settings = ServerSettings()
        async with running(front(settings).app, settings) as server:
            opened = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(AT_ONCE)]
            for client in opened:
                client.sendall(get("/healthz"))
            for client in opened:
                assert (await trio.to_thread.run_sync(client.recv, 4_096)).startswith(b"HTTP/1.1 200")
                client.close()
    assert Counter(turns) == {turns[0]: AT_ONCE}
