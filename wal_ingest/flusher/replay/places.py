"""What a replay is made of: a range, places in its sources, and units of points that are read there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

from wal_ingest.wal.entry import Entry
from wal_ingest.wal.lost import Lost

# Gives those of some canonical lines that are wanted, and how many they are.
Select = Callable[[bytes], tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class Range:
    """What was accepted in a span of time, or lies in a range of seqs.

    `since_ns` is Unix time in nanoseconds, `until_ns` the first moment that does not belong to it; `since_ns` is None
    when the range is one of seqs. `first_seq` and `last_seq` are both included.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    first_seq: int = 1
    last_seq: int | None = None


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """How far a replay has come: everything up to here is settled.

    In the WAL `seq` is the last settled entry and `accepted_ns` its time. In the archive `file` (below the archive)
    is settled up to the gzip member at `offset`, and of that one so many `lines`.
    """

    source: str
    seq: int = 0
    accepted_ns: int = 0
    file: str = ""
    offset: int = 0
    lines: int = 0


class Unit(NamedTuple):
    """Some points, perhaps none after the selection, and the place behind them; None when it can only be told later."""

    entry: Entry
    place: Place | None


@dataclass(slots=True)
class Passed:
    """What was read of a source so far, before any selection. `entries` counts gzip members in the archive.

    `first_ns` and `last_ns` are the earliest and the latest time of acceptance, 0 before the first entry.
    """

    entries: int = 0
    points: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def note(self, *, points: int, stored_bytes: int, raw_bytes: int, accepted_ns: int) -> None:
        """Counts one entry, or one gzip member of the archive."""
        self.entries += 1
        self.points += points
        self.stored_bytes += stored_bytes
        self.raw_bytes += raw_bytes
        self.first_ns = min(self.first_ns or accepted_ns, accepted_ns)
        self.last_ns = max(self.last_ns, accepted_ns)


class Source(Protocol):
    """Where a replay reads. `name` is "wal" or "archive"; `passed` counts what `items` gave so far."""

    name: str
    passed: Passed

    def expected_points(self) -> int:
        """How many points will be read in all, before any selection: a good guess, cheaply made."""
        ...

    def items(self) -> Iterator[Unit | Lost]:
        """The points, in order, and what is lost between them. Blocks on the disk. Raises as opening does."""
        ...

    def describe(self) -> str:
        """What is read, in words: "seqs 17 to 42 of the WAL"."""
        ...
