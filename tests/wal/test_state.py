"""The state file: cursors and dead letters, together or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.cursor import Cursor, DeadLetter, Trouble
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.letter_blocks import block_key
from wal_ingest.wal.letters import UNREADABLE, id_of
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.lmdb_pages import PageReader
from wal_ingest.wal.state import State, check_state, read_dead_letters, read_state


def letter(number: int, sink: str = "influxdb") -> DeadLetter:
    """A dead letter that says its number."""
    return DeadLetter(
        sink, number, b"m v=%d 1\n" % number, f"reason {number}", 400, 99, Destination("o", "b")
    )


def test_a_cursor_and_its_dead_letters_come_back_after_reopening(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    assert state.cursor("influxdb") is None
    state.commit_cursor("influxdb", Cursor(5, 50, 2, b"\x00\xff"), [letter(1), letter(2)])
    state.commit_cursor("influxdb", Cursor(6, 60, 3, None), [letter(3)])
    state.commit_cursor("archive", Cursor(1, 1), [letter(9, "archive")])
    wal_id = state.wal_id
    state.close()
    state = State(tmp_path, now_ns=2)
    assert state.wal_id == wal_id
    assert state.cursors() == {"influxdb": Cursor(6, 60, 3, None), "archive": Cursor(1, 1)}
    assert list(state.dead_letters("influxdb")) == [letter(1), letter(2), letter(3)]
    state.commit_cursor("influxdb", Cursor(7, 70, 4), [letter(4)])
    assert [item.seq for item in state.dead_letters("influxdb")] == [1, 2, 3, 4]
    state.close()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 64, 65])
def test_new_dead_letters_never_overwrite_old_ones(tmp_path: Path, count: int) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(1, 1, count), [letter(number) for number in range(count)])
    state.close()
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(2, 2, count + 1), [letter(count)])
    assert [item.seq for item in state.dead_letters("influxdb")] == list(range(count + 1))
    state.close()


def test_sinks_whose_names_begin_alike_keep_apart(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influx", Cursor(1, 1), [letter(1, "influx")])
    state.commit_cursor("influxdb", Cursor(2, 2), [letter(2)])
    assert [item.seq for item in state.dead_letters("influx")] == [1]
    assert [item.seq for item in state.dead_letters("influxdb")] == [2]
    assert list(state.dead_letters("nobody")) == []
    state.close()


def test_a_cursor_never_moves_back(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(5, 50))
    with pytest.raises(ValueError, match="cannot move back from 5 to 4"):
        state.commit_cursor("influxdb", Cursor(4, 40), [letter(1)])
    assert state.cursor("influxdb") == Cursor(5, 50)
    assert list(state.dead_letters("influxdb")) == []
    state.close()


def overwrite(path: Path, key: bytes, value: bytes) -> None:
    """Puts a value of our own into a state file."""
    file = LmdbFile(path / "state.lmdb", map_bytes=1 << 20)
    file.write([(key, value)])
    file.close()


def test_a_state_file_from_the_future_is_refused_by_name(tmp_path: Path) -> None:
    State(tmp_path, now_ns=1).close()
    overwrite(tmp_path, b"format", b"3")
    with pytest.raises(UnknownFormatVersion, match="version b'3'"):
        check_state(tmp_path / "state.lmdb")


@pytest.mark.parametrize("content", [b"", b"x" * 100_000, bytes(8192)], ids=["empty", "foreign", "zeroed"])
def test_what_is_no_state_file_is_damage_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.lmdb"
    path.write_bytes(content)
    with pytest.raises(WalDamaged, match=r"state\.lmdb"):
        check_state(path)
    assert path.read_bytes() == content


def test_a_record_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    State(tmp_path, now_ns=1).close()
    overwrite(tmp_path, b"cursor/influxdb", b"{not json")
    with pytest.raises(WalDamaged, match="a record cannot be read"):
        check_state(tmp_path / "state.lmdb")


def test_a_state_without_an_identity_is_damage(tmp_path: Path) -> None:
    file = LmdbFile(tmp_path / "state.lmdb", map_bytes=1 << 20)
    file.write([(b"format", b"1")])
    file.close()
    with pytest.raises(WalDamaged, match="no identity"):
        check_state(tmp_path / "state.lmdb")


def test_a_crash_while_the_state_was_made_leaves_nothing_that_counts(tmp_path: Path) -> None:
    (tmp_path / "state.lmdb.new").write_bytes(bytes(4096))
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(1, 1))
    state.close()
    assert not (tmp_path / "state.lmdb.new").exists()
    assert read_state(tmp_path / "state.lmdb").cursors == {"influxdb": Cursor(1, 1)}


def test_a_look_at_the_state_changes_no_file(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(1, 1))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert read_state(tmp_path / "state.lmdb").wal_id == state.wal_id
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    state.close()


def test_trouble_is_remembered_until_it_is_over(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    trouble = Trouble("holding", "401 unauthorized", 5)
    state.note_trouble("influxdb", trouble)
    state.note_trouble("influxdb", trouble)
    assert read_state(state.path).troubles == {"influxdb": trouble}
    state.close()
    state = State(tmp_path, now_ns=2)
    state.note_trouble("influxdb", None)
    state.note_trouble("influxdb", None)
    assert read_state(state.path).troubles == {}
    state.close()


def test_dead_letters_can_be_read_from_outside(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(5, 50, 2), [letter(1), letter(2)])
    state.commit_cursor("zzz", Cursor(5, 50, 1), [letter(3, "zzz")])
    assert list(read_dead_letters(state.path, "influxdb")) == [letter(1), letter(2)]
    assert list(read_dead_letters(state.path, "zzz")) == [letter(3, "zzz")]
    assert list(read_dead_letters(state.path, "nobody")) == []
    state.close()
    overwrite(tmp_path, b"letter/influxdb/%020d" % 1, b"{")
    with pytest.raises(WalDamaged, match="a dead letter cannot be read"):
        list(read_dead_letters(tmp_path / "state.lmdb", "influxdb"))


def test_very_many_dead_letters_are_read_beside_a_node_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State(tmp_path, now_ns=1)
    letters = [letter(number) for number in range(1, 1_201)]
    state.commit_cursor("influxdb", Cursor(1, 1_200, 1_200), letters)
    overtaken: list[int] = []
    whole = PageReader.items_from

    def slowly(reader: PageReader, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        for count, item in enumerate(whole(reader, key), 1):
            if count == 1_000:  # so long that cursors have moved twice meanwhile
                for seq in (2, 3):
                    state.commit_cursor("influxdb", Cursor(len(overtaken) * 2 + seq, 1_200, 1_200))
                overtaken.append(count)
            yield item

    monkeypatch.setattr(PageReader, "items_from", slowly)
    assert list(read_dead_letters(state.path, "influxdb")) == letters
    assert overtaken == []
    state.close()


def test_a_dead_letter_that_is_damaged_is_counted_and_not_given_out(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(5, 50, 2), [letter(1), letter(2)])
    state.close()
    overwrite(tmp_path, b"letter/influxdb/%020d" % 1, b"{")
    state = State(tmp_path, now_ns=2)
    assert sorted((group.reason, group.points) for group in state.letter_groups()) == [
        (UNREADABLE, 1),
        (letter(2).reason, 1),
    ]
    with pytest.raises(WalDamaged, match="a dead letter cannot be read"):
        list(state.dead_letters("influxdb"))
    with pytest.raises(WalDamaged, match="a dead letter cannot be read"):
        state.remove_letters("influxdb", [id_of(letter(1))._replace(number=1)], written=False)
    state.close()


def test_a_dead_letter_that_is_damaged_does_not_hide_those_before_it(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(5, 50, 3), [letter(1), letter(2), letter(3)])
    state.close()
    overwrite(tmp_path, b"letter/influxdb/%020d" % 2, b"{")
    found = read_dead_letters(tmp_path / "state.lmdb", "influxdb")
    assert next(found).number == 1
    with pytest.raises(WalDamaged, match="a dead letter cannot be read"):
        next(found)


@pytest.mark.parametrize("value", [b"{", b'["x"]'], ids=["no JSON", "another JSON"])
def test_a_record_of_a_block_that_cannot_be_read_is_damage(tmp_path: Path, value: bytes) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(5, 50))
    state.close()
    overwrite(tmp_path, block_key("influxdb", 1), value)
    with pytest.raises(WalDamaged, match="a record cannot be read"):
        check_state(tmp_path / "state.lmdb")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_state_file_that_cannot_be_written_anew_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(5, 50))
    state.close()
    content = (tmp_path / "state.lmdb").read_bytes()
    copies = []

    def failing(_file: LmdbFile, path: Path) -> None:
        assert path.stat().st_size == 0
        path.write_bytes(b"half a copy")
        copies.append(path)
        raise StorageFailed(path, os.strerror(number), number=number)

    monkeypatch.setattr(State, "_is_mostly_free", lambda _state: True)
    monkeypatch.setattr(LmdbFile, "copy", failing)
    if number == errno.ENOSPC:  # the next start may have room
        state = State(tmp_path, now_ns=2)
        assert state.cursor("influxdb") == Cursor(5, 50)
        state.close()
    else:
        with pytest.raises(StorageFailed, match="Input/output error"):
            State(tmp_path, now_ns=2)
    assert len(copies) == 1
    assert not copies[0].exists()
    assert (tmp_path / "state.lmdb").read_bytes() == content
