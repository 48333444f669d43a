"""A node under attack: what good clients are answered beside everything that a hostile host sends.

    python -m ops.bench.attack
    python -m ops.bench.attack --only bombs members --seconds 5
    python -m ops.bench.attack --rounds 3 --no-single

Good clients have 100,000 points/s taken, some by POST and some on streams, from 127.0.0.1. The attackers of
`ops.bench.attackers` come from 127.0.0.2, each at a fixed rate, in a process of their own; good clients take two more.
On two cores the server so has less than one beside them. Rows with and without attackers take turns. Printed for each:
how long answers took, counted from when a request was due, the server's CPU and its largest resident memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from ops.bench import attackers, generator, stream_generator
from ops.bench.attackers import ATTACKS, Struck, Target
from ops.bench.generator import Result
from ops.bench.node import Node, make_requests, running_node
from ops.bench.stream_generator import Shape, masked

_TOKEN = "the-token-of-this-fleet"
_POINTS = 1_000
_PER_S = {"posts": 60, "frames": 40}
_CONNECTIONS = 16
_STREAMS = 20

QUIET = "quiet"
ALL = "all attacks"

# Between two rows.
_REST_S = 1.0
_WAIT_S_MAX = 30.0

_HEAD = (
    f"{'':<12} {'points/s':>9}   {'posts: p50':>10} {'p99':>7} {'max':>7}   {'frames: p50':>11} {'p99':>7} {'max':>7}"
    f"   {'cores':>5} {'RSS MiB':>7} {'most':>5}  refused"
)


@dataclass(frozen=True, slots=True)
class Row:
    """What one row measured; `struck` is None without an attack."""

    name: str
    posts: Result
    frames: Result
    seconds: float
    server_cpu_s: float
    rss_mib: float
    rss_mib_max: float
    struck: Struck | None

    @property
    def refused(self) -> Counter[str]:
        """Good requests and frames that were not accepted, by what they were answered."""
        return self.posts.refused + self.frames.refused

    @property
    def points_per_s(self) -> float:
        """Points of good clients that were taken."""
        return (self.posts.acked + self.frames.acked) * _POINTS / self.seconds


class Bench:
    """A node, its good clients and its attackers."""

    def __init__(self, node: Node, pools: Sequence[ProcessPoolExecutor], attack_is_over: Event) -> None:
        self._node = node
        self._attack_is_over = attack_is_over
        self._posting, self._streaming, self._attacking = pools
        self._requests = make_requests(_POINTS, packed=False, token=_TOKEN)
        bodies = [
            masked(request.partition(b"\r\n\r\n")[2]) for request in make_requests(_POINTS, packed=True)
        ]
        self._shape = Shape(bodies, "gzip", _STREAMS, per_second=_PER_S["frames"], token=_TOKEN)
        self._descriptors = node.descriptors() + 8
        self._attacking.submit(attackers.prepare).result()
        self.row(QUIET, (), 2.0)

    def row(self, name: str, attacks: Sequence[str], seconds: float) -> Row:
        """Measures good clients for so many seconds, beside the attacks of these names."""
        node = self._node
        node.forget_peak()
        struck = None
        if attacks:
            target = Target(node.port, _TOKEN)
            self._attack_is_over.clear()
            seconds_max = seconds + 3 * _WAIT_S_MAX
            striking = self._attacking.submit(attackers.run, target, tuple(attacks), seconds_max)
            self._wait(lambda: node.descriptors() >= self._descriptors + attackers.ahead_of(attacks))
        cpu_s = node.cpu_s()
        posts = self._posting.submit(
            generator.run,
            node.port,
            self._requests,
            connections=_CONNECTIONS,
            seconds=seconds,
            per_second=_PER_S["posts"],
        )
        frames = self._streaming.submit(stream_generator.run, node.port, self._shape, seconds=seconds)
        posted, framed = posts.result(), frames.result()
        rss_mib, rss_mib_max = node.memory_mib("VmRSS", "VmHWM")
        spent_s = max(posted.seconds, framed.seconds)
        cpu_s = node.cpu_s() - cpu_s
        # Not before: what good clients are to be measured beside is there to the end.
        self._attack_is_over.set()
        if attacks:
            struck = striking.result()
        row = Row(name, posted, framed, spent_s, cpu_s, rss_mib, rss_mib_max, struck)
        # What the attackers left open is closed and freed.
        self._wait(lambda: node.descriptors() <= self._descriptors)
        time.sleep(_REST_S)
        return row

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Waits until that is so, or for a bounded time."""
        end_s = time.perf_counter() + _WAIT_S_MAX
        while not condition() and time.perf_counter() < end_s:
            time.sleep(0.05)


