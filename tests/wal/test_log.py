"""The log: append, read, seal, truncate, and what an opening finds."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import pytest

from tests.wal.factories import MIB, Clock, fill, new_entry, open_store, read_all
from wal_ingest.errors import DataDirLocked
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.directory import DirectoryLock
from wal_ingest.wal.log import Appended, Wal


def open_descriptors() -> int:
    """How many file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_entries_come_back_in_order_with_rising_seqs(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first = store.wal.commit([[new_entry(1), new_entry(2)], [new_entry(3)]])
    second = store.wal.commit([[new_entry(4, points=1000)]])
    assert first == [Appended(1, 2), Appended(3, 3)]
    assert second == [Appended(4, 4)]
    assert store.wal.last_seq == 4
    assert store.wal.points_total == 1003
    assert read_all(store) == [
        (number, new_entry(number, points=1000 if number == 4 else 1).lines) for number in range(1, 5)
    ]
    store.close()


def test_reading_goes_on_behind_any_seq(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(number) for number in range(1, 11)]])
    assert [seq for seq, _ in read_all(store, after_seq=7)] == [8, 9, 10]
    assert read_all(store, after_seq=10) == []
    store.close()


def test_a_read_is_bounded_but_never_empty_handed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(number, points=50) for number in range(1, 11)]])
    assert [entry.seq for entry in store.wal.read(0, bytes_max=1)] == [1]
    store.close()


def test_an_entry_knows_how_many_points_came_before_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1, points=10)], [new_entry(2, points=5)]])
    store.wal.commit([[new_entry(3, points=1)]])
    assert [entry.points_before for entry in store.wal.read(0, bytes_max=MIB)] == [0, 10, 15]
    store.close()


def test_everything_is_there_after_reopening_and_numbering_goes_on(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1, points=3)], [new_entry(2)]])
    store.close()
    store = open_store(tmp_path)
    assert store.wal.points_total == 4
    assert store.wal.commit([[new_entry(3)]]) == [Appended(3, 3)]
    assert [seq for seq, _ in read_all(store)] == [1, 2, 3]
    assert store.wal.read(2, bytes_max=1)[0].points_before == 4
    store.close()


def test_a_segment_is_sealed_at_its_size(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 25)
    segments = store.wal.segments()
    assert len(segments) == 3
    assert [segment.sealed for segment in segments] == [True, True, False]
    for before, after in itertools.pairwise(segments):
        assert after.first_seq == before.last_seq + 1
    assert all(MIB <= segment.bytes < 2 * MIB for segment in segments[:-1])
    assert store.wal.bytes == sum(segment.path.stat().st_size for segment in segments)
    assert [seq for seq, _ in read_all(store)] == list(range(1, 26))
    store.close()


def test_a_segment_is_sealed_at_its_age_but_never_when_empty(tmp_path: Path) -> None:
    clock = Clock()
    store = open_store(tmp_path, clock, segment_s_max=60.0)
    clock.advance_s(3600)
    store.wal.seal_if_due()
    assert len(store.wal.segments()) == 1
    store.wal.commit([[new_entry(1)]])
    clock.advance_s(61)
    store.wal.seal_if_due()
    assert [segment.points for segment in store.wal.segments()] == [1, 0]
    store.close()


def test_truncation_drops_whole_segments_and_gives_the_space_back(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 25)
    first, second, last = store.wal.segments()
    assert store.wal.truncate(first.last_seq - 1) == 0
    assert store.wal.truncate(second.last_seq - 1) == 1
    assert [path.name for path in sorted((tmp_path / "wal").glob("*.lmdb"))] == [
        second.path.name,
        last.path.name,
    ]
    assert store.wal.truncate(last.last_seq) == 1
    assert store.wal.first_seq == last.first_seq
    assert store.wal.bytes == last.bytes
    assert store.wal.points_total == 25
    assert [seq for seq, _ in read_all(store)] == list(range(last.first_seq, 26))
    store.close()


def test_numbering_survives_the_truncation_of_everything(tmp_path: Path) -> None:
    clock = Clock()
    store = open_store(tmp_path, clock)
    store.wal.commit([[new_entry(1, points=7)], [new_entry(2)]])
    clock.advance_s(61)
    store.wal.seal_if_due()
    assert store.wal.truncate(2) == 1
    store.close()
    store = open_store(tmp_path, clock)
    assert (store.wal.last_seq, store.wal.points_total) == (2, 8)
    assert store.wal.commit([[new_entry(3)]]) == [Appended(3, 3)]
    store.close()


