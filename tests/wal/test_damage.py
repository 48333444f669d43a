"""Damage as a table: what was hit is set aside whole and reported, the rest survives, and new points are taken.

Whatever is done to a file, the process must live: LMDB's engine is never handed a file that was not verified.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import scenario
from tests.faults.scenario import Journal
from tests.model.inline import read_everything
from tests.wal.factories import MIB, fill, new_entry, open_store, read_all
from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.inspect import status
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.recovery import Gap, find_gaps
from wal_ingest.wal.segment import SegmentHeader

PAGE = 4096


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


def zero(path: Path, *numbers: int) -> None:
    """Zeroes pages, as a torn write does."""
    with path.open("r+b") as file:
        for page in numbers:
            file.seek(page * PAGE)
            file.write(bytes(PAGE))


def pages(path: Path) -> int:
    """How many pages a file has."""
    return path.stat().st_size // PAGE


def cut(path: Path, part: float) -> None:
    """Cuts a file at a page's end."""
    os.truncate(path, int(pages(path) * part) * PAGE)


def zero_tree(path: Path) -> None:
    """Zeroes every page of the tree, whatever its state; the entries' own pages stay."""
    content = path.read_bytes()
    for page in range(2, pages(path)):
        flags = int.from_bytes(content[page * PAGE + 10 : page * PAGE + 12], "little")
        number = int.from_bytes(content[page * PAGE : page * PAGE + 8], "little")
        if flags in (1, 2) and number == page:
            zero(path, page)


def forget_latest_transaction(path: Path) -> None:
    """Puts the older meta page in the place of the newer one: a whole file, of yesterday as it were."""
    content = path.read_bytes()
    ids = [int.from_bytes(content[page * PAGE + 16 + 128 :][:8], "little") for page in (0, 1)]
    older, newer = (0, 1) if ids[0] < ids[1] else (1, 0)
    assert abs(ids[0] - ids[1]) == 1
    number = newer.to_bytes(8, "little")
    page = number + content[older * PAGE + 8 : older * PAGE + PAGE]
    path.write_bytes(content[: newer * PAGE] + page + content[newer * PAGE + PAGE :])


def three_segments(tmp_path: Path) -> list[Path]:
    """Three segments of about ten entries each, 25 in all, and the paths of their files."""
    store = open_store(tmp_path)
    fill(store, 25)
    paths = [segment.path for segment in store.wal.segments()]
    store.close()
    assert len(paths) == 3
    return paths


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty file": lambda path: path.write_bytes(b""),
    "cut within the meta pages": lambda path: os.truncate(path, 5000),
    "cut to a twentieth": lambda path: cut(path, 0.05),
    "cut in half": lambda path: cut(path, 0.5),
    "torn tail": lambda path: cut(path, 0.95),
    "last byte missing": lambda path: os.truncate(path, path.stat().st_size - 1),
    "foreign file": lambda path: path.write_bytes(b"not LMDB at all" * 1000),
    "both meta pages zeroed": lambda path: zero(path, 0, 1),
    "first meta page zeroed": lambda path: zero(path, 0),
    "second meta page zeroed": lambda path: zero(path, 1),
    "bit flipped in a meta page's magic": lambda path: flip(path, 16),
    "older meta page only": forget_latest_transaction,
    "tree pages zeroed": zero_tree,
    "header record flipped": flip_header,
}


