"""Verification: silent where everything is whole, exact where it is not, never fooled by a server that writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.rigs.prepared import POINTS, prepare
from tests.wal.factories import Clock, new_entry, open_store
from tests.wal.factories import settings as store_settings
from tests.wal.test_damage import flip, zero_tree
from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal import verify as verifying
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.lmdb_file import verify as lmdb_verify
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.salvage import Note, write_note
from wal_ingest.wal.verify import Report, verify
from wal_ingest.wal.writer import Writer


def verified(data_dir: Path) -> Report:
    """The report, without a bar."""
    return verify(data_dir, total=lambda _bytes: None, done=lambda _bytes: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three segments of two entries, a thousand points each."""
    prepare(tmp_path)
    return tmp_path


def files(data_dir: Path) -> list[Path]:
    """The segments' files."""
    return sorted((data_dir / "wal").glob("*.lmdb"))


def test_a_healthy_log_is_whole_and_the_progress_adds_up(data: Path) -> None:
    totals: list[int] = []
    steps: list[int] = []
    report = verify(data, total=totals.append, done=steps.append)
    assert report.whole
    assert (report.entries, report.points, report.lost_points) == (6, 6 * POINTS, 0)
    assert [segment.pages for segment in report.segments] == ["", "", ""]
    assert totals == [sum(steps)]


def test_a_flipped_byte_costs_one_entry_and_says_which(data: Path) -> None:
    flip(files(data)[1], 20000)
    report = verified(data)
    assert not report.whole
    [lost] = report.segments[1].lost
    assert (lost.first_seq, lost.last_seq, lost.points) == (3, 3, POINTS)
    assert (report.points, report.lost_points) == (5 * POINTS, POINTS)


def test_damaged_pages_are_told_though_every_entry_can_be_read(data: Path) -> None:
    zero_tree(files(data)[1])
    report = verified(data)
    assert not report.whole
    assert (report.points, report.lost_points) == (6 * POINTS, 0)
    assert [bool(segment.pages) for segment in report.segments] == [False, True, False]


def test_a_missing_segment_is_a_gap(data: Path) -> None:
    files(data)[1].unlink()
    report = verified(data)
    assert not report.whole
    assert [(gap.first_seq, gap.last_seq, gap.points) for gap in report.gaps] == [(3, 4, 2 * POINTS)]


def test_a_file_that_nothing_can_be_read_from_is_lost(data: Path) -> None:
    last = files(data)[-1]
    last.write_bytes(b"not LMDB at all" * 1000)
    report = verified(data)
    assert not report.whole
    assert report.lost_points is None
    assert [(gap.file, gap.first_seq) for gap in report.gaps] == [(last.name, 5)]


def test_what_was_set_aside_counts_until_it_was_salvaged(data: Path) -> None:
    flip(files(data)[1], 16)
    store = open_store(data)
    [moved] = store.wal.damaged
    store.close()
    report = verified(data)
    assert not report.whole
    assert [(gap.first_seq, gap.last_seq) for gap in report.gaps] == [(3, 4)]
    [file] = report.damaged
    assert (file.file, file.reason, file.salvaged) == (moved.path.name, moved.reason, False)
    write_note(moved.path, Note(salvaged_ns=1, entries=2, points=2000, to="there", lost=[]))
    report = verified(data)
    assert report.whole
    assert (report.gaps, report.gone, report.damaged[0].salvaged) == ([], [], True)


def test_what_a_salvage_could_not_get_is_named_for_ever(data: Path) -> None:
    flip(files(data)[1], 16)
    store = open_store(data)
    [moved] = store.wal.damaged
    store.close()
    lost = Lost(moved.path.name, 3, 3, 1000, "the checksum does not match")
    write_note(moved.path, Note(salvaged_ns=1, entries=1, points=1000, to="there", lost=[lost]))
    report = verified(data)
    assert report.whole
    assert report.gone == [lost]


def test_entries_whose_lines_are_not_what_they_say_are_lost(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for lines, points in ((b"m v=1 1\nm v=2 2\n", 1), (b"m v=1 1\nm v=2 2", 1), (b"m v=1 1\n", 1)):
        store.wal.commit([[NewEntry(lines, points, 5)]])
    store.close()
    report = verified(tmp_path)
    assert [lost.reason for lost in report.segments[0].lost] == [
        "entry 1: it says 1 points and has 2 lines",
        "entry 2: it says 1 points and has 1 lines",
    ]
    assert (report.entries, report.lost_points) == (1, 2)


def test_the_state_file_is_verified_too(data: Path) -> None:
    state = data / "state.lmdb"
    content = state.read_bytes()
    state.write_bytes(content[:5000])
    assert "the file" in verified(data).state
    state.unlink()
    report = verified(data)
    assert (report.state, report.whole) == ("it is missing", False)


@pytest.mark.parametrize("look", ["read_state", "verify_letters", "check_state"])
def test_a_file_from_a_newer_version_is_refused_by_name_whoever_meets_it_first(
    data: Path, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    def newer(path: Path, **_options: object) -> None:
        raise UnknownFormatVersion(path, "state format version 2 is not known")

    monkeypatch.setattr(verifying, look, newer)
    with pytest.raises(UnknownFormatVersion, match="version 2"):
        verified(data)


def test_a_segment_that_is_dropped_meanwhile_is_no_damage(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lmdb_verify
    first = files(data)[0]

    def dropped(path: Path) -> None:
        first.unlink(missing_ok=True)
        real(path)

    monkeypatch.setattr(verifying, "verify_pages", dropped)
    assert verified(data).whole


def test_a_file_that_cannot_be_read_is_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise StorageFailed(path, "Input/output error", number=5)

    monkeypatch.setattr(verifying, "verify_pages", broken)
    with pytest.raises(StorageFailed, match="Input/output"):
        verified(data)


@pytest.mark.parametrize(("writes", "calls"), [(3, 4), (1000, verifying._TRIES_MAX)])
def test_a_walk_that_a_commit_came_into_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int, calls: int
) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    walked = 0

    def torn(path: Path) -> None:
        nonlocal walked
        walked += 1
        if walked <= writes:
            store.wal.commit([[new_entry(1)]])
            raise WalDamaged(path, "a page is not what it was")

    monkeypatch.setattr(verifying, "verify_pages", torn)
    assert verified(tmp_path).segments[0].pages == ""
    assert walked == calls
    store.close()


async def test_a_log_that_is_written_to_is_not_called_damaged(tmp_path: Path) -> None:
    limits = store_settings(segment_bytes_max=1 << 20)
    store = open_store(tmp_path, Clock(), segment_bytes_max=1 << 20)
    store.commit_cursor("archive", Cursor(0, 0))
    writer = Writer(store.wal, limits)
    looks = 0
    done = trio.Event()

    async def write() -> None:
        for number in range(1, 500):
            await writer.append([new_entry(number, points=3, filler=150)])
            if number % 7 == 0:
                store.commit_cursor("archive", Cursor(number, number * 3, confirmed=number * 3))
        done.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        nursery.start_soon(write)
        while not done.is_set():
            report = await trio.to_thread.run_sync(verified, tmp_path)
            assert report.whole, report
            looks += 1
        nursery.cancel_scope.cancel()
    assert looks > 2
    store.close()


def test_a_state_file_that_was_set_aside_is_no_whole_log(data: Path) -> None:

    assert verified(data).whole
    (data / "wal/damaged").mkdir()
    (data / "wal/damaged/state.lmdb").write_bytes(b"?")
    assert not verified(data).whole
