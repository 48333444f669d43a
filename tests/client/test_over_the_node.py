"""The client over a real node: kills, cut connections, a wrong token."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.rigs.relay import Relay
from tests.rigs.seeds import round_seed
from tests.rigs.service import Service, run_command
from wal_ingest.client import Limits, PointsRefused, Receipt, State, open_client

both = pytest.mark.parametrize("scheme", ["ws", "http"])

# A point is at home again soon after the node is.
IMPATIENT = Limits(retry_s_min=0.02, retry_s_max=0.2, hold_s=0.2, ack_s_max=5, close_s_max=20)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path / "data", logs=tmp_path, settings={"log.level": "warning"}) as service:
        yield service


def kept_lines(service: Service) -> list[str]:
    """Every line in the WAL; it keeps what was confirmed as long as these tests last."""
    ran = run_command("wal", "cat", "--data-dir", service.data_dir, settings=service.settings)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@both
async def test_receipts_carry_the_seq_that_the_node_gave(service: Service, scheme: str) -> None:
    async with open_client(f"{scheme}://127.0.0.1:{service.port}", limits=IMPATIENT) as client:
        assert await client.write("m f=1 1\nm f=2 2") == Receipt(points=2, seq=1)
        assert await client.write("m f=3 3") == Receipt(points=1, seq=2)
    assert kept_lines(service) == ["m f=1 1", "m f=2 2", "m f=3 3"]


@both
async def test_a_write_that_only_the_node_refuses_costs_only_itself(tmp_path: Path, scheme: str) -> None:
    """Its limit on a line is lower than ours here."""
    settings = {"server.line_bytes_max": 1024, "log.level": "error"}
    told: list[PointsRefused] = []
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        url = f"{scheme}://127.0.0.1:{service.port}"
        async with open_client(url, limits=IMPATIENT, on_refused=told.append) as client:
            client.write_nowait("m f=1 1")
            client.write_nowait(f'm f="{"x" * 2_000}" 2')
            client.write_nowait("m f=3 3")
        assert kept_lines(service) == ["m f=1 1", "m f=3 3"]
    assert [refused.points for refused in told] == [1]
    assert "longer than 1024 bytes" in told[0].reason


@both
async def test_a_wrong_token_holds_the_points_until_the_node_has_it(tmp_path: Path, scheme: str) -> None:
    settings = {"server.write_token": "right", "log.level": "error"}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service, Relay(seed=0) as relay:
        relay.upstream_port = service.port
        async with open_client(
            f"{scheme}://127.0.0.1:{relay.port}", token="left", limits=IMPATIENT
        ) as client:
            client.write_nowait("m f=1 1")
            with trio.fail_after(10):
                while client.status().state is not State.MISCONFIGURED:  # noqa: ASYNC110 - a state, no event
                    await trio.sleep(0.02)
            service.stop()
            service.settings["server.write_token"] = "left"
            service.start()
            relay.upstream_port = service.port
        assert kept_lines(service) == ["m f=1 1"]


@both
async def test_kills_and_cuts_lose_nothing(tmp_path: Path, scheme: str) -> None:
    """And over the stream nothing is stored twice."""
    seed = round_seed()
    dice = random.Random(seed)
    # Everything stays in the WAL, where it is counted.
    settings = {"wal.keep_confirmed_s": 3_600, "log.level": "error"}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service, Relay(seed=seed) as relay:
        relay.upstream_port = service.port
        relay.cutting = True
        written = 0
        async with open_client(f"{scheme}://127.0.0.1:{relay.port}", limits=IMPATIENT) as client:
            for _ in range(2):
                for _ in range(100):
                    for _ in range(dice.randrange(40)):
                        written += 1
                        client.write_nowait(f"m,n={dice.random()} f={written} {written}")
                    await trio.sleep(0.005)
                service.kill()
                # In a thread: the client finds nobody there meanwhile.
                await trio.to_thread.run_sync(service.start)
                relay.upstream_port = service.port
            relay.cutting = False
            await client.flush()
            status = client.status()
        times = Counter(int(line.rpartition(" ")[2]) for line in kept_lines(service))
    assert sorted(times) == list(range(1, written + 1)), f"seed {seed}"
    assert (status.acked_points, status.waiting_points) == (written, 0)
    assert status.reconnects >= 1
    assert relay.cuts >= 1
    if scheme == "ws":
        assert set(times.values()) == {1}, f"seed {seed}"
