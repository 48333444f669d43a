"""What commands read: files, pipes and standard input (`-`), plain or gzip, whichever it is."""

from __future__ import annotations

import gzip
import io
import os
import select
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from wal_ingest.errors import WalIngestError
from wal_ingest.points.text import UTF_16_MARKS

STDIN = "-"
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK_BYTES = 1 << 20
# A line this long is no line: memory has an end.
_LINE_BYTES_MAX = 64 << 20


class UnreadableFile(WalIngestError):
    """A file is not there, is no whole gzip, or holds no lines."""


class InFile:
    """A file being read. `begin` are its first bytes after decompression, as many as come without waiting twice.

    Raises `UnreadableFile`, as `read` and `seek` do.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen = 0
        self._is_begun = False
        try:
            # Closed by `__exit__`.
            opened = sys.stdin.buffer if name == STDIN else Path(name).open("rb")  # noqa: SIM115
            self._raw = cast(io.BufferedReader, opened)
            # A pipe has no position and no length, and may keep its reader waiting; whatever its name is.
            self.is_pipe = name == STDIN or not stat.S_ISREG(os.fstat(self._raw.fileno()).st_mode)
            packed = self._raw.peek(2)[:2] == _GZIP_MAGIC
            self._file = cast(IO[bytes], gzip.GzipFile(fileobj=self._raw)) if packed else self._raw
            self.is_gzip = packed
            self.begin: bytes = self._file.peek(4096)  # type: ignore[attr-defined]
        except (OSError, EOFError, zlib.error) as exc:
            raise self._unreadable(exc) from exc
        if self.begin.startswith(UTF_16_MARKS):
            error = UnreadableFile(f"{name} is UTF-16, and only UTF-8 is read")
            error.hint = f"iconv -f UTF-16 -t UTF-8 {name} > NEW_FILE"
            raise error

    def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the end."""
        try:
            return self._file.read(size)
        except (OSError, EOFError, zlib.error) as exc:
            raise self._unreadable(exc) from exc

    def read_soon(self, size: int, wait_s: float) -> bytes | None:
        """What there is of the next bytes; None when nothing came for so long. A file on a disk is always there."""
        if not self.is_pipe or self.is_gzip:
            return self.read(size)
        # What was read ahead for `begin` is there, and taken whole by the first call; nothing else is read ahead.
        if self._is_begun and not self._poll(wait_s):
            return None
        self._is_begun = True
        try:
            return self._raw.read1(max(size, len(self.begin)))
        except OSError as exc:
            raise self._unreadable(exc) from exc

    def _poll(self, wait_s: float) -> bool:
        poller = select.poll()
        poller.register(self._raw.fileno(), select.POLLIN)
        return bool(poller.poll(wait_s * 1000))

    def seek(self, position: int) -> None:
        """Goes on behind so many bytes, counted after decompression."""
        try:
            self._file.seek(position)
        except (OSError, EOFError, zlib.error) as exc:
            raise self._unreadable(exc) from exc

    def advanced(self) -> int:
        """How many bytes of the file itself were read since the last call; 0 for a pipe."""
        if self.is_pipe:
            return 0
        before, self._seen = self._seen, self._raw.tell()
        return self._seen - before

    def _unreadable(self, exc: Exception) -> UnreadableFile:
        reason = getattr(exc, "strerror", None) or exc
        return UnreadableFile(f"{self.name} cannot be read: {reason}")

    def __enter__(self) -> InFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.name != STDIN:
            self._raw.close()


def whole_lines(file: InFile, *, idle_s: float | None = None) -> Iterator[bytes]:
    """Whole lines, about a mebibyte at a time, each ended by a line feed (the last one gets it where it has none).

    With `idle_s` an empty piece comes whenever a pipe gave nothing for so long. Raises `UnreadableFile`.
    """
    rest: list[bytes] = []
    held = 0
    while True:
        data = file.read(_BLOCK_BYTES) if idle_s is None else file.read_soon(_BLOCK_BYTES, idle_s)
        if data is None:
            yield b""
            continue
        if not data:
            break
        end = data.rfind(b"\n") + 1
        if end:
            rest.append(data[:end])
            yield b"".join(rest)
            rest, held = [], 0
        if end < len(data):
            rest.append(data[end:])
            held += len(data) - end
            if held > _LINE_BYTES_MAX:
                raise UnreadableFile(f"{file.name} has a line of more than {_LINE_BYTES_MAX} bytes")
    if held:
        yield b"".join(rest) + b"\n"
