"""The limits of a running server: memory against a bomb, a full WAL, a directory that is taken."""

from __future__ import annotations

import gzip
import http.client
import time
import zlib
from pathlib import Path

import pytest

from tests.rigs.fleet import MS, Plan
from tests.rigs.load import Load
from tests.rigs.processes import free_port, wait_until
from tests.rigs.service import Service, run_command, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics

MIB = 1024 * 1024


def _post(service: Service, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", "/metrics", body, {"Content-Type": "text/plain", **named})
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def _bomb(bytes_unpacked: int) -> bytes:
    """Line protocol that is small when packed: 4 GiB are 4 MiB on the wire."""
    packer = zlib.compressobj(9, wbits=31)
    piece = b"m value=1\n" * 100_000
    packed = [packer.compress(piece) for _ in range(bytes_unpacked // len(piece))]
    return b"".join([*packed, packer.flush()])


@pytest.mark.parametrize("limit_mib", [4, 32])
def test_a_gzip_bomb_is_refused_and_costs_no_more_memory_than_the_limit(
    tmp_path: Path, limit_mib: int
) -> None:
    settings = {"server.body_bytes_max": limit_mib * MIB, "archive.enabled": "on"}
    bomb = _bomb(512 * MIB)
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        assert _post(service, gzip.compress(b"m value=1\n" * 1000), Content_Encoding="gzip")[0] == 202
        before_kib = service.process.status_kib("VmHWM")
        for _ in range(5):
            assert _post(service, bomb, Content_Encoding="gzip")[0] == 413
        grown_mib = (service.process.status_kib("VmHWM") - before_kib) / 1024
        assert _post(service, b"m value=1\n")[0] == 202
    print(f"limit {limit_mib} MiB, peak memory grew by {grown_mib:.1f} MiB")
    # On top of the limit: the packed body, as received and as joined, two tries (the first up to 1 MiB), the threads
    # that unpack it, and slack.
    assert grown_mib <= limit_mib + 2 * len(bomb) / MIB + 14


@pytest.mark.needs("victoria-metrics")
def test_a_full_wal_answers_503_until_a_sink_has_caught_up(tmp_path: Path) -> None:
    database = VictoriaMetrics(tmp_path)
    settings = to_influxdb(
        database.url, wal__wal_bytes_max=4 * MIB, wal__segment_bytes_max=MIB, wal__segment_s_max=0.5
    )
    plan = Plan("full", time.time_ns() // MS * MS, points=1000)
    with database, Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        database.stop()
        with Load(service.port, plan, clients=2) as load:
            wait_until(lambda: load.refused > 0, "the WAL is full", s_max=60)
            assert wait_until(lambda: service.ready() == 503, "/readyz says so", s_max=10)
            status, headers, _ = _post(service, b"m value=1\n")
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            # A gap between checks may let a commit or two through; the limit is not passed by more.
            assert service.status()["bytes"] < 8 * MIB
            accepted = load.acked_so_far
            assert accepted > 0

            database.start()
            load.wait_for_acks(accepted + 50, s_max=60)
        assert service.wait_drained("influxdb")["sinks"]["influxdb"]["parked"] == 0
        assert wait_until(lambda: service.ready() == 200, "/readyz says so", s_max=10)
        assert service.status()["points_accepted"] == len(load.acked) * 1000


def test_a_second_server_on_one_data_directory_exits_2_and_names_the_first(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        second = run_command("serve", "--data-dir", tmp_path / "data", "--bind", f"127.0.0.1:{free_port()}")

        assert second.returncode == 2
        assert f"process {service.process.pid}" in second.stderr
        assert "try:" in second.stderr
        assert _post(service, b"m value=1\n")[0] == 202
        assert service.stop() == 0