# Which part of the damaged segment's entries can be read all the same; all of them where it is not here.
SURVIVING_PART = {
    "empty file": 0.0,
    "cut within the meta pages": 0.0,
    "cut to a twentieth": 0.0,
    "cut in half": 0.4,
    "torn tail": 0.9,
    "foreign file": 0.0,
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_segment_is_set_aside_and_what_proves_itself_is_read_from_there(
    tmp_path: Path, name: str, which: int
) -> None:
    paths = three_segments(tmp_path)
    before = open_store(tmp_path)
    content = dict(read_all(before))
    before.close()
    starts = [int(path.name[:20]) for path in paths] + [26]
    hit = range(starts[which], starts[which + 1])
    rescued = hit[: int(len(hit) * SURVIVING_PART.get(name, 1.0))]
    DAMAGE[name](paths[which])
    evidence = paths[which].read_bytes()

    store = open_store(tmp_path)

    [moved] = store.wal.damaged
    assert moved.path.read_bytes() == evidence
    assert moved.reason
    assert moved.reason in moved.path.with_name(moved.path.name + ".reason.txt").read_text()
    assert moved.readable_points == len(rescued)
    survivors = [seq for seq in range(1, 26) if seq not in hit or seq in rescued]
    assert read_all(store) == [(seq, content[seq]) for seq in survivors]
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
    assert (moved.readable_points, moved.lost_points) == (9, 1)
    found = [seq for seq, _ in read_all(store)]
    [lost] = set(range(1, 26)) - set(found)
    assert first.last_seq < lost < store.wal.segments()[-2].first_seq
    assert found == sorted(found)
    store.close()


def test_a_segment_of_another_wal_is_set_aside(tmp_path: Path) -> None:
    ours, other = open_store(tmp_path / "ours"), open_store(tmp_path / "other")
    for store in (ours, other):
        store.wal.commit([[new_entry(1)]])
        store.wal.seal()
        store.wal.commit([[new_entry(2)]])
        store.close()
    name = "00000000000000000001.lmdb"
    (tmp_path / "other" / "wal" / name).replace(tmp_path / "ours" / "wal" / name)
    store = open_store(tmp_path / "ours")
    assert "another WAL" in store.wal.damaged[0].reason
    assert [seq for seq, _ in read_all(store)] == [2]
    store.close()


def test_where_every_segment_is_foreign_nothing_is_touched(tmp_path: Path) -> None:
    for name in ("ours", "other"):
        store = open_store(tmp_path / name)
        store.wal.commit([[new_entry(1)]])
        store.close()
    (tmp_path / "other" / "state.lmdb").replace(tmp_path / "ours" / "state.lmdb")
    before = sorted(path.name for path in (tmp_path / "ours" / "wal").glob("*.lmdb"))
    with pytest.raises(WalDamaged, match="none of its 1 segments belongs to this WAL"):
        open_store(tmp_path / "ours")
    assert sorted(path.name for path in (tmp_path / "ours" / "wal").glob("*.lmdb")) == before


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
    assert store.state_trouble == "the state file was missing"
    assert store.state.wal_id == wal_id
    assert store.cursor("influxdb") == Cursor(0, 0)
    assert [seq for seq, _ in read_all(store)] == [1, 2]
    store.close()


def test_a_segment_header_survives_its_codec(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    header = SegmentHeader(store.wal.wal_id, 12, 345, 678)
    assert SegmentHeader.decode(header.encode(), tmp_path) == header
    store.close()


STATE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty file": lambda path: path.write_bytes(b""),
    "one page only": lambda path: os.truncate(path, PAGE),
    "foreign file": lambda path: path.write_bytes(b"not LMDB at all" * 1000),
    "tree pages zeroed": zero_tree,
}


@pytest.mark.parametrize("damage", STATE_DAMAGE.values(), ids=STATE_DAMAGE.keys())
def test_a_damaged_state_file_is_set_aside_and_costs_no_entry(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)], [new_entry(2)]])
    store.commit_cursor("influxdb", Cursor(1, 1))
    wal_id = store.state.wal_id
    store.close()
    path = tmp_path / "state.lmdb"
    damage(path)
    evidence = path.read_bytes()
    store = open_store(tmp_path)
    assert "the state file was damaged" in store.state_trouble
    assert (tmp_path / "wal" / "damaged" / "state.lmdb").read_bytes() == evidence
    assert store.state.wal_id == wal_id
    assert [seq for seq, _ in read_all(store)] == [1, 2]
    [appended] = store.wal.commit([[new_entry(3)]])
    assert appended.first_seq == 3
    store.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_ends_the_process_and_never_shows_a_wrong_entry(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    store = open_store(tmp_path)
    expected = {}
    for number in range(1, 200):
        store.wal.commit([[new_entry(number, points=rng.randrange(1, 200))]])
        if number % 60 == 0:
            store.wal.seal()
    expected = dict(read_all(store))
    store.close()
    originals = {path: path.read_bytes() for path in (tmp_path / "wal").glob("*.lmdb")}
    for _round in range(25):
        path = rng.choice(list(originals))
        page = rng.randrange(pages(path))
        if rng.random() < 0.5:
            zero(path, page)
        else:
            flip(path, page * PAGE + rng.randrange(PAGE))
        found, store = [], open_store(tmp_path)
        while True:
            try:
                found = read_all(store)
                break
            except WalDamaged as exc:
                store.wal.set_aside(exc.path, exc.reason)
        assert all(lines == expected[seq] for seq, lines in found)
        lost = {int(moved.path.name[:20]) for moved in store.wal.damaged}
        assert len(lost) <= 1
        store.wal.commit([[new_entry(1)]])
        store.close()
        for extra in [*(tmp_path / "wal").glob("*.lmdb"), *(tmp_path / "wal" / "damaged").glob("*")]:
            extra.unlink()
        for original, content in originals.items():
            original.write_bytes(content)


def remove(path: Path, *seqs: int) -> None:
    """Takes entries out of a segment, in a way that LMDB finds fine."""
    file = LmdbFile(path, map_bytes=MIB * 64)
    file.write([], [seq.to_bytes(8, "big") for seq in seqs])
    file.close()


@pytest.mark.parametrize("missing", [(5,), (9, 10), (1,)])
def test_a_missing_entry_is_damage_and_never_passed_over(tmp_path: Path, missing: tuple[int, ...]) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(number) for number in range(1, 21)]])
    [segment] = store.wal.segments()
    store.close()
    remove(segment.path, *missing)
    store = open_store(tmp_path)
    with pytest.raises(WalDamaged, match=f"entry {missing[0]} is missing"):
        read_all(store)
    with pytest.raises(WalDamaged, match=f"entry {missing[0]} is missing"):
        store.wal.read(missing[0] - 1, bytes_max=1)
    store.close()


