"""The WAL, as far as the front door knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from wal_ingest.errors import ComeBackLater
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

    def submit(self, entries: Sequence[NewEntry], told: Callable[[Appended | ComeBackLater], None]) -> None:
        """`append` for whoever cannot wait: `told` is called once, in Trio's thread and later than now.

        It is given what `append` returns or raises, and must not raise. Raises ComeBackLater, and tells nothing, where
        `append` would have taken nothing.
        """
        ...
