"""The log: append, read, seal, truncate, and what an opening finds."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

import pytest

from tests.wal.factories import MIB, Clock, new_entry, open_store, read_all
from wal_ingest.errors import DataDirLocked, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.log import Appended
from wal_ingest.wal.segment import SegmentHeader
from wal_ingest.wal.store import Store


def fill(store: Store, count: int, *, start: int = 1, filler: int = 100_000) -> None:
    """Commits entries one by one; with the filler, each takes about its size on disk (hex halves)."""
    for number in range(start, start + count):
        entry = new_entry(number)
        noise = os.urandom(filler).hex().encode()
        store.wal.commit([[type(entry)(b'm t="%s" %d\n' % (noise, number), 1, entry.accepted_ns)]])


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


def test_a_map_that_is_full_moves_the_same_entries_to_a_new_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wal_ingest.wal.segment._MAP_BYTES_SPARE", 0)
    store = open_store(tmp_path, segment_bytes_max=4 * MIB)
    fill(store, 40)
    assert [seq for seq, _ in read_all(store)] == list(range(1, 41))
    assert all(segment.bytes <= 4 * MIB for segment in store.wal.segments())
    store.close()


# -- damage: the file is set aside whole, reported, and the log goes on ---------------------------------


def flip(path: Path, offset: int) -> None:
    """Flips every bit of a byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))


def flip_header(path: Path) -> None:
    """Flips a byte in every copy of the header record: LMDB leaves old pages behind, and only it knows which."""
    offsets = [match.start() for match in re.finditer(b"walingst", path.read_bytes())]
    assert offsets
    for offset in offsets:
        flip(path, offset + 30)


def three_segments(tmp_path: Path) -> list[Path]:
    store = open_store(tmp_path)
    fill(store, 25)
    paths = [segment.path for segment in store.wal.segments()]
    store.close()
    assert len(paths) == 3
    return paths


DAMAGE = {
    "empty file": lambda path: path.write_bytes(b""),
    "truncated file": lambda path: os.truncate(path, 5000),
    "foreign file": lambda path: path.write_bytes(b"not LMDB at all" * 1000),
    "both meta pages zeroed": lambda path: path.write_bytes(bytes(8192) + path.read_bytes()[8192:]),
    "header record flipped": flip_header,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_segment_is_set_aside_and_the_others_survive(
    tmp_path: Path, damage: object, which: int
) -> None:
    paths = three_segments(tmp_path)
    starts = [int(path.name[:20]) for path in paths] + [26]
    damage(paths[which])  # type: ignore[operator]
    evidence = paths[which].read_bytes()

    store = open_store(tmp_path)

    [moved] = store.wal.damaged
    assert moved.path.read_bytes() == evidence
    assert moved.reason
    assert moved.reason in moved.path.with_name(moved.path.name + ".reason.txt").read_text()
    lost = range(starts[which], starts[which + 1])
    survivors = [seq for seq in range(1, 26) if seq not in lost]
    assert [seq for seq, _ in read_all(store)] == survivors
    [[appended]] = [store.wal.commit([[new_entry(99)]])]
    assert appended.first_seq > 25
    assert [seq for seq, _ in read_all(store)] == [*survivors, appended.first_seq]
    store.close()
    store = open_store(tmp_path)
    assert [seq for seq, _ in read_all(store)] == [*survivors, appended.first_seq]
    store.close()


def test_a_damaged_entry_is_found_when_it_is_read_and_its_segment_set_aside(tmp_path: Path) -> None:
    paths = three_segments(tmp_path)
    flip(paths[1], paths[1].stat().st_size // 2)
    store = open_store(tmp_path)
    first = store.wal.segments()[0]
    with pytest.raises(WalDamaged) as caught:
        read_all(store)
    assert caught.value.path == paths[1]
    moved = store.wal.set_aside(caught.value.path, caught.value.reason)
    assert moved is not None
    assert moved.path.exists()
    assert store.wal.set_aside(caught.value.path, "again") is None
    third = store.wal.segments()[-1]
    assert [seq for seq, _ in read_all(store)] == [
        *range(1, first.last_seq + 1),
        *range(third.first_seq, 26),
    ]
    store.close()


def test_a_segment_of_another_wal_is_set_aside(tmp_path: Path) -> None:
    ours, other = open_store(tmp_path / "ours"), open_store(tmp_path / "other")
    for store in (ours, other):
        store.wal.commit([[new_entry(1)]])
        store.close()
    name = "00000000000000000001.lmdb"
    (tmp_path / "other" / "wal" / name).replace(tmp_path / "ours" / "wal" / name)
    store = open_store(tmp_path / "ours")
    assert "another WAL" in store.wal.damaged[0].reason
    assert read_all(store) == []
    store.close()


def test_swapped_segments_are_set_aside(tmp_path: Path) -> None:
    paths = three_segments(tmp_path)
    spare = tmp_path / "spare"
    paths[0].rename(spare)
    paths[1].rename(paths[0])
    spare.rename(paths[1])
    store = open_store(tmp_path)
    assert len(store.wal.damaged) == 2
    assert all("says that its first seq" in item.reason for item in store.wal.damaged)
    store.close()


def test_a_format_version_from_the_future_is_refused_by_name_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.segment.VERSION", 2)
        store = open_store(tmp_path)
        store.close()
    before = {path: path.read_bytes() for path in (tmp_path / "wal").glob("*.lmdb")}
    with pytest.raises(UnknownFormatVersion, match="version 2"):
        open_store(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "wal").glob("*.lmdb")} == before


def test_a_lost_state_file_costs_no_entry(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)], [new_entry(2)]])
    store.state.commit_cursor("influxdb", Cursor(1, 1))
    wal_id = store.state.wal_id
    store.close()
    (tmp_path / "state.lmdb").unlink()
    store = open_store(tmp_path)
    assert store.state_lost
    assert store.state.wal_id == wal_id
    assert store.cursor("influxdb") == Cursor(0, 0)
    assert [seq for seq, _ in read_all(store)] == [1, 2]
    store.close()


def test_a_segment_header_survives_its_codec(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    header = SegmentHeader(store.wal.wal_id, 12, 345, 678)
    assert SegmentHeader.decode(header.encode(), tmp_path) == header
    store.close()
