"""Dead letters in blocks: all there, in order, small, gone with their space, and whole after a crash anywhere."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from typer.testing import CliRunner

from tests.model.moments import Killed, Moments
from tests.rigs.small_letters import small_letters
from tests.wal.test_failing_calls import failing
from wal_ingest.cli import app
from wal_ingest.errors import DiskFull, NoRoomForLetters, StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal import letter_blocks, letter_files, letter_store
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.gzip_codec import compress
from wal_ingest.wal.letter_blocks import MAGIC, Block, BlockRecord, decode_block, decode_record, make_blocks
from wal_ingest.wal.letter_files import LETTERS_DIR, LetterFiles, file_name, read_block_bytes
from wal_ingest.wal.letter_reading import Piece, in_order
from wal_ingest.wal.letter_room import LetterLimits
from wal_ingest.wal.letter_store import read_block
from wal_ingest.wal.letters import id_of, letter_key, letter_number, letters_prefix
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.space import Reserve
from wal_ingest.wal.state import State, check_state, read_dead_letters, read_letter_groups

SINK = "influxdb"
WAL_ID = uuid.UUID("6f1c2a52-7b0e-4b7e-9d3a-1c5f00aa1234")


def letter(number: int, reason: str = "refused") -> DeadLetter:
    return DeadLetter(
        SINK,
        number,
        b"m,host=web-%d v=%di 1\n" % (number % 7, number),
        reason,
        400,
        1_000 + number,
        Destination("o", "b"),
    )


def letters(count: int, *, first: int = 1, reasons: int = 3) -> list[DeadLetter]:
    """Letters of so many reasons in turn."""
    return [
        letter(number, f"reason {'abcdefghij'[number % reasons]}") for number in range(first, first + count)
    ]


def noisy(plain: DeadLetter) -> DeadLetter:
    """The same with a line that cannot be compressed well, as those of many hosts."""
    line = b"m,id=%s v=1i 1\n" % hashlib.sha256(plain.line).hexdigest().encode()
    return structs.replace(plain, line=line)


def park(state: State, more: list[DeadLetter]) -> None:
    """Parks letters as delivery does: the cursor counts them in the same transaction."""
    cursor = state.cursor(SINK) or Cursor()
    points = cursor.points + len(more)
    state.commit_cursor(
        SINK, Cursor(cursor.seq + 1, points, parked=cursor.parked + len(more), expired=cursor.expired), more
    )


def files_of(directory: Path) -> list[Path]:
    return sorted((directory / LETTERS_DIR).glob("*")) if (directory / LETTERS_DIR).exists() else []


@pytest.fixture
def small() -> Iterator[None]:
    with small_letters():
        yield


texts = st.text(max_size=30)
parked = st.builds(
    DeadLetter,
    st.just(SINK),
    st.integers(0, 2**63),
    st.binary(max_size=40).map(lambda line: line + b"\n"),
    st.sampled_from(["a", "b", "time 1763800000000000000", "Ω", ""]),
    st.integers(0, 599),
    st.integers(0, 2**63),
    st.builds(Destination, texts, texts),
)


@given(st.lists(parked, min_size=1, max_size=40))
def test_what_goes_into_blocks_comes_out_of_them(given_letters: list[DeadLetter]) -> None:
    numbered = [
        DeadLetter(
            each.sink, each.seq, each.line, each.reason, each.status, each.parked_ns, each.destination, number
        )
        for number, each in enumerate(given_letters, 5)
    ]
    with small_letters(block=7, run=20):
        made = make_blocks(WAL_ID, SINK, numbered)
    found = [each for new in made for each in decode_block(new.data, WAL_ID, new.at(SINK, 1, 0))]
    assert sorted(found, key=lambda each: each.number) == numbered
    assert [each.number for each in sorted(found, key=lambda each: each.number)] == [
        each.number for each in numbered
    ]


@given(st.data())
def test_a_block_with_a_changed_byte_is_refused(data: st.DataObject) -> None:
    [new] = make_blocks(WAL_ID, SINK, [letter(1), letter(2)])
    at = data.draw(st.integers(0, len(new.data) - 1))
    changed = bytearray(new.data)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="block"):
        decode_block(bytes(changed), WAL_ID, new.at(SINK, 1, 0))
    with pytest.raises(ValueError, match="block"):
        decode_block(new.data[:at], WAL_ID, new.at(SINK, 1, 0))


@pytest.mark.parametrize("other", ["WAL", "sink", "numbers"])
def test_a_block_in_the_place_of_another_one_is_refused(other: str) -> None:
    [new] = make_blocks(WAL_ID, SINK, [letter(1)])
    block = new.at(SINK, 1, 0)
    if other == "sink":
        block = new.at("archive", 1, 0)
    if other == "numbers":
        block = Block(SINK, 7, block.record)
    with pytest.raises(ValueError, match="another block is in the place"):
        decode_block(new.data, uuid.uuid4() if other == "WAL" else WAL_ID, block)


def test_very_many_letters_take_a_tenth_of_the_space_that_records_took(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(20_000))
    assert state.letter_bytes < 20_000 * 25
    assert (tmp_path / "state.lmdb").stat().st_size < 256 * 1024
    state.close()
    state = State(tmp_path, now_ns=2)
    assert list(state.dead_letters(SINK)) == letters(20_000)
    assert [each.number for each in state.dead_letters(SINK)] == list(range(1, 20_001))
    assert [(group.reason, group.points) for group in state.letter_groups()] == [
        ("reason b", 6_667),
        ("reason c", 6_667),
        ("reason a", 6_666),
    ]
    state.close()


@pytest.mark.parametrize("sizes", [[1] * 30, [3, 4, 1], [40], [2, 2, 50, 1, 1, 1, 1], [13, 13, 13]])
@pytest.mark.usefixtures("small")
def test_letters_keep_their_order_and_their_numbers_however_they_come(
    tmp_path: Path, sizes: list[int]
) -> None:
    state = State(tmp_path, now_ns=1)
    expected: list[DeadLetter] = []
    for size in sizes:
        more = letters(size, first=len(expected) + 1)
        park(state, more)
        expected += more
        assert list(state.dead_letters(SINK)) == expected
        assert list(read_dead_letters(state.path, SINK)) == expected
        assert sum(group.points for group in state.letter_groups()) == len(expected)
        assert read_letter_groups(state.path, [SINK]).listed() == state.letter_groups()
    assert [each.number for each in state.dead_letters(SINK)] == list(range(1, len(expected) + 1))
    state.close()
    state = State(tmp_path, now_ns=1)
    assert list(state.dead_letters(SINK)) == expected
    state.close()


@pytest.mark.usefixtures("small")
def test_many_reasons_share_blocks_and_are_all_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wal_ingest.wal.letter_blocks.RUN_GROUPS", 3)
    state = State(tmp_path, now_ns=1)
    given_letters = letters(40, reasons=9)
    park(state, given_letters)
    assert list(state.dead_letters(SINK)) == given_letters
    assert sum(group.points for group in state.letter_groups()) == 40
    state.close()


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.usefixtures("small")
def test_removed_letters_stay_removed_and_the_others_stay(tmp_path: Path, every: int) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(30))
    park(state, letters(2, first=31))
    gone = list(state.dead_letters(SINK))[::every]
    assert state.remove_letters(SINK, [id_of(each) for each in gone], written=False) == len(gone)
    left = [each for each in letters(32) if each not in gone]
    for _life in range(2):
        assert list(state.dead_letters(SINK)) == left
        assert list(read_dead_letters(state.path, SINK)) == left
        assert sum(group.points for group in state.letter_groups()) == len(left)
        cursor = state.cursor(SINK)
        assert cursor is not None
        assert (cursor.parked, cursor.expired, cursor.unaccounted) == (len(left), len(gone), 0)
        assert state.remove_letters(SINK, [id_of(each) for each in gone], written=False) == 0
        state.close()
        state = State(tmp_path, now_ns=1)
    state.close()


def test_dropping_one_reason_gives_its_space_back_though_others_lie_between(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    for start in range(0, 12_000, 6_000):
        park(state, [noisy(each) for each in letters(6_000, first=start + 1)])
    before = state.letter_bytes
    gone = [id_of(each) for each in state.dead_letters(SINK) if each.reason == "reason a"]
    state.remove_letters(SINK, gone, written=False)
    assert state.letter_bytes < 0.72 * before
    assert sum(path.stat().st_blocks * 512 for path in files_of(tmp_path)) == state.letter_bytes
    assert sum(1 for _ in state.dead_letters(SINK)) == 8_000
    state.close()
    check_state(tmp_path / "state.lmdb")


@pytest.mark.usefixtures("small")
def test_when_all_are_gone_so_are_their_files_and_an_older_program_can_read_the_state(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(30))
    assert len(files_of(tmp_path)) > 1
    file = records(tmp_path)
    assert file[b"format"] == b"2"
    state.remove_letters(SINK, [id_of(each) for each in state.dead_letters(SINK)], written=True)
    assert files_of(tmp_path) == []
    assert state.letter_bytes == 0
    left = records(tmp_path)
    assert left[b"format"] == b"1"
    assert [key for key in left if key.startswith(b"letter")] == []
    park(state, letters(5))
    assert list(state.dead_letters(SINK)) == letters(5)
    state.close()


def numbered(number: int) -> DeadLetter:
    return structs.replace(letter(number), number=number)


def records(directory: Path) -> dict[bytes, bytes]:
    """All records of a state file, read beside its process."""
    copy = directory / "copy.lmdb"
    shutil.copy(directory / "state.lmdb", copy)
    file = LmdbFile(copy, map_bytes=1 << 30, lock=False)
    found = dict(file.read_from(b"", bytes_max=1 << 30))
    file.close()
    copy.unlink()
    return found


@pytest.mark.usefixtures("small")
def test_a_program_that_does_not_know_blocks_refuses_the_state_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(30))
    state.close()
    monkeypatch.setattr("wal_ingest.wal.state._VERSIONS", (b"1",))
    with pytest.raises(UnknownFormatVersion, match="version b'2'"):
        check_state(tmp_path / "state.lmdb")


# -- crashes -----------------------------------------------------------------------------------------------


def one_by_one(state: State) -> None:
    for number in range(1, 10):
        park(state, letters(1, first=number))


def many(state: State) -> None:
    park(state, letters(2))
    park(state, letters(30, first=3))


def removing(state: State) -> None:
    park(state, letters(30))
    stored = list(state.dead_letters(SINK))
    state.remove_letters(SINK, [id_of(each) for each in stored[::3]], written=False)
    state.remove_letters(SINK, [id_of(each) for each in stored], written=False)
    park(state, letters(4, first=31))


LIVES = {"one by one": one_by_one, "many": many, "removing": removing}


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.usefixtures("small")
def test_a_kill_between_any_two_steps_leaves_just_the_letters_that_the_cursor_counts(
    tmp_path: Path, life: str
) -> None:
    assert moments_killed(tmp_path, LIVES[life]) > 15


def moments_killed(folder: Path, act: Callable[[State], None]) -> int:
    """Kills a process at each step of what it does with its state, and checks what is on disk; returns how many."""
    moments = Moments()
    try:
        for moment in count(1):
            before, after = folder / f"{moment}", folder / f"{moment}-killed"
            before.mkdir()
            moments.born(before, after)
            state = State(before, now_ns=1)
            moments.kill_after(moment)
            with contextlib.suppress(Killed):
                act(state)
            struck = moments.dead
            moments.kill_after(None)
            moments.dead = False
            state.close()
            if not struck:
                return moment - 1
            check_whole(after)
            shutil.rmtree(before)
            shutil.rmtree(after)
    finally:
        moments.close()
    raise AssertionError("the loop ends by its return")


def check_whole(directory: Path) -> None:
    """The letters are those that the cursor counts; no file is there without need; and it goes on from there."""
    for _life in range(2):
        state = State(directory, now_ns=2)
        cursor = state.cursor(SINK) or Cursor()
        found = list(state.dead_letters(SINK))
        assert len(found) == cursor.parked
        assert len(set(found)) == len(found)
        assert cursor.unaccounted == 0
        assert state.letters_set_aside == []
        used = {key for key in records(directory) if key.startswith(b"letter_file/")}
        assert len(files_of(directory)) == len(used)
        park(state, letters(5, first=1_000))
        assert list(state.dead_letters(SINK)) == [*found, *letters(5, first=1_000)]
        state.remove_letters(SINK, [id_of(each) for each in state.dead_letters(SINK)][-5:], written=True)
        state.close()


# -- damage, and files that the state does not know --------------------------------------------------------


def damage(directory: Path, how: str) -> None:
    path = files_of(directory)[0]
    if how == "missing":
        path.unlink()
    elif how == "cut":
        os.truncate(path, 100)
    else:
        content = bytearray(path.read_bytes())
        content[90] ^= 0xFF
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "cut", "a byte changed"])
@pytest.mark.usefixtures("small")
def test_a_damaged_block_is_reported_and_counted_and_the_others_can_be_removed(
    tmp_path: Path, how: str
) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(30))
    stored = list(state.dead_letters(SINK))
    state.close()
    damage(tmp_path, how)
    state = State(tmp_path, now_ns=1)
    assert sum(group.points for group in state.letter_groups()) == 30
    with pytest.raises(WalDamaged, match=r"0001\.letters"):
        list(state.dead_letters(SINK))
    with pytest.raises(WalDamaged, match=r"0001\.letters"):
        list(read_dead_letters(state.path, SINK))
    with pytest.raises(WalDamaged, match=r"0001\.letters"):
        state.remove_letters(SINK, [id_of(stored[0])], written=False)
    assert state.remove_letters(SINK, [id_of(each) for each in stored[-6:]], written=False) == 6
    park(state, letters(4, first=31))
    state.close()


@pytest.mark.usefixtures("small")
def test_files_that_the_state_does_not_know_are_set_aside_and_never_removed(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(30))
    state.close()
    content = {path.name: path.read_bytes() for path in files_of(tmp_path)}
    (tmp_path / "state.lmdb").unlink()
    state = State(tmp_path, now_ns=2)
    assert {path.name: path.read_bytes() for path in state.letters_set_aside} == content
    assert {path.parent for path in state.letters_set_aside} == {tmp_path / "wal" / "damaged"}
    assert state.letter_bytes == 0
    park(state, letters(30))
    assert list(state.dead_letters(SINK)) == letters(30)
    assert not {path.name for path in files_of(tmp_path)} & content.keys() or state.letter_bytes
    state.close()


@pytest.mark.usefixtures("small")
def test_letters_that_are_removed_while_they_are_read_are_left_out_and_no_damage(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(60))
    inside, outside = state.dead_letters(SINK), read_dead_letters(state.path, SINK)
    first = [next(inside), next(outside)]
    assert first == [letter(1, "reason b")] * 2
    state.remove_letters(SINK, [id_of(each) for each in state.dead_letters(SINK)][:40], written=False)
    park(state, letters(5, first=61))
    for reading in (inside, outside):
        found = list(reading)
        assert [each.seq for each in found][-25:] == list(range(41, 66))
        assert len(set(found)) == len(found)
    state.close()


# -- a disk that is full -----------------------------------------------------------------------------------


def no_space(*_args: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


CALLS = {"reserve": "hold_space", "write": "os.pwrite", "sync": "os.fsync", "open": "os.open"}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.usefixtures("small")
def test_a_disk_without_room_for_a_file_is_no_failure_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr("wal_ingest.wal.state._RESERVE_BYTES", 4096)
    state = State(tmp_path, now_ns=1)
    park(state, letters(2))
    before = state.cursor(SINK)
    huge = [structs.replace(each, line=each.line * 40_000) for each in letters(4, first=3)]
    real = Reserve.hold

    def hold(reserve: Reserve, length: int, *, step: int) -> None:
        if length > 4 << 20:
            raise DiskFull("the disk is full: state.lmdb cannot grow")
        real(reserve, length, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(f"wal_ingest.wal.letter_files.{CALLS[call]}", no_space)
        patch.setattr(Reserve, "hold", hold)
        for _try in range(3):
            with pytest.raises(NoRoomForLetters):
                park(state, huge)
        assert state.cursor(SINK) == before
        assert list(state.dead_letters(SINK)) == letters(2)
    park(state, huge)
    assert list(state.dead_letters(SINK)) == [*letters(2), *huge]
    state.close()
    state = State(tmp_path, now_ns=1)
    assert list(state.dead_letters(SINK)) == [*letters(2), *huge]
    assert len(files_of(tmp_path)) == sum(key.startswith(b"letter_file/") for key in records(tmp_path))
    state.close()


@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.usefixtures("small")
def test_any_other_failure_of_a_file_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(2))

    def broken(*_args: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(f"wal_ingest.wal.letter_files.{CALLS[call]}", broken)
        with pytest.raises(StorageFailed, match="Input/output error"):
            park(state, letters(30, first=3))
    assert list(state.dead_letters(SINK)) == letters(2)
    state.close()


@pytest.mark.usefixtures("small")
def test_letters_that_find_no_room_for_a_file_stay_records_in_the_room_that_the_state_holds(
    tmp_path: Path,
) -> None:
    free = [1 << 40]
    state = State(tmp_path, now_ns=1, limits=LetterLimits(1 << 20, 1_000), free_bytes=lambda _path: free[0])
    free[0] = 500
    park(state, letters(30))
    assert files_of(tmp_path) == []
    assert list(state.dead_letters(SINK)) == letters(30)
    free[0] = 1 << 40
    for number in range(31, 40):
        park(state, letters(1, first=number))
    assert list(state.dead_letters(SINK)) == letters(39)
    assert files_of(tmp_path) != []
    state.close()


def test_records_move_into_blocks_in_steps_for_which_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a disk was full for long: moving many at once needs more room than all of them take in blocks."""
    monkeypatch.setattr(letter_store, "RUN_LETTERS", 4_000)
    free = [1 << 40]
    state = State(tmp_path, now_ns=1, limits=LetterLimits(1 << 30, 1_000), free_bytes=lambda _path: free[0])

    def long_letters(count: int, first: int) -> list[DeadLetter]:
        return [structs.replace(each, line=noisy(each).line * 12) for each in letters(count, first=first)]

    free[0] = 500
    count = 0
    with contextlib.suppress(NoRoomForLetters):
        while True:
            park(state, long_letters(500, count + 1))
            count += 500
    assert count >= 4_000
    assert files_of(tmp_path) == []
    free[0] = 5 << 20
    park(state, long_letters(4_000, count + 1))
    assert files_of(tmp_path) != []
    assert [each.seq for each in state.dead_letters(SINK)] == list(range(1, count + 4_001))
    state.close()


