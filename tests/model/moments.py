"""Every moment at which a process may be killed between two steps, and a copy of the disk as it was then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from wal_ingest.wal.letter_files import LetterFiles
from wal_ingest.wal.lmdb_file import LmdbFile


class Killed(BaseException):
    """The process is dead: nothing that it does from here on counts. Not an Exception, so that nobody mends it."""


class Moments:
    """Counts the moments before and after each change of a file; at the chosen one, copies the disk and kills.

    A killed process does not stop by itself, it is a test's; what it still writes goes to the directory that the
    copy was made of, which nobody looks at again.
    """

    def __init__(self) -> None:
        self._left: int | None = None
        self._source = self._target = Path()
        self.dead = False
        self.struck = 0
        self._patches: list[Any] = [
            mock.patch.object(LmdbFile, "append", self._watched(LmdbFile.append)),
            mock.patch.object(LmdbFile, "write", self._watched(LmdbFile.write)),
            mock.patch.object(LmdbFile, "copy", self._watched(LmdbFile.copy)),
            mock.patch.object(LetterFiles, "_begin", self._watched(LetterFiles._begin)),
            mock.patch.object(LetterFiles, "_write", self._watched(LetterFiles._write)),
            mock.patch.object(LetterFiles, "give_back", self._watched(LetterFiles.give_back)),
            mock.patch.object(Path, "rename", self._watched(Path.rename)),
            mock.patch.object(Path, "unlink", self._watched(Path.unlink)),
        ]
        for patch in self._patches:
            patch.start()

    def close(self) -> None:
        """Stops watching."""
        for patch in self._patches:
            patch.stop()

    def kill_after(self, count: int | None) -> None:
        """The process dies at the so many-th moment from now; None, and it lives."""
        self._left = count

    def born(self, source: Path, target: Path) -> None:
        """A process begins over `source`; when it is killed, the disk is found at `target`."""
        self._source, self._target = source, target
        self.dead = False

    def moment(self) -> None:
        """Between two steps. Raises `Killed` when it is the chosen one, or the process is dead already."""
        if self.dead:
            raise Killed
        if self._left is None:
            return
        self._left -= 1
        if self._left <= 0:
            self._left = None
            self.die()

    def die(self) -> None:
        """Now. Raises `Killed`."""
        shutil.copytree(self._source, self._target)
        self.dead = True
        self.struck += 1
        raise Killed

    def _watched(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            self.moment()
            result = act(*args, **options)
            self.moment()
            return result

        return watched