def test_numbering_goes_on_above_a_cursor_that_is_ahead_of_the_segments(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.state.commit_cursor("influxdb", Cursor(9, 90))
    store.close()
    store = open_store(tmp_path)
    assert store.wal.commit([[new_entry(10)]]) == [Appended(10, 10)]
    assert store.wal.points_total == 91
    assert [segment.sealed for segment in store.wal.segments()] == [True, False]
    assert [seq for seq, _ in read_all(store)] == [1, 10]
    store.close()


def test_a_second_server_is_refused_with_the_firsts_process_id(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(DataDirLocked) as caught:
        open_store(tmp_path)
    assert caught.value.pid == os.getpid()
    assert str(os.getpid()) in str(caught.value)
    store.close()
    open_store(tmp_path).close()


def test_a_crash_before_the_new_segment_had_its_name_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.close()
    leftover = tmp_path / "wal" / "00000000000000000002.lmdb.new"
    leftover.write_bytes(b"half a header")
    store = open_store(tmp_path)
    assert not leftover.exists()
    assert store.wal.commit([[new_entry(2)]]) == [Appended(2, 2)]
    store.close()


@pytest.mark.parametrize("clock_jump_s", [-3600, 3600], ids=["back", "ahead"])
def test_a_clock_that_jumped_does_not_keep_a_segment_open(tmp_path: Path, clock_jump_s: int) -> None:
    clock = Clock()
    store = open_store(tmp_path, clock, segment_s_max=60.0)
    store.wal.commit([[new_entry(1)]])
    clock.advance_s(clock_jump_s)
    store.wal.seal_if_due()
    assert [segment.sealed for segment in store.wal.segments()] == [True, False]
    store.close()


def test_a_full_wal_seals_its_last_segment_so_that_it_can_be_dropped(tmp_path: Path) -> None:
    store = open_store(tmp_path, segment_bytes_max=8 * MIB, wal_bytes_max=MIB)
    fill(store, 11)
    store.wal.seal_if_due()
    assert store.wal.bytes >= MIB
    assert store.wal.truncate(store.wal.last_seq) >= 1
    assert store.wal.bytes < MIB
    store.close()


def test_each_life_writes_to_a_segment_of_its_own_unless_the_last_is_empty(tmp_path: Path) -> None:
    for life in range(1, 4):
        store = open_store(tmp_path)
        store.wal.commit([[new_entry(life)]])
        store.close()
    for _ in range(2):
        store = open_store(tmp_path)
        assert [segment.points for segment in store.wal.segments()] == [1, 1, 1, 0]
        store.close()
    store = open_store(tmp_path)
    assert store.wal.commit([[new_entry(4)]]) == [Appended(4, 4)]
    assert [seq for seq, _ in read_all(store)] == [1, 2, 3, 4]
    store.close()


def test_segments_that_no_cursor_is_in_are_unmapped(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in range(1, 7):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    descriptors = open_descriptors()
    assert [seq for seq, _ in read_all(store)] == [1, 2, 3, 4, 5, 6]
    assert open_descriptors() > descriptors
    store.wal.rest_segments([0, 3])
    assert open_descriptors() == descriptors + 2
    store.wal.rest_segments([6])
    assert open_descriptors() == descriptors
    assert [seq for seq, _ in read_all(store)] == [1, 2, 3, 4, 5, 6]
    store.close()


def test_files_of_other_names_are_nobodys_business(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.close()
    [path] = (tmp_path / "wal").glob("*.lmdb")
    stray = path.with_name("00000000000000000001.old.lmdb")
    stray.write_bytes(path.read_bytes())
    store = open_store(tmp_path)
    assert store.wal.commit([[new_entry(2)]]) == [Appended(2, 2)]
    assert [seq for seq, _ in read_all(store)] == [1, 2]
    assert stray.exists()
    store.close()


def test_a_full_disk_does_not_keep_a_server_from_starting_for_want_of_its_process_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    lock = DirectoryLock(tmp_path)
    with pytest.raises(DataDirLocked) as caught:
        DirectoryLock(tmp_path)
    assert caught.value.pid == 0
    lock.close()


def test_a_map_that_is_full_moves_the_same_entries_to_a_new_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wal_ingest.wal.segment._MAP_BYTES_SPARE", 0)
    store = open_store(tmp_path, segment_bytes_max=4 * MIB)
    fill(store, 40)
    assert [seq for seq, _ in read_all(store)] == list(range(1, 41))
    assert all(segment.bytes <= 4 * MIB for segment in store.wal.segments())
    store.close()


def test_whoever_looks_during_a_commit_gets_seq_and_points_of_one_moment(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    seen: list[tuple[int, int]] = []
    looks = threading.Thread(target=lambda: seen.append(store.wal.end))

    class Watched(Wal):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_next_seq":
                looks.start()
                looks.join(0.2)  # in vain, where the look has to wait for the other half

    store.wal.__class__ = Watched
    store.wal.commit([[new_entry(1, points=10)]])
    looks.join()
    assert seen in ([(0, 0)], [(1, 10)])
    store.close()
