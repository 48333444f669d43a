"""What a damaged segment still holds is read in its place, by every reader, over restarts, until it is dropped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.inline import read_everything
from tests.wal.factories import MIB, open_store
from tests.wal.test_damage import flip
from wal_ingest.errors import StorageFailed
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.lmdb_pages import Found, PageReader
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.page_scan import PageScan
from wal_ingest.wal.pinned import ScannedSegment
from wal_ingest.wal.salvage import Note, write_note
from wal_ingest.wal.store import Store


def damaged_fifth(tmp_path: Path) -> Path:
    """Two segments of ten entries, two points each; a byte of the fifth entry is flipped. The damaged file."""
    store = open_store(tmp_path)
    for number in range(1, 21):
        noise = os.urandom(5000).hex().encode()  # as large as it is: its bytes are nowhere else in the file
        store.wal.commit([[NewEntry(b'm t="%s" %d\n' % (noise, number) + b"m v=1 1\n", 2, 5)]])
        if number == 10:
            store.wal.seal()
    path = store.wal.segments()[0].path
    store.close()
    reader = PageReader(path)
    [offset] = [
        item.offset for item in reader.whatever_from(b"") if isinstance(item, Found) and item.key[-1] == 5
    ]
    reader.close()
    flip(path, offset + 100)
    return path


def read_one_by_one(store: Store, cursor: Cursor) -> Cursor:
    """The cursor of a sink that confirms every entry as it comes."""
    while entries := store.read_past_damage(
        cursor.seq, bytes_max=1, seal=store.wal.seal, tell=lambda _moved: None
    ):
        for entry in entries:
            points_after = entry.points_before + entry.points
            cursor = cursor.passed(
                seq=entry.seq, points_after=points_after, points=entry.points, parked=0, position=None
            )
    return cursor


EXPECTED = [*range(1, 5), *range(6, 21)]


def test_only_what_cannot_be_read_counts_as_skipped(tmp_path: Path) -> None:
    damaged_fifth(tmp_path)
    store = open_store(tmp_path)
    cursor = read_one_by_one(store, Cursor())
    assert (cursor.confirmed, cursor.skipped, cursor.unaccounted) == (38, 2, 0)
    [moved] = store.wal.damaged
    assert (moved.readable_points, moved.lost_points) == (18, 2)
    # A sink that comes later gets the same.
    assert read_one_by_one(store, Cursor()) == cursor
    store.close()


def test_it_is_read_after_a_restart_too_and_by_a_sink_half_way_through(tmp_path: Path) -> None:
    damaged_fifth(tmp_path)
    for _start in range(3):
        store = open_store(tmp_path)
        assert list(read_everything(store)) == EXPECTED
        cursor = read_one_by_one(store, Cursor(7, 14, confirmed=12, skipped=2))
        assert (cursor.confirmed, cursor.skipped, cursor.unaccounted) == (38, 2, 0)
        assert store.wal.first_seq == 1
        assert store.wal.gaps() == []
        store.close()


def test_once_its_place_is_dropped_it_is_evidence_only(tmp_path: Path) -> None:
    damaged_fifth(tmp_path)
    store = open_store(tmp_path)
    read_everything(store)
    store.wal.seal()
    store.commit_cursor("influxdb", Cursor(20, 40, confirmed=38, skipped=2))
    assert store.wal.truncate(20) == 1
    for _start in range(2):
        assert list(read_everything(store)) == []
        assert len(list((tmp_path / "wal" / "damaged").glob("*.lmdb"))) == 1
        store.close()
        store = open_store(tmp_path)
    store.close()


def test_a_file_that_was_salvaged_is_not_read_again(tmp_path: Path) -> None:
    damaged_fifth(tmp_path)
    store = open_store(tmp_path)
    read_everything(store)
    [moved] = store.wal.damaged
    store.close()
    write_note(moved.path, Note(salvaged_ns=1, entries=9, points=18, to="there", lost=[]))
    store = open_store(tmp_path)
    assert list(read_everything(store)) == list(range(11, 21))
    store.close()


def test_a_file_that_a_person_took_away_holds_nothing_and_harms_nothing(tmp_path: Path) -> None:
    damaged_fifth(tmp_path)
    store = open_store(tmp_path)
    read_everything(store)
    store.wal.rest_segments([])
    store.wal.damaged[0].path.unlink()
    assert list(read_everything(store)) == list(range(11, 21))
    store.close()


def test_without_a_descriptor_nothing_is_set_aside_and_it_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damaged_fifth(tmp_path)
    store = open_store(tmp_path)

    def fails(_path: Path, *, delivering: bool) -> PageScan:
        raise StorageFailed(path, "Too many open files", number=24)

    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.pinned.PageScan", fails)
        with pytest.raises(StorageFailed, match="Too many"):
            read_everything(store)
    assert path.exists()
    assert list(read_everything(store)) == EXPECTED
    store.wal.rest_segments([])
    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.pinned.PageScan", fails)
        with pytest.raises(StorageFailed, match="Too many"):
            store.wal.read(0, bytes_max=MIB)
    assert list(read_everything(store)) == EXPECTED
    store.close()


def test_an_entry_that_went_bad_since_is_passed_over(tmp_path: Path) -> None:
    damaged_fifth(tmp_path)
    store = open_store(tmp_path)
    read_everything(store)
    [moved] = store.wal.damaged
    scanned = ScannedSegment(moved.path)
    offset = scanned._scan._entries[3].offset
    assert isinstance(scanned.read(5, 5)[0], Lost)
    scanned.close()
    flip(moved.path, offset + 100)
    assert list(read_everything(store)) == [1, 2, 4, *range(6, 21)]
    store.wal.rest_segments([])
    moved.path.write_bytes(b"nothing of it is left")
    assert list(read_everything(store)) == list(range(11, 21))
    store.close()


def test_a_reader_that_is_overtaken_by_the_setting_aside_reads_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damaged_fifth(tmp_path)
    store = open_store(tmp_path)
    segment = store.wal.segments()[0]
    read = type(segment).read

    def after_another(each: object, after_seq: int, *, bytes_max: int) -> object:
        if path.exists():
            store.wal.set_aside(path, "another reader met the damage")
        return read(each, after_seq, bytes_max=bytes_max)  # type: ignore[arg-type]

    monkeypatch.setattr(type(segment), "read", after_another)
    assert [entry.seq for entry in store.wal.read(0, bytes_max=MIB)] == EXPECTED[:9]
    store.close()
