"""`verify` over dead letters: silent where all are whole, exact where one is not, never fooled by a server."""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from tests.rigs.service import run_command
from tests.rigs.small_letters import small_letters
from tests.wal.factories import open_store
from tests.wal.test_damage import flip
from tests.wal.test_letter_store import SINK, files_of, letter, letters, park
from tests.wal.test_verify import verified
from wal_ingest.wal import letter_verify
from wal_ingest.wal.letter_blocks import Block, block_key
from wal_ingest.wal.letter_files import file_numbers
from wal_ingest.wal.letter_store import read_block
from wal_ingest.wal.letters import id_of, letter_key
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.state import STATE_NAME, State, StateView, read_state
from wal_ingest.wal.verify import Report, verify

RECORDS = 2
LETTERS = 30


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with small_letters():
        yield


def make(directory: Path) -> Path:
    """A data directory with 30 letters in blocks of several files, and two that are records."""
    open_store(directory).close()
    state = State(directory, now_ns=1)
    park(state, letters(LETTERS))
    park(state, letters(RECORDS, first=LETTERS + 1))
    state.close()
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make(tmp_path / "data")


def edit(data: Path, change: Callable[[LmdbFile], None]) -> None:
    """Changes a state file by LMDB's own engine, as a bug of ours would."""
    file = LmdbFile(data / STATE_NAME, map_bytes=1 << 30, lock=False)
    try:
        change(file)
    finally:
        file.close()


def troubled(report: Report) -> list[tuple[str, int, str]]:
    """The files that something is wrong with: the letters that are lost in each, and why."""
    return [(file.file, file.lost, file.trouble) for file in report.dead_letters.files if file.trouble]


def test_letters_that_are_all_there_are_whole(data: Path) -> None:
    report = verified(data)
    assert report.whole
    found = report.dead_letters
    assert (found.readable, found.lost, found.troubles) == (LETTERS + RECORDS, 0, [])
    assert [file.file for file in found.files] == [path.name for path in files_of(data)]
    assert sum(file.letters for file in found.files) == LETTERS
    assert [file.bytes for file in found.files] == [path.stat().st_size for path in files_of(data)]
    assert len(found.files) > 1


def test_the_progress_counts_the_files_of_letters_too(data: Path) -> None:
    totals: list[int] = []
    steps: list[int] = []
    letter_bytes = sum(path.stat().st_size for path in files_of(data))
    verify(data, total=totals.append, done=steps.append)
    assert totals == [sum(steps)]
    assert totals[0] >= letter_bytes > 0


def test_removed_letters_are_not_missed(data: Path) -> None:
    state = State(data, now_ns=2)
    gone = [id_of(each) for each in state.dead_letters(SINK)][1:-1:4]  # some of each block
    assert state.remove_letters(SINK, gone, written=False) == len(gone)
    state.close()
    report = verified(data)
    assert report.whole
    assert report.dead_letters.readable == LETTERS + RECORDS - len(gone)


def test_every_flipped_byte_of_a_block_costs_that_block_and_says_which_file(data: Path) -> None:
    first = files_of(data)[0]
    content = first.read_bytes()
    for at in range(0, len(content), 7):
        flip(first, at)
        report = verified(data)
        assert not report.whole
        [(name, lost, trouble)] = troubled(report)
        assert name == first.name
        assert 0 < lost <= 4
        assert trouble.startswith("a dead letter cannot be read: ")
        assert report.dead_letters.readable == LETTERS + RECORDS - lost
        first.write_bytes(content)


def test_a_missing_file_is_named_with_the_letters_that_were_in_it(data: Path) -> None:
    whole = verified(data).dead_letters.files[0]
    files_of(data)[0].unlink()
    report = verified(data)
    assert not report.whole
    assert troubled(report) == [(whole.file, whole.letters, "the file is missing")]
    assert report.dead_letters.lost == whole.letters


def test_a_file_that_ends_too_early_has_lost_its_last_letters(data: Path) -> None:
    last = files_of(data)[0]
    last.write_bytes(last.read_bytes()[:-1])
    [(name, lost, trouble)] = troubled(verified(data))
    assert (name, lost > 0) == (last.name, True)
    assert "the checksum of a block does not match" in trouble


def test_a_file_that_is_too_many_is_named(data: Path) -> None:
    stray = files_of(data)[-1].with_name("00000000000000000099.letters")
    shutil.copy(files_of(data)[0], stray)
    report = verified(data)
    assert not report.whole
    assert troubled(report) == [(stray.name, 0, letter_verify.NOT_RECORDED)]
    assert report.dead_letters.readable == LETTERS + RECORDS


def test_files_of_other_names_are_left_out(data: Path) -> None:
    (files_of(data)[0].parent / "notes.txt").write_text("mine")
    assert verified(data).whole


