"""Files of a data directory: never written through a symbolic link, and readable by at most their group."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rigs.service import Service, run_command
from tests.wal.factories import open_store
from wal_ingest.control import CONTROL_NAME
from wal_ingest.errors import ConfigError, StorageFailed
from wal_ingest.flusher.replay.record import Record
from wal_ingest.flusher.sinks.archive_files import set_unconfirmed_aside
from wal_ingest.flusher.sinks.archive_position import ArchivePosition, ConfirmedFile, hour_of_ns
from wal_ingest.wal.directory import LOCK_NAME, DirectoryLock, holder_of
from wal_ingest.wal.lmdb_file import LmdbFile, lock_path
from wal_ingest.wal.recovery import SetAside, note_reason
from wal_ingest.wal.salvage import Note, write_note
from wal_ingest.wal.state import STATE_NAME

TEXT = {"Content-Type": "text/plain"}
# 2026-11-22T21:00:00Z
HOUR = hour_of_ns(1_795_381_200 * 10**9)
OURS = b"somebody's own file\n"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A file that must stay as it is."""
    path = tmp_path / "elsewhere"
    path.write_bytes(OURS)
    yield path
    assert path.read_bytes() == OURS


def test_a_lock_that_is_a_link_is_refused_with_what_to_do(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / LOCK_NAME).symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="LOCK cannot be opened: it is a symbolic link") as told:
        DirectoryLock(tmp_path)
    assert "then remove it" in told.value.hint
    # No process holds it, so a command does not look for a node.
    assert holder_of(tmp_path) is None


def test_a_node_does_not_start_with_a_link_for_its_lock(tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / LOCK_NAME).symlink_to(elsewhere)
    ran = run_command("serve", "--data-dir", tmp_path / "data", "--bind", "127.0.0.1:0")
    assert ran.returncode == 2
    assert "it is a symbolic link" in ran.stderr


def _record(target: Path, link: Callable[[Path], None]) -> None:
    link(target / "replay" / "name.lock")
    Record(target / "replay", "name")


def _lmdb(target: Path, link: Callable[[Path], None]) -> None:
    link(target / "segment.lmdb")
    LmdbFile(target / "segment.lmdb", map_bytes=1 << 20)


def _lmdb_lock(target: Path, link: Callable[[Path], None]) -> None:
    link(lock_path(target / "segment.lmdb"))
    LmdbFile(target / "segment.lmdb", map_bytes=1 << 20)


def _state(target: Path, _link: Callable[[Path], None]) -> None:
    open_store(target / "data").close()
    # Not the file that the others are linked to: what is no state is set aside, and the link with it.
    (target / "data" / STATE_NAME).rename(target / "state")
    (target / "data" / STATE_NAME).symlink_to(target / "state")
    open_store(target / "data")


def _reason(target: Path, link: Callable[[Path], None]) -> None:
    link(target / "segment.lmdb.reason.txt")
    note_reason(SetAside(target / "segment.lmdb", "why"))


def _note(target: Path, link: Callable[[Path], None]) -> None:
    link(target / "segment.lmdb.salvaged.json.new")
    write_note(target / "segment.lmdb", Note(salvaged_ns=1, entries=0, points=0, to="", lost=[]))


WRITES = {
    "replay's lock": _record,
    "segment": _lmdb,
    "segment's lock": _lmdb_lock,
    "state": _state,
    "reason": _reason,
    "note": _note,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_no_file_of_ours_is_written_through_a_link(
    tmp_path: Path, elsewhere: Path, write: Callable[[Path, Callable[[Path], None]], None]
) -> None:
    def link(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(elsewhere)

    with pytest.raises((ConfigError, StorageFailed), match="it is a symbolic link"):
        write(tmp_path, link)


def test_an_archive_file_that_is_a_link_is_neither_cut_nor_written(tmp_path: Path, elsewhere: Path) -> None:
    root = tmp_path / "archive"
    (root / "2026-11-22").mkdir(parents=True)
    (root / "2026-11-22" / "21.lp.gz").symlink_to(elsewhere)
    known = ArchivePosition().grown(ConfirmedFile(HOUR, 0, 3))
    with pytest.raises(OSError, match="symbolic link"):
        set_unconfirmed_aside(root, known)


def test_a_directory_may_be_a_link_to_a_larger_disk(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "archive").symlink_to(tmp_path / "large")
    with Service(tmp_path / "data", logs=tmp_path) as service:
        service.post("/metrics", b"m f=1 1\n", TEXT)
        service.wait_drained("archive")
    assert list((tmp_path / "large").glob("*/*.lp.gz"))


@pytest.mark.parametrize(("umask", "most"), [(0o022, 0o640), (0o000, 0o640), (0o077, 0o600)])
def test_what_a_node_makes_is_for_its_group_at_the_most_and_for_less_with_a_stricter_umask(
    tmp_path: Path, umask: int, most: int
) -> None:
    before = os.umask(umask)
    try:
        with Service(tmp_path / "data", logs=tmp_path) as service:
            service.post("/metrics", b"m f=1 1\n", TEXT)
            service.wait_drained("archive")
            found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").rglob("*")}
            assert service.stop() == 0
    finally:
        os.umask(before)
    files = {path: mode for path, mode in found.items() if not path.is_dir() and path.name != CONTROL_NAME}
    assert {path.name for path in files} >= {LOCK_NAME, STATE_NAME}
    assert [path for path in files if path.suffixes == [".lp", ".gz"]]
    assert {path.name: oct(mode) for path, mode in files.items() if mode != most} == {}
    assert {path.name: oct(mode) for path, mode in found.items() if mode & 0o007} == {}


def test_an_archive_file_of_an_older_version_keeps_its_mode(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        service.post("/metrics", b"m f=1 1\n", TEXT)
        service.wait_drained("archive")
        [file] = (tmp_path / "data").glob("archive/*/*.lp.gz")
        file.chmod(0o644)
        service.stop()
        service.start()
        service.post("/metrics", b"m f=2 2\n", TEXT)
        service.wait_drained("archive")
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
