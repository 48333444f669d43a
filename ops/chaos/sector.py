"""A page of a file that the server cannot read, as if the sector under it were bad; the file itself stays as it is.

As with the clock, a small library is preloaded into the server (sector.c), and reads from a file which page it is.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

PAGE_BYTES = 4096
_SOURCE = Path(__file__).with_name("sector.c")
_NONE = struct.pack("=4Q", 0, 0, 0, 0)


class Sector:
    """At most one page at a time, under whichever name the file has. `struck` counts the pages so far."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "bad-sector"
        self._file.write_bytes(_NONE)
        library = folder / "sector.so"
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, _SOURCE, "-ldl"],
            check=True,
            timeout=60,
        )
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_SECTOR": str(self._file)}
        self.struck = 0

    def strike(self, path: Path, page: int) -> None:
        """From now on this page of the file cannot be read. Raises FileNotFoundError when the file is gone."""
        found = path.stat()
        self._write(
            struct.pack("=4Q", found.st_dev, found.st_ino, page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        )
        self.struck += 1

    def heal(self) -> None:
        """Everything can be read again."""
        self._write(_NONE)

    def _write(self, content: bytes) -> None:
        with self._file.open("r+b") as file:
            file.write(content)
