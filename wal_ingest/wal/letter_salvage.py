"""Dead letters out of one file of blocks alone, without the state file that names them.

A block names its sink and its letters, and proves itself by its checksum. Which of its letters were retried or dropped
since, only the state file says: here they are among the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wal_ingest.errors import StorageFailed, WalDamaged
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.letter_blocks import MAGIC, decode_block, header_at


class BadBytes(NamedTuple):
    """Bytes of a file that no letter can be read from: where they begin, and why."""

    offset: int
    reason: str


def letters_in_file(path: Path) -> Iterator[DeadLetter | BadBytes]:
    """The letters of all blocks of a file, in the order of the file, and what cannot be read.

    Raises `WalDamaged` for a file without any block, `StorageFailed`.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc
    at = data.find(MAGIC)
    if at < 0:
        raise WalDamaged(path, "there is no block of dead letters in it")
    end = 0
    while at >= 0:
        try:
            header = header_at(data, at)
            letters = decode_block(data[at : at + header.bytes], header.wal_id, header.block(at))
        except ValueError as exc:
            yield BadBytes(at, str(exc))
            end = at = data.find(MAGIC, at + 1)
            continue
        yield from _between(data, end, at)
        yield from letters
        end = at + header.bytes
        at = data.find(MAGIC, end)
    if end >= 0:
        yield from _between(data, end, len(data))


def _between(data: bytes, start: int, end: int) -> Iterator[BadBytes]:
    """What stands between two blocks: nothing, or the zeros of a hole."""
    if data.count(0, start, end) != end - start:
        yield BadBytes(start, f"{end - start:,} bytes belong to no block")
