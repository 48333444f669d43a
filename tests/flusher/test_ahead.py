"""What is settled ahead of the cursor is on disk, read back exactly, and counted once, whatever happens to the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.flusher.rig import SETTINGS, DeliveryRig
from tests.flusher.twins import MemoryLog
from tests.wal.factories import open_store
from wal_ingest.flusher.batches import Batcher
from wal_ingest.flusher.outcome import Outcome, Rejected
from wal_ingest.flusher.window import Settled, Window
from wal_ingest.wal.cursor import Cursor, OpenLines, open_in
from wal_ingest.wal.entry import Destination, Entry, NewEntry
from wal_ingest.wal.state import read_state
from wal_ingest.wal.store import Store

LINES = b"m v=1 1\nm v=2 2\n"


async def test_a_restart_writes_only_what_is_open(autojump_clock: trio.testing.MockClock) -> None:
    rig = DeliveryRig(in_flight_max=2)

    async def answer(lines: list[bytes]) -> Outcome | None:
        if b"seq=2 " in lines[0]:
            await trio.sleep_forever()
        return Rejected("never", 400, dropped=10) if b"seq=4 " in lines[0] else None

    rig.sink.answer = answer
    rig.grace_s = 0.1
    for _ in range(6):
        rig.log.append(10)
    async with rig.running():
        await trio.sleep(3 * SETTINGS.cursor_commit_s)
        assert rig.state.cursor("fake").settled == 50
    assert rig.state.cursor("fake").open == (OpenLines(2, 2),)
    rig.sink.writes.clear()
    rig.sink.answer = lambda _lines: None
    await rig.deliver_all()
    assert [lines[0].split()[0] for _, lines in rig.sink.writes] == [b"m,seq=2"]
    assert rig.state.cursor("fake") == Cursor(
        6, 60, parked=10, position=b"after 2", confirmed=50, learnt=rig.state.cursor("fake").learnt
    )
    assert len(rig.state.letters) == 10


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=10),
    buckets=st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
    lives=st.lists(st.tuples(st.integers(0, 2**30), st.booleans()), max_size=4),
    data=st.data(),
)
def test_any_points_settled_in_any_order_over_any_restarts_are_counted_once(
    sizes: list[int], buckets: list[str], lives: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """The window alone: the cursor's account adds up at each moment, and describes what is open exactly."""
    log = MemoryLog()
    for number, points in enumerate(sizes):
        log.append(points, destination=Destination("", buckets[number % len(buckets)]))
    total = sum(sizes)
    done: set[tuple[int, int]] = set()
    durable = Cursor()
    for chosen, _ in [*lives, (2**31 - 1, True)]:
        window = Window(durable, batches_max=64, bytes_max=2**20, ahead=True)
        batcher = Batcher(lambda entry: entry.destination, points_max=7)
        fresh = [entry for entry in log.entries if entry.seq > durable.seq]
        open_points: set[tuple[int, int]] = set()
        if durable.reach == 0:  # the reader's part in going on is proven over a delivery
            batches = batcher.add(fresh) + batcher.flush()
            window.read(batcher.take_runs())
            for batch in batches:
                window.begin(window.add(batch))
                for part in batch.parts:
                    for line in range(part.points):
                        open_points.add((part.seq, part.first + line))
                        if chosen >> (part.seq * 3 + line) % 30 & 1:
                            window.settle_parts([part._replace(first=line, points=1)], Settled())
                            done.add((part.seq, line))
        pending = window.pending()
        if pending is not None:
            durable, _ = pending
            window.committed(durable)
        assert durable.unaccounted == 0
        assert durable.settled == len(done)
        described = {
            (entry.seq, line)
            for entry in log.entries
            if entry.seq > durable.seq
            for first, count in (
                open_in(durable.open, entry.seq, entry.points)
                if entry.seq <= durable.reach
                else [(0, entry.points)]
            )
            for line in range(first, first + count)
        }
        assert described == {(e.seq, n) for e in log.entries for n in range(e.points)} - done
        if durable.reach:
            return
    assert durable.settled == total


def test_a_cursor_with_what_is_ahead_is_stored_and_read_back(tmp_path: Path) -> None:
    store = store_of(tmp_path, entries=6)
    cursor = Cursor(
        1, 2, confirmed=6, ahead=4, reach=4, open=(OpenLines(2, 2), OpenLines(3, 3, 1, 1)), learnt="[]"
    )
    store.commit_cursor("influxdb", cursor)
    store.close()
    assert read_state(tmp_path / "state.lmdb").cursors["influxdb"] == cursor


@pytest.mark.parametrize("bytes_max", [1, 1 << 20], ids=["one at a time", "all at once"])
@pytest.mark.parametrize(
    ("through_seq", "expected"),
    [
        (None, Cursor(6, 12, confirmed=5, expired=7)),
        (2, Cursor(2, 4, confirmed=5, expired=2, ahead=3, reach=4, open=(OpenLines(3, 3, 1, 1),))),
        (3, Cursor(3, 6, confirmed=5, expired=3, ahead=2, reach=4)),
        (4, Cursor(4, 8, confirmed=5, expired=3)),
    ],
)
def test_what_is_settled_ahead_is_not_given_up_by_a_skip(
    tmp_path: Path, through_seq: int | None, expected: Cursor, bytes_max: int
) -> None:
    store = store_of(tmp_path, entries=6)
    before = Cursor(1, 2, confirmed=5, ahead=3, reach=4, open=(OpenLines(2, 2), OpenLines(3, 3, 1, 1)))
    assert before.unaccounted == 0
    store.commit_cursor("influxdb", before)

    def read(after_seq: int) -> list[Entry]:
        return store.wal.read(after_seq, bytes_max=bytes_max)

    cursor = store.expire("influxdb", through_seq, read=read)
    assert cursor == expected
    assert cursor.unaccounted == 0
    store.close()


def store_of(data_dir: Path, *, entries: int) -> Store:
    store = open_store(data_dir)
    for _ in range(entries):
        store.wal.commit([[NewEntry(LINES, 2, 1)]])
    return store
