"""A data directory that is the same every time: what pages about commands show, and tests count in."""

from __future__ import annotations

from pathlib import Path

from tests.wal.factories import Clock, settings
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import Destination, NewEntry
from wal_ingest.wal.store import Store

START_NS = 1_795_381_200 * 10**9  # 2026-11-22T21:00:00Z
ENTRIES = 6
POINTS = 1000


def lines(number: int) -> bytes:
    """The 1,000 points of an entry: 900 of cpu and 100 of "my disk", ten minutes after those of the one before."""
    start_ns = START_NS + (number - 1) * 600 * 10**9
    made = []
    for n in range(POINTS):
        time_ns = start_ns - 10**9 + n * 10**6
        if n % 10 == 9:
            made.append(f"my\\ disk,host=web-{n % 50:02} free={n * 7919 * number % 100_000}i {time_ns}\n")
        else:
            made.append(f"cpu,host=web-{n % 50:02} usage={n * 7919 * number % 1000 / 10} {time_ns}\n")
    return "".join(made).encode()


def prepare(data_dir: Path) -> None:
    """Three segments of two entries each, from web-a and web-b in turns; a sink has confirmed the first segment."""
    clock = Clock(START_NS)
    store = Store(data_dir, settings(segment_s_max=1e9), now_ns=clock)
    for number in range(1, ENTRIES + 1):
        source = "web-a" if number % 2 else "web-b"
        store.wal.commit(
            [[NewEntry(lines(number), POINTS, clock.now_ns, source, Destination("acme", "metrics"))]]
        )
        clock.advance_s(600)
        if number % 2 == 0 and number < ENTRIES:
            store.wal.seal()
    store.commit_cursor("influxdb", Cursor(2, 2 * POINTS, confirmed=2 * POINTS))
    store.close()
