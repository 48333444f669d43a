"""The files of dead letters, `dead_letters/<number, 20 digits>.letters`: blocks, one after the other, and nothing else.

Invariants:

* A block is written and synced, and so is its file's name, before the state file records it. Bytes that no record names
  are those of a write that was not finished, or of letters that were removed: no caller was promised them.
* A file is written to by the life of the process that began it, and by no other. Where a write or a sync fails, the
  file is written to no more, so a sync is never tried again.
* Space is given back only after the transaction that removed the records of the blocks in it: a hole for blocks that
  lie between others, the file itself once none is left.

What each file takes is asked of the file system, so that a hole that it cannot make counts as taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from wal_ingest.errors import DiskFull, StorageFailed, WalDamaged
from wal_ingest.wal.directory import remove, sync_directory
from wal_ingest.wal.letter_blocks import BlockRecord
from wal_ingest.wal.lmdb_pages import read_bytes
from wal_ingest.wal.space import hold_space, is_no_descriptors, is_no_space, punch_hole

LETTERS_DIR = "dead_letters"
SUFFIX = ".letters"
# Space comes back a file at a time where the file system makes no holes.
FILE_BYTES = 4 << 20
_DIGITS = 20


def file_name(number: int) -> str:
    """The name of a file of blocks."""
    return f"{number:0{_DIGITS}d}{SUFFIX}"


def file_numbers(directory: Path) -> list[int]:
    """The files of blocks that are in a directory, by number; none where there is no directory."""
    paths = directory.glob("[0-9]" * _DIGITS + SUFFIX)
    return sorted(int(path.name.removesuffix(SUFFIX)) for path in paths)


def read_block_bytes(directory: Path, record: BlockRecord) -> bytes:
    """A block's bytes, fewer where the file ends. Raises `WalDamaged` when there is no file, `StorageFailed`."""
    path = directory / file_name(record.file)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise WalDamaged(path, "the file is missing") from exc
    except OSError as exc:
        raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc
    try:
        return read_bytes(path, fd, record.offset, record.bytes)
    finally:
        os.close(fd)


class LetterFiles:
    """The directory, and the file that is written to. Not for two threads at once."""

    def __init__(self, data_dir: Path) -> None:
        """Looks at what is there; the directory is made when the first file is. Raises `StorageFailed`."""
        self.directory = data_dir / LETTERS_DIR
        self._bytes: dict[int, int] = {}
        self._fd: int | None = None
        self._number = 0
        self._end = 0
        self._kept_end = 0  # of what was synced, and may be recorded by now
        for number in self.numbers():
            self._bytes[number] = self._size_of(number)

    def numbers(self) -> list[int]:
        """The files that are there, by number."""
        return file_numbers(self.directory)

    @property
    def used_bytes(self) -> int:
        """Bytes that all of them take on disk."""
        return sum(self._bytes.values())

    def append(self, blocks: Sequence[bytes], *, begin: Callable[[], int]) -> list[tuple[int, int]]:
        """Writes blocks, durably; gives the file and offset of each.

        `begin` notes that a file is begun, durably, and gives its number. Raises `DiskFull`: what was written then
        counts for nothing, and the same may be tried again; `StorageFailed`.
        """
        places = []
        try:
            for data in blocks:
                if self._fd is None or (self._end and self._end + len(data) > FILE_BYTES):
                    self._finish()
                    self._begin(begin())
                places.append((self._number, self._end))
                self._write(data)
            self._sync()
        except OSError as exc:
            path = self._path(self._number)
            self.abandon(keep=self._kept_end)
            if is_no_space(exc.errno or 0) or is_no_descriptors(exc.errno or 0):
                raise DiskFull(f"{path} cannot be written: {exc.strerror}") from exc
            raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc
        return places

    def _begin(self, number: int) -> None:
        self._number, self._end, self._kept_end = number, 0, 0
        self._bytes[number] = 0
        with contextlib.suppress(FileExistsError):
            self.directory.mkdir(mode=0o750)
            _sync_name(self.directory.parent)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(self._path(number), flags, 0o640)
        _sync_name(self.directory)

    def _write(self, data: bytes) -> None:
        assert self._fd is not None
        # A full disk is met here, before anything was written; after that the writes cannot fail for lack of space.
        number = hold_space(self._fd, self._end + len(data))
        if number:
            raise OSError(number, os.strerror(number))
        view, at = memoryview(data), self._end
        while view:
            written = os.pwrite(self._fd, view, at)
            view, at = view[written:], at + written
        self._end = at

    def _sync(self) -> None:
        if self._fd is not None:
            os.fsync(self._fd)
            self._kept_end = self._end
            self._bytes[self._number] = os.fstat(self._fd).st_blocks * 512

    def _finish(self) -> None:
        """The file is full: it is synced, and written to no more."""
        self._sync()
        self.close()

    def abandon(self, *, keep: int | None = None) -> None:
        """Writes no more to the file that is written to; the next block begins another one.

        `keep` is where to cut off what was not finished, and which no record names: it would only take space.
        """
        number, self._number = self._number, 0
        if keep is not None and self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, keep)
        self.close()
        with contextlib.suppress(StorageFailed):
            self._bytes[number] = self._size_of(number)

    def close(self) -> None:
        """Closes the file that is written to."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.close(fd)

    def give_back(self, number: int, live: Iterable[BlockRecord], dead: Iterable[BlockRecord]) -> bool:
        """Frees what dead blocks took in a file; true when none is left in it, and the file is gone.

        Where that fails, the space stays taken: a start tries once more. Nothing else depends on it.
        """
        edges = sorted((record.offset, record.offset + record.bytes) for record in live)
        path = self._path(number)
        if not edges:
            if number == self._number:
                self.abandon()
            try:
                remove(path)
                sync_directory(self.directory)
            except StorageFailed:
                return False
            self._bytes.pop(number, None)
            return True
        with contextlib.suppress(OSError, StorageFailed):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                for record in dead:
                    # What is dead around it is freed with it: blocks share pages with their neighbours.
                    begin = max((end for _, end in edges if end <= record.offset), default=0)
                    after = record.offset + record.bytes
                    end = min((start for start, _ in edges if start >= after), default=after)
                    punch_hole(fd, begin, end - begin)
            finally:
                os.close(fd)
            self._bytes[number] = self._size_of(number)
        return False

    def forget(self, number: int) -> None:
        """A file was moved elsewhere."""
        self._bytes.pop(number, None)

    def _size_of(self, number: int) -> int:
        path = self._path(number)
        try:
            return path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0
        except OSError as exc:
            raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc

    def _path(self, number: int) -> Path:
        return self.directory / file_name(number)


def _sync_name(directory: Path) -> None:
    """`sync_directory`, with an OSError. The name that it fails for is used no more, so it is not tried again."""
    try:
        sync_directory(directory)
    except StorageFailed as exc:
        raise OSError(exc.number or errno.EIO, exc.reason) from exc
