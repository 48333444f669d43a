"""How far bad points hold good ones up: `python -m ops.bench.refusals [--seconds 10] [--rate 50000] [--write-ms 5]`.

Delivery to a database in this process that refuses points of a wrong type, in InfluxDB's words and with its partial
writes, at 0, 1 and 10 % of them. Printed for each: how long good points waited to be written (median, 99 %, most), the
writes for each 1,000 points, and what was parked. The share of good points is the same in each run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Hashable, Sequence
from random import Random

import trio

from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.outcome import Confirmed, Named, Outcome, Rejected
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import CODEC_GZIP, Destination, Entry
from wal_ingest.wal.gzip_codec import compress

_POINTS = 1_000
_REASON = (
    'partial write: field type conflict: input field "v" on measurement "m" is type string, '
    "already exists as type float"
)


class _Log:
    """A log in memory, of which nothing is kept that was confirmed."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.last_seq = 0
        self.points_total = 0
        self._appended = trio.Event()

    def append(self, lines: bytes, points: int) -> None:
        seq = self.last_seq + 1
        self.entries[seq] = Entry(
            seq,
            points,
            self.points_total,
            time.time_ns(),
            "",
            Destination(),
            CODEC_GZIP,
            len(lines),
            compress(lines),
        )
        self.points_total += points
        self.last_seq = seq  # last: delivery reads in a thread
        self._appended.set()
        self._appended = trio.Event()

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        found: list[Entry] = []
        size = 0
        for seq in range(after_seq + 1, self.last_seq + 1):
            if size > bytes_max:
                break
            found.append(self.entries[seq])
            size += len(found[-1].payload)
        return found

    async def wait_appended(self, after_seq: int) -> None:
        while self.last_seq <= after_seq:
            await self._appended.wait()


class _State:
    """The cursor in memory; parked points are counted."""

    def __init__(self) -> None:
        self._cursor = Cursor()
        self._moved = trio.Event()
        self.parked = 0

    def cursor(self, _sink: str) -> Cursor:
        return self._cursor

    def commit_cursor(self, _sink: str, cursor: Cursor, letters: Sequence[DeadLetter]) -> None:
        self._cursor = cursor
        self.parked += len(letters)
        trio.from_thread.run_sync(self._moved.set)

    async def reached(self, seq: int) -> None:
        while self._cursor.seq < seq:
            await self._moved.wait()
            self._moved = trio.Event()


class _Database:
    """Takes `write_s` for a write, and what is not refused of it. `waits_s` are those of good points, one a batch."""

    name = "database"
    required = True
    in_flight_max = 4
    batch_points_max: int | None = None

    def __init__(self, write_s: float) -> None:
        self._write_s = write_s
        self.writes = 0
        self.waits_s: list[float] = []

    def group(self, entry: Entry) -> Hashable:
        return entry.destination

    async def open(self, position: bytes | None) -> bytes | None:  # noqa: ARG002 - it remembers none
        await trio.lowlevel.checkpoint()
        return None

    async def write(self, batch: Batch) -> Outcome:
        self.writes += 1
        await trio.sleep(self._write_s)
        bad = await trio.to_thread.run_sync(lambda: batch.lines().count(b' v="'))
        if bad < batch.points:
            self.waits_s.append((time.time_ns() - batch.accepted_ns) / 1e9)
        if not bad:
            return Confirmed()
        return Rejected(f"{_REASON} dropped={bad}", 400, bad, hint=Named("m", "v", "string"))

    async def check(self) -> list[Check]:
        await trio.lowlevel.checkpoint()
        return []

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _body(seq: int, bad_in_100: int) -> bytes:
    values = ['"x"' if n % 100 < bad_in_100 else "1.5" for n in range(_POINTS)]
    return "".join(
        f"m,host=h{n} v={value} {time.time_ns() + seq}\n" for n, value in enumerate(values)
    ).encode()


async def _run(bad_in_100: int, seconds: float, rate: int, write_s: float) -> None:
    log, state, database = _Log(), _State(), _Database(write_s)
    delivery = Delivery(
        database,
        log,
        state,
        FlusherSettings(),
        run_sync=trio.to_thread.run_sync,
        now_ns=time.time_ns,
        rng=Random(1),
    )
    body = _body(0, bad_in_100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.run)
        begun = trio.current_time()
        for number in range(int(seconds * rate / _POINTS)):
            await trio.sleep_until(begun + number * _POINTS / rate)
            log.append(body, _POINTS)
        await state.reached(log.last_seq)
        took_s = trio.current_time() - begun
        delivery.stop()
    waits = sorted(database.waits_s)
    print(
        f"{bad_in_100:3d} % bad: good points waited {statistics.median(waits) * 1000:7.1f} ms, "
        f"99 % {waits[int(len(waits) * 0.99)] * 1000:7.1f} ms, most {waits[-1] * 1000:7.1f} ms; "
        f"{database.writes / log.points_total * 1000:5.2f} writes for 1,000 points; {state.parked:,} parked; "
        f"all done after {took_s:.1f} s"
    )


def main() -> None:
    """Prints one line for each share of bad points."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=50_000, help="points a second, bad ones among them")
    parser.add_argument("--write-ms", type=float, default=5.0, help="what a write takes")
    options = parser.parse_args()
    for bad_in_100 in (0, 1, 10):
        trio.run(_run, bad_in_100, options.seconds, options.rate, options.write_ms / 1000)


if __name__ == "__main__":
    main()
