"""Reading from outside: nothing is passed over in silence, whatever was damaged, dropped or appended meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.wal.factories import Clock, new_entry, open_store
from tests.wal.test_damage import DAMAGE, PAGE, flip, three_segments, zero
from wal_ingest.errors import NoWal, StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal import pinned
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.lmdb_pages import Found, PageReader, Unreadable
from wal_ingest.wal.lost import Lost, with_points
from wal_ingest.wal.page_scan import PageScan
from wal_ingest.wal.pinned import PinnedSegment, ScannedSegment
from wal_ingest.wal.reading import WalReader
from wal_ingest.wal.recovery import DAMAGED_DIR
from wal_ingest.wal.salvage import Note, write_note
from wal_ingest.wal.segment import Ends, ends_in
from wal_ingest.wal.store import Store

HOUR_NS = 3600 * 10**9
T0 = Clock().now_ns


def seqs(items: list[Entry | Lost]) -> list[int]:
    """The seqs of the entries."""
    return [item.seq for item in items if isinstance(item, Entry)]


def lost(items: Sequence[Entry | Lost]) -> list[tuple[int, int, int | None]]:
    """What is lost: first seq, last seq, points."""
    return [(item.first_seq, item.last_seq, item.points) for item in items if isinstance(item, Lost)]


def everything(data_dir: Path) -> list[Entry | Lost]:
    """All that a reader gives."""
    with WalReader(data_dir) as reader:
        return list(reader.entries())


def assert_told(items: list[Entry | Lost], first_seq: int, last_seq: int) -> None:
    """Every seq of the range is an entry, or lies in what is lost; none twice, all in order."""
    expected = first_seq
    for item in items:
        start, end = (item.first_seq, item.last_seq) if isinstance(item, Lost) else (item.seq, item.seq)
        assert start == expected, items
        expected = end + 1
    assert expected == last_seq + 1


def commit(store: Store, *numbers: int, points: int = 10, **more: int) -> None:
    """Commits entries one by one."""
    for number in numbers:
        store.wal.commit([[new_entry(number, points=points, **more)]])


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Three segments of two entries, ten points each, the last one still to be written to; an hour between two."""
    clock = Clock()
    store = open_store(tmp_path, clock, segment_s_max=1e9)
    for number in range(1, 7):
        commit(store, number, accepted_ns=clock.now_ns)
        clock.advance_s(3600)
        if number in (2, 4):
            store.wal.seal()
    store.close()
    return tmp_path


def files(data_dir: Path) -> list[Path]:
    """The segments' files."""
    return sorted((data_dir / "wal").glob("*.lmdb"))


def test_entries_come_in_order_with_their_lines(three: Path) -> None:
    items = everything(three)
    assert seqs(items) == [1, 2, 3, 4, 5, 6]
    assert [item.lines() for item in items if isinstance(item, Entry)] == [
        new_entry(number, points=10).lines for number in range(1, 7)
    ]
    with WalReader(three) as reader:
        assert (reader.first_seq, reader.last_seq, reader.points) == (1, 6, 60)


def test_a_range_of_seqs_has_both_ends(three: Path) -> None:
    with WalReader(three) as reader:
        assert seqs(list(reader.entries(first_seq=2, last_seq=5))) == [2, 3, 4, 5]
        assert seqs(list(reader.entries(first_seq=6))) == [6]
        assert list(reader.entries(first_seq=7)) == []


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (0, None, [1, 2, 3, 4, 5, 6]),
        (1, None, [2, 3, 4, 5, 6]),
        (None, 1, [1]),
        (2, 4, [3, 4]),
        (5, None, [6]),
        (6, None, []),
        (None, 0, []),
    ],
)
def test_a_range_of_times_has_its_beginning_and_not_its_end(
    three: Path, since: int | None, until: int | None, expected: list[int]
) -> None:
    with WalReader(three) as reader:
        found = reader.entries(
            since_ns=None if since is None else T0 + since * HOUR_NS,
            until_ns=None if until is None else T0 + until * HOUR_NS,
        )
        assert seqs(list(found)) == expected


def test_entries_that_are_older_than_their_segment_are_found_by_their_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    commit(store, 1, accepted_ns=T0 - 5 * HOUR_NS)
    commit(store, 2, accepted_ns=T0 - 2 * HOUR_NS)
    store.close()
    with WalReader(tmp_path) as reader:
        assert seqs(list(reader.entries(until_ns=T0 - 4 * HOUR_NS))) == [1]
        assert seqs(list(reader.entries(since_ns=T0 + HOUR_NS))) == []


