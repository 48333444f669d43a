"""Segments that are gone, at either end or between: reported by `verify` and by a start, and written down for good."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from tests.wal.factories import Clock, new_entry, open_store, read_all
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.extent import Extent, LostRange, missing_ends
from wal_ingest.wal.inspect import status
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.segment import SegmentHeader, segment_name
from wal_ingest.wal.verify import Report, verify

GONE: dict[tuple[int, ...], list[tuple[int, int, int | None]]] = {
    (1,): [(1, 10, 10)],
    (11,): [(11, 20, 10)],
    (21,): [(21, 30, 10)],
    (1, 11): [(1, 20, 20)],
    (11, 21): [(11, 30, 20)],
    (1, 21): [(1, 10, 10), (21, 30, 10)],
    (1, 11, 21): [(1, 30, 30)],
}


@pytest.fixture(scope="module")
def three_lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten entries of one point in each of three lives; no sink has any of them."""
    directory = tmp_path_factory.mktemp("lives") / "data"
    for life in range(3):
        store = open_store(directory)
        if life == 0:
            store.commit_cursor("influxdb", Cursor())
        for number in range(10):
            store.wal.commit([[new_entry(10 * life + number + 1)]])
        store.close()
    return directory


def without(source: Path, target: Path, gone: tuple[int, ...]) -> Path:
    """A copy of a data directory that lacks some segments."""
    shutil.copytree(source, target)
    for first_seq in gone:
        (target / "wal" / segment_name(first_seq)).unlink()
    return target


def forget_extent(data_dir: Path) -> None:
    """Makes the directory one of an earlier version."""
    file = LmdbFile(data_dir / "state.lmdb", map_bytes=1 << 30)
    file.write([], [b"extent"])
    file.close()


def verified(data_dir: Path) -> Report:
    return verify(data_dir, total=lambda _bytes: None, done=lambda _bytes: None)


def ranges(lost: list[LostRange]) -> list[tuple[int, int, int | None]]:
    return sorted((each.first_seq, each.last_seq, each.points) for each in lost)


@pytest.mark.parametrize("gone", GONE, ids=str)
def test_segments_that_are_gone_are_missed_wherever_they_were(
    three_lives: Path, tmp_path: Path, gone: tuple[int, ...]
) -> None:
    data_dir = without(three_lives, tmp_path / "data", gone)
    report = verified(data_dir)
    assert not report.whole
    assert sorted((lost.first_seq, lost.last_seq, lost.points) for lost in report.gaps) == GONE[gone]
    store = open_store(data_dir, Clock(7))
    assert ranges(store.state.lost) == GONE[gone]
    assert store.wal.points_total == 30
    [appended] = store.wal.commit([[new_entry(99)]])
    store.close()
    assert appended.first_seq == 31
    assert ranges(status(data_dir, now_ns=9).lost) == GONE[gone]
    # It goes on being reported, whether there is still a hole or the log begins behind it.
    report = verified(data_dir)
    found = sorted((lost.first_seq, lost.last_seq, lost.points) for lost in (*report.gaps, *report.gone))
    assert found == GONE[gone]


def test_what_was_missed_is_written_down_once(three_lives: Path, tmp_path: Path) -> None:
    data_dir = without(three_lives, tmp_path / "data", (1, 11))
    for _start in range(3):
        store = open_store(data_dir, Clock(7))
        assert store.state.lost == [LostRange(1, 20, 20, found_ns=7)]
        store.close()


def test_a_whole_log_misses_nothing(three_lives: Path, tmp_path: Path) -> None:
    data_dir = without(three_lives, tmp_path / "data", ())
    assert verified(data_dir).whole
    store = open_store(data_dir)
    assert (store.missing, store.state.lost) == ([], [])
    store.close()


@pytest.mark.parametrize("gone", [(1,), (1, 11), (1, 11, 21), (21,)], ids=str)
def test_in_a_directory_of_an_earlier_version_cursors_and_checkpoint_say_what_is_gone(
    three_lives: Path, tmp_path: Path, gone: tuple[int, ...]
) -> None:
    data_dir = without(three_lives, tmp_path / "data", gone)
    forget_extent(data_dir)
    assert not verified(data_dir).whole
    store = open_store(data_dir)
    assert [each[:2] for each in ranges(store.state.lost)] == [each[:2] for each in GONE[gone]]
    store.close()


