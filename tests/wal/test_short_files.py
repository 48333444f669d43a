"""LMDB leaves free pages at the end of a file unwritten: such a file is shorter than it says, and whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import lmdb
import pytest

from tests.wal.factories import open_store
from wal_ingest.errors import WalDamaged
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.lmdb_file import LmdbFile, verify
from wal_ingest.wal.lmdb_pages import PageReader
from wal_ingest.wal.state import STATE_NAME, State, check_state, read_state

PAGE = 4096


def missing_pages(path: Path) -> int:
    """How many pages at the end of a file were never written."""
    env = lmdb.open(os.fspath(path), subdir=False, readonly=True, lock=False, lib_version=0)
    last: int = env.info()["last_pgno"]
    env.close()
    return last + 1 - path.stat().st_size // PAGE


def change(path: Path, rng: Random) -> None:
    """One transaction of LMDB, without a sync; values of up to five pages, some written and deleted in it."""
    env = lmdb.open(os.fspath(path), subdir=False, map_size=1 << 28, sync=False, lib_version=0)
    with env.begin(write=True) as txn:
        for _ in range(rng.choice([1, 2, 10, 50])):
            key = b"zz/%02d" % rng.randrange(40)
            txn.delete(key)
            if rng.random() < 0.5:
                txn.put(key, bytes(rng.choice([10, 900, 3_000, 9_000, 20_000])))
    env.close()


def short_files(folder: Path) -> Iterator[Path]:
    """State files, each of which LMDB left shorter than it says."""
    for seed in range(40):
        directory = folder / f"{seed}"
        directory.mkdir()
        state = State(directory, now_ns=1)
        state.commit_cursor("influxdb", Cursor(7, 70, confirmed=70))
        state.close()
        rng = Random(seed)
        for _ in range(60):
            change(state.path, rng)
            if missing_pages(state.path):
                yield state.path
                break


def content(path: Path) -> dict[bytes, bytes]:
    env = lmdb.open(os.fspath(path), subdir=False, readonly=True, lock=False, lib_version=0)
    with env.begin() as txn:
        found = dict(txn.cursor())
    env.close()
    return found


def test_a_file_that_ends_with_unwritten_free_pages_is_read_checked_and_written_to(tmp_path: Path) -> None:
    found = 0
    for path in short_files(tmp_path):
        found += 1
        reader = PageReader(path)
        assert dict(reader.items_from(b"")) == content(path)
        reader.close()
        assert read_state(path).cursors == {"influxdb": Cursor(7, 70, confirmed=70)}
        verify(path)
        check_state(path)
        before = content(path)
        file = LmdbFile(path, map_bytes=1 << 28)
        file.write([(b"zz/more", bytes(9_000))])
        file.close()
        assert content(path) == {**before, b"zz/more": bytes(9_000)}
    assert found >= 10


def test_a_node_starts_with_such_a_state_file_and_sets_nothing_aside(tmp_path: Path) -> None:
    path = next(short_files(tmp_path))
    store = open_store(path.parent)
    assert store.state.cursor("influxdb") == Cursor(7, 70, confirmed=70)
    store.close()
    assert not (path.parent / "wal" / "damaged").exists()


def test_a_file_that_was_cut_within_pages_that_are_in_use_is_damaged(tmp_path: Path) -> None:
    refused = 0
    for path in short_files(tmp_path):
        whole = path.read_bytes()
        for pages in range(3, len(whole) // PAGE):
            os.truncate(path, pages * PAGE)
            try:
                assert content_by_pages(path) == content_of(whole, path)
            except WalDamaged as exc:
                refused += "its last page ends at" in str(exc)
            path.write_bytes(whole)
        if refused > 50:
            break
    assert refused > 50


def content_by_pages(path: Path) -> dict[bytes, bytes]:
    reader = PageReader(path)
    try:
        return dict(reader.items_from(b""))
    finally:
        reader.close()


def content_of(whole: bytes, path: Path) -> dict[bytes, bytes]:
    copy = path.with_name("whole.lmdb")
    copy.write_bytes(whole)
    return content(copy)


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_state_file_that_lacks_its_last_page_in_use_is_refused(tmp_path: Path, commits: int) -> None:
    state = State(tmp_path, now_ns=1)
    for seq in range(commits):
        state.commit_cursor("influxdb", Cursor(seq, seq))
    state.close()
    path = tmp_path / STATE_NAME
    os.truncate(path, path.stat().st_size - PAGE)
    with pytest.raises(WalDamaged, match="the file has"):
        read_state(path)
