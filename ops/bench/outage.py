"""What an outage of the database costs: memory while points wait, and how fast they drain afterwards.

    python -m ops.bench.outage --points 50000000 --rate 500000

Points go into a server whose database is down, at a steady rate. Its memory is sampled all the while. Then a
real `victoria-metrics` comes up, and while points go on coming in at the same rate, what waits is drained.
RssAnon is the server's own memory; RssFile is pages of the WAL's files that the kernel keeps mapped and takes
back whenever it needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ops.bench import generator
from ops.bench.generator import Result
from ops.bench.node import Node, make_requests, running_node
from wal_ingest.wal.inspect import status

SAMPLE_S = 5.0
POINTS_A_REQUEST = 1000
_MEMORY = ("VmRSS", "RssAnon", "RssFile", "VmHWM")
_HEAD = (
    f"{'s':>6} {'accepted':>13} {'waiting':>13} {'in/s':>10} {'out/s':>10} {'WAL MiB':>8}"
    f" {'RSS MiB':>8} {'anon':>7} {'file':>7} {'peak':>7}"
)


def main() -> None:
    options = _options()
    database_port = _free_port()
    settings = {
        "influxdb.url": f"http://127.0.0.1:{database_port}",
        "influxdb.org": "bench",
        "influxdb.bucket": "bench",
        "influxdb.token": "bench",
        "influxdb.in_flight_max": options.in_flight,
        "flusher.batch_points_max": options.batch_points,
        "flusher.retry_s_max": 2,
        "log.level": "error",
    }
    requests = make_requests(POINTS_A_REQUEST, packed=options.gzip)
    context = multiprocessing.get_context("spawn")
    # The pool is the outer one: when the node stops, a load that is still running ends with it.
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        running_node(settings, below=options.below) as node,
    ):
        watch = _Watch(node)
        print(f"the database is down; {options.points:,} points at {options.rate or 'full'} a second")
        print(_HEAD)
        count = options.points // POINTS_A_REQUEST
        down = _load(pool, node, requests, options, seconds=options.seconds, count_max=count)
        watch.until(down.done)
        result = down.result()
        print(
            f"taken at {result.acked * POINTS_A_REQUEST / result.seconds:,.0f} points/s; {dict(result.refused)}"
        )

        with _victoria_metrics(database_port, below=options.below):
            came_up = time.perf_counter()
            print(f"the database is up; points go on coming in for at most {options.drain_s_max:g} s")
            print(_HEAD)
            going_on = _load(pool, node, requests, options, seconds=options.drain_s_max, count_max=0)
            # What came in within the last second is on its way rather than waiting: it is in the batches being
            # filled and written, and the cursor is made durable only twice a second.
            watch.until(lambda: going_on.done() or watch.waiting < watch.rate_in)
            print(
                f"in {time.perf_counter() - came_up:,.0f} s of delivery: in {watch.rate_in:,.0f} points/s, out"
                f" {watch.rate_out:,.0f} points/s, that is {watch.rate_out / max(watch.rate_in, 1):.2f} times as fast;"
                f" {watch.waiting:,} points wait"
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.outage",
        description="Memory during an outage of the database, and the drain after it.",
    )
    parser.add_argument(
        "--points", type=int, default=50_000_000, help="points that wait (default 50 million)"
    )
    parser.add_argument(
        "--rate", type=int, default=500_000, help="points/s that come in, 0 for all (default 500000)"
    )
    parser.add_argument(
        "--seconds", type=float, default=900.0, help="longest time of the outage (default 900)"
    )
    parser.add_argument(
        "--drain-s-max", type=float, default=300.0, help="longest time of the drain (default 300)"
    )
    parser.add_argument("--connections", type=int, default=64, help="connections of the load (default 64)")
    parser.add_argument("--in-flight", type=int, default=4, help="writes to the database at once (default 4)")
    parser.add_argument("--batch-points", type=int, default=1000, help="points in one write (default 1000)")
    parser.add_argument("--gzip", action="store_true", help="send compressed bodies")
    parser.add_argument("--below", type=Path, help="folder for all data: choose the disk to measure")
    return parser.parse_args()


def _load(
    pool: ProcessPoolExecutor,
    node: Node,
    requests: list[bytes],
    options: argparse.Namespace,
    *,
    seconds: float,
    count_max: int,
) -> Future[Result]:
    return pool.submit(
        generator.run,
        node.port,
        requests,
        connections=options.connections,
        seconds=seconds,
        per_second=options.rate / POINTS_A_REQUEST,
        count_max=count_max,
    )


class _Watch:
    """Samples the node every `SAMPLE_S` seconds and prints a row; the rates are those since `until` began."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._began = time.perf_counter()
        self.waiting = 0
        self.rate_in = 0.0
        self.rate_out = 0.0

    def until(self, done: Callable[[], bool]) -> None:
        """Until `done` says so. The load is bounded, so this is."""
        first_s, first_in, first_out, _ = self._sample()
        last_s, last_in, last_out = first_s, first_in, first_out
        while True:
            time.sleep(SAMPLE_S)
            now_s, accepted, confirmed, wal_mib = self._sample()
            step = now_s - last_s
            memory = self._node.memory_mib(*_MEMORY)
            print(
                f"{now_s:>6.0f} {accepted:>13,} {self.waiting:>13,} {(accepted - last_in) / step:>10,.0f}"
                f" {(confirmed - last_out) / step:>10,.0f} {wal_mib:>8,.0f} {memory[0]:>8.0f} {memory[1]:>7.0f}"
                f" {memory[2]:>7.0f} {memory[3]:>7.0f}",
                flush=True,
            )
            last_s, last_in, last_out = now_s, accepted, confirmed
            self.rate_in = (accepted - first_in) / (now_s - first_s)
            self.rate_out = (confirmed - first_out) / (now_s - first_s)
            if done():
                return

    def _sample(self) -> tuple[float, int, int, float]:
        """Seconds, points accepted, points confirmed, MiB of the WAL."""
        told = status(self._node.data_dir, now_ns=time.time_ns())
        sink = told.sinks.get("influxdb")
        self.waiting = sink.waiting_points if sink is not None else told.points_kept
        confirmed = told.points_accepted - self.waiting
        return time.perf_counter() - self._began, told.points_accepted, confirmed, told.bytes / 2**20


@contextmanager
def _victoria_metrics(port: int, *, below: Path | None) -> Iterator[None]:
    program = shutil.which("victoria-metrics")
    if program is None:
        raise SystemExit("victoria-metrics is needed for the drain, and is not on the PATH")
    with tempfile.TemporaryDirectory(prefix="wal-ingest-bench-vm-", dir=below) as folder:
        process = subprocess.Popen(
            [
                program,
                f"-storageDataPath={folder}/data",
                f"-httpListenAddr=127.0.0.1:{port}",
                "-retentionPeriod=10y",
                "-memory.allowedPercent=30",
                "-loggerLevel=ERROR",
            ]
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


def _wait_for(url: str) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