def test_the_limit_counts_what_blocks_take_and_dropping_makes_room_again(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1, limits=LetterLimits(1 << 20))
    parked = 0

    def fill() -> None:
        nonlocal parked
        for start in count(1, 1_200):
            park(state, [noisy(each) for each in letters(1_200, first=start)])
            parked += 1_200

    with pytest.raises(NoRoomForLetters, match="bytes are used"):
        fill()
    assert 0.9 < state.letter_bytes / (1 << 20) <= 1.01  # whole pages
    assert sum(1 for _ in state.dead_letters(SINK)) == parked
    state.remove_letters(SINK, [id_of(each) for each in state.dead_letters(SINK)], written=False)
    park(state, letters(20, first=parked + 1))
    assert list(state.dead_letters(SINK)) == letters(20, first=parked + 1)
    state.close()


# -- what fails, and what cannot be read -------------------------------------------------------------------


def test_letters_that_share_their_reason_and_destination_share_it_in_the_block_too() -> None:
    first = structs.replace(letter(1), number=1)
    alike = [structs.replace(first, seq=n, number=n) for n in (1, 2, 3)]
    [new] = make_blocks(WAL_ID, SINK, alike)
    assert decode_block(new.data, WAL_ID, new.at(SINK, 1, 0)) == alike
    apart = [msgspec.json.decode(msgspec.json.encode(each), type=DeadLetter) for each in alike]
    assert [each.data for each in make_blocks(WAL_ID, SINK, apart)] == [new.data]


