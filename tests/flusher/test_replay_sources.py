"""What a replay reads: the WAL through damage, the archive member by member, and which of them for which range."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.flusher.twins import lines_of
from tests.wal.factories import Clock, open_store
from wal_ingest.errors import ConfigError, StorageFailed
from wal_ingest.flusher.replay import archive as archive_module
from wal_ingest.flusher.replay.archive import HOUR_NS, ArchiveSource, Part, Unread, read_parts
from wal_ingest.flusher.replay.places import Place, Range, Source, Unit
from wal_ingest.flusher.replay.plan import Hole, count, make_plan
from wal_ingest.flusher.replay.wal import WalSource, last_seq_of
from wal_ingest.wal.entry import Destination, Entry, NewEntry
from wal_ingest.wal.gzip_codec import compress
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.reading import WalReader

# 2026-11-22T21:00:00Z
HOUR = 1_795_381_200_000_000_000 // HOUR_NS
START_NS = HOUR * HOUR_NS
S = 10**9


def archive_file(root: Path, hour: int, *members: bytes, part: int = 0) -> Path:
    """A file of the archive below a data directory, of members as they are given."""
    day, of_day = divmod(hour - START_NS // HOUR_NS + 21, 24)
    name = f"{of_day:02}.part{part}.lp.gz" if part else f"{of_day:02}.lp.gz"
    path = root / "archive" / f"2026-11-{22 + day}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(members))
    return path


def archive_of(root: Path, first: int = HOUR, last: int = HOUR, **options: object) -> ArchiveSource:
    return ArchiveSource(root / "archive", first, last, points_max=10, **options)  # type: ignore[arg-type]


def units_of(source: Source) -> list[Unit]:
    return [item for item in source.items() if isinstance(item, Unit)]


def lost_of(source: Source) -> list[Lost]:
    return [item for item in source.items() if isinstance(item, Lost)]


def lines_in(source: Source) -> bytes:
    return b"".join(unit.entry.lines() for unit in units_of(source))


def only(measurement: bytes) -> object:
    def select(lines: bytes) -> tuple[bytes, int]:
        chosen = [line for line in lines.splitlines(keepends=True) if line.startswith(measurement)]
        return b"".join(chosen), len(chosen)

    return select


class Wal:
    """A WAL with an entry of five points a second from START_NS on, sealed after every tenth."""

    def __init__(self, root: Path, entries: int = 30, *, dropped: int = 0) -> None:
        self.root = root
        clock = Clock(START_NS)
        store = open_store(root, clock, keep_confirmed_s=0)
        for seq in range(1, entries + 1):
            clock.now_ns = START_NS + seq * S
            store.wal.commit([[NewEntry(lines_of(seq, 5), 5, clock.now_ns, "", Destination())]])
            if seq % 10 == 0 and seq < entries:
                store.wal.seal()
        store.close()
        self.files = sorted((root / "wal").glob("*.lmdb"))
        for path in self.files[:dropped]:
            path.unlink()
        self.files = self.files[dropped:]

    def lines(self, first: int, last: int) -> bytes:
        return b"".join(lines_of(seq, 5) for seq in range(first, last + 1))

    def damage(self, seq: int) -> None:
        """Flips a bit in the entry's lines, so that its checksum does not match."""
        member = compress(lines_of(seq, 5))
        damaged = member[:20] + bytes([member[20] ^ 1]) + member[21:]
        for path in self.files:  # LMDB leaves older copies of its pages behind: every one is damaged
            path.write_bytes(path.read_bytes().replace(member, damaged))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_READ_BYTES", 64)
    monkeypatch.setattr(archive_module, "_PART_BYTES", 500)


# -- the archive ----------------------------------------------------------------------------------------


def test_members_are_read_one_by_one_as_they_lie(tmp_path: Path) -> None:
    members = [compress(lines_of(seq, 3)) for seq in (1, 2)]
    path = archive_file(tmp_path, HOUR, *members)
    end = len(members[0]) + len(members[1])
    assert list(read_parts(path, offset=0, end=end)) == [
        Part(lines_of(1, 3), members[0], 0, len(members[0]), 0),
        Part(lines_of(2, 3), members[1], 0, end, 0),
    ]
    assert list(read_parts(path, offset=len(members[0]), end=end)) == [
        Part(lines_of(2, 3), members[1], 0, end, 0)
    ]


