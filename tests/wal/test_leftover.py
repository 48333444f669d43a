"""The space of dropped segments is given back a step at a time, and never from under somebody who reads."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

import pytest

from tests.wal.factories import fill, open_store, read_all
from wal_ingest.errors import StorageFailed
from wal_ingest.wal.leftover import STEP_BYTES, Leftover
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


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match=r"gone\.lmdb.*cannot be opened: No such file"):
        Leftover(tmp_path / "gone.lmdb")


def test_a_disk_that_fails_is_told_and_the_file_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_fd: int, _length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    leftover = dropped(path)
    monkeypatch.setattr(os, "ftruncate", fails)
    with pytest.raises(StorageFailed, match="its space cannot be given back: Input/output error") as caught:
        leftover.give_back()
    assert caught.value.number == errno.EIO
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