def test_a_block_from_the_future_is_refused_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(letter_blocks, "VERSION", 9)
        [new] = make_blocks(WAL_ID, SINK, [letter(1)])
    with pytest.raises(ValueError, match="a block has version 9, this program knows 1"):
        decode_block(new.data, WAL_ID, new.at(SINK, 1, 0))


def test_bytes_that_are_no_block_and_a_table_that_is_none_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(letter_blocks, "compress", lambda content: compress(b"!" + content[1:]))
    [new] = make_blocks(WAL_ID, SINK, [letter(1), letter(2)])
    with pytest.raises(ValueError, match="the table of a block cannot be read"):
        decode_block(new.data, WAL_ID, new.at(SINK, 1, 0))
    with pytest.raises(ValueError, match="there is no block of dead letters"):
        decode_block(b"!" + new.data[1:], WAL_ID, new.at(SINK, 1, 0))


@pytest.mark.parametrize("gone", [{1, 2}, {2}, {3}, {1, 2, 3}], ids=str)
def test_blocks_that_a_server_removed_before_they_are_due_cost_nothing_of_the_others(gone: set[int]) -> None:
    made = [new.at(SINK, n, 0) for n in (1, 2, 3) for new in make_blocks(WAL_ID, SINK, [numbered(n)])]
    removed = set[int]()

    def read(block: Block) -> list[DeadLetter]:
        if block.first_number in gone:
            removed.update(gone)
            raise WalDamaged(Path("x"), "the file is missing")
        return [numbered(block.first_number)]

    def piece_after(after: int) -> Piece:
        return Piece(
            [each for each in made if each.first_number > after and each.first_number not in removed]
        )

    assert [each.number for each in in_order(piece_after, read)] == sorted({1, 2, 3} - gone)


