"""Every call that can fail, failing: the error is ours, names the file, and carries the system's number.

tests/faults does it for all of them at once and asks what is on disk afterwards; here each is told apart.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
import trio

from tests.wal.factories import MIB, new_entry, open_store, read_all, settings
from wal_ingest.errors import (
    ConfigError,
    DiskFull,
    SectorUnreadable,
    StorageFailed,
    UnknownFormatVersion,
    WalBroken,
    WalDamaged,
)
from wal_ingest.wal import lmdb_layout, segment
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.directory import DirectoryLock, holder_of, make_directory, remove, rename, sync_directory
from wal_ingest.wal.entry import Destination, encode
from wal_ingest.wal.lmdb_file import LmdbFile, MapFull, verify
from wal_ingest.wal.lmdb_pages import PageReader, snapshot
from wal_ingest.wal.log import Appended
from wal_ingest.wal.segment import Segment, SegmentHeader, read_ends
from wal_ingest.wal.space import is_no_descriptors, is_no_space
from wal_ingest.wal.state import STATE_NAME, State, read_dead_letters
from wal_ingest.wal.writer import Writer

PAGE = 4096


def failing(number: int) -> Callable[..., Any]:
    """A call that fails with an error number."""

    def fail(*_args: object, **_options: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


# -- the directory -----------------------------------------------------------------------------------------

CALLS: dict[str, tuple[object, str, Callable[[Path], object]]] = {
    "sync": (os, "fsync", sync_directory),
    "open to sync": (os, "open", sync_directory),
    "rename": (Path, "rename", lambda path: rename(path, path)),
    "remove": (Path, "unlink", remove),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_failed_call_on_a_name_says_which_and_with_what_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: tuple[object, str, Callable[[Path], object]]
) -> None:
    where, name, act = call
    monkeypatch.setattr(where, name, failing(errno.EIO))
    with pytest.raises(StorageFailed, match="Input/output error") as caught:
        act(tmp_path)
    assert (caught.value.path, caught.value.number) == (tmp_path, errno.EIO)


def test_a_directory_that_cannot_be_made_or_locked_is_a_matter_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", failing(errno.EACCES))
        with pytest.raises(ConfigError, match="new cannot be made: Permission denied"):
            make_directory(tmp_path / "new")
    with pytest.raises(ConfigError, match="LOCK cannot be opened: No such file"):
        DirectoryLock(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_directory_that_the_disk_cannot_make_or_lock_is_a_matter_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", failing(number))
        with pytest.raises(StorageFailed, match="the disk failed") as made:
            make_directory(tmp_path / "new")
    monkeypatch.setattr(os, "open", failing(number))
    with pytest.raises(StorageFailed, match="the disk failed") as locked:
        DirectoryLock(tmp_path)
    assert [(each.value.path, each.value.number) for each in (made, locked)] == [
        (tmp_path / "new", number),
        (tmp_path / "LOCK", number),
    ]


def test_whoever_may_not_open_the_lock_cannot_tell_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holder_of(tmp_path) is None
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    assert holder_of(tmp_path) == 0


# -- LMDB --------------------------------------------------------------------------------------------------


class FailingEnv:
    """An environment of which every call fails."""

    def __init__(self, error: lmdb.Error) -> None:
        self._error = error

    def __getattr__(self, _name: str) -> Any:
        raise self._error


USES: dict[str, Callable[[LmdbFile], object]] = {
    "append": lambda file: file.append([(b"k", b"v")]),
    "write": lambda file: file.write([(b"k", b"v")]),
    "sync": lambda file: file.sync(),
    "read": lambda file: file.read_from(b"", bytes_max=1),
    "used bytes": lambda file: file.used_bytes,
    "live bytes": lambda file: file.live_bytes,
    "copy": lambda file: file.copy(file.path.with_name("copy of x.lmdb")),
    "stale readers": lambda file: file.free_stale_readers(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (lmdb.CorruptedError("page"), WalDamaged),
        (lmdb.DiskError("no"), StorageFailed),
        (lmdb.PanicError("a write failed before"), StorageFailed),
    ],
)
def test_what_lmdb_says_is_said_in_our_words(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[LmdbFile], object],
    error: lmdb.Error,
    ours: type[Exception],
) -> None:
    file = LmdbFile(tmp_path / "x.lmdb", map_bytes=MIB)
    file.close()
    monkeypatch.setattr(file, "_env", FailingEnv(error))
    with pytest.raises(ours, match=r"x\.lmdb"):
        use(file)


def test_a_write_that_a_full_disk_cut_short_is_reported_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LmdbFile(tmp_path / "x.lmdb", map_bytes=MIB)
    file.close()
    error = lmdb.DiskError("mdb_txn_commit: Input/output error")
    vars(error)["code"] = errno.EIO
    monkeypatch.setattr(file, "_env", FailingEnv(error))
    for room in (lambda _path: MIB * 1024, failing(errno.EACCES)):  # there is some, or nobody knows
        with monkeypatch.context() as patch:
            patch.setattr("wal_ingest.wal.lmdb_file.free_disk_bytes", room)
            with pytest.raises(StorageFailed, match=r"Input/output error$"):
                file.sync()
    monkeypatch.setattr("wal_ingest.wal.lmdb_file.free_disk_bytes", lambda _path: 0)
    with pytest.raises(StorageFailed, match="Input/output error, as the disk is full") as caught:
        file.sync()
    assert caught.value.number == errno.EIO


def test_a_copy_that_cannot_be_written_is_named_with_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = LmdbFile(tmp_path / "x.lmdb", map_bytes=MIB)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    with pytest.raises(StorageFailed, match="No space left") as caught:
        file.copy(tmp_path / "copy.lmdb")
    file.close()
    assert (caught.value.path, caught.value.number) == (tmp_path / "copy.lmdb", errno.ENOSPC)


def test_a_file_that_the_disk_cannot_open_is_an_unreadable_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", failing(errno.EIO))
    with pytest.raises(SectorUnreadable, match="it cannot be read: Input/output error"):
        verify(tmp_path / "x.lmdb")


def test_a_full_map_is_told_apart_and_leaves_nothing(tmp_path: Path) -> None:
    file = LmdbFile(tmp_path / "x.lmdb", map_bytes=64 * 1024)
    with pytest.raises(MapFull):
        file.write([(b"k", bytes(MIB))])
    with pytest.raises(MapFull):
        file.append([(b"k", bytes(MIB))])
    assert file.read_from(b"", bytes_max=1) == []
    file.close()


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageFailed, match="folder"):
        LmdbFile(tmp_path / "folder", map_bytes=MIB, lock=False)
    (tmp_path / "x.lmdb-lock").mkdir()
    with pytest.raises(StorageFailed, match="the lock file cannot be made: Is a directory") as caught:
        LmdbFile(tmp_path / "x.lmdb", map_bytes=MIB)
    assert caught.value.number == errno.EISDIR
    with pytest.raises(StorageFailed, match="No such file"):
        verify(tmp_path / "nowhere")
    (tmp_path / "foreign").write_bytes(b"foreign" * 5000)
    with pytest.raises(WalDamaged, match="not an LMDB data file"):
        verify(tmp_path / "foreign")


# -- pages -------------------------------------------------------------------------------------------------


def tree(path: Path, *, count: int = 400) -> Path:
    """An LMDB file with a branch, leaves and large values."""
    file = LmdbFile(path, map_bytes=MIB * 16, lock=False)
    file.append([(b"%08d" % number, b"v" * (100 if number % 9 else 9000)) for number in range(count)])
    file.close()
    return path


def newest_meta(content: bytes) -> int:
    """Where the meta of the latest transaction begins."""
    ids = [int.from_bytes(content[page * PAGE + 144 : page * PAGE + 152], "little") for page in (0, 1)]
    return (0 if ids[0] > ids[1] else 1) * PAGE + 16


def patched(path: Path, at: int, value: int, length: int) -> None:
    """Writes a number into a file."""
    content = bytearray(path.read_bytes())
    content[at : at + length] = value.to_bytes(length, "little")
    path.write_bytes(content)


def root_page(path: Path) -> int:
    """Where the root page of the tree begins."""
    content = path.read_bytes()
    at = newest_meta(content) + 72 + 40
    return int.from_bytes(content[at : at + 8], "little") * PAGE


def first_large_node(path: Path) -> int:
    """Where the first node of a large value begins."""
    content = path.read_bytes()
    for page in range(2 * PAGE, len(content), PAGE):
        number, _pad, flags, lower, _upper = lmdb_layout.PAGE_HEADER.unpack_from(content, page)
        if number * PAGE != page or flags != 2:
            continue
        for slot in range(16, lower, 2):
            node = page + int.from_bytes(content[page + slot : page + slot + 2], "little")
            if content[node + 4] & 1:
                return node
    raise AssertionError("no large value")


BENT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tree deeper than it says": (
        lambda path: patched(path, newest_meta(path.read_bytes()) + 72 + 6, 1, 2),
        "deeper than it says",
    ),
    "a root beyond the file": (
        lambda path: patched(path, newest_meta(path.read_bytes()) + 72 + 40, 1 << 40, 8),
        "is not in the file",
    ),
    "a page without nodes": (lambda path: patched(path, root_page(path) + 12, 16, 2), "has no nodes"),
    "a node outside of its page": (
        lambda path: patched(path, root_page(path) + 16, 5000, 2),
        "not in its page",
    ),
    "a large value without a page": (
        lambda path: patched(path, first_large_node(path) + 6, 65000, 2),
        "ends outside of its page",
    ),
}


@pytest.mark.parametrize("bent", BENT.values(), ids=BENT.keys())
def test_whatever_does_not_hold_together_is_damage(
    tmp_path: Path, bent: tuple[Callable[[Path], None], str]
) -> None:
    path = tree(tmp_path / "x.lmdb")
    bend, reason = bent
    bend(path)
    with pytest.raises(WalDamaged, match=reason):
        snapshot(path, lambda reader: list(reader.items_from(b"")))


def test_the_end_of_a_tree_deeper_than_it_says_is_damage_too(tmp_path: Path) -> None:
    path = tree(tmp_path / "x.lmdb")
    patched(path, newest_meta(path.read_bytes()) + 72 + 6, 1, 2)
    with pytest.raises(WalDamaged, match="deeper than it says"):
        snapshot(path, PageReader.last)


def test_an_empty_tree_has_no_items(tmp_path: Path) -> None:
    LmdbFile(tmp_path / "x.lmdb", map_bytes=MIB, lock=False).close()
    assert snapshot(tmp_path / "x.lmdb", PageReader.last) is None
    assert snapshot(tmp_path / "x.lmdb", lambda reader: list(reader.items_from(b""))) == []


def test_a_page_that_the_disk_cannot_read_is_damage_and_any_other_error_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree(tmp_path / "x.lmdb")
    monkeypatch.setattr(os, "pread", failing(errno.EIO))
    with pytest.raises(SectorUnreadable, match="byte 16 cannot be read: Input/output error"):
        PageReader(path)
    monkeypatch.setattr(os, "pread", failing(errno.ENOMEM))
    with pytest.raises(StorageFailed, match="Cannot allocate memory"):
        PageReader(path)


def test_a_state_that_was_overtaken_while_it_was_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree(tmp_path / "x.lmdb")
    answers = [False, True]
    monkeypatch.setattr(PageReader, "is_whole", lambda _reader: answers.pop(0))
    assert snapshot(path, lambda reader: reader.transaction) == 1
    assert answers == []


def test_damage_in_a_state_that_is_gone_by_then_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tree(tmp_path / "x.lmdb")
    answers = [False]
    monkeypatch.setattr(PageReader, "is_current", lambda _reader: answers.pop(0))
    looks: list[int] = []

    def look(reader: PageReader) -> int:
        looks.append(reader.transaction)
        if len(looks) == 1:
            raise WalDamaged(path, "overwritten meanwhile")
        return reader.transaction

    assert snapshot(path, look) == 1
    assert len(looks) == 2


# -- segments ----------------------------------------------------------------------------------------------


def header(tmp_path: Path) -> SegmentHeader:
    store = open_store(tmp_path / "for its identity")
    store.close()
    return SegmentHeader(store.wal.wal_id, 1, 0, 0)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE])
def test_a_segment_for_which_there_is_no_room_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    head = header(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing(number))
        with pytest.raises(DiskFull, match="cannot be begun"):
            Segment.create(tmp_path, head, segment_bytes_max=MIB)
    assert list(tmp_path.glob("*.lmdb*")) == []
    Segment.create(tmp_path, head, segment_bytes_max=MIB).close()


def test_a_segment_that_cannot_be_begun_for_another_reason_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = header(tmp_path)
    monkeypatch.setattr(Path, "rename", failing(errno.EIO))
    with pytest.raises(StorageFailed, match="cannot be renamed"):
        Segment.create(tmp_path, head, segment_bytes_max=MIB)


def test_numbers_of_errors_are_told_apart() -> None:
    assert is_no_space(errno.ENOSPC)
    assert not is_no_space(errno.EIO)
    assert is_no_descriptors(errno.EMFILE)
    assert not is_no_descriptors(0)


@pytest.mark.parametrize(
    ("items", "reason"),
    [([], "has no header record"), ([(bytes(8), b"short")], "no segment of a wal-ingest WAL")],
)
def test_a_file_without_a_header_record_is_no_segment(
    tmp_path: Path, items: list[tuple[bytes, bytes]], reason: str
) -> None:
    path = tmp_path / "00000000000000000001.lmdb"
    file = LmdbFile(path, map_bytes=MIB, lock=False)
    file.write([*items, (b"x", b"y")])
    file.close()
    with pytest.raises(WalDamaged, match=reason):
        read_ends(path)


def test_an_entry_from_the_future_is_refused_by_name_and_its_segment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.entry.VERSION", 9)
        store.wal.commit([[new_entry(1)]])
    with pytest.raises(UnknownFormatVersion, match="version 9 is not known"):
        read_all(store)
    store.close()


def test_a_segment_dropped_under_a_reader_is_passed(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in (1, 2):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    store.wal.segments()[0].drop()
    assert [entry.seq for entry in store.wal.read(0, bytes_max=MIB)] == [2]
    store.close()


def test_entries_missing_at_the_end_are_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1), new_entry(2)]])
    [first] = store.wal.segments()
    first.last_seq = 3  # as read on opening, before the file lost its end
    with pytest.raises(WalDamaged, match="entry 3 is missing"):
        store.wal.read(2, bytes_max=MIB)
    store.close()


def test_two_damaged_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for content in (b"one", b"two", b"three"):
        (tmp_path / "x.lmdb").write_bytes(content)
        target = tmp_path / "damaged"
        target.mkdir(exist_ok=True)
        segment.set_aside(tmp_path / "x.lmdb", target)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "damaged").iterdir()}
    assert kept == {"x.lmdb": b"one", "x.lmdb.2": b"two", "x.lmdb.3": b"three"}


# -- the log -----------------------------------------------------------------------------------------------


def test_the_segment_that_is_written_to_cannot_be_set_aside(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    [active] = store.wal.segments()
    with pytest.raises(WalDamaged, match="it is the segment that is being written to"):
        store.wal.set_aside(active.path, "odd")
    assert active.path.exists()
    store.close()


def test_an_empty_last_segment_that_is_damaged_is_set_aside_and_its_seqs_are_skipped(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.wal.seal()
    store.close()
    last = max((tmp_path / "wal").glob("*.lmdb"))
    patched(last, newest_meta(last.read_bytes()) + 72 + 32, 77, 8)  # says that it has 77 entries
    store = open_store(tmp_path)
    [moved] = store.wal.damaged
    assert moved.path.name == last.name
    [appended] = store.wal.commit([[new_entry(2)]])
    assert appended.first_seq > 1 << 32
    assert [seq for seq, _ in read_all(store)] == [1, appended.first_seq]
    store.close()
    store = open_store(tmp_path)
    assert [seq for seq, _ in read_all(store)] == [1, appended.first_seq]
    store.close()


def test_a_sync_that_cannot_be_made_up_for_stops_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.close()
    real = os.fsync

    def fail_on_segments(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name.endswith("1.lmdb"):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_on_segments)
        with pytest.raises(StorageFailed, match="cannot be synced"):
            open_store(tmp_path)
    store = open_store(tmp_path)
    assert [seq for seq, _ in read_all(store)] == [1]
    store.close()


def test_a_reason_that_cannot_be_noted_is_a_failure(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.wal.seal()
    first = store.wal.segments()[0]
    (tmp_path / "wal" / "damaged" / f"{first.path.name}.reason.txt").mkdir(parents=True)
    with pytest.raises(StorageFailed, match="cannot be written: Is a directory"):
        store.wal.set_aside(first.path, "odd")
    store.close()


# -- the store and its state -------------------------------------------------------------------------------


def test_a_state_from_the_future_stops_the_opening_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.state._VERSION", b"3")
        patch.setattr("wal_ingest.wal.state._VERSIONS", (b"3",))
        open_store(tmp_path).close()
    before = (tmp_path / STATE_NAME).read_bytes()
    with pytest.raises(UnknownFormatVersion, match="state format version b'3'"):
        open_store(tmp_path)
    assert (tmp_path / STATE_NAME).read_bytes() == before


def test_an_identity_is_found_in_any_readable_segment(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for number in (1, 2):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    store.close()
    (tmp_path / STATE_NAME).unlink()
    store.wal.segments()[0].path.write_bytes(b"")
    again = open_store(tmp_path)
    assert again.wal.wal_id == store.wal.wal_id
    assert [seq for seq, _ in read_all(again)] == [2]
    again.close()


def test_dead_letters_beyond_one_read_come_all(tmp_path: Path) -> None:
    state = State(tmp_path, now_ns=1)
    letters = [
        DeadLetter("influxdb", number, b"x" * 2000 + b"\n", "reason", 400, 1, Destination())
        for number in range(1200)
    ]
    state.commit_cursor("influxdb", Cursor(1, 1200, 1200), letters)
    assert list(state.dead_letters("influxdb")) == letters
    state.close()
    assert list(read_dead_letters(tmp_path / STATE_NAME, "influxdb")) == letters


# -- the writer --------------------------------------------------------------------------------------------


async def test_a_failure_behind_the_commit_takes_no_answer_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    writer = Writer(store.wal, settings())

    def fail() -> None:
        raise StorageFailed(tmp_path, "no")

    monkeypatch.setattr(writer, "measure", fail)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        assert await writer.append([new_entry(1)]) == Appended(1, 1)
        with trio.fail_after(5):
            await writer.failed.wait()
        with pytest.raises(WalBroken):
            await writer.append([new_entry(2)])
    assert [seq for seq, _ in read_all(store)] == [1]
    store.close()


@pytest.mark.parametrize(
    ("free_bytes", "wal_bytes_max", "short"),
    [(1200, 100 * MIB, False), (1050, 100 * MIB, True), (1200, 8 * 1024, True), (10, 100 * MIB, True)],
)
def test_space_is_short_within_a_tenth_of_either_limit(
    tmp_path: Path, free_bytes: int, wal_bytes_max: int, short: bool
) -> None:
    store = open_store(tmp_path)
    limits = settings(wal_bytes_max=wal_bytes_max, free_disk_bytes_min=1000)
    writer = Writer(store.wal, limits, free_bytes=lambda _path: free_bytes)
    assert writer.space_is_short() is short
    store.close()


def test_an_encoded_entry_can_be_committed_under_its_own_seq_only(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    value = encode(new_entry(9), seq=9, points_before=0)
    active = store.wal.segments()[0]
    active.append([((1).to_bytes(8, "big"), value)], points=1, accepted_ns=1)
    with pytest.raises(WalDamaged, match="checksum"):
        active.read(0, bytes_max=MIB)
    store.close()
