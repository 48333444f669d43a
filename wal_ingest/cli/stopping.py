"""Ctrl-C and SIGTERM as a wish that a command meets at its next good place, never within a line or a commit."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from types import FrameType

from wal_ingest.errors import WalIngestError


class Interrupted(WalIngestError):
    """The operator ended the command before it was done."""


class Stop:
    """While it is entered, the first signal is noted in `wished`; a second one ends the command as usual.

    Unless `ends` is false: then somebody else reads `fileno`, a byte for each signal, and does it.
    """

    def __init__(self, *, ends: bool = True) -> None:
        self.wished = False
        self._ends = ends

    def __enter__(self) -> Stop:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.wished and self._ends:
            raise KeyboardInterrupt
        self.wished = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"!")

    def fileno(self) -> int:
        """What becomes readable with a signal."""
        return self._read

    def wait(self, seconds: float, *, for_reader: bool = False) -> None:
        """Waits so long, or until a signal comes.

        With `for_reader` raises BrokenPipeError as soon as whoever reads standard output has gone.
        """
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        if for_reader:
            poller.register(sys.stdout.fileno(), 0)
        for fd, _event in poller.poll(seconds * 1000):
            if fd != self._read:
                raise BrokenPipeError("the reader has gone")
