"""A database that is back and refuses everything, a small disk: the node lives, holds visibly, and gives space back."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.flusher.sinks.http_fake import Answer, Request, fake_influxdb
from tests.rigs.loop_image import mounted_image
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, run_command, to_influxdb
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.space import free_disk_bytes
from wal_ingest.wal.state import read_state

MIB = 1 << 20
REQUEST_POINTS = 5_000
REFUSED = {
    "code": "invalid",
    "message": "failure writing points to database: partial write: points beyond retention policy dropped=1000",
}


def refuse(_request: Request) -> Answer:
    return Answer(422, json.dumps(REFUSED).encode(), {"Content-Type": "application/json"})


def post(service: Service, points: int) -> None:
    """Points of very many hosts, which cannot be compressed well."""
    rng = Random(points)
    for start in range(0, points, REQUEST_POINTS):
        lines = "".join(
            f"cpu,host={rng.randbytes(16).hex()} usage=1i {1_763_800_000_000_000_000 + start + at}\n"
            for at in range(REQUEST_POINTS)
        )
        body = gzip.compress(lines.encode(), 1)
        assert service.post("/write?precision=ns", body, {"Content-Encoding": "gzip"}) == 204


def sink_of(service: Service) -> dict[str, Any]:
    assert service.process.running, f"the node ended\n{service.process.log_tail()}"
    [sink] = json.loads(service.get("/status.json"))["sinks"]
    found: dict[str, Any] = sink
    return found


def command(service: Service, *arguments: str) -> str:
    ran = run_command(*arguments, "--data-dir", service.data_dir, settings=service.settings, s_max=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def use_up(disk: Path, bytes_left: int) -> None:
    """Something else on the disk takes all but so many bytes, also those that the node gives back meanwhile."""
    more_bytes = free_disk_bytes(disk) - bytes_left
    if more_bytes > 64 * 1024:
        with (disk / f"ballast-{time.monotonic_ns()}").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, more_bytes)


def holds(service: Service, floor: int) -> bool:
    """Whether delivery holds for want of room, on a disk that has no more than letters must leave."""
    use_up(service.data_dir.parent, floor // 2)
    sink = sink_of(service)
    return bool(sink["state"] == "holding" and sink["no_room_for_letters"])


def refused_on_a_small_disk(tmp_path: Path, *, disk_bytes: int, points: int) -> Cursor:
    """All points are refused on a full disk, then have room, then are given up. Returns the cursor at the end."""
    floor = disk_bytes // 8
    with fake_influxdb() as fake, mounted_image(tmp_path, bytes_max=disk_bytes) as disk:
        fake.answer = lambda _request: Answer(503)
        settings = to_influxdb(
            fake.url,
            flusher__hold_retry_s=0.5,
            wal__free_disk_bytes_min=floor,
            wal__segment_bytes_max=2 * MIB,
            wal__segment_s_max=1,
        )
        with Service(disk.path / "data", logs=tmp_path, settings=settings) as service:
            free_before = free_disk_bytes(disk.path)
            post(service, points)
            fake.answer = refuse
            wait_until(lambda: holds(service, floor), "delivery holds for want of room", s_max=120)
            sink = sink_of(service)
            assert sink["last_error"].startswith("no room for dead letters of influxdb: the disk has")
            assert sink["waiting_points"] > 0
            assert "no room for dead letters" in command(service, "sink", "status")
            assert 'wal_ingest_sink_letters_without_room{sink="influxdb"} 1.0' in service.get("/metrics")
            verdict = json.loads(service.get("/status.json"))["verdict"]
            assert "dead letters have no room" in verdict["sentence"]

            # It is no different after a restart (which takes room for a new segment first): nothing ends.
            assert service.stop() == 0
            service.start()
            wait_until(lambda: holds(service, floor), "delivery holds again", s_max=120)
            account = json.loads(service.get("/status.json"))["account"]["influxdb"]
            assert account["parked"] + account["waiting"] == points
            assert account["unaccounted"] == 0

            # Room that comes from elsewhere is noticed without a restart, and so is what letters give back.
            for ballast in disk.path.glob("ballast-*"):
                ballast.unlink()
            wait_until(lambda: not sink_of(service)["waiting_points"], "all are parked", s_max=240)
            assert sink_of(service)["dead_letters"] == points
            assert sink_of(service)["state"] == "idle"
            shown = command(service, "dead-letters", "show", "--limit", "1")
            assert shown.count("\n") == 2
            told = command(service, "dead-letters", "drop", "--yes")
            assert f"dropped {points:,} points" in told
            assert not list((service.data_dir / "dead_letters").iterdir())
            wait_until(
                # What is left: the segment that is written to.
                lambda: free_before - free_disk_bytes(disk.path) < 10 * MIB,
                "the space is back",
                s_max=60,
            )
            assert service.ready() == 200
            assert service.stop() == 0
        return read_state(service.data_dir / "state.lmdb").cursors["influxdb"]


@pytest.mark.timeout(600)
@pytest.mark.needs("loop")
def test_a_node_whose_letters_fill_a_small_disk_holds_and_gives_the_space_back(tmp_path: Path) -> None:
    cursor = refused_on_a_small_disk(tmp_path, disk_bytes=64 * MIB, points=100_000)
    assert (cursor.confirmed, cursor.parked, cursor.expired) == (0, 0, 100_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.needs("loop")
def test_700_000_refused_points_on_a_disk_of_145_mb_cost_neither_a_point_nor_the_node(tmp_path: Path) -> None:
    cursor = refused_on_a_small_disk(tmp_path, disk_bytes=145 * 1000 * 1000 // 4096 * 4096, points=700_000)
    assert (cursor.confirmed, cursor.parked, cursor.expired) == (0, 0, 700_000)
