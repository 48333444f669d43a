"""Damage under the real server: it comes up, says what it met, takes new points, and delivers what survived."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rigs.service import Service
from tests.wal.test_damage import flip, flip_header, forget_latest_transaction, zero_tree

LIVES = 3
POINTS = 400
TEXT = {"Content-Type": "text/plain"}


def lines_of(life: int) -> bytes:
    """The points that are sent in one life: enough for an entry of several pages."""
    return b"".join(
        b'm,life=%d v="%s",n=%di %d\n' % (life, os.urandom(8).hex().encode(), n, n + 1) for n in range(POINTS)
    )


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory after three lives, a segment each, of which no sink has anything yet."""
    root = tmp_path_factory.mktemp("before")
    away = {"influxdb.url": "http://127.0.0.1:9", "influxdb.org": "o", "influxdb.bucket": "b"}
    for life in range(LIVES):
        with Service(root / "data", logs=root, settings=away) as service:
            assert service.post("/metrics", lines_of(life), TEXT) == 202
            assert service.stop() == 0
    assert len(segments(root / "data")) == LIVES
    return root / "data"


def segments(data_dir: Path) -> list[Path]:
    """The segment files, oldest first."""
    return sorted((data_dir / "wal").glob("*.lmdb"))


def flip_compressed(path: Path) -> None:
    """Flips a byte within the only entry's gzip member."""
    flip(path, path.read_bytes().rindex(b"\x1f\x8b\x08") + 500)


def older_state(data_dir: Path) -> None:
    """Puts a state back as it was before the latest transactions."""
    forget_latest_transaction(data_dir / "state.lmdb")


# What is done, the lives whose points are gone, and whether it shows as set aside, as missing, or in the log only.
ROWS: dict[str, tuple[Callable[[Path], object], list[int], str]] = {
    "a segment emptied": (lambda data: segments(data)[1].write_bytes(b""), [1], "damaged"),
    "a segment's header record flipped": (lambda data: flip_header(segments(data)[0]), [], "damaged"),
    "a byte of a payload flipped": (lambda data: flip_compressed(segments(data)[1]), [1], "damaged"),
    "the pages of a tree zeroed": (lambda data: zero_tree(segments(data)[2]), [], "damaged"),
    "a meta page lost": (lambda data: forget_latest_transaction(segments(data)[2]), [], "damaged"),
    "the last segment torn": (lambda data: os.truncate(segments(data)[2], 3 * 4096), [2], "damaged"),
    "a foreign file": (lambda data: segments(data)[1].write_bytes(b"not ours" * 9999), [1], "damaged"),
    "a segment missing": (lambda data: segments(data)[1].unlink(), [1], "gaps"),
    "the first segment missing": (lambda data: segments(data)[0].unlink(), [0], "lost"),
    "the last segment missing": (lambda data: segments(data)[2].unlink(), [2], "lost"),
    "the state lost": (lambda data: (data / "state.lmdb").unlink(), [], ""),
    "the state zeroed": (lambda data: (data / "state.lmdb").write_bytes(bytes(16384)), [], "damaged"),
    "the state's meta page lost": (older_state, [], "damaged"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_the_server_comes_up_after_damage_and_delivers_what_survived(
    before: Path, tmp_path: Path, row: tuple[Callable[[Path], object], list[int], str]
) -> None:
    damage, lost, shown = row
    data_dir = tmp_path / "data"
    shutil.copytree(before, data_dir)
    damage(data_dir)
    with Service(data_dir, logs=tmp_path, settings={"flusher.batch_wait_s_max": 0.05}) as service:
        assert service.post("/metrics", lines_of(LIVES), TEXT) == 202
        service.wait_drained("archive")
        told = service.status()
        assert service.stop() == 0
    archived = b"".join(gzip.decompress(path.read_bytes()) for path in data_dir.glob("archive/*/*.lp.gz"))
    survivors = [life for life in range(LIVES + 1) if life not in lost]
    assert {life: archived.count(b"life=%d " % life) for life in survivors} == dict.fromkeys(
        survivors, POINTS
    )
    assert archived.count(b"\n") == POINTS * len(survivors)
    if shown == "damaged":
        assert told["damaged"]
    if shown == "gaps":
        assert [gap["points"] for gap in told["gaps"]] in (
            [POINTS],
            [],
        )  # gone again once truncation has passed it
        assert "points are missing" in service.process.log_tail()
    if shown == "lost":
        assert "points are missing" in service.process.log_tail()
    if shown in ("gaps", "lost"):
        assert [each["points"] for each in told["lost"]] == [POINTS]
    assert told["sinks"]["archive"]["unaccounted_points"] == 0
