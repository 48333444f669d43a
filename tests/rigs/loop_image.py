"""A disk that can lose power: an ext4 file system in an image file, mounted through a loop device.

What the file system has written to its disk is in the image file; what only lies in its page cache is not.
So a copy of the image that is taken without unmounting is the disk as a power cut leaves it: everything
synced is there, nothing that the kernel had not got round to. Three things keep that honest:

* `PATIENT` makes ext4's own timer, which would sync the journal every 5 s, wait far longer than a round;
* a round is shorter than the 30 s after which the kernel writes old pages back by itself;
* the copy is taken while the writing process is stopped or dead, so that it is one moment's image.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.rigs.processes import find_program

# ext4's own timer waits longer than any round.
PATIENT = "commit=600"


@contextmanager
def mounted_image(root: Path, *, bytes_max: int) -> Iterator[LoopImage]:
    """A fresh image below `root`, mounted; unmounted and detached at the end."""
    image = root / "disk.img"
    make_image(image, bytes_max=bytes_max)
    with mounted(image, root / "disk", options=PATIENT) as where:
        yield LoopImage(root, image, where)


def make_image(image: Path, *, bytes_max: int) -> None:
    """A fresh ext4 file system in a sparse file."""
    with image.open("wb") as file:
        file.truncate(bytes_max)
    # Without lazy initialisation no kernel thread writes to the disk behind the test's back.
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-F", str(image))


def copy_as_cut(image: Path, copy: Path) -> None:
    """The image as a power cut at this moment leaves it; the file system in it stays mounted."""
    _run("cp", "--sparse=always", "--reflink=never", str(image), str(copy))


class LoopImage:
    """A mounted image; `path` is where."""

    def __init__(self, root: Path, image: Path, path: Path) -> None:
        self._root = root
        self._image = image
        self.path = path

    def settle(self) -> None:
        """Everything written so far reaches the disk: the state before the power cut's own story begins."""
        _run("sync", "-f", str(self.path))

    @contextmanager
    def as_after_a_power_cut(self) -> Iterator[Path]:
        """Copies the image as it is, with the file system mounted, and mounts the copy; gives where."""
        copy = self._root / "after-the-cut.img"
        copy_as_cut(self._image, copy)
        try:
            with mounted(copy, self._root / "after-the-cut", options="noatime") as where:
                yield where
        finally:
            copy.unlink()


@contextmanager
def mounted(image: Path, where: Path, *, options: str) -> Iterator[Path]:
    """Mounts an image at `where`, which is made; unmounted and detached at the end."""
    where.mkdir()
    device = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        _run("mount", "-t", "ext4", "-o", options, device, str(where))
        try:
            yield where
        finally:
            _run("umount", str(where))
    finally:
        _run("losetup", "--detach", device)
        shutil.rmtree(where)


def remount_read_only(where: Path) -> None:
    """Makes a mounted file system read-only, as the kernel does with one that has failed."""
    _run("mount", "-o", "remount,ro", str(where))


def _run(*command: str) -> str:
    program = find_program(command[0])
    assert program is not None, f"{command[0]} is missing"
    ran = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, f"{' '.join(command)}: {ran.stderr}"
    return ran.stdout
