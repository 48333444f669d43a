"""The space of a segment that was dropped, given back a piece at a time.

A file system that tells the disk of every freed block (`discard`) does so while it commits its journal, and whoever
syncs then waits: for 25 to 100 ms after 32 MiB, for about as long as usual after 2 MiB. So the file is opened, loses
its name, and is then shortened step by step, between the commits of those who wait for an ack.

Nothing durable depends on it. The name is gone, and durably so, before the first byte is; after a crash the kernel
frees the rest by itself. A file that somebody else still has open (a command that reads the log) is not touched: what
was read from it must stay, and its space comes back with the last who closes it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from wal_ingest.errors import StorageFailed

# What an idle disk takes in between two syncs.
STEP_BYTES = 2 << 20


class Leftover:
    """A file that is about to lose its name, held open for the sake of its space."""

    def __init__(self, path: Path) -> None:
        """Opens the file; the caller removes its name next. Raises `StorageFailed`."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._left_bytes = os.fstat(self._fd).st_size
        except OSError as exc:
            raise StorageFailed(path, f"cannot be opened: {exc.strerror}", number=exc.errno or 0) from exc

    def give_back(self) -> bool:
        """Frees one step of it. False when nothing is left to free, or nothing may be: then it is closed.

        Raises `StorageFailed`.
        """
        self._left_bytes = max(0, self._left_bytes - STEP_BYTES)
        if not self._left_bytes or not self._is_ours_alone():
            self.close()
            return False
        try:
            os.ftruncate(self._fd, self._left_bytes)
        except OSError as exc:
            self.close()
            raise StorageFailed(
                self.path, f"its space cannot be given back: {exc.strerror}", number=exc.errno or 0
            ) from exc
        return True

    def _is_ours_alone(self) -> bool:
        """Whether nobody else has the file open or mapped; nobody can open it any more, without a name.

        The kernel grants a write lease on just that condition (fcntl(2), F_SETLEASE).
        """
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:  # somebody has; or this file system knows no leases, and then it goes in one piece
            return False
        return True

    def close(self) -> None:
        """Lets go of the file: the kernel frees what is left of it at once. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
