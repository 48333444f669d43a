"""Disk space held before it is needed.

`fallocate` with KEEP_SIZE gives a file blocks beyond its end without changing its length. What LMDB then writes
there cannot fail for want of space. So a full disk is met here, in a call that has written nothing and may be
repeated, rather than in the middle of a commit, where a failure is final.

Where the file system cannot do it (EOPNOTSUPP), nothing is held, and a full disk during a commit ends the process;
it recovers from what the disk holds.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

from wal_ingest.errors import DiskFull, StorageFailed
from wal_ingest.wal.directory import open_unlinked

_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_NOT_HERE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def is_no_space(number: int) -> bool:
    """Whether an error number says that the disk, or the user's part of it, is full."""
    return number in _NO_SPACE


def is_no_descriptors(number: int) -> bool:
    """Whether an error number says that this process, or the machine, has too many files open."""
    return number in _NO_DESCRIPTORS


def free_disk_bytes(path: Path) -> int:
    """Bytes that this user may still write on the disk that holds `path`."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize


def _fallocate() -> Callable[[int, int, int, int], int]:
    library = ctypes.CDLL(None, use_errno=True)
    offset_t = ctypes.c_int64
    library.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, offset_t, offset_t)

    def call(fd: int, mode: int, offset: int, length: int) -> int:
        return 0 if library.fallocate64(fd, mode, offset, length) == 0 else ctypes.get_errno()

    return call


_call = _fallocate()


def _hold(fd: int, length: int) -> int:
    return _call(fd, _KEEP_SIZE, 0, length)


def hold_space(fd: int, length: int) -> int:
    """Reserves space for a file to grow to `length` bytes: an error number, 0 if it worked or cannot be done."""
    number = _hold(fd, length)
    return 0 if number in _NOT_HERE else number


def punch_hole(fd: int, offset: int, length: int) -> int:
    """Gives back the space of a range of a file, which reads as zeros then: an error number, 0 where it worked."""
    return _call(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


class Reserve:
    """The space held for one file. `hold` is called before each write that may make the file grow."""

    def __init__(self, path: Path, *, make: bool = False) -> None:
        """Opens the file; `make` is for one that is not there yet. Raises `StorageFailed`."""
        self.path = path
        self.held_bytes = 0
        self._possible = True
        try:
            self._fd = open_unlinked(path, os.O_RDWR | (os.O_CREAT | os.O_EXCL if make else 0))
        except OSError as exc:
            raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc

    def hold(self, length: int, *, step: int) -> None:
        """Sees to it that the file may grow to `length` bytes; takes `step` more where there is room for it.

        Raises `DiskFull` when there is not; nothing was written then. `StorageFailed` for any other failure.
        """
        if not self._possible or length <= self.held_bytes:
            return
        for wanted in (length + step, length):
            number = _hold(self._fd, wanted)
            if number == 0:
                self.held_bytes = wanted
                return
            if number in _NOT_HERE:
                self._possible = False
                return
            if not is_no_space(number):
                raise StorageFailed(self.path, f"no space can be reserved: {os.strerror(number)}")
        raise DiskFull(f"the disk is full: {self.path} cannot grow")

    def close(self) -> None:
        """Lets go of the file; what is held stays held."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def give_back(path: Path) -> None:
    """Frees what is held beyond a file's end. Raises `StorageFailed`."""
    try:
        os.truncate(path, path.stat().st_size)
    except OSError as exc:
        raise StorageFailed(path, str(exc.strerror)) from exc
