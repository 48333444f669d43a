"""Files that commands write for people: whole and synced under their name, or not there at all."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import IO

from wal_ingest.errors import ConfigError, StorageFailed
from wal_ingest.wal.directory import sync_directory

STDOUT = "-"


class OutFile:
    """A file under construction; `-` is standard output. It gets its name when the block ends without an error.

    Raises `ConfigError` when a file of that name is there, unless `force`; `StorageFailed` when it cannot be written.
    """

    def __init__(self, name: str, *, force: bool = False) -> None:
        self.name = name
        self.is_stdout = name == STDOUT
        self.bytes = 0
        self._force = force
        self._path = Path(name)
        self._new = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        if self.is_stdout:
            self._file: IO[bytes] = sys.stdout.buffer
            return
        self._refuse_existing()
        try:
            self._file = self._new.open("xb")
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
        elif kind is None:
            self._finish()
        else:
            with contextlib.suppress(OSError):
                self._file.close()
            self._new.unlink(missing_ok=True)

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
