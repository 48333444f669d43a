"""A disk that is really full: nothing is lost, the drain goes on, and points are taken again without help."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.rigs.loop_image import LoopImage, mounted_image
from tests.wal.factories import MIB, Clock, fill, new_entry, open_store, read_all, settings
from wal_ingest.errors import DiskFull, StorageFailed, WalFull
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import Destination, Mark, NewEntry
from wal_ingest.wal.space import Reserve, free_disk_bytes, give_back
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

pytestmark = pytest.mark.needs("loop")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopImage]:
    """A small disk."""
    with mounted_image(tmp_path, bytes_max=40 * MIB) as image:
        yield image


def fill_up(store: Store) -> int:
    """Commits until the disk is full; how many entries that took."""
    count = 0
    while True:
        try:
            fill(store, 1, start=count + 1)
        except DiskFull:
            return count
        count += 1


def letter(number: int) -> DeadLetter:
    """A dead letter of some size."""
    return DeadLetter("influxdb", number, b"x" * 500 + b"\n", "reason " * 50, 400, 1, Destination())


def test_a_full_disk_refuses_drains_and_takes_points_again(disk: LoopImage) -> None:
    store = open_store(disk.path / "data")
    count = fill_up(store)
    assert count > 20
    with pytest.raises(DiskFull):
        fill(store, 1)
    assert [seq for seq, _ in read_all(store)] == list(range(1, count + 1))

    store.commit_cursor("influxdb", Cursor(5, 5), [letter(number) for number in range(1000)])
    assert len(list(store.state.dead_letters("influxdb"))) == 1000

    store.wal.seal()
    assert store.wal.truncate(count // 2) > 0
    [appended] = store.wal.commit([[new_entry(1)]])
    assert appended.first_seq == count + 1
    assert read_all(store)[-1] == (count + 1, new_entry(1).lines)
    store.close()


def test_a_server_that_starts_on_a_full_disk_drains_and_then_takes_points(disk: LoopImage) -> None:
    store = open_store(disk.path / "data")
    count = fill_up(store)
    store.close()
    ballast = os.open(disk.path / "ballast", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(ballast, bytes(4096))
    os.close(ballast)
    assert free_disk_bytes(disk.path) < 64 * 1024
    store = open_store(disk.path / "data")
    assert [seq for seq, _ in read_all(store)] == list(range(1, count + 1))
    store.commit_cursor("influxdb", Cursor(count, count), [letter(1)])
    store.wal.truncate(count)
    assert store.wal.commit([[new_entry(1)]])[0].first_seq == count + 1
    store.close()


async def test_senders_are_told_to_come_back_and_the_writer_lives_on(disk: LoopImage) -> None:
    store = open_store(disk.path / "data")
    count = fill_up(store)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        with pytest.raises(WalFull, match="the disk is full"):
            await writer.append([new_entry(1, points=900, filler=60_000)])
        assert isinstance(writer.refusal(), WalFull)
        assert writer.failure is None
        await writer.seal()
        store.wal.truncate(count)
        await writer.seal_if_due()
        assert writer.refusal() is None
        assert (await writer.append([new_entry(1)])).first_seq == count + 1
        nursery.cancel_scope.cancel()
    store.close()


def test_what_was_held_is_given_back_at_the_seal(disk: LoopImage) -> None:
    store = open_store(disk.path / "data", Clock())
    store.wal.commit([[new_entry(1)]])
    [segment] = store.wal.segments()
    held = segment.path.stat().st_blocks * 512
    assert held >= 4 * MIB > segment.path.stat().st_size
    store.wal.seal()
    assert segment.path.stat().st_blocks * 512 < MIB
    store.close()


def test_where_space_cannot_be_held_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    numbers = [errno.EOPNOTSUPP]
    monkeypatch.setattr("wal_ingest.wal.space._hold", lambda _fd, _length: numbers[0])
    reserve = Reserve(path)
    reserve.hold(100, step=100)
    assert reserve.held_bytes == 0
    numbers[0] = errno.EIO
    reserve.hold(100, step=100)
    reserve.close()
    reserve = Reserve(path)
    with pytest.raises(StorageFailed, match="no space can be reserved"):
        reserve.hold(100, step=100)
    reserve.close()
    with pytest.raises(StorageFailed):
        Reserve(tmp_path / "nowhere")
    with pytest.raises(StorageFailed):
        give_back(tmp_path / "nowhere")


def test_a_full_disk_remembers_streams_without_taking_the_room_that_cursors_need(disk: LoopImage) -> None:
    store = open_store(disk.path / "data", Clock(10**18))
    marks = [Mark(f"web-{number}", 1, 7) for number in range(1000)]
    store.wal.commit([[NewEntry(b"m v=1 1\n", 1, 10**18, mark=mark)] for mark in marks])
    count = 1000 + fill_up(store)
    # So many may take 9 MB at the worst, more than is held ahead.
    assert not store.save_positions(10**18)
    with pytest.raises(DiskFull):
        fill(store, 1)
    store.commit_cursor("influxdb", Cursor(5, 5), [letter(number) for number in range(1000)])
    store.wal.seal()
    # There was no room for a checkpoint, and space is what all wait for.
    assert store.wal.truncate(count) > 0
    assert store.save_positions(10**18)
    store.close()
    store = open_store(disk.path / "data", Clock(10**18))
    assert len(store.wal.positions) == 1000
    assert len(list(store.state.dead_letters("influxdb"))) == 1000
    store.close()
