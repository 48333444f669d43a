"""A backlog larger than memory likes: how fast a WAL of many gigabytes opens, tells its status, and drains cold.

    python -m ops.bench.backlog --gib 20

Fills a WAL in a folder of its own, in segments of the default size, drops the kernel's caches where it may (root), and
measures in fresh processes: opening the data directory, `wal-ingest wal status`, and a delivery of all of it to a
sink that takes everything and keeps nothing. `--points 1` makes entries of single points: many more, and small.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import trio

from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.outcome import Confirmed, Outcome
from wal_ingest.service.log_reader import LogReader
from wal_ingest.settings import FlusherSettings, WalSettings
from wal_ingest.wal.entry import Entry, NewEntry
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

GIB = 1 << 30
COMMIT_POINTS = 50_000
SETTINGS = WalSettings(wal_bytes_max=1 << 50)


def main() -> None:
    """Runs the measurement and prints it."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="wal-ingest-backlog-", dir=options.below))
    try:
        began = time.monotonic()
        entries, points = _fill(folder, int(options.gib * GIB), options.points)
        segments = len(list((folder / "wal").glob("*.lmdb")))
        size = sum(path.stat().st_size for path in (folder / "wal").glob("*.lmdb"))
        print(
            f"filled: {size / GIB:.1f} GiB in {segments:,} segments, {entries:,} entries, {points:,} points "
            f"({time.monotonic() - began:.0f} s)",
            flush=True,
        )
        _report("open", _in_a_process(_open, folder, cold=True))
        _drop_caches()
        began = time.monotonic()
        told = subprocess.run(
            [sys.executable, "-m", "wal_ingest", "wal", "status", "--json", "--data-dir", folder],
            capture_output=True,
            check=True,
        )
        assert len(json.loads(told.stdout)["segments"]) >= segments
        print(f"wal status, cold: {time.monotonic() - began:.2f} s with the start of the process", flush=True)
        _report("drain", _in_a_process(_drain, folder, cold=True))
    finally:
        shutil.rmtree(folder)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--gib", type=float, default=2.0, help="size of the WAL in GiB (default 2)")
    parser.add_argument("--points", type=int, default=1000, help="points an entry (default 1000)")
    parser.add_argument(
        "--below", type=Path, help="folder for the data directory: choose the disk to measure"
    )
    return parser.parse_args()


def _fill(folder: Path, bytes_wanted: int, entry_points: int) -> tuple[int, int]:
    rng = random.Random(1)
    lines = [
        b"cpu,host=web-%04d usage=%.15g,idle=%.15g 17638000%05d000000\n"
        % (n % 500, rng.random(), rng.random(), n % 100_000)
        for n in range(COMMIT_POINTS)
    ]
    groups = [
        [
            NewEntry(
                b"".join(lines[at : at + entry_points]), len(lines[at : at + entry_points]), time.time_ns()
            )
        ]
        for at in range(0, COMMIT_POINTS, entry_points)
    ]
    store = Store(folder, SETTINGS, now_ns=time.time_ns)
    while store.wal.bytes < bytes_wanted:
        store.wal.commit(groups)
    counts = store.wal.last_seq, store.wal.points_total
    store.close()
    return counts


def _drop_caches() -> None:
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        print("(the kernel's caches could not be dropped: warm figures)")


def _in_a_process(work: Callable[[Path], dict[str, float]], folder: Path, *, cold: bool) -> dict[str, float]:
    if cold:
        _drop_caches()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, folder).result()


def _report(what: str, figures: dict[str, float]) -> None:
    print(
        f"{what}, cold: " + ", ".join(f"{name} {value:,.2f}" for name, value in figures.items()), flush=True
    )


def _open(folder: Path) -> dict[str, float]:
    began = time.monotonic()
    store = Store(folder, SETTINGS, now_ns=time.time_ns)
    seconds = time.monotonic() - began
    store.close()
    return {"seconds": seconds, "peak MiB": _peak_mib()}


def _drain(folder: Path) -> dict[str, float]:
    return trio.run(_drain_all, folder)


async def _drain_all(folder: Path) -> dict[str, float]:
    store = Store(folder, SETTINGS, now_ns=time.time_ns)
    reader = LogReader(store, Writer(store.wal, SETTINGS))
    sink = _NullSink()
    points = store.wal.points_total
    began = time.monotonic()

    def confirmed(name: str) -> None:
        store.wal.rest_segments([store.cursor(name).seq])
        if store.cursor(name).points == points:
            delivery.stop()

    delivery = Delivery(
        sink,
        reader,
        store,
        FlusherSettings(),
        run_sync=trio.to_thread.run_sync,
        now_ns=time.time_ns,
        rng=random.Random(1),
        confirmed=confirmed,
    )
    await delivery.run()
    seconds = time.monotonic() - began
    store.close()
    assert sink.points == points
    return {"seconds": seconds, "million points/s": points / seconds / 1e6, "peak MiB": _peak_mib()}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class _NullSink:
    """Takes everything and keeps nothing."""

    name = "null"
    required = True
    in_flight_max = 4
    batch_points_max: int | None = None

    def __init__(self) -> None:
        self.points = 0

    def group(self, _entry: Entry) -> Hashable:
        return None

    async def open(self, position: bytes | None) -> bytes | None:
        return position

    async def write(self, batch: Batch) -> Outcome:
        self.points += batch.points
        await trio.lowlevel.checkpoint()
        return Confirmed()

    async def check(self) -> list[Check]:
        await trio.lowlevel.checkpoint()
        return []

    async def aclose(self) -> None:
        pass


if __name__ == "__main__":
    main()
