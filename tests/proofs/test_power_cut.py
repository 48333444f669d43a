"""The power goes under load: every point that was answered 2xx is on the disk. And without syncs it is not.

A round runs the server on a file system in an image (tests/rigs/loop_image.py), stops or kills it under load,
copies the image without unmounting it, and opens the copy with a server whose archive then names every
point. In half of the rounds the database is away, so that all points are in the WAL; in the other half the
archive is the sink from the start, so that segments are confirmed and truncated while the power goes. In half
of each the fresh data directory has reached the disk before the load begins; in the other half nothing has
but what was synced.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest

from tests.rigs.account import Account, account_archive, archive_lines
from tests.rigs.fleet import MS, Plan, Shape
from tests.rigs.load import Load
from tests.rigs.loop_image import LoopImage, mounted_image
from tests.rigs.no_sync import no_sync_environment
from tests.rigs.processes import free_port
from tests.rigs.seeds import round_seed
from tests.rigs.service import Service, to_influxdb

IMAGE_BYTES = 1024 * 1024 * 1024  # sparse: a round writes some 20 MB of it
LOAD_S_MAX = 1.0
SHAPES = (Shape("lines", gzip=False, timed=True), Shape("v2", gzip=True, timed=True))
SMALL: dict[str, object] = {
    "wal.free_disk_bytes_min": 0,
    "wal.segment_bytes_max": 1024 * 1024,
    "wal.segment_s_max": 0.2,
    "flusher.batch_wait_s_max": 0.05,
    "flusher.cursor_commit_s": 0.05,
    "log.level": "warning",
}


def _cut_the_power(root: Path, number: int, env: Mapping[str, str]) -> Account:
    """One round; what it does is decided by its seed, which is printed, and by its number."""
    seed = round_seed()
    dice = Random(seed)
    lives_s = dice.uniform(0.05, LOAD_S_MAX)
    stops = dice.random() < 0.5
    archives = number % 2 == 1
    settled = number % 4 >= 2
    print(
        f"round {number}: seed {seed}, {lives_s * 1000:.0f} ms of load, {'SIGSTOP' if stops else 'SIGKILL'},"
        f" {'the archive' if archives else 'no sink in reach'}, {'settled' if settled else 'not settled'}"
    )
    root.mkdir()
    nowhere = to_influxdb(f"http://127.0.0.1:{free_port()}")
    settings = SMALL if archives else {**nowhere, **SMALL}
    plan = Plan(f"cut{number}", time.time_ns() // MS * MS, points=100, shapes=SHAPES, seed=seed, vary=True)
    with mounted_image(root, bytes_max=IMAGE_BYTES) as disk:
        # The logs stay off that disk: what is lost with it must not be the reason.
        with Service(disk.path / "data", logs=root, settings=settings, env=env) as service:
            if settled:
                disk.settle()
            with Load(service.port, plan, clients=4) as load:
                load.wait_for_acks(5)
                threading.Event().wait(lives_s)
                if stops:
                    service.process.pause()
                else:
                    service.kill()
                account = _what_is_left(disk, root, load, service)
        print(f"  {account.acked} points answered 2xx, {account.lost} of them lost, {account.found} there")
    return account


def _what_is_left(disk: LoopImage, root: Path, load: Load, service: Service) -> Account:
    with disk.as_after_a_power_cut() as where:
        service.kill()  # only now may a stopped server go, and its clients with it
        load.stop()
        logs = root / "logs-after-the-cut"
        logs.mkdir()
        with Service(where / "data", logs=logs, settings=SMALL) as after:
            after.wait_drained("archive")
            assert after.stop() == 0
        return account_archive(archive_lines(where / "data"), load.sent)


@pytest.mark.timeout(300)
@pytest.mark.needs("loop")
def test_4_power_cuts_under_load_lose_no_point_that_was_answered_2xx(tmp_path: Path) -> None:
    for number in range(4):
        _cut_the_power(tmp_path / str(number), number, env={}).check()


@pytest.mark.needs("loop", "cc")
def test_without_syncs_the_same_power_cut_does_lose_points(tmp_path: Path) -> None:
    env = no_sync_environment(tmp_path)

    accounts = [_cut_the_power(tmp_path / str(number), number, env=env) for number in range(2)]

    assert all(account.lost > 0 for account in accounts), "a harness that shows no loss proves nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.needs("loop")
def test_100_power_cuts_under_load_lose_no_point_that_was_answered_2xx(tmp_path: Path) -> None:
    for number in range(100):
        _cut_the_power(tmp_path / str(number), number, env={}).check()