def test_a_file_of_letters_that_cannot_be_looked_at_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LetterFiles(tmp_path)
    files.append([b"a block"], begin=lambda: 1)
    files.close()
    path, stat = files.directory / file_name(1), Path.stat
    monkeypatch.setattr(Path, "stat", lambda each: failing(errno.EIO)() if each == path else stat(each))
    with pytest.raises(StorageFailed, match="Input/output error") as counted:
        LetterFiles(tmp_path)
    monkeypatch.setattr(os, "open", failing(errno.EMFILE))
    with pytest.raises(StorageFailed, match="Too many open files") as read:
        read_block_bytes(files.directory, BlockRecord(1, 0, 9, 1, 1, "", 0))
    assert [(each.value.path, each.value.number) for each in (counted, read)] == [
        (path, errno.EIO),
        (path, errno.EMFILE),
    ]


def test_a_full_disk_is_met_before_a_block_is_written_and_costs_those_before_it_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LetterFiles(tmp_path)
    begin = count(1).__next__
    assert files.append([b"first"], begin=begin) == [(1, 0)]
    with monkeypatch.context() as patch:
        patch.setattr(letter_files, "hold_space", lambda _fd, _length: errno.ENOSPC)
        patch.setattr(os, "pwrite", lambda *_arguments: pytest.fail("it was written"))
        with pytest.raises(DiskFull, match="No space left on device"):
            files.append([b"second"], begin=begin)
    assert (files.directory / file_name(1)).read_bytes() == b"first"
    assert files.append([b"second"], begin=begin) == [(2, 0)]
    files.close()