def test_an_empty_log_has_no_entries(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    with WalReader(tmp_path) as reader:
        assert (reader.first_seq, reader.last_seq, reader.points) == (1, 0, 0)
        assert list(reader.entries(since_ns=0)) == []
    for path in files(tmp_path):
        path.unlink()
    with WalReader(tmp_path) as reader:
        assert (reader.first_seq, reader.last_seq, reader.points) == (1, 0, 0)
        reader.refresh()


def test_where_there_is_no_wal_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoWal, match="there is no WAL") as caught:
        WalReader(tmp_path)
    assert "--data-dir" in caught.value.hint


def test_a_wal_that_this_user_may_not_look_into_is_an_error(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(StorageFailed, match="Permission denied"):
        WalReader(three)


def test_what_the_server_drops_stays_readable_until_the_reader_is_closed(three: Path) -> None:
    with WalReader(three) as reader:
        for path in files(three)[:2]:
            path.unlink()
        assert seqs(list(reader.entries())) == [1, 2, 3, 4, 5, 6]
    assert seqs(everything(three)) == [5, 6]


def test_a_segment_that_was_let_go_of_is_not_opened_again(three: Path) -> None:
    with WalReader(three) as reader:
        reader.release_before(5)
        reader.refresh()
        assert seqs(list(reader.entries())) == [5, 6]
        reader.release_before(7)
        assert reader.last_seq == 6


def test_what_is_appended_is_seen_after_a_refresh_and_a_sealing_between_two_looks_is_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commit(store, 1)
    with WalReader(tmp_path) as reader:
        real = PinnedSegment.refresh

        def busy(self: PinnedSegment) -> None:
            real(self)
            monkeypatch.setattr(PinnedSegment, "refresh", real)
            commit(store, 3)
            store.wal.seal()
            commit(store, 4)

        commit(store, 2)
        monkeypatch.setattr(PinnedSegment, "refresh", busy)
        for _look in range(2):
            reader.refresh()
            assert lost(list(reader.entries())) == []
        assert seqs(list(reader.entries())) == [1, 2, 3, 4]
    store.close()


def test_segments_that_are_dropped_while_the_reader_opens_are_no_gap(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PinnedSegment.__init__
    first, second, _third = files(three)

    def dropped(self: PinnedSegment, path: Path) -> None:
        if path == second:
            first.unlink()
            second.unlink()
        real(self, path)

    monkeypatch.setattr(PinnedSegment, "__init__", dropped)
    assert [(item.seq if isinstance(item, Entry) else item) for item in everything(three)] == [5, 6]


def test_a_segment_that_vanishes_alone_is_a_gap(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PinnedSegment.__init__
    second = files(three)[1]

    def taken(self: PinnedSegment, path: Path) -> None:
        second.unlink(missing_ok=True)
        real(self, path)

    monkeypatch.setattr(PinnedSegment, "__init__", taken)
    items = everything(three)
    assert_told(items, 1, 6)
    assert lost(items) == [(3, 4, 20)]


def test_a_file_that_may_not_be_read_is_an_error_and_nothing_stays_open(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PinnedSegment.__init__
    last = files(three)[-1]

    def forbidden(self: PinnedSegment, path: Path) -> None:
        if path == last:
            raise StorageFailed(path, "Permission denied", number=13)
        real(self, path)

    monkeypatch.setattr(PinnedSegment, "__init__", forbidden)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(StorageFailed, match="Permission denied"):
        WalReader(three)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("which", [0, 1, 2])
def test_whatever_is_damaged_every_seq_is_an_entry_or_told_as_lost(
    tmp_path: Path, damage: object, which: int
) -> None:
    paths = three_segments(tmp_path)
    assert callable(damage)
    damage(paths[which])
    items = everything(tmp_path)
    told = seqs(items) + [seq for first, last, _ in lost(items) for seq in range(first, last + 1)]
    assert sorted(set(told)) == sorted(told)
    ends = [int(path.stem) for path in paths] + [26]
    assert set(range(1, 26)) - set(range(ends[which], ends[which + 1])) <= set(seqs(items))
    if which < 2:
        assert_told(items, 1, 25)
    elif damage is not DAMAGE["older meta page only"]:
        # Behind the last file stands nobody who could say how far it went.
        assert told


def test_a_lost_entry_is_told_with_its_points_and_its_place(tmp_path: Path) -> None:
    path = three_segments(tmp_path)[1]
    flip(path, path.stat().st_size // 2)
    items = everything(tmp_path)
    assert_told(items, 1, 25)
    [found] = [item for item in items if isinstance(item, Lost)]
    assert (found.file, found.points) == (path.name, 1)
    assert found.first_seq == found.last_seq
    assert "the checksum does not match" in found.reason
    assert found.offset is not None
    assert found.offset < path.stat().st_size // 2


def test_chunks_end_where_they_must_and_lose_nothing(tmp_path: Path) -> None:
    path = three_segments(tmp_path)[0]
    flip(path, path.stat().st_size // 2)
    segment = PinnedSegment(path)
    last_seq = segment.ends.last_seq
    for bytes_max in (1, 250_000, 1 << 30):
        for reader in (segment, ScannedSegment(path)):
            items: list[Entry | Lost] = []
            seq = 1
            while chunk := reader.read(seq, last_seq, bytes_max=bytes_max):
                items += chunk
                seq = chunk[-1].last_seq + 1 if isinstance(chunk[-1], Lost) else chunk[-1].seq + 1
            assert_told(items, 1, last_seq)
            assert [points for _first, _last, points in lost(items)] == [1]
            [bad] = [item for item in items if isinstance(item, Lost)]
            behind = list(range(bad.first_seq + 1, last_seq))
            assert seqs(reader.read(behind[0], behind[-1])) == behind
            # From the middle on, nobody tells how many points were in front of the range.
            assert lost(reader.read(bad.first_seq, bad.first_seq)) == [(bad.first_seq, bad.first_seq, None)]
    segment.close()


def test_points_of_what_is_lost_are_told_by_what_stands_around_it() -> None:
    def entry(seq: int, before: int) -> Entry:
        return Entry(seq, 10, before, 5, "", new_entry(1).destination, 0, 1, b"x")

    gap = Lost("f", 3, 4, None, "r")
    items: list[Entry | Lost] = [gap, entry(5, 40), Lost("f", 6, 6, None, "r")]
    assert lost(with_points(items, points_before=20, points_after=60)) == [(3, 4, 20), (6, 6, 10)]
    assert lost(with_points(items, points_before=None, points_after=None)) == [(3, 4, None), (6, 6, None)]
    # Numbers that cannot be are not made into a count.
    assert lost(with_points(items, points_before=90, points_after=60)) == [(3, 4, None), (6, 6, 10)]


def test_what_was_set_aside_is_lost_until_it_was_salvaged(three: Path) -> None:
    zero(files(three)[1], 0, 1)
    open_store(three).close()
    [damaged] = (three / "wal" / DAMAGED_DIR).glob("*.lmdb")
    assert lost(everything(three)) == [(3, 4, 20)]
    write_note(damaged, Note(salvaged_ns=1, entries=2, points=20, to="there", lost=[]))
    assert lost(everything(three)) == []


def test_a_range_that_damage_is_not_in_hears_nothing_of_it(three: Path) -> None:
    paths = files(three)
    for path in (paths[0], paths[2]):
        path.write_bytes(b"no LMDB" * 1000)
    with WalReader(three) as reader:
        assert [(item.file, item.first_seq, item.last_seq) for item in reader.unreadable] == [
            (paths[0].name, 1, 1),
            (paths[2].name, 5, 5),
        ]
        assert seqs(list(reader.entries(first_seq=3, last_seq=4))) == [3, 4]
        assert lost(list(reader.entries(first_seq=3, last_seq=4))) == []
        assert lost(list(reader.entries())) == [(1, 2, None), (5, 5, None)]
        assert lost(reader.gaps()) == [(1, 2, None), (5, 5, None)]


def test_an_unreadable_file_between_others_says_what_is_missing(three: Path) -> None:
    files(three)[1].write_bytes(b"no LMDB" * 1000)
    [gap] = [item for item in everything(three) if isinstance(item, Lost)]
    assert (gap.file, gap.first_seq, gap.last_seq, gap.points) == (files(three)[1].name, 3, 4, 20)
    assert "not LMDB's" in gap.reason


def test_a_version_that_nobody_knows_is_refused_by_name(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def newer(item: object, path: Path) -> Entry:
        raise UnknownFormatVersion(path, "entry 1: version 9 is not known")

    with WalReader(three) as reader:
        monkeypatch.setattr(pinned, "decode_item", newer)
        with pytest.raises(UnknownFormatVersion):
            list(reader.entries())
    monkeypatch.setattr("wal_ingest.wal.page_scan.decode_item", newer)
    with pytest.raises(UnknownFormatVersion):
        PageScan(files(three)[0])
    monkeypatch.setattr("wal_ingest.wal.segment.decode_item", newer)
    with pytest.raises(UnknownFormatVersion):
        WalReader(three)


def test_a_file_that_changes_faster_than_it_is_read_is_an_error_and_no_loss(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = PinnedSegment(files(three)[0])
    monkeypatch.setattr(PageReader, "is_whole", lambda _self: False)
    assert seqs(segment.read(1, 2)) == [1, 2]
    monkeypatch.setattr(PageReader, "whatever_from", lambda _self, _key: iter([Unreadable("torn", 4096)]))
    with pytest.raises(StorageFailed, match="changes faster"):
        segment.read(1, 2)
    segment.close()


def test_a_meta_page_that_breaks_while_the_file_is_open_hides_nothing(three: Path) -> None:
    path = files(three)[0]
    segment = PinnedSegment(path)
    content = path.read_bytes()
    # The first entry stands in a leaf; every copy of it breaks.
    for match in re.finditer(b"host-1", content):
        flip(path, match.start())
    zero(path, 0)
    items = segment.read(1, 2)
    assert_told(items, 1, 2)
    assert lost(items) == [(1, 1, 10)]
    with pytest.raises(WalDamaged):
        segment.refresh()
    segment.close()
    reader = WalReader(three)
    assert isinstance(reader.segments[0], ScannedSegment)
    reader.segments[0].refresh()
    reader.close()


def test_a_last_segment_that_breaks_while_it_is_followed_stays_what_it_was(three: Path) -> None:
    with WalReader(three) as reader:
        zero(files(three)[-1], 0)
        reader.refresh()
        assert reader.last_seq == 6


def test_a_tree_that_leads_to_a_page_twice_gives_its_entries_once(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PageReader.whatever_from

    def twice(self: PageReader, key: bytes) -> Iterator[Found | Unreadable]:
        yield from list(real(self, key)) * 2

    monkeypatch.setattr(PageReader, "whatever_from", twice)
    assert seqs(everything(three)) == [1, 2, 3, 4, 5, 6]


def test_ends_are_looked_for_again_where_the_file_went_on_meanwhile(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(PageReader, "is_whole", lambda _self: next(answers))
    segment = PinnedSegment(files(three)[0])
    assert segment.ends.last_seq == 2
    assert list(answers) == []
    segment.close()


def test_a_branch_that_is_its_own_child_has_an_end(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    commit(store, *range(1, 201))
    path = store.wal.segments()[0].path
    store.close()
    content = bytearray(path.read_bytes())
    root = max(int.from_bytes(content[page * PAGE + 128 :][:8], "little") for page in (0, 1))
    lower = int.from_bytes(content[root * PAGE + 12 :][:2], "little")
    assert lower > 18, "the root has more than one child"
    node = root * PAGE + int.from_bytes(content[root * PAGE + 16 :][:2], "little")
    content[node : node + 4] = root.to_bytes(4, "little")
    path.write_bytes(content)
    with WalReader(tmp_path) as reader:
        assert_told(list(reader.entries()), 1, 200)


def test_a_log_may_have_more_segments_than_a_process_may_have_files_open_by_default(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda _what: (64, 4096))
    monkeypatch.setattr("resource.setrlimit", lambda _what, limits: asked.append(limits))
    assert len(everything(three)) == 6
    assert asked == [(4096, 4096)]


def test_ends_that_broke_because_the_file_went_on_are_looked_for_again(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ends_in
    looks = 0

    def torn(reader: PageReader) -> Ends:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise WalDamaged(reader.path, "a page was written anew")
        return real(reader)

    monkeypatch.setattr(pinned, "ends_in", torn)
    monkeypatch.setattr(PageReader, "is_current", lambda _self: False)
    segment = PinnedSegment(files(three)[0])
    assert (segment.ends.last_seq, looks) == (2, 2)
    segment.close()


def test_reading_begins_where_it_is_told_to_in_a_tree_of_any_size(tmp_path: Path) -> None:
    empty = LmdbFile(tmp_path / "empty.lmdb", map_bytes=1 << 20)
    empty.sync()
    empty.close()
    reader = PageReader(tmp_path / "empty.lmdb")
    assert list(reader.whatever_from(b"")) == []
    reader.close()
    store = open_store(tmp_path)
    commit(store, *range(1, 301))
    store.close()
    with WalReader(tmp_path) as log:
        for first in (1, 2, 150, 299, 300):
            assert seqs(list(log.entries(first_seq=first))) == list(range(first, 301))