def test_what_every_sink_had_is_not_missed(three_lives: Path, tmp_path: Path) -> None:
    data_dir = without(three_lives, tmp_path / "data", ())
    store = open_store(data_dir)
    store.commit_cursor("influxdb", Cursor(15, 15, confirmed=15))
    store.close()
    for first_seq in (1, 11):
        (data_dir / "wal" / segment_name(first_seq)).unlink()
    store = open_store(data_dir)
    assert ranges(store.missing) == [(16, 20, 5)]
    store.close()


def test_the_segment_that_a_killed_process_wrote_to_is_missed_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    for number in (1, 2, 3):
        store.wal.commit([[new_entry(number)]])
    shutil.copytree(tmp_path / "data", tmp_path / "killed")  # as a power cut leaves it
    store.close()
    data_dir = tmp_path / "killed"
    (data_dir / "wal" / segment_name(1)).unlink()
    assert [lost.points for lost in verified(data_dir).gaps] == [None]
    store = open_store(data_dir)
    assert ranges(store.missing) == [(1, 1, None)]
    # What it held, nobody knows: its seqs are not given out again.
    assert store.wal.commit([[new_entry(4)]])[0].first_seq > 1 << 32
    store.close()


def test_truncation_is_no_loss_and_the_record_moves_before_the_files(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in (1, 2, 3):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    store.commit_cursor("influxdb", Cursor(2, 2, confirmed=2))
    begins: list[int] = []
    before_drop = store.wal.before_drop

    def watched(last_seq: int) -> None:
        before_drop(last_seq)
        assert store.state.extent is not None
        begins.append(store.state.extent.first_seq)
        assert (tmp_path / "wal" / segment_name(1)).exists()

    store.wal.before_drop = watched
    assert store.wal.truncate(2) == 2
    assert begins == [3]
    store.close()
    assert verified(tmp_path).whole
    store = open_store(tmp_path)
    assert store.missing == []
    assert [seq for seq, _ in read_all(store)] == [3]
    assert store.state.extent == Extent(3, 2, 4, 3, open_seq=4)
    store.close()


@dataclass(frozen=True)
class Piece:
    """A segment that is there, of one point an entry."""

    header: SegmentHeader
    last_seq: int
    points_after: int


def missed(
    cursor_seq: int, set_aside: list[int], *pieces: tuple[int, int], open_seq: int | None = None
) -> list[tuple[int, int, int | None]]:
    """What is missed of seqs 1 to 30, of which a sink has those up to `cursor_seq`."""
    extent = Extent(first_seq=1, points_before=0, next_seq=31, points=30, open_seq=open_seq)
    cursor = Cursor(seq=cursor_seq, points=cursor_seq)
    there = [Piece(SegmentHeader(UUID(int=1), first, first - 1, 0), last, last) for first, last in pieces]
    return ranges(missing_ends(extent, [cursor], there, open_is_there=open_seq is None, set_aside=set_aside))


def test_what_a_sink_has_not_got_yet_of_a_segment_that_was_set_aside_is_not_missed() -> None:
    """It is in that file, which has a report of its own: `verify` beside a node that delivered it called it lost."""
    assert missed(2, []) == [(3, 30, 28)]
    for cursor_seq in (0, 1, 2, 29):
        assert missed(cursor_seq, [1]) == []
    # What comes after a segment that is there was never in the file that was set aside before it.
    assert missed(25, [1], (11, 20)) == [(26, 30, 5)]


def test_the_segment_that_was_written_to_is_missed_as_far_as_a_sink_has_not_passed_it() -> None:
    assert missed(25, [], open_seq=21) == [(26, 30, None)]
    assert missed(30, [], open_seq=21) == []
    assert missed(0, [], (1, 30), open_seq=21) == []


def test_by_a_state_file_older_than_the_log_nothing_is_missed_at_its_ends(tmp_path: Path) -> None:
    """A backup that was restored: what was truncated since is not lost."""
    for number in (1, 2, 3):
        store = open_store(tmp_path)
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
        store.close()
        shutil.copy(tmp_path / "state.lmdb", tmp_path / f"state of {number}")
    (tmp_path / "wal" / segment_name(1)).unlink()
    assert [(gap.first_seq, gap.last_seq) for gap in verified(tmp_path).gaps] == [(1, 1)]
    (tmp_path / "state of 1").rename(tmp_path / "state.lmdb")
    assert verified(tmp_path).gaps == []
