"""The space of dropped segments is given back a step at a time, and never from under somebody who reads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from tests.rigs.processes import wait_until
from tests.wal.factories import fill, open_store, read_all
from wal_ingest.errors import StorageFailed
from wal_ingest.wal.leftover import STEP_BYTES, Leftover, _ours_alone
from wal_ingest.wal.segment import Segment

SIZE_BYTES = 5 * STEP_BYTES // 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two and a half steps."""
    path = tmp_path / "segment.lmdb"
    path.write_bytes(b"x" * SIZE_BYTES)
    return path


def open_files(below: Path) -> list[str]:
    """What this process has open below a folder, also without a name."""
    targets = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one of this very listing
            targets.append(str(fd.readlink()))
    return [target for target in targets if target.startswith(str(below))]


def dropped(path: Path) -> Leftover:
    leftover = Leftover(path)
    path.unlink()
    return leftover


def bytes_left(leftover: Leftover) -> int:
    return os.fstat(leftover._fd).st_size


def test_the_space_goes_step_by_step_and_then_the_file_is_closed(path: Path) -> None:
    leftover = dropped(path)
    sizes = []
    while leftover.give_back():
        sizes.append(bytes_left(leftover))
    assert sizes == [SIZE_BYTES - STEP_BYTES, SIZE_BYTES - 2 * STEP_BYTES]
    assert open_files(path.parent) == []
    leftover.close()


def test_what_somebody_reads_is_not_touched(path: Path) -> None:
    with path.open("rb") as reader:
        leftover = dropped(path)
        assert not leftover.give_back()
        assert os.fstat(reader.fileno()).st_size == SIZE_BYTES
    assert open_files(path.parent) == []


def test_what_somebody_has_mapped_is_not_touched_though_the_file_is_closed(path: Path) -> None:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    leftover = dropped(path)
    assert not leftover.give_back()
    assert mapped[-1:] == b"x"
    mapped.close()


def test_a_hard_link_is_somebodys_backup(path: Path) -> None:
    backup = path.with_name("backup.lmdb")
    backup.hardlink_to(path)
    leftover = dropped(path)
    assert not leftover.give_back()
    assert backup.stat().st_size == SIZE_BYTES
    assert open_files(path.parent) == []


def test_what_a_symbolic_link_leads_to_is_not_touched(path: Path) -> None:
    link = path.with_name("link.lmdb")
    link.symlink_to(path)
    leftover = dropped(link)
    assert not leftover.give_back()
    assert path.stat().st_size == SIZE_BYTES


def test_whoever_opens_it_through_proc_waits_and_nobody_is_killed(path: Path) -> None:
    leftover = dropped(path)
    fd = leftover._fd
    with _ours_alone(fd):
        opening = subprocess.Popen(["cat", f"/proc/{os.getpid()}/fd/{fd}"], stdout=subprocess.PIPE)
        # The signal is delivered to this process: its default action would be the end of it.
        wait_until(lambda: lease_is_being_broken(fd), "somebody wants the file")
    out, _ = opening.communicate(timeout=20)
    assert out == b"x" * SIZE_BYTES
    assert leftover.give_back()
    leftover.close()


def lease_is_being_broken(fd: int) -> bool:
    """Whether the kernel asks for the lease back: then it says that it is no write lease any more."""
    return fcntl.fcntl(fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES])
def test_a_segment_that_cannot_be_opened_goes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = open_store(tmp_path)
    fill(store, 25)
    first, second, last = store.wal.segments()
    whole = os.open

    def fails(path: os.PathLike[str], flags: int, *rest: int) -> int:
        if path == first.path:
            raise OSError(number, os.strerror(number))
        return whole(path, flags, *rest)

    monkeypatch.setattr(os, "open", fails)
    leftovers = store.wal.truncate_gently(last.last_seq, segments_max=8)
    assert not leftovers[0].give_back()
    leftovers[1].close()
    assert store.wal.segments() == [last]
    assert not first.path.exists()
    assert not second.path.exists()
    store.close()


def test_a_segment_that_somebody_removed_is_gone_too(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 25)
    first, _, last = store.wal.segments()
    first.path.unlink()
    leftovers = store.wal.truncate_gently(last.last_seq, segments_max=8)
    assert not leftovers[0].give_back()
    leftovers[1].close()
    assert store.wal.segments() == [last]
    store.close()


def test_a_file_system_that_cannot_shorten_it_frees_it_in_one_piece(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_fd: int, _length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    leftover = dropped(path)
    monkeypatch.setattr(os, "ftruncate", fails)
    assert not leftover.give_back()
    assert open_files(path.parent) == []


def test_a_gentle_truncation_drops_what_any_other_does_a_few_at_a_time(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    fill(store, 25)
    first, second, last = store.wal.segments()
    assert store.wal.truncate_gently(first.last_seq - 1, segments_max=1) == []
    for segment in (first, second):
        assert segment.path.exists()
        (leftover,) = store.wal.truncate_gently(last.last_seq, segments_max=1)
        assert not segment.path.exists()
        leftover.close()
    assert store.wal.truncate_gently(last.last_seq, segments_max=1) == []
    assert store.wal.bytes == last.bytes
    assert [seq for seq, _ in read_all(store)] == list(range(last.first_seq, 26))
    store.close()


def test_a_truncation_that_fails_half_way_keeps_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    fill(store, 25)
    first, second, last = store.wal.segments()
    whole = Segment.drop

    def fails_the_second_time(segment: Segment) -> None:
        if segment is second:
            raise StorageFailed(segment.path, "Input/output error")
        whole(segment)

    monkeypatch.setattr(Segment, "drop", fails_the_second_time)
    with pytest.raises(StorageFailed, match="Input/output error"):
        store.wal.truncate_gently(last.last_seq, segments_max=8)
    assert not [name for name in open_files(tmp_path) if first.path.name in name]
    assert [segment.path for segment in store.wal.segments()] == [second.path, last.path]
    assert not [name for name in open_files(tmp_path) if second.path.name in name]
    store.close()
