"""What the cursor says of points settled ahead of it: too many to describe, or not read again yet."""

from __future__ import annotations

import pytest

from tests.flusher.twins import START_NS, MemoryLog
from wal_ingest.flusher.batches import Batch, Batcher, Run
from wal_ingest.flusher.window import OPEN_RANGES_MAX, Settled, Window
from wal_ingest.wal.cursor import Cursor, DeadLetter, OpenLines
from wal_ingest.wal.entry import Destination


def window_of(*sizes: int) -> tuple[Window, list[Batch]]:
    """A window that has read entries of so many points, each in a batch of its own that is being written."""
    log, batcher = MemoryLog(), Batcher(lambda entry: entry.seq, points_max=max(sizes))
    for points in sizes:
        log.append(points)
    batches = batcher.add(log.entries) + batcher.flush()
    window = Window(Cursor(), batches_max=64, bytes_max=2**30, ahead=True)
    window.read(batcher.take_runs())
    for batch in batches:
        window.begin(window.add(batch))
    return window, sorted(batches, key=lambda batch: batch.first_seq)


def committed(window: Window) -> Cursor:
    pending = window.pending()
    assert pending is not None
    window.committed(*pending)
    return pending[0]


def test_a_cursor_carries_a_limited_number_of_open_ranges_and_counts_no_point_beyond_them() -> None:
    entries = OPEN_RANGES_MAX // 2 + 10
    window, batches = window_of(*[3] * entries)
    for batch in batches:  # the second of three: two ranges are open around it
        window.settle_parts([part._replace(first=1, points=1) for part in batch.parts], Settled())
    cursor = committed(window)
    assert len(cursor.open) == OPEN_RANGES_MAX
    assert (cursor.reach, cursor.ahead, cursor.unaccounted) == (OPEN_RANGES_MAX // 2, OPEN_RANGES_MAX // 2, 0)
    for batch in batches:
        window.settle_parts(
            [batch.parts[0]._replace(points=1), batch.parts[0]._replace(first=2, points=1)], Settled()
        )
    assert committed(window) == Cursor(entries, 3 * entries, confirmed=3 * entries)


def test_what_an_earlier_life_settled_stays_described_until_it_is_read_again() -> None:
    before = Cursor(1, 2, confirmed=7, ahead=5, reach=6, open=(OpenLines(2, 4), OpenLines(6, 6, 0, 1)))
    window = Window(before, batches_max=64, bytes_max=2**20, ahead=True)
    log = MemoryLog()
    for points in (2, 3):
        log.append(points)
    batcher = Batcher(lambda entry: entry.destination, points_max=3)
    batches = batcher.add(log.entries[1:]) + batcher.flush()
    window.read([Run(2, 2, 3, 5)])
    window.begin(window.add(batches[0]))
    window.settle_parts(batches[0].parts, Settled())
    assert committed(window) == Cursor(
        2, 5, confirmed=10, ahead=5, reach=6, open=(OpenLines(3, 4), OpenLines(6, 6, 0, 1))
    )


@pytest.mark.parametrize(("ahead", "expected"), [(False, Cursor(1, 2, confirmed=2)), (True, None)])
def test_letters_without_room_hold_the_cursor_where_it_describes_what_is_ahead_of_them(
    ahead: bool, expected: Cursor | None
) -> None:
    """Going back to before a letter would settle the points ahead of it twice."""
    window, (first, second, third) = window_of(2, 1, 2)
    if ahead:
        window.settle_parts(third.parts, Settled())
        assert committed(window).ahead == 2
    window.settle_parts(first.parts, Settled())
    letter = DeadLetter("fake", 2, b"m v=1 1\n", "never", 400, START_NS, Destination())
    window.settle_parts(second.parts, Settled(None, (letter,)))
    pending = window.pending()
    assert pending is not None
    assert pending[1] == (letter,)
    assert window.not_committed() == expected
    assert window.pending() == pending