@pytest.mark.usefixtures("small_parts")
def test_a_huge_member_comes_in_parts_of_whole_lines(tmp_path: Path) -> None:
    lines = b"".join(lines_of(seq, 1) for seq in range(100))
    path = archive_file(tmp_path, HOUR, gzip.compress(lines))
    parts = [part for part in read_parts(path, offset=0, end=path.stat().st_size) if isinstance(part, Part)]
    assert len(parts) > 3
    assert b"".join(part.lines for part in parts) == lines
    assert all(part.lines.endswith(b"\n") and part.packed is None for part in parts)
    assert [part.lines_before for part in parts[1:]] == [part.lines_after for part in parts[:-1]]
    assert [part.offset for part in parts] == [0] * (len(parts) - 1) + [path.stat().st_size]


def test_half_a_member_at_the_end_gives_nothing_of_itself(tmp_path: Path) -> None:
    whole, half = compress(lines_of(1, 3)), compress(lines_of(2, 3))[:-4]
    path = archive_file(tmp_path, HOUR, whole, half)
    end = len(whole) + len(half)
    found = list(read_parts(path, offset=0, end=end))
    assert found[1:] == [Unread(len(whole), end, "it ends within a gzip member", at_end=True)]


def test_behind_bytes_that_are_no_gzip_the_next_member_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compress(lines_of(1, 3))
    path = archive_file(tmp_path, HOUR, whole, b"\x00" * 200, whole, b"rubbish, and more of it")
    for read_bytes in (64 * 1024, 64):
        monkeypatch.setattr(archive_module, "_READ_BYTES", read_bytes)
        found = list(read_parts(path, offset=0, end=path.stat().st_size))
        places = [(one.start, one.end, one.at_end) for one in found if isinstance(one, Unread)]
        second = len(whole) + 200
        assert places == [(len(whole), second, False), (second + len(whole), path.stat().st_size, True)]
        assert [one.lines for one in found if isinstance(one, Part)] == [lines_of(1, 3)] * 2


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"gone\.lp\.gz: cannot be read"):
        list(read_parts(tmp_path / "gone.lp.gz", offset=0, end=10))
    with pytest.raises(StorageFailed, match=r"gone\.lp\.gz: cannot be read"):
        archive_module.file_bytes(tmp_path / "gone.lp.gz")


def test_the_hours_of_a_range_are_read_in_order_part_by_part(tmp_path: Path) -> None:
    for seq, (hour, part) in enumerate([(HOUR - 1, 0), (HOUR, 0), (HOUR, 1), (HOUR, 10), (HOUR + 1, 0)]):
        archive_file(tmp_path, hour, compress(lines_of(seq, 2)), part=part)
    source = archive_of(tmp_path)
    assert source.expected_points() > 0
    assert lines_in(source) == lines_of(1, 2) + lines_of(2, 2) + lines_of(3, 2)
    assert source.describe() == "3 files of the archive, 2026-11-22/21.lp.gz to 2026-11-22/21.part10.lp.gz"
    assert source.expected_points() == 6
    assert (source.passed.entries, source.passed.points) == (3, 6)
    assert source.passed.first_ns == source.passed.last_ns == START_NS
    assert archive_of(tmp_path, HOUR, HOUR - 1).describe() == "nothing of the archive"
    assert archive_of(tmp_path, HOUR + 1, HOUR + 1).describe() == "2026-11-22/22.lp.gz of the archive"


def test_a_member_with_too_many_points_is_cut_and_only_its_end_is_a_place(tmp_path: Path) -> None:
    path = archive_file(tmp_path, HOUR, compress(lines_of(1, 25)), compress(lines_of(2, 1)))
    units = units_of(archive_of(tmp_path))
    assert [unit.entry.points for unit in units] == [10, 10, 5, 1]
    places = [unit.place for unit in units]
    assert places[:2] == [None, None]
    assert places[3] == Place(source="archive", file="2026-11-22/21.lp.gz", offset=path.stat().st_size)
    assert lines_in(archive_of(tmp_path)) == lines_of(1, 25) + lines_of(2, 1)