@contextmanager
def bench(*, below: Path | None = None) -> Iterator[Bench]:
    """A node on its default settings (but for a token) with the archive, and processes to send from."""
    spawn = multiprocessing.get_context("spawn")
    attack_is_over = spawn.Event()
    settings = {"log.level": "error", "server.write_token": _TOKEN}
    with (
        ProcessPoolExecutor(1, mp_context=spawn) as posting,
        ProcessPoolExecutor(1, mp_context=spawn) as streaming,
        ProcessPoolExecutor(
            1, mp_context=spawn, initializer=attackers.end_with, initargs=(attack_is_over,)
        ) as attacking,
        running_node(settings, below=below) as node,
    ):
        yield Bench(node, (posting, streaming, attacking), attack_is_over)


def ratio(rows: Sequence[Row], percent: float) -> float:
    """How many times as long answers took under all attacks as without any, at a percentile of all rows together."""

    def latency_ms(name: str) -> float:
        together = Result()
        for row in rows:
            if row.name == name:
                together.latencies_s += row.posts.latencies_s + row.frames.latencies_s
        return together.percentile_ms(percent)

    return latency_ms(ALL) / latency_ms(QUIET)


def main() -> None:
    """Prints the rows."""
    options = _options()
    names = options.only or list(ATTACKS)
    print(
        f"good clients: {_PER_S['posts']} POSTs and {_PER_S['frames']} gzip frames a second, of {_POINTS:,} points each"
    )
    with bench(below=options.below) as measured:
        print(_HEAD)
        rows = [_print(measured.row(QUIET, (), options.seconds))]
        for _ in range(options.rounds):
            rows.append(_print(measured.row(ALL, names, options.seconds)))
            rows.append(_print(measured.row(QUIET, (), options.seconds)))
        print(
            f"under all attacks p50 is {ratio(rows, 50):.2f} times and p99 {ratio(rows, 99):.2f} times that of the "
            f"quiet rows; at most {max(row.rss_mib_max for row in rows):.0f} MiB resident"
        )
        if not options.no_single:
            print("\none attack at a time")
            print(_HEAD)
            for name in names:
                _print(measured.row(name, (name,), options.seconds))
            _print(measured.row(QUIET, (), options.seconds))


def _options() -> argparse.Namespace:
    attacks = "\n".join(
        f"  {attack.name:<10} {attack.what}: {attack.per_s:g} a second, {attack.at_once:,} at once"
        + (f", {attack.ahead:,} ahead" if attack.ahead else "")
        for attack in ATTACKS.values()
    )
    parser = argparse.ArgumentParser(
        prog="python -m ops.bench.attack",
        description="Attacks a server that it starts itself, on a fresh data directory, on this machine only.",
        epilog=f"attacks:\n{attacks}\n\nexamples:\n"
        "  python -m ops.bench.attack\n"
        "  python -m ops.bench.attack --only bombs members --seconds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a row (default 10)")
    parser.add_argument("--rounds", type=int, default=2, help="rows under all attacks (default 2)")
    parser.add_argument(
        "--only", nargs="+", choices=list(ATTACKS), metavar="ATTACK", help="only these attacks"
    )
    parser.add_argument("--no-single", action="store_true", help="leave the rows of single attacks out")
    parser.add_argument("--below", type=Path, help="folder for the data directory")
    return parser.parse_args()


def _print(row: Row) -> Row:
    posts, frames = row.posts, row.frames
    print(
        f"{row.name:<12} {row.points_per_s:>9,.0f}   {posts.percentile_ms(50):>10.2f} {posts.percentile_ms(99):>7.2f}"
        f" {posts.percentile_ms(100):>7.1f}   {frames.percentile_ms(50):>11.2f} {frames.percentile_ms(99):>7.2f}"
        f" {frames.percentile_ms(100):>7.1f}   {row.server_cpu_s / row.seconds:>5.2f} {row.rss_mib:>7.0f}"
        f" {row.rss_mib_max:>5.0f}  {dict(row.refused) or ''}",
        flush=True,
    )
    if row.struck is not None:
        for name, answers in row.struck.answers.items():
            told = ", ".join(f"{count} {answer}" for answer, count in answers.most_common())
            print(f"{'':<12}   {name}: {told or 'nothing yet'}", flush=True)
        print(f"{'':<12}   attackers took {row.struck.cpu_s / row.seconds:.2f} cores", flush=True)
    return row


if __name__ == "__main__":
    main()