def test_a_file_that_cannot_be_removed_keeps_its_space_until_a_start_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LetterFiles(tmp_path)
    files.append([b"x" * 10_000], begin=lambda: 1)
    used = files.used_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", failing(errno.EIO))
        assert not files.give_back(1, [], [])
    assert files.used_bytes == used > 0
    again = LetterFiles(tmp_path)
    assert again.give_back(1, [], [])
    assert (again.used_bytes, files_of(tmp_path)) == (0, [])


def test_letters_at_their_limit_are_refused_before_any_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(20))
    state.close()
    state = State(tmp_path, now_ns=2, limits=LetterLimits(state.letter_bytes, 0))
    monkeypatch.setattr(letter_store, "make_blocks", lambda *_arguments: pytest.fail("they were compressed"))
    with pytest.raises(NoRoomForLetters, match="the limit is"):
        park(state, letters(20, first=21))
    state.close()


@pytest.mark.parametrize("bad", [1, 2], ids=["the oldest", "one between"])
@pytest.mark.parametrize("parked_before", [3, 14], ids=["few", "more than a transaction takes"])
def test_behind_a_record_that_cannot_be_read_new_letters_are_kept_as_records(
    tmp_path: Path, bad: int, parked_before: int
) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(parked_before))
    state.close()
    file = LmdbFile(tmp_path / "state.lmdb", map_bytes=1 << 20)
    file.write([(letter_key(SINK, bad), b"{")])
    file.close()
    with small_letters():
        state = State(tmp_path, now_ns=2)
        park(state, letters(20, first=100))
        state.close()
    kept = {letter_number(key) for key in records(tmp_path) if key.startswith(letters_prefix(SINK))}
    kept |= set(range(1, bad))  # what was before it may be in a block
    assert kept == set(range(1, parked_before + 21))
    state = State(tmp_path, now_ns=3)
    assert sum(group.points for group in state.letter_groups()) == parked_before + 20
    state.close()


