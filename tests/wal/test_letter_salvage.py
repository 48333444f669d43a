"""A file of dead letters is read without its state file: every block that proves itself, and what lies between them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.service import run_command
from tests.rigs.small_letters import small_letters
from tests.wal.test_damage import flip
from tests.wal.test_letter_store import SINK, files_of, letters, park
from wal_ingest.errors import StorageFailed, WalDamaged
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.letter_blocks import MAGIC
from wal_ingest.wal.letter_salvage import BadBytes, letters_in_file
from wal_ingest.wal.letters import id_of
from wal_ingest.wal.state import State


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """A file of 24 letters in six blocks, moved out of its directory."""
    with small_letters(file_bytes=100_000):
        (tmp_path / "data").mkdir()
        state = State(tmp_path / "data", now_ns=1)
        park(state, letters(24))
        state.close()
        [only] = files_of(tmp_path / "data")
        yield only.rename(tmp_path / "moved.letters")


def found(file: Path) -> tuple[list[DeadLetter], list[BadBytes]]:
    """The letters by their numbers, and what could not be read."""
    each = list(letters_in_file(file))
    read = [one for one in each if isinstance(one, DeadLetter)]
    return sorted(read, key=lambda one: one.number), [one for one in each if isinstance(one, BadBytes)]


def starts(file: Path) -> list[int]:
    data = file.read_bytes()
    return [at for at in range(len(data)) if data.startswith(MAGIC, at)]


def test_all_letters_of_a_file_come_back_without_a_state_file(file: Path) -> None:
    assert found(file) == (letters(24), [])
    assert len(starts(file)) >= 6


def test_a_flipped_byte_costs_one_block_wherever_it_is(file: Path) -> None:
    content = file.read_bytes()
    edges = [*starts(file), len(content)]
    for at in range(0, len(content), 11):
        flip(file, at)
        read, bad = found(file)
        begin = max(edge for edge in edges if edge <= at)
        assert bad
        assert all(begin <= one.offset < min(edge for edge in edges if edge > at) for one in bad)
        assert len(letters(24)) - 4 <= len(read) < 24
        assert set(map(id_of, read)) <= set(map(id_of, letters_of(content, file)))
        file.write_bytes(content)


def letters_of(content: bytes, file: Path) -> list[DeadLetter]:
    whole = file.with_name("whole.letters")
    whole.write_bytes(content)
    return found(whole)[0]


def test_a_hole_where_blocks_were_is_passed_over(file: Path) -> None:
    data = bytearray(file.read_bytes())
    begin, end = starts(file)[1:3]
    data[begin:end] = bytes(end - begin)
    file.write_bytes(data)
    read, bad = found(file)
    assert bad == []
    assert 20 <= len(read) < 24


def test_bytes_of_a_write_that_was_not_finished_are_named(file: Path) -> None:
    size = file.stat().st_size
    file.write_bytes(file.read_bytes() + MAGIC)
    assert found(file) == (letters(24), [BadBytes(size, "the file ends within a block")])
    file.write_bytes(file.read_bytes()[:-8] + b"half")
    assert found(file) == (letters(24), [BadBytes(size, "4 bytes belong to no block")])


def test_a_file_that_is_none_of_dead_letters_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"no letters")
    with pytest.raises(WalDamaged, match="there is no block of dead letters in it"):
        list(letters_in_file(tmp_path / "other"))
    with pytest.raises(StorageFailed, match="No such file"):
        list(letters_in_file(tmp_path / "missing"))


def test_export_and_show_read_a_file_alone_and_say_what_is_lost(file: Path, tmp_path: Path) -> None:
    ran = run_command("dead-letters", "export", tmp_path / "out.lp.gz", "--from", file)
    assert ran.returncode == 0, ran.stderr
    assert "24 points exported" in ran.stderr
    exported = gzip.decompress((tmp_path / "out.lp.gz").read_bytes()).splitlines(keepends=True)
    assert sorted(exported) == sorted(each.line for each in letters(24))
    ran = run_command("dead-letters", "show", "--from", file, "--reason", "reason a", "--sink", SINK)
    assert (ran.returncode, ran.stdout.count("\n"), ran.stdout.count("reason a")) == (0, 16, 8)
    assert run_command("dead-letters", "show", "--from", file, "--sink", "other").stdout == ""
    flip(file, 100)
    ran = run_command("dead-letters", "export", "-", "--from", file)
    assert ran.returncode == 3
    assert ran.stderr.startswith(f"lost: {file} at byte 0: the checksum of a block does not match\n")
    assert 20 <= ran.stdout.count("\n") < 24
