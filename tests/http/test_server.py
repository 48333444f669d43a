"""Binding, stopping, and the seam into hypercorn."""

from __future__ import annotations

import importlib.metadata
import socket
from typing import Any

import hypercorn.trio.run
import pytest
import trio
import trio.testing

from tests.http.rig import LINE, front, get, lifespan, post, running, within
from wal_ingest.addresses import parse_bind
from wal_ingest.errors import ConfigError
from wal_ingest.http.hypercorn_mends import Connection, Shields, check_seam
from wal_ingest.http.server import serve
from wal_ingest.listeners import open_sockets
from wal_ingest.settings import ServerSettings


@pytest.mark.parametrize(
    ("bind", "host", "port"),
    [
        ("127.0.0.1:8400", "127.0.0.1", 8400),
        ("localhost:0", "localhost", 0),
        ("[::1]:80", "::1", 80),
        (":1", "", 1),
    ],
)
def test_an_address_is_host_and_port(bind: str, host: str, port: int) -> None:
    assert parse_bind(bind) == (host, port)


@pytest.mark.parametrize(
    "bind", ["", "127.0.0.1", "127.0.0.1:", "x:port", "x:65536", "::1:80", "x:-1", "[a]:1"]
)
def test_a_malformed_address_is_an_error_of_the_settings(bind: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.bind") as caught:
        parse_bind(bind)
    assert caught.value.hint


@pytest.mark.parametrize("bind", ["no-such-host.invalid:0", "203.0.113.1:0"])
def test_an_address_that_is_not_ours_is_an_error_of_the_settings(bind: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.bind"):
        open_sockets(bind)


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    [taken] = open_sockets("127.0.0.1:0")
    port = taken.getsockname()[1]
    with taken, pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*in use") as caught:
        open_sockets(f"127.0.0.1:{port}")
    assert "--bind" in caught.value.hint


def test_a_reused_port_can_be_opened_twice() -> None:
    [first] = open_sockets("127.0.0.1:0", reuse_port=True)
    with first:
        [second] = open_sockets(f"127.0.0.1:{first.getsockname()[1]}", reuse_port=True)
        with second:
            assert first.getsockname() == second.getsockname()


async def test_serve_binds_by_itself_and_reports_where() -> None:
    settings = ServerSettings(bind="127.0.0.1:0")
    shutdown = trio.Event()

    async def run(task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(front(settings).app, settings=settings, shutdown=shutdown, task_status=task_status)

    with within(10):
        async with trio.open_nursery() as nursery:
            [address] = await nursery.start(run)
            assert address.startswith("http://127.0.0.1:")
            port = int(address.rpartition(":")[2])
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(get("/healthz"))
            assert b"200" in await stream.receive_some()
            await stream.aclose()
            shutdown.set()
        with pytest.raises(OSError, match=str(port)):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_request_under_way_is_answered_during_the_stop() -> None:
    settings = ServerSettings(stop_s_max=5.0)
    whole = front(settings)
    whole.wal.gate = trio.Event()
    with within(5):
        async with running(whole.app, settings) as server:
            busy, idle = await server.connect(), await server.connect()
            await idle.send(get("/healthz"))
            assert (await idle.answer()).status == 200
            await busy.send(post("/metrics"))
            await whole.wal.waiting.wait()
            server.shutdown.set()
            assert await idle.end() == b""
            with pytest.raises(OSError, match="all attempts to connect"):
                await server.connect()
            assert not server.stopped.is_set()
            whole.wal.gate.set()
            assert (await busy.answer()).status == 202
            assert await busy.end() == b""
            await server.stopped.wait()
    assert whole.wal.lines == LINE


async def test_a_stop_with_idle_connections_does_not_wait_for_them() -> None:
    settings = ServerSettings(stop_s_max=10.0)
    whole = front(settings)
    with within(10):
        async with running(whole.app, settings) as server:
            for _ in range(20):
                peer = await server.connect()
                await peer.send(get("/healthz") + get("/ping"))
                assert [(await peer.answer()).status for _ in range(2)] == [200, 204]
            server.shutdown.set()
            with within(1):
                await server.stopped.wait()


async def test_a_request_that_does_not_end_is_cut_at_the_deadline() -> None:
    settings = ServerSettings(stop_s_max=0.5)
    whole = front(settings)
    whole.wal.gate = trio.Event()
    with within(10):
        async with running(whole.app, settings) as server:
            peer = await server.connect()
            await peer.send(post("/metrics"))
            await whole.wal.waiting.wait()
            server.shutdown.set()
            with within(1):
                await server.stopped.wait()
            # Which of the two it is depends on what comes first at the deadline; neither is an acknowledgement.
            assert (await peer.end())[:12] in (b"", b"HTTP/1.1 500")
    assert whole.wal.appends == []


async def test_cancelling_the_server_ends_it_although_a_client_never_reads() -> None:
    started = trio.Event()

    async def endless(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        started.set()
        while True:
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})

    settings = ServerSettings()
    sockets = open_sockets("127.0.0.1:0")
    with within(5):
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
                await serve(
                    endless,
                    settings=settings,
                    shutdown=trio.Event(),
                    sockets=sockets,
                    task_status=task_status,
                )

            await nursery.start(run)
            stream = await trio.open_tcp_stream(*sockets[0].getsockname()[:2])
            await stream.send_all(get("/"))
            await started.wait()
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)
    assert sockets[0].fileno() == -1


async def test_a_cut_shield_lets_go_at_once_and_so_do_later_ones() -> None:
    shields = Shields()
    caught: list[bool] = []

    async def hold() -> None:
        with shields.shield(1000) as scope:
            await trio.sleep_forever()
        caught.append(scope.cancelled_caught)

    with within(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            shields.cut()
        await hold()
    assert caught == [True, True]


async def test_a_shield_holds_cancellation_off_until_its_work_is_done() -> None:
    shields = Shields()
    done = False
    with trio.CancelScope() as outer:
        with shields.shield(1000):
            outer.cancel()
            await trio.lowlevel.checkpoint()
            done = True
        await trio.lowlevel.checkpoint()
        raise AssertionError("the cancellation was lost")
    assert done


class _Given:
    """Stands for a connection's `_serve` that raises what a test gives it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def serve(self) -> None:
        await trio.lowlevel.checkpoint()
        raise self.error


def connection_that_raises(error: BaseException) -> Connection:
    connection = Connection.__new__(Connection)
    connection._client = None
    connection._serve = _Given(error).serve  # type: ignore[method-assign]
    return connection


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x"),
        AssertionError(),
        ExceptionGroup("g", [ExceptionGroup("h", [ValueError()]), OSError()]),
    ],
)
async def test_a_connection_keeps_its_own_exceptions(error: Exception) -> None:
    await connection_that_raises(error).run()
    await trio.lowlevel.checkpoint()
    assert trio.current_effective_deadline() == float("inf")  # still running, nothing cancelled


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_a_connection_lets_the_end_of_the_process_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        await connection_that_raises(error).run()
    group = BaseExceptionGroup("mixed", [ValueError("own"), BaseExceptionGroup("deeper", [error])])
    with pytest.raises(BaseExceptionGroup) as caught:
        await connection_that_raises(group).run()
    assert caught.value.split(type(error))[1] is None


async def test_a_connection_lets_cancellation_through() -> None:
    connection = Connection.__new__(Connection)
    connection._client = None
    connection._serve = trio.sleep_forever  # type: ignore[method-assign]
    with trio.move_on_after(0) as scope:
        await connection.run()
    assert scope.cancelled_caught


def test_the_installed_hypercorn_has_the_seam() -> None:
    check_seam()
    assert hypercorn.trio.run.worker_serve.__code__.co_names.count("TCPServer") == 1


@pytest.mark.parametrize("version", ["0.19.0", "0.17.3", "1.0"])
def test_another_hypercorn_is_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    with pytest.raises(ConfigError, match=version):
        check_seam()


def test_a_hypercorn_without_the_seam_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def other_worker_serve() -> None: ...

    monkeypatch.setattr(hypercorn.trio.run, "worker_serve", other_worker_serve)
    with pytest.raises(ConfigError, match="hypercorn"):
        check_seam()


async def test_a_socket_that_listens_already_is_served_and_closed() -> None:
    settings = ServerSettings()
    with within(10):
        async with running(front(settings).app, settings) as server:
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
                assert plain.getpeername()[1] == server.port
