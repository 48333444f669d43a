"""The space of a segment that was dropped, given back a piece at a time.

A file system that tells the disk of every freed block (`discard`) does so while it commits its journal, and whoever
syncs then waits: for 25 to 100 ms after 32 MiB, for about as long as usual after one or two. So the file is opened,
loses its name, and is then shortened step by step, between the commits of those who wait for an ack.

Nothing durable depends on it. The name is gone before the first byte is, and after a crash the kernel frees the rest by
itself. Whatever stands in the way of the steps (no descriptor left, a file of another user's, a file system without
leases, one that needs space to free some) only means that the space comes back in one piece, as after any removal.

Only a file that is nobody else's is shortened: it has no name left (a hard link is a backup of somebody's), and nobody
has it open or mapped. A command that reads the log keeps what it reads, and the space comes back when it closes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# What an idle disk takes in between two syncs.
STEP_BYTES = 1 << 20


class Leftover:
    """A file that is about to lose its name, held open for the sake of its space."""

    def __init__(self, path: Path) -> None:
        """Opens the file, if that can be done; the caller removes its name next."""
        self._fd = -1
        self._left_bytes = 0
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._left_bytes = os.fstat(self._fd).st_size

    def give_back(self) -> bool:
        """Frees one step of it. False when nothing is left to free, or nothing may be: then it is closed."""
        self._left_bytes = max(0, self._left_bytes - STEP_BYTES)
        if self._left_bytes:
            with contextlib.suppress(OSError), _ours_alone(self._fd):
                os.ftruncate(self._fd, self._left_bytes)
                return True
        self.close()
        return False

    def close(self) -> None:
        """Lets go of the file: the kernel frees what is left of it at once. May be called again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def _ours_alone(fd: int) -> Iterator[None]:
    """Sees to it that the file has no name, and that nobody else has it open, or opens it meanwhile.

    The kernel grants a write lease on just that condition, to the file's owner (fcntl(2), F_SETLEASE). Whoever opens it
    all the same, through /proc, waits until the lease is given back; of that the kernel tells by a signal, by default
    one that would end the process. Raises OSError when somebody has it.
    """
    if os.fstat(fd).st_nlink:
        raise FileExistsError
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # which is ignored
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
