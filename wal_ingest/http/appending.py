"""The WAL, as far as the front door knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wal_ingest.wal.entry import NewEntry


class Appended(Protocol):
    """The receipt of an append: the seqs of its first and last entry."""

    @property
    def first_seq(self) -> int: ...

    @property
    def last_seq(self) -> int: ...


class Appender(Protocol):
    """Whoever makes entries durable."""

    async def append(self, entries: Sequence[NewEntry]) -> Appended:
        """Makes all entries durable, or none. Raises ComeBackLater."""
        ...
