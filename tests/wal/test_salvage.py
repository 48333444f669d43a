"""What can be salvaged is salvaged, each entry proved by its checksum, and the evidence stays as it is."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from tests.wal.factories import new_entry, open_store
from tests.wal.test_damage import PAGE, cut, flip, flip_header, three_segments, zero, zero_tree
from tests.wal.test_reading import assert_told, lost, seqs
from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal import page_scan
from wal_ingest.wal.entry import CODEC_GZIP, Destination, Entry, extent
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.lmdb_layout import LEAF, NODE, PAGE_HEADER
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.page_scan import PageScan
from wal_ingest.wal.pinned import ScannedSegment
from wal_ingest.wal.salvage import Note, Salvage, damaged_files, lines_of, read_note, write_note
from wal_ingest.wal.segment import read_ends


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A segment of some ten entries, each in pages of its own."""
    return three_segments(tmp_path / "large")[1]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A sealed segment of 200 entries that stand in its leaves."""
    store = open_store(tmp_path / "small")
    for number in range(1, 201):
        store.wal.commit([[new_entry(number, points=2)]])
    path = store.wal.segments()[0].path
    store.wal.seal()
    store.wal.commit([[new_entry(1)]])
    store.close()
    return path


def scanned(path: Path) -> list[int]:
    """The seqs that a scan finds; every entry of them is read."""
    scan = PageScan(path)
    found = scan.seqs
    assert [scan.entry(seq).seq for seq in found] == found
    scan.close()
    return found


def all_seqs(path: Path) -> list[int]:
    """The seqs that a healthy file has."""
    ends = read_ends(path)
    return list(range(ends.header.first_seq, ends.last_seq + 1))


def leaves(path: Path) -> list[int]:
    """The numbers of the pages that say that they are leaves, old ones among them."""
    content = path.read_bytes()
    found = []
    for number in range(2, len(content) // PAGE):
        said, _pad, flags, _lower, _upper = PAGE_HEADER.unpack_from(content, number * PAGE)
        if said == number and flags == LEAF:
            found.append(number)
    return found


def nodes(content: bytes, page: int) -> list[int]:
    """Where the nodes of a page begin in the file."""
    lower = PAGE_HEADER.unpack_from(content, page * PAGE)[3]
    count = (lower - PAGE_HEADER.size) // 2
    offsets = struct.unpack_from(f"={count}H", content, page * PAGE + PAGE_HEADER.size)
    return [page * PAGE + offset for offset in offsets]


def test_a_healthy_file_gives_everything(large: Path, small: Path) -> None:
    for path in (large, small):
        scan = PageScan(path)
        assert scan.seqs == all_seqs(path)
        assert scan.trouble == ""
        assert scan.header == read_ends(path).header
        scan.close()


def test_large_entries_are_found_without_any_tree(large: Path) -> None:
    expected = all_seqs(large)
    zero_tree(large)
    assert scanned(large) == expected


@pytest.mark.parametrize("kept", ["first", "last", "middle"])
def test_large_entries_are_found_up_and_down_from_any_one_that_is_known(
    large: Path, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = all_seqs(large)
    seq = {"first": expected[0], "last": expected[-1], "middle": expected[4]}[kept]
    monkeypatch.setattr(page_scan, "start_of", lambda _path: seq)  # nothing else to hold on to
    zero_tree(large)
    assert scanned(large) == expected


def test_a_run_between_two_lost_entries_is_found_only_where_something_holds_it(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = PageScan(large)
    expected = scan.seqs
    where = scan._entries[expected[4]].offset
    scan.close()
    flip(large, where + 1000)
    zero_tree(large)
    # From the name on: the first four; what is behind the damage has nothing in front of it.
    assert scanned(large) == expected[:4]
    monkeypatch.setattr(page_scan, "start_of", lambda _path: 0)
    assert scanned(large) == []


def test_both_meta_pages_may_be_gone(large: Path, small: Path) -> None:
    for path in (large, small):
        expected = all_seqs(path)
        zero(path, 0, 1)
        assert scanned(path) == expected


def test_a_page_size_that_cannot_be_is_not_believed(large: Path) -> None:
    expected = all_seqs(large)
    content = bytearray(large.read_bytes())
    content[16 + 24 : 16 + 28] = (77).to_bytes(4, "little")
    large.write_bytes(content)
    assert scanned(large) == expected


def test_an_older_copy_of_a_destroyed_leaf_is_used(small: Path) -> None:
    expected = all_seqs(small)
    zero(small, max(leaves(small)))
    found = scanned(small)
    assert set(found) <= set(expected)
    # All but what the latest commits wrote and no older page holds.
    assert len(found) > len(expected) // 2


def test_a_file_that_ends_too_soon_gives_what_is_in_front_of_its_end(large: Path) -> None:
    expected = all_seqs(large)
    cut(large, 0.5)
    found = scanned(large)
    assert found == expected[: len(found)]
    assert len(found) >= 3


def test_an_empty_and_a_foreign_file_give_nothing(tmp_path: Path) -> None:
    for content in (b"", b"\0", b"not LMDB at all" * 3000):
        path = tmp_path / "00000000000000000001.lmdb"
        path.write_bytes(content)
        assert scanned(path) == []
        with pytest.raises(WalDamaged):
            ScannedSegment(path)


def test_random_damage_never_gives_an_entry_that_was_not_there(small: Path, large: Path) -> None:
    rng = random.Random(7)
    for path in (small, large):
        original = path.read_bytes()
        scan = PageScan(path)
        known = {seq: scan.entry(seq).lines() for seq in scan.seqs}
        scan.close()
        for _round in range(40):
            content = bytearray(original)
            for _hit in range(rng.randrange(1, 60)):
                # The head of a page is where a byte changes most.
                content[rng.randrange(len(content) // 512) * 512 + rng.randrange(64)] = rng.randrange(256)
            path.write_bytes(content)
            scan = PageScan(path)
            found = {seq: scan.entry(seq).lines() for seq in scan.seqs}
            assert found.items() <= known.items()
            scan.close()


def test_nodes_that_cannot_be_are_passed_over(large: Path, small: Path) -> None:
    for path in (large, small):
        expected = all_seqs(path)
        content = path.read_bytes()
        page = max(leaves(path), key=lambda number: len(nodes(content, number)))
        at = nodes(content, page)
        key = at[1] + NODE.size
        for place, value, size in (
            (page * PAGE + PAGE_HEADER.size, PAGE - 1, 2),  # a node begins behind the page's end
            (at[1] + 6, 9, 2),  # a key has nine bytes
            (key + 8, 1 << 40, 8),  # a value begins behind the file's end, if it has pages of its own
            (page * PAGE + 12, 60000, 2),  # more nodes than a page can have
        ):
            changed = bytearray(content)
            changed[place : place + size] = value.to_bytes(size, "little")
            path.write_bytes(changed)
            found = scanned(path)
            assert set(found) <= set(expected)
            assert len(found) >= len(expected) - 10


def test_a_header_record_of_another_kind_is_no_header(small: Path) -> None:
    flip_header(small)
    scan = PageScan(small)
    assert scan.header is None
    assert "checksum of the segment's header" in scan.trouble
    assert scan.seqs == list(range(1, 201))
    scan.close()


def test_an_entry_whose_key_alone_can_be_read_is_counted_as_lost(large: Path) -> None:
    ends = read_ends(large)
    scan = PageScan(large)
    last = scan._entries[ends.last_seq]
    scan.close()
    content = large.read_bytes()
    # The head of a value's page alone is no loss: its leaf says where it is, its checksum that it is.
    flip(large, last.offset - 16)
    assert scanned(large)[-1] == ends.last_seq
    for damage in ((last.offset + 100,), (last.offset + 100, last.offset - 16)):
        large.write_bytes(content)
        for offset in damage:
            flip(large, offset)
        segment = ScannedSegment(large)
        assert segment.ends.last_seq == ends.last_seq
        items = segment.read(1, 1 << 62)
        assert_told(items, ends.header.first_seq, ends.last_seq)
        assert lost(items) == [(ends.last_seq, ends.last_seq, None)]
        segment.close()


def test_neighbours_tell_what_a_damaged_file_cannot(tmp_path: Path) -> None:
    paths = three_segments(tmp_path)
    before, ends, behind = (read_ends(path) for path in paths)
    scan = PageScan(paths[1])
    first, last = scan._entries[scan.seqs[0]], scan._entries[scan.seqs[-1]]
    scan.close()
    flip_header(paths[1])
    flip(paths[1], first.offset + 100)
    zero(paths[1], 0)
    os.truncate(paths[1], last.offset - 16)
    salvage = Salvage([paths[1]], [before, behind])
    [segment] = salvage.segments
    items = list(salvage.read(segment))
    assert_told(items, ends.header.first_seq, ends.last_seq)
    assert [points for _first, _last, points in lost(items)] == [1, 1]
    salvage.close()
    alone = Salvage([paths[1]])
    assert lost(list(alone.read(alone.segments[0])))[0][2] is None
    alone.close()


def test_a_file_of_any_name_can_be_salvaged(large: Path) -> None:
    expected = all_seqs(large)
    flip_header(large)
    elsewhere = large.with_name("found-on-the-old-disk.lmdb")
    large.rename(elsewhere)
    salvage = Salvage([elsewhere])
    assert seqs(list(salvage.read(salvage.segments[0]))) == expected
    salvage.close()


def test_files_that_give_nothing_are_told(tmp_path: Path) -> None:
    path = tmp_path / "00000000000000000007.lmdb"
    path.write_bytes(b"nothing")
    salvage = Salvage([path])
    assert salvage.segments == []
    [hopeless] = salvage.hopeless
    assert (hopeless.file, hopeless.first_seq, hopeless.points) == (path.name, 7, None)


def test_a_future_version_is_refused_by_name(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(item: object, path: Path) -> Entry:
        raise UnknownFormatVersion(path, "version 9")

    monkeypatch.setattr(page_scan, "decode_item", newer)
    with pytest.raises(UnknownFormatVersion):
        Salvage([large])


def test_a_file_that_cannot_be_read_is_an_error(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageFailed, match="No such file"):
        PageScan(large.with_name("nowhere"))

    def broken(fd: int, length: int, offset: int) -> bytes:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("os.pread", broken)
    with pytest.raises(StorageFailed, match="Cannot allocate"):
        PageScan(large)


def test_of_a_file_that_the_disk_cannot_read_at_all_nothing_is_found(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, length: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.pread", broken)
    scan = PageScan(large)
    assert scan.seqs == []
    assert "cannot be read: Input/output error" in scan.trouble
    scan.close()


def test_what_changes_below_a_scan_is_damage_and_no_other_entry(large: Path) -> None:
    scan = PageScan(large)
    seq = scan.seqs[0]
    flip(large, scan._entries[seq].offset + 500)
    with pytest.raises(WalDamaged, match="checksum"):
        scan.entry(seq)
    scan.close()


def test_a_note_is_read_as_it_was_written_and_lies_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "damaged" / "00000000000000000001.lmdb"
    path.parent.mkdir()
    path.write_bytes(b"evidence")
    path.with_name(path.name + ".reason.txt").write_text("a page is gone\n")
    (path.parent / "state.lmdb").write_bytes(b"state")
    assert read_note(path) is None
    note = Note(salvaged_ns=5, entries=1, points=2, to="x", lost=[Lost("f", 1, 2, None, "r", 4096)])
    write_note(path, note)
    assert read_note(path) == note
    assert [
        (each.path.name, each.reason, each.note, each.is_segment) for each in damaged_files(tmp_path)
    ] == [
        (path.name, "a page is gone", note, True),
        ("state.lmdb", "", None, False),
    ]
    assert path.read_bytes() == b"evidence"
    path.with_name(path.name + ".salvaged.json").write_text("{")
    assert read_note(path) is None


def test_a_note_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="cannot be written"):
        write_note(tmp_path / "nowhere" / "x.lmdb", Note(salvaged_ns=5, entries=1, points=2, to="x", lost=[]))


def test_an_entry_that_does_not_decompress_is_lost_with_its_points() -> None:
    entry = Entry(7, 10, 0, 5, "", Destination(), CODEC_GZIP, 100, b"no gzip")
    found = lines_of(entry, "f")
    assert isinstance(found, Lost)
    assert (found.first_seq, found.last_seq, found.points) == (7, 7, 10)
    assert "does not decompress" in found.reason


def test_too_few_bytes_say_no_length() -> None:
    assert extent(b"\1" * 43) == 0


def test_a_segment_without_entries_has_none_to_salvage(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    [path] = (tmp_path / "wal").glob("*.lmdb")
    with pytest.raises(WalDamaged, match="there is no entry in it"):
        ScannedSegment(path)


def test_keys_that_are_no_seqs_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "00000000000000000001.lmdb"
    file = LmdbFile(path, map_bytes=1 << 20)
    file.append([(b"odd", b"value"), (b"very odd key", b"v" * 5000)])
    file.close()
    scan = PageScan(path)
    assert (scan.seqs, scan.last_seq, scan.header) == ([], 0, None)
    scan.close()