def test_it_goes_on_behind_a_place(tmp_path: Path) -> None:
    archive_file(tmp_path, HOUR - 1, compress(lines_of(0, 2)))
    archive_file(tmp_path, HOUR, compress(lines_of(1, 2)), compress(lines_of(2, 2)))
    archive_file(tmp_path, HOUR + 1, compress(lines_of(3, 2)))
    place = units_of(archive_of(tmp_path))[0].place
    behind = archive_of(tmp_path, HOUR - 1, HOUR + 1, after=place)
    assert lines_in(behind) == lines_of(2, 2) + lines_of(3, 2)
    assert not behind.begins_later


@pytest.mark.usefixtures("small_parts")
def test_it_goes_on_within_a_huge_member(tmp_path: Path) -> None:
    lines = b"".join(lines_of(seq, 1) for seq in range(100))
    archive_file(tmp_path, HOUR, gzip.compress(lines), compress(lines_of(7, 1)))
    whole = archive_of(tmp_path)
    before = b""
    for unit in units_of(whole):
        before += unit.entry.lines()
        if unit.place is not None and unit.place.lines:
            rest = archive_of(tmp_path, after=unit.place)
            assert before + lines_in(rest) == lines + lines_of(7, 1)
    within = Place(source="archive", file="2026-11-22/21.lp.gz", offset=0, lines=31)
    assert lines_in(archive_of(tmp_path, after=within)).startswith(lines_of(31, 1))
    at_its_end = Place(source="archive", file="2026-11-22/21.lp.gz", offset=0, lines=100)
    assert lines_in(archive_of(tmp_path, after=at_its_end)) == lines_of(7, 1)


def test_the_file_that_is_appended_to_may_end_in_half_a_member_and_no_other(tmp_path: Path) -> None:
    half = compress(lines_of(9, 3))[:-3]
    archive_file(tmp_path, HOUR, compress(lines_of(1, 3)), half)
    assert lost_of(archive_of(tmp_path)) == []
    archive_file(tmp_path, HOUR, compress(lines_of(2, 3)), part=1)
    (lost,) = lost_of(archive_of(tmp_path))
    assert (lost.file, lost.points) == ("2026-11-22/21.lp.gz", None)
    assert "it ends within a gzip member" in lost.reason
    assert lines_in(archive_of(tmp_path)) == lines_of(1, 3) + lines_of(2, 3)


def test_lines_of_the_archive_are_selected(tmp_path: Path) -> None:
    both = lines_of(1, 2) + lines_of(2, 2, measurement="other")
    archive_file(tmp_path, HOUR, compress(both))
    source = archive_of(tmp_path, select=only(b"other"))
    assert lines_in(source) == lines_of(2, 2, measurement="other")
    assert source.passed.points == 4


# -- the WAL --------------------------------------------------------------------------------------------


@pytest.fixture
def wal(tmp_path: Path) -> Wal:
    return Wal(tmp_path)


@pytest.fixture
def reader(wal: Wal) -> Iterator[WalReader]:
    with WalReader(wal.root) as reader:
        yield reader


def test_a_range_of_seqs_is_read_with_the_places_behind_each_entry(wal: Wal, reader: WalReader) -> None:
    source = WalSource(reader, Range(first_seq=8, last_seq=12))
    assert source.describe() == "seqs 8 to 12 of the WAL"
    assert source.expected_points() == 25
    units = units_of(source)
    assert b"".join(unit.entry.lines() for unit in units) == wal.lines(8, 12)
    assert units[0].place == Place(source="wal", seq=8, accepted_ns=START_NS + 8 * S)
    assert source.passed.points == 25


@pytest.mark.parametrize(
    ("since", "until", "first", "last"), [(5, 12, 5, 11), (25, None, 25, 30), (0, 99, 1, 30)]
)
def test_a_range_of_time_is_read_and_its_points_are_known_beforehand(
    wal: Wal, reader: WalReader, since: int, until: int | None, first: int, last: int
) -> None:
    until_ns = None if until is None else START_NS + until * S
    source = WalSource(reader, Range(START_NS + since * S, until_ns))
    assert source.expected_points() == (last - first + 1) * 5
    assert lines_in(source) == wal.lines(first, last)


def test_nothing_is_expected_of_a_range_that_holds_nothing(wal: Wal, reader: WalReader) -> None:
    for span in (Range(START_NS + 99 * S), Range(first_seq=31), Range(first_seq=31, last_seq=40)):
        source = WalSource(reader, span)
        assert (source.expected_points(), units_of(source)) == (0, [])
    assert WalSource(reader, Range(first_seq=31)).describe() == "nothing of the WAL"


