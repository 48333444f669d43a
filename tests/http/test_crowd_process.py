"""A server with few file descriptors, and more connections than it has: health checks are still answered."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.http.rig import get, post
from tests.http.stream.rig import upgrade
from tests.rigs.neighbour import Neighbour
from tests.rigs.processes import http_status, wait_until
from tests.rigs.service import COMMAND, Service

DESCRIPTORS = 200
CONNECTIONS = 260
PATHS = ("/healthz", "/readyz", "/metrics", "/status.json")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    command = ("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh", COMMAND)
    with Service(
        tmp_path / "data", logs=tmp_path, settings={"log.level": "warning"}, command=command
    ) as service:
        yield service


@pytest.fixture
def peers() -> Iterator[list[socket.socket]]:
    """Connections, which are closed in the end, also where a test fails: the next ones need descriptors too."""
    opened: list[socket.socket] = []
    yield opened
    for peer in opened:
        peer.close()


def says_nothing(_peer: socket.socket) -> None:
    """A connection, and no more."""


def half_a_request(peer: socket.socket) -> None:
    peer.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\n")


def half_a_body(peer: socket.socket) -> None:
    peer.sendall(post("/metrics")[:-1])


def no_body(peer: socket.socket) -> None:
    peer.sendall(post("/metrics").partition(b"\r\n\r\n")[0] + b"\r\n\r\n")


def keeps_alive(peer: socket.socket) -> None:
    peer.sendall(get("/ping"))
    peer.recv(4_096)


def stream(peer: socket.socket) -> None:
    peer.sendall(upgrade())
    peer.recv(4_096)


AT_WORK = (half_a_body, no_body)


def answers(service: Service, path: str) -> bool:
    return http_status(f"{service.url}{path}") == 200


def open_connections(
    service: Service, count: int, begin: Callable[[socket.socket], None]
) -> list[socket.socket]:
    peers = []
    for _ in range(count):
        peer = socket.create_connection(("127.0.0.1", service.port), timeout=10)
        with contextlib.suppress(ConnectionError):  # one too many
            begin(peer)
        peers.append(peer)
    return peers


def is_closed(peer: socket.socket) -> bool:
    """Whether the server has closed a connection, whatever it said before."""
    while select.select([peer], [], [], 0)[0]:
        try:
            if not peer.recv(65_536):
                return True
        except ConnectionError:
            return True
    return False


def descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("begin", [says_nothing, half_a_request, half_a_body, no_body, keeps_alive, stream])
def test_out_of_descriptors_health_and_figures_and_good_clients_are_answered(
    service: Service, peers: list[socket.socket], begin: Callable[[socket.socket], None]
) -> None:
    began_s = time.monotonic()
    with Neighbour(service.port) as good:
        peers += open_connections(service, CONNECTIONS, begin)
        for _ in range(5):
            for path in PATHS:
                if begin in AT_WORK:
                    # Who waits for a body may be at work. One that has stalled gives way after a second.
                    wait_until(partial(answers, service, path), f"{path} is answered", s_max=5)
                else:
                    assert answers(service, path), path
            peers += open_connections(service, 20, begin)
        assert descriptors(service) <= DESCRIPTORS - 16, "none is left for files and sinks"
        # A client that comes new is served as well.
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as new:
            new.sendall(post("/metrics"))
            assert new.recv(4_096).startswith(b"HTTP/1.1 202 ")
    assert good.failed == []
    assert len(good.seconds) > 10
    took_s = time.monotonic() - began_s
    log = service.process.log.read_text()
    assert "Traceback" not in log
    assert 1 <= log.count("too many connections") <= took_s + 2
    assert "accept" not in log, "no accept failed"


def test_the_idlest_are_closed_first(service: Service, peers: list[socket.socket]) -> None:
    peers += open_connections(service, 60, keeps_alive)
    # The first ones are heard again, so others are idle longer.
    for peer in peers[:10]:
        keeps_alive(peer)
    peers += open_connections(service, 70, keeps_alive)
    closed = [is_closed(peer) for peer in peers[:60]]
    assert sum(closed) >= 20
    assert not any(closed[:10])
    still_open = closed[10:].index(False)
    assert all(closed[10 : 10 + still_open])
    assert not any(closed[10 + still_open :])
    assert not any(is_closed(peer) for peer in peers[60:])
