"""What the state file took for records that are gone is given back, by a node at work too, and costs nothing else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from tests.rigs.small_letters import small_letters
from tests.wal.test_letter_store import SINK, check_whole, files_of, letters, moments_killed, noisy, park
from wal_ingest.errors import StorageFailed
from wal_ingest.wal import letter_store
from wal_ingest.wal import state as state_module
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.letter_room import LetterLimits
from wal_ingest.wal.letters import id_of
from wal_ingest.wal.lmdb_file import Item, LmdbFile
from wal_ingest.wal.required import Requirement
from wal_ingest.wal.state import State, check_state, read_dead_letters, read_state

MIB = 1 << 20


def long_letters(many: int, first: int = 1) -> list[DeadLetter]:
    """Letters of some 800 bytes each."""
    return [structs.replace(each, line=noisy(each).line * 10) for each in letters(many, first=first)]


def taken_bytes(state: State) -> int:
    """What the state file takes on the disk, held space too."""
    return state.path.stat().st_blocks * 512


def drop_all(state: State) -> None:
    state.remove_letters(SINK, [id_of(each) for each in state.dead_letters(SINK)], written=False)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of what is held and given back; `proofs/test_letters_fill_the_disk.py` has the real figures."""
    for name in ("_RESERVE_BYTES", "_COMPACT_BYTES", "_COMPACT_AT_WORK_BYTES"):
        monkeypatch.setattr(state_module, name, getattr(state_module, name) // 8)


@pytest.fixture
def ten_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A state with ten letters, whose file is written anew whenever letters go."""
    monkeypatch.setattr(State, "_is_mostly_free", lambda _state: True)
    state = State(tmp_path, now_ns=1)
    park(state, letters(10))
    return state


@pytest.fixture
def many_records(small_limits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letters stay records, as on a disk that has no room for their blocks."""
    monkeypatch.setattr(letter_store, "LOOSE_LETTERS", 1_000_000)
    monkeypatch.setattr(letter_store, "LOOSE_BYTES", 1 << 40)


@pytest.mark.usefixtures("many_records")
def test_a_node_at_work_gives_back_what_dropped_records_took(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    state.note_requirements({SINK: Requirement(required=True)})
    before = taken_bytes(state)
    park(state, long_letters(5_000))
    assert taken_bytes(state) > before + 3 * MIB
    drop_all(state)
    assert taken_bytes(state) < before + MIB // 2
    # Room for cursors and letters is held as before, and everything else is still there.
    assert taken_bytes(state) >= MIB
    assert state.requirements() == read_state(state.path).requirements == {SINK: Requirement(required=True)}
    assert not (tmp_path / "state.lmdb.new").exists()
    park(state, letters(3, first=6_000))
    assert (
        list(state.dead_letters(SINK)) == list(read_dead_letters(state.path, SINK)) == letters(3, first=6_000)
    )
    state.close()
    state = State(tmp_path, now_ns=2)
    cursor = state.cursor(SINK)
    assert cursor is not None
    assert (cursor.parked, cursor.expired, cursor.unaccounted) == (3, 5_000, 0)
    assert list(state.dead_letters(SINK)) == letters(3, first=6_000)
    state.close()


@pytest.mark.usefixtures("small_limits")
def test_a_node_at_work_gives_back_what_records_took_that_are_in_blocks_now(tmp_path: Path) -> None:
    free = [1 << 40]
    state = State(tmp_path, now_ns=1, limits=LetterLimits(1 << 30, 1_000), free_bytes=lambda _path: free[0])
    before = taken_bytes(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(letter_store, "LOOSE_LETTERS", 1_000_000)
        patch.setattr(letter_store, "LOOSE_BYTES", 1 << 40)
        for first in range(1, 5_000, 500):
            park(state, long_letters(500, first))
    assert files_of(tmp_path) == []
    park(state, long_letters(500, 5_001))
    assert files_of(tmp_path) != []
    assert taken_bytes(state) < before + MIB // 2
    assert [each.seq for each in state.dead_letters(SINK)] == list(range(1, 5_501))
    state.close()


@pytest.mark.usefixtures("many_records")
def test_whoever_reads_meanwhile_reads_on(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, long_letters(5_000))
    kept = list(state.dead_letters(SINK))[-100:]
    inside, outside = state.dead_letters(SINK), read_dead_letters(state.path, SINK)
    records = state.records(b"letter/")
    assert next(inside) == next(outside)
    next(records)
    ids = [id_of(each) for each in state.dead_letters(SINK)][:-100]
    before = state.path.stat().st_ino
    state.remove_letters(SINK, ids, written=False)
    assert state.path.stat().st_ino != before
    assert list(inside)[-100:] == list(outside)[-100:] == kept
    assert len(list(records)) > 100
    state.close()


def test_a_step_of_a_reader_never_runs_beside_a_change_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(10))
    read_from, held = LmdbFile.read_from, list[bool]()

    def watched(file: LmdbFile, key: bytes, *, bytes_max: int, items_max: int | None = None) -> list[Item]:
        held.append(state._mutex.locked())
        return read_from(file, key, bytes_max=bytes_max, items_max=items_max)

    monkeypatch.setattr(LmdbFile, "read_from", watched)
    assert len(list(state.records(b"letter/"))) == len(list(state.dead_letters(SINK))) == 10
    assert [group.points for group in state.letter_groups()] == [4, 3, 3]
    assert len(held) > 3
    assert all(held)
    state.close()


# Reads in one transaction, which it holds, as LMDB's own tools do.
OUTSIDER = """
import sys, lmdb
env = lmdb.open(sys.argv[1], subdir=False, readonly=True, lib_version=0)
with env.begin() as txn:
    print(txn.stat()["entries"], flush=True)
    sys.stdin.read()
    print(sum(1 for _ in txn.cursor()), flush=True)
"""


@contextmanager
def an_lmdb_tool(path: Path) -> Iterator[None]:
    """Has a file open, in one transaction; it must find in the end what it found first."""
    arguments = [sys.executable, "-c", OUTSIDER, os.fspath(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tool:
        assert tool.stdout is not None
        entries = tool.stdout.readline()
        yield
        output, _ = tool.communicate()
    assert output == entries
    assert tool.returncode == 0


# LMDB's lock file says which of two pages is the present one: by the number of transactions, even or odd.
COMMITS = pytest.mark.parametrize("commits", [3, 4])


@COMMITS
def test_an_lmdb_tool_that_has_the_file_open_meanwhile_harms_neither_itself_nor_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    state = State(tmp_path, now_ns=1)
    for first in range(1, commits + 1):
        park(state, letters(1, first=first))
    with an_lmdb_tool(state.path):
        monkeypatch.setattr(State, "_is_mostly_free", lambda _state: True)
        state.remove_letters(SINK, [id_of(next(state.dead_letters(SINK)))], written=False)
        left = letters(commits)[1:]
        assert list(state.dead_letters(SINK)) == list(read_dead_letters(state.path, SINK)) == left
        monkeypatch.undo()
        for first in range(10, 20):
            park(state, letters(1, first=first))
    state.close()
    state = State(tmp_path, now_ns=2)
    assert list(state.dead_letters(SINK)) == [*left, *letters(10, first=10)]
    state.close()


@COMMITS
def test_a_new_state_file_is_right_while_an_lmdb_tool_has_the_one_open_that_was_set_aside(
    tmp_path: Path, commits: int
) -> None:
    state = State(tmp_path, now_ns=1)
    for first in range(1, commits + 1):
        park(state, letters(1, first=first))
    state.close()
    with an_lmdb_tool(state.path):
        state.path.rename(tmp_path / "aside")
        state = State(tmp_path, now_ns=2, adopt=state.wal_id)
        park(state, letters(1))
        state.close()
        check_state(state.path)
        check_whole(tmp_path)


@COMMITS
def test_a_state_file_put_back_by_hand_is_not_used_while_an_lmdb_tool_has_the_other_one_open(
    tmp_path: Path, commits: int
) -> None:
    """LMDB would go on from what the other one had as its last transaction, and lose what this one says."""
    state = State(tmp_path, now_ns=1)
    park(state, letters(1))
    state.close()
    kept = state.path.read_bytes()
    state = State(tmp_path, now_ns=2)
    for first in range(2, commits + 1):
        park(state, letters(1, first=first))
    state.close()
    with an_lmdb_tool(state.path):
        state.path.rename(tmp_path / "aside")
        state.path.write_bytes(kept)
        with pytest.raises(
            StorageFailed, match=r"another program has .*state\.lmdb-lock open .* end that program"
        ):
            State(tmp_path, now_ns=3)
        assert state.path.read_bytes() == kept
    check_whole(tmp_path)


@pytest.mark.usefixtures("many_records")
def test_a_file_with_much_in_it_waits_for_the_next_start(tmp_path: Path) -> None:
    """A copy of it would hold up delivery."""
    state = State(tmp_path, now_ns=1)
    park(state, long_letters(7_500))
    ids = [id_of(each) for each in state.dead_letters(SINK)]
    before = state.path.stat().st_ino
    state.remove_letters(SINK, ids[:-750], written=False)
    assert state.path.stat().st_ino == before
    state.close()
    state = State(tmp_path, now_ns=2)
    assert state.path.stat().st_ino != before
    assert taken_bytes(state) < 4 * MIB
    assert len(list(state.dead_letters(SINK))) == 750
    state.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_where_there_is_no_room_for_a_copy_the_file_stays_until_there_is(
    tmp_path: Path, ten_letters: State, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    state = ten_letters
    before = state.path.stat().st_ino

    def failing(_file: LmdbFile, path: Path) -> None:
        raise StorageFailed(path, os.strerror(number), number=number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LmdbFile, "copy", failing)
        state.remove_letters(SINK, [id_of(letter) for letter in state.dead_letters(SINK)][:2], written=False)
    assert state.path.stat().st_ino == before
    assert not (tmp_path / "state.lmdb.new").exists()
    state.remove_letters(SINK, [id_of(letter) for letter in state.dead_letters(SINK)][:2], written=False)
    assert state.path.stat().st_ino != before
    assert list(state.dead_letters(SINK)) == letters(10)[4:]
    state.close()


def test_a_node_at_work_that_cannot_hold_room_for_cursors_in_a_copy_keeps_the_file(
    tmp_path: Path, ten_letters: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ten_letters
    before = state.path.stat().st_ino
    monkeypatch.setattr("wal_ingest.wal.space._hold", lambda _fd, _length: errno.ENOSPC)
    drop_all(state)
    assert state.path.stat().st_ino == before
    monkeypatch.undo()
    assert list(state.dead_letters(SINK)) == []
    state.close()


def test_a_copy_that_is_not_what_was_written_never_takes_the_place_of_the_file(
    tmp_path: Path, ten_letters: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ten_letters
    copy = LmdbFile.copy

    def damaging(file: LmdbFile, path: Path) -> None:
        copy(file, path)
        with path.open("r+b") as opened:
            opened.write(bytes(3 * 4096))

    before = state.path.stat().st_ino
    monkeypatch.setattr(LmdbFile, "copy", damaging)
    with pytest.raises(StorageFailed, match=r"state\.lmdb\.new"):
        drop_all(state)
    assert state.path.stat().st_ino == before
    assert not (tmp_path / "state.lmdb.new").exists()
    monkeypatch.undo()
    state.close()
    check_whole(tmp_path)


def test_after_a_new_name_that_could_not_be_synced_nothing_is_written_any_more(
    tmp_path: Path, ten_letters: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the name may be that of the old file again, and what was written to the new one is gone."""

    def failing(path: Path) -> None:
        raise StorageFailed(path, "the directory could not be synced", number=errno.EIO)

    monkeypatch.setattr("wal_ingest.wal.state.sync_directory", failing)
    with pytest.raises(StorageFailed, match="could not be synced"):
        drop_all(ten_letters)
    monkeypatch.undo()
    with pytest.raises(StorageFailed):
        park(ten_letters, letters(1, first=20))
    ten_letters.close()
    check_whole(tmp_path)


def test_a_kill_at_any_step_leaves_just_the_letters_that_the_cursor_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(State, "_is_mostly_free", lambda _state: True)

    def drop_some(state: State) -> None:
        park(state, letters(3))
        park(state, letters(5, first=4))
        state.remove_letters(SINK, [id_of(each) for each in state.dead_letters(SINK)][::2], written=False)

    with small_letters():
        assert moments_killed(tmp_path, drop_some) > 15