def test_an_append_that_lmdb_would_skip_is_an_error_and_stores_nothing(tmp_path: Path) -> None:
    file = LmdbFile(tmp_path / "x.lmdb", map_bytes=MIB)
    file.append([(b"5", b"five")])
    with pytest.raises(StorageFailed, match="1 of 3 entries"):
        file.append([(b"4", b"four"), (b"5", b"other"), (b"6", b"six")])
    assert file.read_from(b"", bytes_max=MIB) == [(b"5", b"five")]
    file.close()


def test_seqs_are_not_reused_when_the_numbering_was_not_moved_on_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(number) for number in range(1, 51)]])
    store.close()
    [path] = (tmp_path / "wal").glob("*.lmdb")
    path.write_bytes(b"")

    def crash(*_: object) -> None:
        raise StorageFailed(path, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.recovery.note_reason", crash)
        with pytest.raises(StorageFailed):
            open_store(tmp_path)
    store = open_store(tmp_path)
    [appended] = store.wal.commit([[new_entry(51)]])
    assert appended.first_seq > 50
    store.close()


def test_truncation_and_setting_aside_may_meet_over_one_segment(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in (1, 2):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    first, second, _last = store.wal.segments()
    assert store.wal.truncate(1) == 1
    assert store.wal.set_aside(first.path, "too late") is None
    assert store.wal.set_aside(second.path, "damaged") is not None
    assert store.wal.truncate(2) == 0
    store.close()


# -- a page or a bit that only reading finds ---------------------------------------------------------------


def flip_payload(path: Path) -> None:
    """Flips a byte in the middle of an entry's own pages."""
    flip(path, path.stat().st_size // 2)


def flip_key(path: Path) -> None:
    """Flips the last byte of an entry's key, on every page that has it."""
    seq = int(path.name[:20]) + 3
    # Before a key stands its length. Without it the first byte of a payload, after eight zeros, may pass for a key.
    key = (8).to_bytes(2, "little") + seq.to_bytes(8, "big")
    offsets = [match.start() for match in re.finditer(re.escape(key), path.read_bytes())]
    assert offsets
    for offset in offsets:
        flip(path, offset + len(key) - 1)


# What is done, and how many entries at most it costs.
FOUND_BY_READING: dict[str, tuple[Callable[[Path], object], int]] = {
    "bit flipped in a payload": (flip_payload, 1),
    "bit flipped in a key": (flip_key, 2),
    "one page of an entry zeroed": (lambda path: zero(path, pages(path) // 2), 1),
    "all but the meta pages and the ends zeroed": (lambda path: zero(path, *range(12, pages(path) - 30)), 10),
}


@pytest.mark.parametrize(("damage", "lost_max"), FOUND_BY_READING.values(), ids=FOUND_BY_READING.keys())
@pytest.mark.parametrize("which", [0, 1, 2])
def test_damage_within_a_segment_is_found_at_the_latest_when_it_is_read(
    tmp_path: Path, damage: Callable[[Path], object], lost_max: int, which: int
) -> None:
    paths = three_segments(tmp_path)
    starts = [int(path.name[:20]) for path in paths] + [26]
    damage(paths[which])
    evidence = paths[which].read_bytes()
    store = open_store(tmp_path)
    survivors = list(read_everything(store))
    lost = set(range(1, 26)) - set(survivors)
    assert len(lost) <= lost_max
    assert lost <= set(range(starts[which], starts[which + 1]))
    [moved] = store.wal.damaged
    assert moved.path.read_bytes() == evidence
    [appended] = store.wal.commit([[new_entry(99)]])
    assert appended.first_seq > 25
    store.close()
    store = open_store(tmp_path)
    assert list(read_everything(store)) == [*survivors, appended.first_seq]
    assert [path.name for path in (tmp_path / "wal" / "damaged").glob("*.lmdb")] == [paths[which].name]
    store.close()


def test_a_damaged_segment_that_looks_empty_does_not_keep_the_server_from_starting(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.wal.seal()
    store.close()
    last = max((tmp_path / "wal").glob("*.lmdb"))
    with last.open(
        "ab"
    ) as file:  # longer than it says, and what is there is nothing: only the whole walk sees it
        file.write(b"x" * 100)
    store = open_store(tmp_path)
    [appended] = store.wal.commit([[new_entry(2)]])
    assert [seq for seq, _ in read_all(store)] == [1, appended.first_seq]
    store.close()


# -- a segment that is not there ---------------------------------------------------------------------------


def test_a_missing_segment_is_reported_with_its_points_and_nothing_else_breaks(tmp_path: Path) -> None:
    paths = three_segments(tmp_path)
    starts = [int(path.name[:20]) for path in paths]
    paths[1].unlink()
    store = open_store(tmp_path)
    gap = Gap(starts[1], starts[2] - 1, starts[2] - starts[1])
    assert store.wal.gaps() == [gap]
    assert store.wal.damaged == []
    assert status(tmp_path, now_ns=9).gaps == [gap]
    survivors = [*range(1, starts[1]), *range(starts[2], 26)]
    assert [seq for seq, _ in read_all(store)] == survivors
    [appended] = store.wal.commit([[new_entry(26)]])
    assert appended.first_seq == 26
    store.close()


@pytest.mark.parametrize("which", [0, 2])
def test_a_missing_segment_at_either_end_breaks_nothing(tmp_path: Path, which: int) -> None:
    paths = three_segments(tmp_path)
    starts = [int(path.name[:20]) for path in paths] + [26]
    store = open_store(tmp_path)
    store.commit_cursor("influxdb", Cursor(25, 25))
    store.close()
    empty = max((tmp_path / "wal").glob("*.lmdb"))
    if which == 2:
        empty.unlink()
    paths[which].unlink()
    store = open_store(tmp_path)
    survivors = [seq for seq in range(1, 26) if not starts[which] <= seq < starts[which + 1]]
    assert [seq for seq, _ in read_all(store)] == survivors
    [appended] = store.wal.commit([[new_entry(26)]])
    assert appended.first_seq == 26  # by the cursor, where the log itself does not know any more
    store.close()


def test_numbering_that_jumps_without_points_is_no_gap(tmp_path: Path) -> None:
    paths = three_segments(tmp_path)
    paths[2].write_bytes(b"")
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.close()
    store = open_store(tmp_path)
    first, _second, last = (store.wal.segments()[index] for index in (0, 1, -1))
    assert last.first_seq - first.last_seq > 1 << 32
    assert find_gaps([first, first]) == []
    store.close()


# -- a state that is older than the segments, restored from a copy -----------------------------------------


def test_a_state_older_than_the_segments_costs_no_point_that_is_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(number)] for number in (1, 2, 3)])
    store.commit_cursor("influxdb", Cursor(1, 1, confirmed=1))
    store.close()
    backup = (tmp_path / "state.lmdb").read_bytes()
    store = open_store(tmp_path)
    store.commit_cursor("influxdb", Cursor(3, 3, confirmed=3))
    store.wal.commit([[new_entry(4)]])
    store.close()
    (tmp_path / "state.lmdb").write_bytes(backup)
    store = open_store(tmp_path)
    assert store.cursor("influxdb").seq == 1  # written twice from here on, which changes nothing
    assert [seq for seq, _ in read_all(store)] == [1, 2, 3, 4]
    [appended] = store.wal.commit([[new_entry(5)]])
    assert appended.first_seq == 5
    store.close()


def test_an_archive_outlives_a_state_older_than_its_files(tmp_path: Path) -> None:
    journal = Journal()
    store = scenario.open_store(tmp_path)
    scenario.commit(store, journal, [scenario.entry(1, points=3)])
    scenario.deliver_and_truncate(tmp_path, store, journal)
    store.close()
    backup = (tmp_path / "state.lmdb").read_bytes()
    store = scenario.open_store(tmp_path)
    scenario.commit(store, journal, [scenario.entry(2, points=3)])
    store.wal.seal()
    scenario.deliver_and_truncate(tmp_path, store, journal)
    assert store.wal.first_seq > 2  # the archive alone has entry 2
    store.close()
    (tmp_path / "state.lmdb").write_bytes(backup)
    store = scenario.open_store(tmp_path)
    assert sorted(store.overtaken) == ["archive", "picky"]
    store.close()
    assert scenario.check(tmp_path, journal) == []