def test_what_is_lost_is_given_between_the_entries(wal: Wal) -> None:
    wal.damage(7)
    wal.damage(29)
    with WalReader(wal.root) as reader:
        source = WalSource(reader, Range(first_seq=5))
        assert source.expected_points() == 26 * 5
        lost = lost_of(source)
    assert [(one.first_seq, one.last_seq, one.points) for one in lost] == [(7, 7, 5), (29, 29, 5)]


def test_what_is_expected_is_guessed_around_lost_entries(wal: Wal) -> None:
    for seq in (9, 10, 15):
        wal.damage(seq)
    with WalReader(wal.root) as reader:
        assert WalSource(reader, Range(first_seq=9, last_seq=9)).expected_points() == 0
        assert WalSource(reader, Range(first_seq=10, last_seq=13)).expected_points() == 3 * 5
        assert WalSource(reader, Range(first_seq=12, last_seq=15)).expected_points() == 4 * 5
        assert WalSource(reader, Range(START_NS + 9 * S, START_NS + 15 * S)).expected_points() == 5 * 5


def test_a_last_segment_that_cannot_be_read_at_all_is_lost(wal: Wal) -> None:
    wal.files[-1].write_bytes(b"\0" * 40_000)
    with WalReader(wal.root) as reader:
        assert last_seq_of(reader) == 21
        items = list(WalSource(reader, Range()).items())
    assert [item.first_seq for item in items if isinstance(item, Lost)] == [21]
    lines = b"".join(item.entry.lines() for item in items if isinstance(item, Unit))
    assert lines == wal.lines(1, 20)


def test_lines_of_the_wal_are_selected_and_a_payload_that_is_none_is_lost(
    wal: Wal, reader: WalReader
) -> None:
    def select(lines: bytes) -> tuple[bytes, int]:
        head, _, _ = lines.partition(b"\n")
        return head + b"\n", 1

    source = WalSource(reader, Range(last_seq=2), select=select)
    assert lines_in(source) == lines_of(1, 5)[: len(lines_of(1, 1))] + lines_of(2, 1)
    unit = source._unit(_undecodable(units_of(WalSource(reader, Range(last_seq=1)))[0]))
    assert isinstance(unit, Lost)
    assert "does not decompress" in unit.reason


def _undecodable(unit: Unit) -> Entry:

    return replace(unit.entry, codec=1, payload=b"no gzip")


# -- which of them --------------------------------------------------------------------------------------


def plan_of(
    root: Path, reader: WalReader | None, span: Range, **options: object
) -> tuple[list[str], Hole | None]:
    settings: dict[str, object] = {"source": "auto", "now_ns": START_NS + 60 * S, "points_max": 10, **options}
    plan = make_plan(root, reader, span, **settings)  # type: ignore[arg-type]
    assert plan.whole_hours == any(source.name == "archive" for source in plan.sources)
    return [source.describe() for source in plan.sources], plan.hole


def test_the_wal_is_enough_where_it_reaches_back(tmp_path: Path) -> None:
    archive_file(tmp_path, HOUR, compress(lines_of(1, 3)))
    Wal(tmp_path, dropped=1)
    with WalReader(tmp_path) as reader:
        within = Range(START_NS + 15 * S)
        assert plan_of(tmp_path, reader, within) == (["seqs 15 to 30 of the WAL"], None)
        assert plan_of(tmp_path, reader, Range(first_seq=11)) == (["seqs 11 to 30 of the WAL"], None)


def test_a_wal_from_the_first_seq_on_reaches_back_as_far_as_there_is_anything(
    wal: Wal, reader: WalReader
) -> None:
    assert plan_of(wal.root, reader, Range(START_NS - 9999 * S)) == (["seqs 1 to 30 of the WAL"], None)


