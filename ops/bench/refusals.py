"""How far bad points hold good ones up: `python -m ops.bench.refusals [--way "500 without words"] [--seconds 20]`.

A real node, 50,000 points/s into it, and a database in another process that refuses some of them (see
`refusing_database.WAYS`). For each way of refusing there are four rows: no bad points, 1 %, 10 %, none again. The bad
ones are spread over every request, so that without help no batch would pass. Printed is how long good points took from
when they were due to be sent until they were stored: of all, and of those in the second half of the run, by when the
database's refusals are known; the writes for each 1,000 points that were sent; the node's CPU time a point, which a
busy machine changes least; and what is parked and still waits.
"""

from __future__ import annotations

import argparse
import gzip
import time

from ops.bench import generator
from ops.bench.node import running_node
from ops.bench.refusing_database import WAYS, Database, Seen, Way, running_database
from wal_ingest.wal.inspect import status

_POINTS = 1_000
_ROWS = (0, 1, 10, 0)
_CONNECTIONS = 32
_DRAIN_S_MAX = 20.0
_OLD_NS = 1_263_800_000_000_000_000
_HEAD = (
    f"{'bad':>5} {'p50 ms':>8} {'p99 ms':>8} {'most ms':>9} | {'p50 ms':>8} {'p99 ms':>8} in the 2nd half |"
    f" {'writes/1,000':>12} {'CPU us':>7} {'parked':>8} {'waiting':>8} {'undelivered good':>17}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--way", action="append", choices=list(WAYS), help="default: all, one after the other"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each row")
    parser.add_argument("--rate", type=int, default=50_000, help="points a second, bad ones among them")
    parser.add_argument("--write-ms", type=float, default=5.0, help="what a write takes")
    options = parser.parse_args()
    with running_database(options.write_ms / 1000) as database:
        for name in options.way or WAYS:
            print(f"{name}: {options.rate:,} points/s for {options.seconds:g} s", flush=True)
            print(_HEAD)
            for bad_in_100 in _ROWS:
                database.begin(name)
                print(_row(database, WAYS[name], bad_in_100, options.seconds, options.rate), flush=True)


def _row(database: Database, way: Way, bad_in_100: int, seconds: float, rate: int) -> str:
    settings = {
        "influxdb.url": f"http://127.0.0.1:{database.port}",
        "influxdb.org": "bench",
        "influxdb.bucket": "bench",
        "log.level": "error",
    }
    count = int(seconds * rate / _POINTS)
    with running_node(settings) as node:
        begin_s = time.time() + 1.0 + count * 0.005  # until all requests are made
        every_s = _POINTS / rate
        requests = [
            _request(way, entry, int((begin_s + entry * every_s) * 1e9), bad_in_100) for entry in range(count)
        ]
        time.sleep(max(0.0, begin_s - time.time()))
        shift_s = time.time() - begin_s  # on a busy machine the making takes longer
        cpu_s = node.cpu_s()
        result = generator.run(
            node.port,
            requests,
            connections=_CONNECTIONS,
            seconds=seconds + 60,
            per_second=rate / _POINTS,
            count_max=count,
        )
        if result.refused:
            raise RuntimeError(f"the node answered {dict(result.refused)}")
        good = count * (_POINTS - _POINTS * bad_in_100 // 100)
        seen = _when_stored(database, good)
        cpu_us = (node.cpu_s() - cpu_s) / (count * _POINTS) * 1e6
        told = status(node.data_dir, now_ns=time.time_ns()).sinks["influxdb"]
    late = begin_s + seconds / 2
    seen.waits = [(at_s - shift_s, wait_s - shift_s, points) for at_s, wait_s, points in seen.waits]
    whole = _percentiles(seen, 0.0)
    second = _percentiles(seen, late)
    return (
        f"{bad_in_100:>3} % {whole[0]:>8.1f} {whole[1]:>8.1f} {whole[2]:>9.1f} | {second[0]:>8.1f} {second[1]:>8.1f}"
        f"                 | {seen.writes / count:>12.2f} {cpu_us:>7.2f} {told.parked:>8,} {told.waiting_points:>8,}"
        f" {good - seen.points:>17,}"
    )


def _request(way: Way, entry: int, time_ns: int, bad_in_100: int) -> bytes:
    """One request, compressed; the same lines are bad in each."""
    lines = []
    for n in range(_POINTS):
        if n * 37 % 100 < bad_in_100:
            lines.append(
                way.line.format(n=n, entry=entry, time_ns=time_ns + n, old_ns=_OLD_NS + entry * _POINTS + n)
            )
        else:
            lines.append(f"m,host=h{n} v=1.5,entry={entry}i,n={n}i {time_ns + n}\n")
    body = gzip.compress("".join(lines).encode(), 1)
    head = (
        "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _when_stored(database: Database, good: int) -> Seen:
    """What the database saw, once all good points are there or the time for it is over."""
    until_s = time.monotonic() + _DRAIN_S_MAX
    while True:
        seen = database.seen()
        if seen.points >= good or time.monotonic() > until_s:
            time.sleep(1.0)  # the cursor
            return seen
        time.sleep(0.5)


def _percentiles(seen: Seen, after_s: float) -> tuple[float, float, float]:
    """Median, 99 % and most in milliseconds, of points that were sent after a time."""
    waits = sorted((wait_s, points) for at_s, wait_s, points in seen.waits if at_s - wait_s >= after_s)
    total, passed, found = sum(points for _, points in waits), 0, list[float]()
    for wait_s, points in waits:
        passed += points
        while len(found) < 2 and passed >= total * (0.5, 0.99)[len(found)]:
            found.append(wait_s * 1000)
    return (found[0], found[1], waits[-1][0] * 1000) if waits else (float("nan"),) * 3


if __name__ == "__main__":
    main()
