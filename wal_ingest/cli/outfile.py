"""Files that commands write for people: whole and synced under their name, or not there at all.

A regular file is written beside its name and renamed when it is whole. Renaming would replace anything else, so:

| what has the name | what happens |
|---|---|
| a link to a regular file, or to nothing yet | the link stays; its target is replaced |
| a pipe, a socket, a character device, anything under /dev or /proc | it is written into as it is |
| a directory, a block device | refused |
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from wal_ingest.errors import ConfigError, StorageFailed
from wal_ingest.wal.directory import sync_directory

STDOUT = "-"


# What is opened below these is the kernel's, such as /dev/stdout: a rename there would break it for everybody.
_SPECIAL = (Path("/dev"), Path("/proc"))


class OutFile:
    """A file under construction; `-` is standard output. It gets its name when the block ends without an error.

    Raises `ConfigError` when a file of that name is there, unless `force`, or when it is nothing that can be written;
    `StorageFailed` when writing fails.
    """

    def __init__(self, name: str, *, force: bool = False) -> None:
        self.name = name
        self.is_stdout = name == STDOUT
        self.bytes = 0
        self._force = force
        self._path = Path(name)
        if self.is_stdout:
            self._file: IO[bytes] = sys.stdout.buffer
            return
        self._in_place = _is_written_in_place(self._path)
        if not self._in_place:
            # A link stays a link: what it points to is replaced.
            self._path = Path(os.path.realpath(name))
            self._refuse_existing()
        self._new = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        try:
            self._file = self._path.open("wb") if self._in_place else self._new.open("xb")
        except OSError as exc:
            raise StorageFailed(
                self._path, f"cannot be written: {exc.strerror}", number=exc.errno or 0
            ) from exc

    def _refuse_existing(self) -> None:
        if not self._force and self._path.exists():
            raise ConfigError(
                f"{self._path} is there already", hint="choose another name; nothing is overwritten"
            )

    def write(self, data: bytes) -> None:
        """Raises `StorageFailed`, BrokenPipeError when the reader of standard output has gone."""
        try:
            self._file.write(data)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise StorageFailed(
                self._path, f"cannot be written: {exc.strerror}", number=exc.errno or 0
            ) from exc
        self.bytes += len(data)

    def __enter__(self) -> OutFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_stdout:
            self._file.flush()
        elif self._in_place:
            self._finish_in_place(failed=kind is not None)
        elif kind is None:
            self._finish()
        else:
            with contextlib.suppress(OSError):
                self._file.close()
            self._new.unlink(missing_ok=True)

    def _finish_in_place(self, *, failed: bool) -> None:
        """Neither a sync nor a rename: most of what is written like this knows neither."""
        try:
            self._file.close()
        except OSError as exc:
            if not failed and not isinstance(exc, BrokenPipeError):
                raise StorageFailed(
                    self._path, f"cannot be written: {exc.strerror}", number=exc.errno or 0
                ) from exc
            if not failed:
                raise

    def _finish(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            # Another may have taken the name meanwhile.
            self._refuse_existing()
            self._new.rename(self._path)
        except OSError as exc:
            self._new.unlink(missing_ok=True)
            raise StorageFailed(
                self._path, f"cannot be written: {exc.strerror}", number=exc.errno or 0
            ) from exc
        except ConfigError:
            self._new.unlink(missing_ok=True)
            raise
        sync_directory(self._path.absolute().parent)


def _is_written_in_place(path: Path) -> bool:
    """Whether renaming must not replace what has the name. Raises `ConfigError` for what cannot be written at all."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False  # nothing is there, or it cannot be looked at: opening it tells
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path} is a directory", hint="name a file in it")
    if stat.S_ISBLK(mode):
        raise ConfigError(f"{path} is a block device, and nothing is written to one", hint="name a file")
    return not stat.S_ISREG(mode) or any(path.absolute().is_relative_to(top) for top in _SPECIAL)