def test_the_archive_comes_first_for_what_is_older(tmp_path: Path) -> None:
    archive_file(tmp_path, HOUR - 1, compress(lines_of(1, 3)))
    archive_file(tmp_path, HOUR, compress(lines_of(1, 3)))
    archive_file(tmp_path, HOUR + 1, compress(lines_of(1, 3)))
    Wal(tmp_path, dropped=1)
    both = ["2026-11-22/21.lp.gz of the archive", "seqs 11 to 30 of the WAL"]
    with WalReader(tmp_path) as reader:
        assert plan_of(tmp_path, reader, Range(START_NS + 5 * S)) == (both, None)
        only_wal = plan_of(tmp_path, reader, Range(START_NS + 5 * S), source="wal")
        assert only_wal == (both[1:], Hole(START_NS + 11 * S, 11))
        only_archive = plan_of(tmp_path, reader, Range(START_NS + 5 * S), source="archive")
        assert only_archive == (both[:1], None)
        until = plan_of(tmp_path, None, Range(START_NS - 10 * S, START_NS))
        assert until == (["2026-11-22/20.lp.gz of the archive"], None)


def test_it_is_said_when_neither_holds_the_beginning(tmp_path: Path) -> None:
    Wal(tmp_path, dropped=1)
    since = Range(START_NS - 9999 * S)
    with WalReader(tmp_path) as reader:
        hole = Hole(START_NS + 11 * S, 11)
        assert plan_of(tmp_path, reader, since) == (["seqs 11 to 30 of the WAL"], hole)
        assert plan_of(tmp_path, reader, Range(first_seq=3)) == (["seqs 11 to 30 of the WAL"], hole)
        assert plan_of(tmp_path, None, since) == (["nothing of the archive"], Hole(None, None))
        archive_file(tmp_path, HOUR, compress(lines_of(1, 3)))
        _, hole_of_both = plan_of(tmp_path, reader, since)
        assert hole_of_both == Hole(START_NS, None)


def test_a_wal_without_entries_holds_nothing_of_a_range(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    (path,) = (tmp_path / "wal").glob("*.lmdb")
    Wal(tmp_path / "other", 10)
    with WalReader(tmp_path) as reader:
        assert plan_of(tmp_path, reader, Range(START_NS)) == (["nothing of the WAL"], None)
    assert path.exists()


def test_it_goes_on_from_the_archive_when_the_wal_has_dropped_what_comes_next(tmp_path: Path) -> None:
    archive_file(tmp_path, HOUR - 1, compress(lines_of(1, 3)))
    archive_file(tmp_path, HOUR, compress(lines_of(1, 3)))
    Wal(tmp_path, dropped=1)
    in_wal = Place(source="wal", seq=5, accepted_ns=START_NS + 5 * S)
    in_archive = Place(source="archive", file="2026-11-22/20.lp.gz", offset=7)
    with WalReader(tmp_path) as reader:
        since = Range(START_NS - 99 * S)
        sources, _ = plan_of(tmp_path, reader, since, after=in_wal)
        assert sources == ["2026-11-22/21.lp.gz of the archive", "seqs 11 to 30 of the WAL"]
        sources, _ = plan_of(tmp_path, reader, since, after=Place(source="wal", seq=12, accepted_ns=START_NS))
        assert sources == ["seqs 13 to 30 of the WAL"]
        sources, _ = plan_of(tmp_path, reader, Range(first_seq=3), after=in_wal)
        assert sources == ["seqs 11 to 30 of the WAL"]
        sources, hole = plan_of(tmp_path, reader, since, after=in_archive)
        assert hole is None
        assert sources[0] == "2 files of the archive, 2026-11-22/20.lp.gz to 2026-11-22/21.lp.gz"


def test_the_archive_has_no_seqs(wal: Wal, reader: WalReader) -> None:
    with pytest.raises(ConfigError, match="keeps no seqs"):
        plan_of(wal.root, reader, Range(first_seq=3), source="archive")


def test_the_first_entry_that_can_be_read_says_where_the_wal_begins(tmp_path: Path) -> None:
    wal = Wal(tmp_path, dropped=1)
    wal.damage(11)
    with WalReader(wal.root) as reader:
        _, hole = plan_of(wal.root, reader, Range(START_NS))
    assert hole == Hole(START_NS + 12 * S, 12)


def test_counting_tells_what_would_be_read_and_what_is_lost(wal: Wal) -> None:
    wal.damage(7)
    with WalReader(wal.root) as reader:
        counted = count(WalSource(reader, Range()))
    assert (counted.source, counted.points, counted.passed.entries) == ("wal", 145, 29)
    assert counted.words == "seqs 1 to 30 of the WAL"
    assert [one.first_seq for one in counted.lost] == [7]
