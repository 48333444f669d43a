"""A sector that the disk cannot read (EIO): it costs what is on it, and keeps nothing else from being delivered."""

from __future__ import annotations

import contextlib
import errno
import os
from itertools import count
from pathlib import Path

import pytest

from tests.model.inline import read_everything
from tests.wal.factories import new_entry, open_store
from wal_ingest.errors import SectorUnreadable, StorageFailed
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.lmdb_file import verify as verify_pages
from wal_ingest.wal.page_scan import PageScan
from wal_ingest.wal.reading import WalReader
from wal_ingest.wal.salvage import Salvage
from wal_ingest.wal.segment import segment_name
from wal_ingest.wal.verify import verify

PAGE = 4096
ENTRIES = 12
PREAD = os.pread


class BadSector:
    """A page of a file that cannot be read, under whichever name the file has."""

    def __init__(self, path: Path, page: int) -> None:
        self._file = path.stat().st_ino
        self._page = page

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        start, end = self._page * PAGE, (self._page + 1) * PAGE
        if os.fstat(fd).st_ino != self._file or offset >= end or offset + length <= start:
            return PREAD(fd, length, offset)
        if offset < start:
            return PREAD(fd, start - offset, offset)  # as a disk does: what is before it can be had
        raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """A sealed segment of small and large entries, and one after it."""
    store = open_store(tmp_path)
    for number in range(1, ENTRIES + 1):
        store.wal.commit([[new_entry(number, points=3, filler=6000 if number % 3 == 0 else 10)]])
    store.wal.seal()
    store.wal.commit([[new_entry(ENTRIES + 1)]])
    store.close()
    return tmp_path / "wal" / segment_name(1)


def test_whichever_page_cannot_be_read_the_node_starts_and_delivers_what_is_not_on_it(
    tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = segment.read_bytes()
    state = (tmp_path / "state.lmdb").read_bytes()
    store = open_store(tmp_path)
    whole = read_everything(store)
    store.close()
    costs = []
    for page in range(len(content) // PAGE):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pread", BadSector(segment, page).pread)
            store = open_store(tmp_path)
            found = read_everything(store)
            [moved] = store.wal.damaged
            assert f"byte {page * PAGE}" in moved.reason or "cannot be read" in moved.reason
            assert all(found[seq] == whole[seq] for seq in found)
            assert max(found) == ENTRIES + 1
            lost = set(whole) - set(found)
            assert moved.lost_points == 3 * len(lost)
            costs.append(len(lost))
            store.close()
        moved.path.rename(segment)
        (tmp_path / "state.lmdb").write_bytes(state)
    # A leaf holds several small entries, of which the file often has older copies.
    assert max(costs) <= 4
    assert costs.count(0) >= 3


def test_the_tools_read_around_a_page_that_cannot_be_read(
    tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_page = segment.stat().st_size // PAGE - 1
    for page in range(last_page + 1):
        monkeypatch.setattr(os, "pread", BadSector(segment, page).pread)
        report = verify(tmp_path, total=lambda _bytes: None, done=lambda _bytes: None)
        assert not report.whole
        assert report.segments[0].pages
        with WalReader(tmp_path) as reader:
            found = [item for item in reader.entries() if not hasattr(item, "reason")]
        assert len(found) >= ENTRIES + 1 - 4
        rescue = Salvage([segment])
        assert len(list(rescue.read(rescue.segments[0]))) >= ENTRIES - 4
        rescue.close()


def test_the_engine_is_given_no_file_that_cannot_be_read_whole(
    segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pread", BadSector(segment, 5).pread)
    with pytest.raises(SectorUnreadable, match=f"byte {5 * PAGE} cannot be read"):
        verify_pages(segment)


def test_a_disk_that_gives_nothing_any_more_is_no_damage_to_deliver_around(
    segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From whichever read on it fails: no entry may be passed over that the disk in order still has."""
    left = 0

    def failing(fd: int, length: int, offset: int) -> bytes:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return PREAD(fd, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    messages = []
    for left in count():
        reads = left
        try:
            scan = PageScan(segment, delivering=True)
        except StorageFailed as exc:
            messages.append(str(exc))
            left = reads
            with contextlib.suppress(StorageFailed):
                PageScan(segment).close()  # the tools read what there is
            continue
        assert left >= 0
        assert scan.seqs == list(range(1, ENTRIES + 1))
        scan.close()
        break
    assert "no byte of it can be read" in messages[0]
    assert len(messages) > 3
    assert all("it cannot be read any more" in message for message in messages[1:])


def test_a_meta_page_that_the_engine_cannot_read_is_damage(
    tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: LmdbFile, path: Path, **options: object) -> None:
        if path == segment:
            raise StorageFailed(path, os.strerror(number), number=number)
        made(file, path, **options)  # type: ignore[arg-type]

    store = open_store(tmp_path)
    made = LmdbFile.__init__
    monkeypatch.setattr(LmdbFile, "__init__", fails)
    number = errno.ENOMEM
    with pytest.raises(StorageFailed, match="Cannot allocate memory"):  # the file is not to blame
        read_everything(store)
    assert store.wal.damaged == []
    number = errno.EIO
    assert len(read_everything(store)) == ENTRIES + 1
    assert len(store.wal.damaged) == 1
    store.close()


def test_a_state_file_that_cannot_be_read_is_left_where_it_is(
    tmp_path: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert segment.exists()
    monkeypatch.setattr(os, "pread", BadSector(tmp_path / "state.lmdb", 0).pread)
    with pytest.raises(StorageFailed, match="cannot be read"):
        open_store(tmp_path)
    assert (tmp_path / "state.lmdb").exists()
