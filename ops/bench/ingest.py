"""How fast points are taken: points/s, CPU per point, and the latency of the answer that says "durable".

    python -m ops.bench.ingest --help

The generator is a process of its own on the same machine, so on two cores the server has about one. The
sync is on, always: there is no way to switch it off.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ops.bench import generator
from ops.bench.generator import Result
from ops.bench.node import Node, make_requests, running_node

_HEAD = (
    f"{'points':>7} {'body':>6} {'conns':>6} {'points/s':>12} {'requests/s':>11} {'CPU µs/point':>13}"
    f" {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}  refused"
)


def main() -> None:
    options = _options()
    print(
        f"sink: {options.sink}; {options.seconds:g} s a row; {options.connections} connections in the closed loop"
    )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print("\nclosed loop: each connection sends again when it was answered")
        print(_HEAD)
        for points in options.points:
            for packed in (False, True):
                _closed(pool, options, points, packed=packed)
        if options.rate:
            print(f"\nopen loop: {options.rate:,} points/s are due, whatever became of the earlier ones")
            print(_HEAD)
            for packed in (False, True):
                _open(pool, options, packed=packed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.ingest",
        description="Measures a server that it starts itself, on a fresh data directory, with the sync on.",
    )
    parser.add_argument("--points", type=int, nargs="*", default=[1, 100, 1000], help="points a request")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a row (default 6)")
    parser.add_argument(
        "--connections", type=int, default=16, help="connections of the closed loop (default 16)"
    )
    parser.add_argument(
        "--rate",
        type=int,
        default=500_000,
        help="points/s of the open loop, 0 leaves it out (default 500000)",
    )
    parser.add_argument(
        "--open-connections",
        type=int,
        default=64,
        help="connections of the open loop at the most (default 64)",
    )
    parser.add_argument("--open-seconds", type=float, default=15.0, help="length of an open row (default 15)")
    parser.add_argument(
        "--sink",
        choices=("archive", "away"),
        default="archive",
        help='"archive": delivered while measured, as by default; "away": to a database that is down',
    )
    parser.add_argument("--untimed", action="store_true", help="points without a time, stamped by the server")
    parser.add_argument(
        "--below", type=Path, help="folder for the data directory: choose the disk to measure"
    )
    return parser.parse_args()


def settings_for(sink: str) -> dict[str, object]:
    """Settings of a node whose points go to the archive, or to a database that nobody answers for."""
    if sink == "archive":
        return {"log.level": "error"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "log.level": "error",
        "influxdb.url": f"http://127.0.0.1:{port}",
        "influxdb.org": "bench",
        "influxdb.bucket": "bench",
        "influxdb.token": "bench",
    }


def _closed(pool: ProcessPoolExecutor, options: argparse.Namespace, points: int, *, packed: bool) -> None:
    requests = make_requests(points, packed=packed, timed=not options.untimed)
    with running_node(settings_for(options.sink), below=options.below) as node:
        _measure(pool, node, requests, points, packed, options.connections, options.seconds, per_second=0.0)


def _open(pool: ProcessPoolExecutor, options: argparse.Namespace, *, packed: bool) -> None:
    points = max(options.points)
    requests = make_requests(points, packed=packed, timed=not options.untimed)
    with running_node(settings_for(options.sink), below=options.below) as node:
        per_second = options.rate / points
        _measure(
            pool, node, requests, points, packed, options.open_connections, options.open_seconds, per_second
        )


def _measure(
    pool: ProcessPoolExecutor,
    node: Node,
    requests: list[bytes],
    points: int,
    packed: bool,
    connections: int,
    seconds: float,
    per_second: float,
) -> None:
    """One row: a second of warming up, then the measure."""

    def load(for_s: float) -> Result:
        return pool.submit(
            generator.run, node.port, requests, connections=connections, seconds=for_s, per_second=per_second
        ).result()

    load(1.0)
    before = node.cpu_s()
    result = load(seconds)
    cpu_s = node.cpu_s() - before
    taken = result.acked * points
    print(
        f"{points:>7} {'gzip' if packed else 'plain':>6} {connections:>6} {taken / result.seconds:>12,.0f}"
        f" {result.acked / result.seconds:>11,.0f} {cpu_s / max(taken, 1) * 1e6:>13.2f}"
        f" {result.percentile_ms(50):>8.2f} {result.percentile_ms(99):>8.2f} {result.percentile_ms(100):>8.2f}"
        f"  {dict(result.refused) or ''}",
        flush=True,
    )


if __name__ == "__main__":
    main()
