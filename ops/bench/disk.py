"""What the disk alone makes of a load: the writes and syncs of a commit, and nothing else.

    python -m ops.bench.disk --help

Frames are due at a steady pace. All that are due are written and synced, then a page is written and synced, as LMDB
does. No server can answer sooner than this on the same disk: it is the floor under the latencies of the others.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from array import array
from pathlib import Path

from ops.bench.generator import Result

_PAGE_BYTES = 4096
_FILE_BYTES = 32 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.bench.disk", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long (default 20)")
    parser.add_argument("--rate", type=float, default=500.0, help="frames a second (default 500)")
    parser.add_argument("--bytes", type=int, default=16 * 1024, help="of a frame as stored (default 16384)")
    parser.add_argument("--below", type=Path, help="folder for the file: choose the disk to measure")
    options = parser.parse_args()
    result = run(options.below, seconds=options.seconds, per_second=options.rate, frame_bytes=options.bytes)
    print(
        f"the disk alone, {options.rate:g} frames/s of {options.bytes:,} bytes: p50 {result.percentile_ms(50):.2f} ms, "
        f"p99 {result.percentile_ms(99):.2f} ms, max {result.percentile_ms(100):.2f} ms"
    )


def run(below: Path | None, *, seconds: float, per_second: float, frame_bytes: int = 16 * 1024) -> Result:
    """Writes and syncs at that pace; the latencies are those of single frames, from when they were due."""
    result = Result()
    with tempfile.NamedTemporaryFile(prefix="wal-ingest-bench-", dir=below) as file:
        fd = file.fileno()
        os.posix_fallocate(fd, 0, _FILE_BYTES)
        for at in range(0, _FILE_BYTES, frame_bytes):  # what was never written costs the journal more
            os.pwrite(fd, bytes(frame_bytes), at)
        os.fsync(fd)
        result.latencies_s = _latencies(fd, seconds, per_second, frame_bytes)
    return result


def _latencies(fd: int, seconds: float, per_second: float, frame_bytes: int) -> array[float]:
    latencies = array("d")
    data, places = os.urandom(frame_bytes), _FILE_BYTES // frame_bytes
    begin = time.perf_counter()
    done = 0
    while (now := time.perf_counter()) < begin + seconds:
        due = int((now - begin) * per_second) + 1 - done
        if due <= 0:
            time.sleep(begin + done / per_second - now)
            continue
        for index in range(done, done + due):
            os.pwrite(fd, data, (1 + index % (places - 1)) * frame_bytes)
        os.fdatasync(fd)
        os.pwrite(fd, data[:_PAGE_BYTES], 0)
        os.fdatasync(fd)
        now = time.perf_counter()
        latencies.extend(now - begin - index / per_second for index in range(done, done + due))
        done += due
    return latencies


if __name__ == "__main__":
    main()
