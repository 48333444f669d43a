"""What it costs to accept points, by path: run `python -m ops.bench.points` from the repository's root.

Prints the best of many rounds over 1,000 points, in µs and in points a second. One thread, no I/O. The JSON and
encoding figures do not depend on the engine.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator

from wal_ingest.points.encoding import decode_body
from wal_ingest.points.engine import ENGINES
from wal_ingest.points.exact import parse_lines
from wal_ingest.points.json_points import accept_json, accept_ndjson
from wal_ingest.points.line_protocol import LineProtocol
from wal_ingest.points.lines import Precision

POINTS = 1_000
ROUNDS = 50
NOW = 1_763_800_000_000_000_000
LINE_BYTES_MAX = 64 * 1024
DEPTH_MAX = 16
BODY_BYTES_MAX = 32 * 1024 * 1024

Measured = tuple[str, bytes, Callable[[], object]]


def best_us(call: Callable[[], object]) -> float:
    """The quickest of many calls, in microseconds; the first few warm caches and teach tag keys."""
    for _ in range(3):
        call()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return min(times) / 1_000


def lines(count: int, *, unit_ns: int = 0) -> bytes:
    """Lines with two tags and three fields, some 78 bytes each; without a time when `unit_ns` is 0."""
    source = random.Random(17)
    out = []
    for n in range(count):
        user, system = source.random() * 100, source.random() * 10
        text = f"cpu,host=web-{n % 1000:03d},region=eu user={user:.4f},sys={system:.4f},n={n}i"
        out.append(f"{text} {(NOW + n * 1_000_000_000) // unit_ns}" if unit_ns else text)
    return ("\n".join(out) + "\n").encode()


def line_protocol_cases(acceptor: LineProtocol) -> Iterator[Measured]:
    """Every path a body of line protocol can take."""
    timed, untimed = lines(POINTS, unit_ns=1), lines(POINTS)
    # New tag keys in every request, so that none is ever learned.
    fresh = iter(range(10**9))

    def accept(body: bytes, precision: Precision = Precision.NS) -> object:
        return acceptor.accept(body, precision=precision, now_ns=NOW, line_bytes_max=LINE_BYTES_MAX)

    yield "all timed, ns", timed, lambda: accept(timed)
    millis = lines(POINTS, unit_ns=1_000_000)
    yield "all timed, ms", millis, lambda: accept(millis, Precision.MS)
    yield "none timed", untimed, lambda: accept(untimed)
    mixed = lines(POINTS // 2, unit_ns=1) + lines(POINTS // 2)
    yield "half timed", mixed, lambda: accept(mixed)
    windows = timed.replace(b"\n", b"\r\n")
    yield "all timed, CRLF", windows, lambda: accept(windows)
    yield "all timed, comment", b"# c\n" + timed, lambda: accept(b"# c\n" + timed)
    yield "unknown tag keys", timed, lambda: accept(timed.replace(b"region", b"region%d" % next(fresh)))
    odd = timed[:-1] + b" \n"
    yield "one odd line", odd, lambda: accept(odd)


def other_cases() -> Iterator[Measured]:
    """The exact parser, JSON, and encodings."""
    source = random.Random(17)
    fleet = [
        {
            "serverId": f"web-{n:03d}",
            "cpu": source.random(),
            "ram": source.random(),
            "timestamp": NOW // 10**6 + n,
        }
        for n in range(POINTS)
    ]
    general = [
        {
            "measurement": "cpu",
            "tags": {"host": point["serverId"], "region": "eu"},
            "fields": {"user": point["cpu"], "sys": point["ram"], "ok": True},
            "timestamp": point["timestamp"],
        }
        for point in fleet
    ]
    timed = lines(POINTS, unit_ns=1)
    yield "exact parser alone", timed, lambda: parse_lines(timed, unit_ns=1, now_ns=NOW)

    def case(name: str, accept: Callable[..., object], body: bytes) -> Measured:
        return name, body, lambda: accept(body, now_ns=NOW, depth_max=DEPTH_MAX)

    yield case("JSON, fleet", accept_json, json.dumps(fleet).encode())
    untimed = [{key: value for key, value in point.items() if key != "timestamp"} for point in fleet]
    yield case("JSON, fleet untimed", accept_json, json.dumps(untimed).encode())
    yield case("NDJSON, fleet", accept_ndjson, "\n".join(map(json.dumps, fleet)).encode())
    yield case("JSON, general", accept_json, json.dumps(general).encode())
    for encoding, body in (("gzip", gzip.compress(timed, 1)), ("deflate", zlib.compress(timed, 1))):
        yield f"{encoding} back", body, lambda e=encoding, b=body: decode_body(b, e, bytes_max=BODY_BYTES_MAX)  # type: ignore[misc]


def report(title: str, cases: Iterator[Measured]) -> None:
    sys.stdout.write(f"\n{title}\n")
    for name, body, call in cases:
        us = best_us(call)
        sys.stdout.write(
            f"  {name:22} {len(body) / 1000:6.1f} kB {us:10.1f} µs {POINTS / us:8.2f} M points/s\n"
        )


def main() -> None:
    """Measures and prints."""
    for engine in ENGINES:
        report(f"line protocol, {engine.name}", line_protocol_cases(LineProtocol(engine)))
    report("others", other_cases())


if __name__ == "__main__":
    main()