def test_a_file_of_another_wal_in_the_place_of_ours_is_found_out(data: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    shutil.copy(files_of(other)[0], files_of(data)[0])
    [(_name, lost, trouble)] = troubled(verified(data))
    assert lost > 0
    assert "another block is in the place of influxdb's" in trouble


def test_a_record_that_cannot_be_read_is_lost(data: Path) -> None:
    edit(data, lambda file: file.write([(letter_key(SINK, LETTERS + 1), b"{")]))
    report = verified(data)
    assert not report.whole
    assert (report.dead_letters.lost, report.dead_letters.readable) == (1, LETTERS + RECORDS - 1)
    assert report.dead_letters.troubles == [
        "dead letters that are records of state.lmdb and cannot be read: 1"
    ]


def test_a_cursor_that_counts_other_letters_than_there_are_is_named(data: Path) -> None:
    edit(data, lambda file: file.write([], [letter_key(SINK, LETTERS + 1)]))
    report = verified(data)
    assert not report.whole
    assert report.dead_letters.lost == 0
    assert report.dead_letters.troubles == ["the cursor of influxdb counts 32 dead letters, 31 are recorded"]


@pytest.mark.parametrize("how", ["missing", "damaged", "a record of a block"])
def test_without_a_state_file_nothing_tells_what_is_in_the_files(data: Path, how: str) -> None:
    state = data / STATE_NAME
    if how == "missing":
        state.unlink()
    elif how == "a record of a block":
        edit(data, lambda file: file.write([(block_key(SINK, 1), b"{")]))
    else:
        state.write_bytes(b"not LMDB at all" * 1_000)
    report = verified(data)
    assert not report.whole
    assert report.state
    assert troubled(report) == [(path.name, 0, letter_verify.NO_STATE) for path in files_of(data)]


def test_files_that_a_start_set_aside_count_until_they_are_moved_away(data: Path) -> None:
    names = [path.name for path in files_of(data)]
    (data / STATE_NAME).unlink()
    open_store(data).close()
    report = verified(data)
    assert not report.whole
    assert [(file.file, file.reason) for file in report.damaged] == [
        (name, letter_verify.SET_ASIDE) for name in names
    ]
    for name in names:
        (data / "wal/damaged" / name).unlink()
    assert verified(data).whole


def test_letters_that_a_server_removes_meanwhile_are_no_damage(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their file is gone when it is to be read; the state file no longer names them."""
    state = State(data, now_ns=2)
    calls = []

    def removing(directory: Path, wal_id: uuid.UUID, block: Block) -> object:
        calls.append(block)
        if len(calls) == 1:
            everything = [id_of(each) for each in state.dead_letters(SINK)]
            assert state.remove_letters(SINK, everything, written=False) == LETTERS + RECORDS
        return read_block(directory, wal_id, block)

    monkeypatch.setattr("wal_ingest.wal.letter_verify.read_block", removing)
    report = verified(data)
    state.close()
    assert len(calls) > 1
    assert report.whole
    assert (report.dead_letters.readable, report.dead_letters.lost) == (0, 0)


def test_a_file_that_a_server_begins_meanwhile_is_not_one_too_many(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(data, now_ns=2)

    def parking(directory: Path) -> list[int]:
        park(state, letters(LETTERS, first=1_000))
        return file_numbers(directory)

    monkeypatch.setattr("wal_ingest.wal.letter_verify.file_numbers", parking)
    assert letter_verify.verify_letters(data / STATE_NAME, done=lambda _bytes: None).whole
    state.close()


def test_a_file_that_a_server_gives_back_meanwhile_is_not_reported(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the directory was read; then its record was removed, and the file."""
    before = letter_verify.verify_letters(data / STATE_NAME, done=lambda _bytes: None)
    monkeypatch.setattr(
        "wal_ingest.wal.letter_verify.file_numbers", lambda directory: [*file_numbers(directory), 10**6]
    )
    assert letter_verify.verify_letters(data / STATE_NAME, done=lambda _bytes: None) == before
    assert before.whole


def test_a_count_that_a_server_changes_all_the_time_is_no_trouble(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(data, now_ns=2)
    parked = iter(range(100, 200))

    def parking(path: Path) -> StateView:
        view = read_state(path)
        park(state, [letter(next(parked))])
        return view

    monkeypatch.setattr("wal_ingest.wal.letter_verify.read_state", parking)
    assert letter_verify.verify_letters(data / STATE_NAME, done=lambda _bytes: None).troubles == []
    state.close()
    assert read_state(data / STATE_NAME).cursors[SINK].parked > LETTERS + RECORDS


def test_the_command_says_what_is_wrong_and_ends_with_3(data: Path) -> None:
    ran = run_command("wal", "verify", "--data-dir", data)
    assert ran.returncode == 0, ran.stderr
    assert "32 dead letters can be read\neverything is whole\n" in ran.stdout
    first, second = files_of(data)[:2]
    flip(first, 200)
    second.unlink()
    ran = run_command("wal", "verify", "--data-dir", data)
    assert ran.returncode == 3
    report = msgspec.json.decode(
        run_command("wal", "verify", "--json", "--data-dir", data).stdout, type=Report
    )
    lost = {file.file: file.lost for file in report.dead_letters.files}
    assert ran.stdout.splitlines()[1:] == [
        f"{report.dead_letters.readable} dead letters can be read",
        f"damaged: dead_letters/{first.name} ({lost[first.name]} dead letters lost): "
        "a dead letter cannot be read: the checksum of a block does not match",
        f"damaged: dead_letters/{second.name} ({lost[second.name]} dead letters lost): the file is missing",
    ]
    ran = run_command("wal", "verify", "--json", "--data-dir", data)
    assert ran.returncode == 3
    assert json.loads(ran.stdout)["whole"] is False


def test_a_file_that_was_set_aside_is_read_with_its_own_state_file_in_another_directory(
    data: Path, tmp_path: Path
) -> None:
    """What RUNBOOK.md says to do with it."""
    old = tmp_path / "old"
    (old / "wal").mkdir(parents=True)
    (old / "dead_letters").mkdir()
    names = [path.name for path in files_of(data)]
    (data / STATE_NAME).rename(old / STATE_NAME)
    open_store(data).close()
    for name in names:
        shutil.copy(data / "wal/damaged" / name, old / "dead_letters" / name)
    ran = run_command("dead-letters", "export", tmp_path / "letters.lp.gz", "--data-dir", old)
    assert ran.returncode == 0, ran.stderr
    expected = [*letters(LETTERS), *letters(RECORDS, first=LETTERS + 1)]
    exported = gzip.decompress((tmp_path / "letters.lp.gz").read_bytes())
    assert exported == b"".join(each.line for each in expected)
