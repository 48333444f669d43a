"""A real server, and streams that begin large frames and stop: its memory is bounded, and its neighbours are acked."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.http.rig import LINE
from tests.http.stream.rig import frame
from tests.rigs.neighbour import (
    Neighbour,
    StreamNeighbour,
    assert_neighbour_is_served,
    open_stream,
    peak_growth,
)
from tests.rigs.service import Service

MIB = 1 << 20
STREAMS = 8
# A quarter of the defaults, so that sending it all costs this machine less.
FRAME = 8 * MIB
SETTINGS = {
    "log.level": "error",
    "server.body_bytes_max": FRAME,
    "server.bodies_bytes_max": STREAMS * FRAME,
}


def short(size: int) -> bytes:
    """A frame of about so many bytes, of which one is missing."""
    return frame(1, (LINE * (size // len(LINE)))[: size - 1_100])[:-1]


pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "data", logs=tmp_path, settings=SETTINGS) as service:
        yield service


def send(peer: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # one that is given up while it sends
        peer.sendall(data)


def stop_short(service: Service, sources: Sequence[str], stay_s: float) -> None:
    """Streams of some addresses that begin a large frame, and leave it at that."""
    data = short(FRAME)
    peers = [open_stream(service.port, source=sources[number % len(sources)]) for number in range(STREAMS)]
    threads = [threading.Thread(target=send, args=(peer, data)) for peer in peers]
    for thread in threads:
        thread.start()
    # The stay itself is the disturbance: what is measured beside it is measured for so long.
    time.sleep(stay_s)
    for peer in peers:
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("kind", [StreamNeighbour, pytest.param(Neighbour, marks=pytest.mark.slow)])
def test_eight_large_frames_of_one_source_that_stop_short_hold_up_no_neighbour(
    service: Service, kind: type[Neighbour]
) -> None:
    def disturb() -> None:
        stop_short(service, ["127.0.0.2"], 3.0)

    # Half of `server.bodies_bytes_max`, what a growing buffer has to spare, and slack.
    grown_mib_max = STREAMS * FRAME / MIB / 2 * 1.125 + 24
    assert_neighbour_is_served(service, disturb, kind=kind, grown_mib_max=grown_mib_max, least_s=0.25)


def test_large_frames_of_several_sources_that_stop_short_give_way_after_a_moment(service: Service) -> None:
    """Together they take all the memory; who waits for room has it as soon as they have stalled."""
    with peak_growth(service) as grown, StreamNeighbour(service.port) as beside:
        stop_short(service, ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"], stay_s=12.0)
    assert beside.failed == []
    print(f"worst {max(beside.seconds):.2f} s of {len(beside.seconds)}, memory {grown():+.0f} MiB")
    assert max(beside.seconds) < 8.0
    assert grown() < STREAMS * FRAME / MIB * 1.125 + 24
    assert service.post("/metrics", b"m v=1", {"Content-Type": "text/plain"}) == 202
