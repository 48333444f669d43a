"""Thousands of hostile connections against a real server: it lives, it answers, and its memory has settled."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.http.rig import LINE
from tests.http.stream.hostility import ATTACKS, mutations
from tests.http.stream.rig import upgrade
from tests.rigs.processes import wait_until
from tests.rigs.seeds import round_seed
from tests.rigs.service import Service

CONNECTIONS = 2_001
GROWN_KIB_MAX = 4 * 1024

# Heels, reset, close, and now and then one that waits for all that it is told.
ENDS = (0, 2, 3, 0, 2, 3, 2, 3, 1)

# Large ones would measure how fast they are sent.
SHORT_ATTACKS = [data for data in ATTACKS.values() if len(data) < 5_000]


def strike(port: int, data: bytes, *, end: int) -> None:
    """One connection that sends what it likes, and ends one way or another."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
        # Behind the answer to the handshake, or on its heels.
        peer.sendall(upgrade("/stream?client_id=x") if end else upgrade() + data)
        with suppress(ConnectionError):
            if end:
                assert peer.recv(4_096).startswith(b"HTTP/1.1 101 ")
                peer.sendall(data)
            if end == 1:
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65_536):
                    pass
        if end == 2:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def open_streams(service: Service) -> int:
    found = re.search(r"^wal_ingest_streams (\S+)$", service.get("/metrics"), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


@pytest.mark.timeout(60)
def test_thousands_of_hostile_connections_leave_a_server_as_it_was(tmp_path: Path) -> None:
    seed = round_seed()
    print(f"PROOF_SEED={seed}")
    random = Random(seed)
    with Service(tmp_path / "data", logs=tmp_path, settings={"log.level": "warning"}) as service:
        pid = service.process.pid
        files = open_files(pid)
        resident_kib = []
        mutated = mutations(seed, CONNECTIONS)
        for number, data in enumerate(mutated, 1):
            data = random.choice(SHORT_ATTACKS) if number % 4 == 0 else data
            strike(service.port, data, end=ENDS[number % len(ENDS)])
            if number % (CONNECTIONS // 3) == 0:
                assert service.post("/metrics", LINE, {"Content-Type": "text/plain"}) == 202
                wait_until(lambda: open_streams(service) == 0, "no stream is left", s_max=5)
                wait_until(lambda: open_files(pid) <= files + 4, "no connection is left", s_max=5)
                resident_kib.append(service.process.status_kib("VmRSS"))
        assert service.process.running
        log = service.process.log.read_text()
        assert service.stop() == 0
    print(f"VmRSS after each third: {resident_kib} KiB")
    assert "Traceback" not in log
    assert "a connection was dropped" not in log
    assert resident_kib[2] - resident_kib[1] < GROWN_KIB_MAX
