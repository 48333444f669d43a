"""A wall clock for the server that can be set while it runs; the system's own is never touched.

A small library, compiled when it is needed and preloaded into the server, adds an offset to every reading of the
wall clock (clock.c). The offset is in a file that both sides have mapped or open.
"""

from __future__ import annotations

import struct
import subprocess
import threading
import time
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """The offset of the server's clock, now and since when: `set` changes it for the running server too."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock-offset"
        self._file.write_bytes(struct.pack("=q", 0))
        library = folder / "clock.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE, "-ldl"],
            check=True,
            timeout=60,
        )
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._file)}
        self._mutex = threading.Lock()
        self._offsets = [(time.monotonic(), 0)]

    def set(self, offset_ns: int) -> None:
        """Sets the server's clock so many nanoseconds off the system's."""
        with self._mutex:
            with self._file.open("r+b") as file:
                file.write(struct.pack("=q", offset_ns))
            # Noted behind the change: until here a reading may be of either, and whoever began before gets both.
            # Nobody gets an answer in between.
            self._offsets.append((time.monotonic(), offset_ns))

    def range_ns(self, since_s: float) -> tuple[int, int]:
        """The lowest and the highest offset since a moment of `time.monotonic`."""
        with self._mutex:
            before = [offset for at, offset in self._offsets if at <= since_s][-1:]
            since = [offset for at, offset in self._offsets if at > since_s]
        return min(before + since), max(before + since)
