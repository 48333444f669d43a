"""Directories of 0.1, whose dead letters are records of the state file: none is lost or doubled, space comes back."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

from tests.model.moments import Killed, Moments
from tests.rigs.small_letters import small_letters
from tests.wal.factories import open_store
from tests.wal.test_letter_store import SINK, files_of, letters, park, records
from wal_ingest.errors import DiskFull
from wal_ingest.wal import state as state_module
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.letter_blocks import RUN_LETTERS
from wal_ingest.wal.letter_files import LetterFiles
from wal_ingest.wal.letter_store import LOOSE_LETTERS
from wal_ingest.wal.letters import NOT_COUNTED, encode_letter, id_of, letter_key
from wal_ingest.wal.lmdb_file import Item, LmdbFile
from wal_ingest.wal.state import State, read_dead_letters, read_letter_groups

# Made with the program at d14ec14: 3,000 letters, parked 500 at a time, then those of every tenth entry were dropped.
ARCHIVE = Path(__file__).with_name("letters_of_0_1.tar.gz")
START_NS = 1_763_800_000_000_000_000


def old_letter(number: int) -> DeadLetter:
    """What the archive has under a number."""
    late = number % 3 == 0
    return DeadLetter(
        SINK,
        number,
        b'temp,room=r%d value="hot" %d\n' % (number % 11, START_NS + number),
        "HTTP 422: points beyond retention policy"
        if late
        else f'HTTP 400: field type conflict on "temp" dropped={number % 5 + 1}',
        422 if late else 400,
        START_NS + number,
        Destination("acme", "metrics"),
        number,
    )


OLD = [old_letter(number) for number in range(1, 3_001) if number % 10]
CURSOR = Cursor(3, 3_000, parked=2_700, expired=300)


def unpacked(directory: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    return directory


def same(found: list[DeadLetter]) -> bool:
    return found == OLD and [each.number for each in found] == [each.number for each in OLD]


def test_an_old_directory_is_read_from_outside_before_any_start_has_changed_it(tmp_path: Path) -> None:
    path = unpacked(tmp_path) / "state.lmdb"
    assert same(list(read_dead_letters(path, SINK)))
    assert [group.points for group in read_letter_groups(path, [SINK]).listed()] == [1_800, 900]


def test_a_start_moves_the_letters_of_an_old_directory_and_they_are_listed_and_retried(
    tmp_path: Path,
) -> None:
    store = open_store(unpacked(tmp_path))
    assert store.state.cursor(SINK) == CURSOR
    assert same(list(store.state.dead_letters(SINK)))
    assert same(list(read_dead_letters(store.state.path, SINK)))
    assert [(group.reason, group.points) for group in store.state.letter_groups()] == [
        ('HTTP 400: field type conflict on "temp"', 1_800),
        ("HTTP 422: points beyond retention policy", 900),
    ]
    assert [key for key in records(tmp_path) if key.startswith(b"letter/")] == []
    assert len(files_of(tmp_path)) == 1
    retried = list(store.state.dead_letters(SINK))[:1_000]
    assert store.state.remove_letters(SINK, [id_of(each) for each in retried], written=True) == 1_000
    store.close()
    store = open_store(tmp_path)
    assert list(store.state.dead_letters(SINK)) == OLD[1_000:]
    cursor = store.state.cursor(SINK)
    assert cursor is not None
    assert (cursor.parked, cursor.confirmed, cursor.unaccounted) == (1_700, 1_000, 0)
    store.close()


def test_the_state_file_gives_back_what_the_letters_took_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (unpacked(tmp_path) / "state.lmdb").stat().st_size
    monkeypatch.setattr(state_module, "_COMPACT_BYTES", 512 << 10)
    state = State(tmp_path, now_ns=1)
    assert before > 2_000_000
    assert state.path.stat().st_size < 100_000
    assert state.letter_bytes < 200_000
    assert same(list(state.dead_letters(SINK)))
    park(state, letters(3, first=5_000))
    assert list(state.dead_letters(SINK)) == [*OLD, *letters(3, first=5_000)]
    state.close()
    state = State(tmp_path, now_ns=1)
    assert list(state.dead_letters(SINK)) == [*OLD, *letters(3, first=5_000)]
    state.close()


def test_a_start_that_is_killed_at_any_step_neither_loses_nor_doubles_a_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "_COMPACT_BYTES", 512 << 10)
    moments = Moments()
    with small_letters(loose=300, block=400, run=1_000, file_bytes=20_000):
        try:
            for moment in count(1):
                before, after = tmp_path / f"{moment}", tmp_path / f"{moment}-killed"
                unpacked(before)
                moments.born(before, after)
                moments.kill_after(moment)
                with contextlib.suppress(Killed):
                    State(before, now_ns=1).close()
                struck = moments.dead
                moments.kill_after(None)
                moments.dead = False
                if not struck:
                    break
                for _life in range(2):
                    state = State(after, now_ns=2)
                    assert state.cursor(SINK) == CURSOR
                    assert same(list(state.dead_letters(SINK)))
                    assert sum(group.points for group in state.letter_groups()) == 2_700
                    assert state.letters_set_aside == []
                    state.close()
                shutil.rmtree(before)
                shutil.rmtree(after)
        finally:
            moments.close()
    assert moment > 20


def test_on_a_disk_without_room_the_letters_stay_what_they_are_and_are_moved_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked(tmp_path)

    def full(*_args: object, **_options: object) -> None:
        raise DiskFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(LetterFiles, "append", full)
        state = State(tmp_path, now_ns=1)
        assert same(list(state.dead_letters(SINK)))
        assert (NOT_COUNTED, 700) in [(group.reason, group.points) for group in state.letter_groups()]
        park(state, letters(3, first=5_000))
        ids = [id_of(each) for each in OLD[:5]]
        assert state.remove_letters(SINK, ids, written=False) == 5
    park(state, letters(1, first=6_000))
    expected = [*OLD[5:], *letters(3, first=5_000), *letters(1, first=6_000)]
    assert list(state.dead_letters(SINK)) == expected
    assert len(files_of(tmp_path)) == 1
    state.close()
    state = State(tmp_path, now_ns=1)
    assert list(state.dead_letters(SINK)) == expected
    state.close()


def test_a_start_with_very_many_letters_takes_them_in_bounded_steps_and_counting_reads_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    State(tmp_path, now_ns=1).close()
    file = LmdbFile(tmp_path / "state.lmdb", map_bytes=1 << 30)
    puts: list[Item] = [
        (letter_key(SINK, number), encode_letter(each)) for number, each in enumerate(letters(100_000), 1)
    ]
    cursor = b'{"seq":1,"points":100000,"parked":100000}'
    file.write([*puts, (b"cursor/influxdb", cursor)])
    file.close()

    steps: list[int] = []
    reads: list[int] = []
    write, read = LmdbFile.write, LmdbFile.read_from

    def watched_write(file: LmdbFile, puts: Sequence[Item], deletes: Sequence[bytes] = ()) -> None:
        steps.append(len(puts) + len(deletes))
        write(file, puts, deletes)

    def watched_read(
        file: LmdbFile, key: bytes, *, bytes_max: int, items_max: int | None = None
    ) -> list[Item]:
        found = read(file, key, bytes_max=bytes_max, items_max=items_max)
        reads.append(len(found))
        return found

    monkeypatch.setattr(LmdbFile, "write", watched_write)
    monkeypatch.setattr(LmdbFile, "read_from", watched_read)
    state = State(tmp_path, now_ns=1)
    assert max(steps) < 1.01 * RUN_LETTERS
    assert max(reads) <= RUN_LETTERS
    reads.clear()
    assert sum(group.points for group in state.letter_groups()) == 100_000
    assert sum(reads) <= LOOSE_LETTERS
    reads.clear()
    assert next(iter(state.dead_letters(SINK))) == letters(1)[0]
    assert sum(reads) == 0
    state.close()
    state = State(tmp_path, now_ns=1)
    assert sum(1 for _ in state.dead_letters(SINK)) == 100_000
    state.close()
