"""The disk under the server's data: one that can lose power and fill up, where there is root; else just a folder."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from tests.rigs.loop_image import PATIENT, copy_as_cut, make_image, mounted

DISK_BYTES = 256 * 1024 * 1024
_BALLAST = "ballast"


class Disk:
    """A file system in an image. `path` is where it is mounted: elsewhere after each power cut."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._number = 0
        self._full = False
        self._mounts = ExitStack()
        self._before = ExitStack()
        self.path = root

    def __enter__(self) -> Disk:
        make_image(self._image, bytes_max=DISK_BYTES)
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._before:
            self._mounts.close()

    @property
    def _image(self) -> Path:
        return self._root / f"disk-{self._number}.img"

    def _mount(self) -> None:
        where = self._root / f"disk-{self._number}"
        self.path = self._mounts.enter_context(mounted(self._image, where, options=PATIENT))

    def cut_power(self) -> None:
        """From now on `path` holds what the disk holds. Whoever wrote to it is stopped; end it, then `forget`."""
        before = self._image
        self._number += 1
        copy_as_cut(before, self._image)
        self._before = self._mounts.pop_all()
        self._mount()
        if not self._full:
            # It may have come back: that it was removed need not have reached the disk.
            (self.path / _BALLAST).unlink(missing_ok=True)

    def forget(self) -> None:
        """Lets go of the disk as it was before the cut; nobody has a file open there any more."""
        self._before.close()
        (self._root / f"disk-{self._number - 1}.img").unlink()

    def fill(self, *, leave_bytes: int) -> None:
        """Leaves so many bytes free, more or less."""
        self._full = True
        with (self.path / _BALLAST).open("ab") as file:
            free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
            if free > leave_bytes:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + free - leave_bytes)

    def free(self) -> None:
        """Gives back what `fill` took."""
        self._full = False
        (self.path / _BALLAST).unlink(missing_ok=True)