def test_a_block_that_cannot_be_read_keeps_only_its_own_letters_from_being_removed(
    tmp_path: Path, small: None
) -> None:
    state = State(tmp_path, now_ns=1)
    park(state, letters(12, reasons=2))
    first, second, *_ = [id_of(each) for each in state.dead_letters(SINK)]
    path = files_of(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[-1 if content.count(MAGIC) == 1 else content.index(MAGIC, 1) - 1] ^= (
        1  # the first block: 1, 3, 5, 7
    )
    path.write_bytes(content)
    with pytest.raises(WalDamaged, match="cannot be read"):
        state.remove_letters(SINK, [first], written=False)
    nobody = second._replace(number=10**6)
    assert state.remove_letters(SINK, [second, nobody], written=False) == 1
    state.close()


def test_showing_one_of_many_letters_reads_no_more_than_its_own_block(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path, now_ns=1)
    for first in range(1, 400, 40):
        park(state, letters(40, first=first, reasons=1))
    state.close()
    read: list[int] = []
    records: list[bytes] = []

    def counted_block(directory: Path, wal_id: uuid.UUID, block: Block) -> list[DeadLetter]:
        found = read_block(directory, wal_id, block)
        read.extend(each.number for each in found)
        return found

    def counted_record(key: bytes, value: bytes) -> Block:
        records.append(key)
        return decode_record(key, value)

    monkeypatch.setattr("wal_ingest.wal.state.read_block", counted_block)
    monkeypatch.setattr("wal_ingest.wal.state.decode_record", counted_record)
    shown = CliRunner().invoke(app, ["dead-letters", "show", "--limit", "1", "--data-dir", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert letter(1).line.decode() in shown.output
    assert 1 in read
    assert (len(read), len(records)) <= (4, 2)
