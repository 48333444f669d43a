"""Streams: throughput beside HTTP's on the same bodies, and the acks of a whole fleet at its own pace.

    python -m ops.bench.streams --help

The generator is a process of its own on the same machine, so on two cores the server has about one. The sync is on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import struct
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ops.bench import generator, stream_generator
from ops.bench.generator import Result
from ops.bench.ingest import settings_for
from ops.bench.node import Node, make_requests, running_node
from ops.bench.stream_generator import Shape, Stream, frame, masked

_HEAD = (
    f"{'':<24} {'points/s':>12} {'frames/s':>10} {'CPU µs/point':>13} {'CPU µs/frame':>13}"
    f" {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}  refused"
)


def main() -> None:
    options = _options()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        if not options.only_fleet:
            _throughput(pool, options)
        if not options.only_throughput:
            _fleet(pool, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.streams",
        description="Measures a server that it starts itself, on a fresh data directory, with the sync on.",
    )
    parser.add_argument("--points", type=int, nargs="*", default=[1, 100, 1000], help="points a frame")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a row (default 6)")
    parser.add_argument("--connections", type=int, default=16, help="of the throughput rows (default 16)")
    parser.add_argument("--window", type=int, default=16, help="frames unanswered on a stream (default 16)")
    parser.add_argument("--streams", type=int, default=5000, help="streams of the fleet (default 5000)")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between a stream's frames")
    parser.add_argument(
        "--fleet-seconds", type=float, default=30.0, help="length of a fleet row (default 30)"
    )
    parser.add_argument("--only-fleet", action="store_true", help="leave the throughput out")
    parser.add_argument("--only-throughput", action="store_true", help="leave the fleet out")
    parser.add_argument("--sink", choices=("archive", "away"), default="archive", help="see ops.bench.ingest")
    parser.add_argument("--below", type=Path, help="folder for the data directory")
    return parser.parse_args()


def bodies(points: int, *, packed: bool) -> list[bytes]:
    """The bodies of `make_requests`, masked."""
    return [masked(request.partition(b"\r\n\r\n")[2]) for request in make_requests(points, packed=packed)]


def _throughput(pool: ProcessPoolExecutor, options: argparse.Namespace) -> None:
    print(f"closed loop, {options.connections} connections; streams with {options.window} frames unanswered")
    print(_HEAD)
    for points in options.points:
        for packed in (False, True):
            name = f"{points:>5} {'gzip' if packed else 'plain':<6}"
            requests = make_requests(points, packed=packed)
            with running_node(settings_for(options.sink), below=options.below) as node:

                def http(for_s: float, requests: list[bytes] = requests, node: Node = node) -> Result:
                    return pool.submit(
                        generator.run, node.port, requests, connections=options.connections, seconds=for_s
                    ).result()

                _row(f"{name} HTTP", node, points, http, options.seconds)
            for window in (1, options.window):
                shape = Shape(
                    bodies(points, packed=packed),
                    "gzip" if packed else "identity",
                    options.connections,
                    window,
                )
                with running_node(settings_for(options.sink), below=options.below) as node:

                    def stream(for_s: float, shape: Shape = shape, node: Node = node) -> Result:
                        return pool.submit(stream_generator.run, node.port, shape, seconds=for_s).result()

                    _row(f"{name} stream, {window}", node, points, stream, options.seconds)


def _row(name: str, node: Node, points: int, load: object, seconds: float) -> None:
    assert callable(load)
    load(1.0)
    before = node.cpu_s()
    _print(name, node, points, load(seconds), before)


def _print(name: str, node: Node, points: int, result: Result, cpu_before_s: float) -> None:
    cpu_s = node.cpu_s() - cpu_before_s
    frames = max(result.acked, 1)
    print(
        f"{name:<24} {result.acked * points / result.seconds:>12,.0f} {result.acked / result.seconds:>10,.0f}"
        f" {cpu_s / frames / points * 1e6:>13.2f} {cpu_s / frames * 1e6:>13.1f} {result.percentile_ms(50):>8.2f}"
        f" {result.percentile_ms(99):>8.2f} {result.percentile_ms(100):>8.2f}  {dict(result.refused) or ''}",
        flush=True,
    )


def _fleet(pool: ProcessPoolExecutor, options: argparse.Namespace) -> None:
    points, per_second = 1000, options.streams / options.every
    shape = Shape(bodies(points, packed=True), "gzip", options.streams, per_second=per_second)
    print(
        f"\nopen loop: {options.streams:,} streams, a gzip frame of 1,000 points each {options.every:g} s "
        f"({per_second * points:,.0f} points/s)"
    )
    with running_node(settings_for(options.sink), below=options.below) as node:
        empty_mib, before = node.memory_mib("VmRSS")[0], node.cpu_s()
        opening_s = pool.submit(stream_generator.hold_open, node.port, shape).result()
        print(
            f"opened in {opening_s:.1f} s, {(node.cpu_s() - before) / options.streams * 1e3:.2f} ms of CPU each; "
            f"{node.memory_mib('VmRSS')[0]:.0f} MiB resident, {empty_mib:.0f} without"
        )
        print(_HEAD)
        for name, disturb in (
            ("the fleet alone", None),
            ("and a slow reader", _slow_reader),
            ("and a silent client", _silent),
            ("and a flood", _flood),
            ("the fleet alone again", None),
        ):
            before, began_s = node.cpu_s(), time.perf_counter()
            running = pool.submit(stream_generator.run_held, options.fleet_seconds)
            if disturb is not None:
                disturb(node.port, options.fleet_seconds)
            result, own_cpu_s = running.result()
            spent_s = time.perf_counter() - began_s
            busy = (node.cpu_s() - before) / spent_s
            _print(name, node, points, result, before)
            print(
                f"{'':<24} cores: server {busy:.2f}, generator {own_cpu_s / spent_s:.2f}; "
                f"{node.memory_mib('VmRSS')[0]:.0f} MiB resident"
            )
        pool.submit(stream_generator.let_go).result()


def _slow_reader(port: int, seconds: float) -> None:
    """Sends frames and never reads an answer."""
    stream = Stream(port, "slow-reader")
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    _send_for(stream, seconds, rest_s=0.001)


def _silent(port: int, seconds: float) -> None:
    """Begins a frame, and says nothing more."""
    stream = Stream(port, "silent")
    stream.socket.sendall(b"\x82\xff" + struct.pack(">Q", 1 << 20) + b"\x01\x02\x03\x04" + bytes(1000))
    time.sleep(seconds)
    stream.socket.close()


def _flood(port: int, seconds: float) -> None:
    """Sends frames of a thousand points as fast as they are taken, and reads the answers."""
    stream = Stream(port, "flood")
    _send_for(stream, seconds, rest_s=0.0)
    print(f"{'':<24} the flood had {stream.number / seconds:,.0f} frames/s taken")


def _send_for(stream: Stream, seconds: float, *, rest_s: float) -> None:
    body = bodies(1000, packed=True)[0]
    end = time.perf_counter() + seconds
    stream.socket.settimeout(0.5)
    while time.perf_counter() < end:
        stream.number += 1
        piece = memoryview(frame(stream.number, "gzip", body))
        while piece and time.perf_counter() < end:
            try:
                piece = piece[stream.socket.send(piece) :]
            except TimeoutError:
                continue
            except OSError:
                return
        if rest_s:
            time.sleep(rest_s)
        else:
            _read_what_is_there(stream)
    stream.socket.close()


def _read_what_is_there(stream: Stream) -> None:
    stream.socket.setblocking(False)
    try:
        stream.socket.recv(1 << 16)
    except BlockingIOError:
        pass
    finally:
        stream.socket.settimeout(0.5)


if __name__ == "__main__":
    main()
