"""Entries for the tests of the WAL: small, distinct, and told apart by their number."""

from __future__ import annotations

import os
from pathlib import Path

from wal_ingest.settings import WalSettings
from wal_ingest.wal.entry import Destination, NewEntry
from wal_ingest.wal.store import Store

MIB = 1 << 20


class Clock:
    """A wall clock that stands still until it is moved."""

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance_s(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


def new_entry(number: int, *, points: int = 1, filler: int = 0, accepted_ns: int = 5) -> NewEntry:
    """An entry of so many points whose lines say its number; `filler` bytes of tag make each longer."""
    line = b"m%s v=%d %d\n" % (b",t=" + b"x" * filler if filler else b"", number, number + 1)
    return NewEntry(line * points, points, accepted_ns, f"host-{number}", Destination("org", "bucket"))


def settings(**changes: object) -> WalSettings:
    """Small limits, so that tests meet them."""
    values: dict[str, object] = {"segment_bytes_max": MIB, "free_disk_bytes_min": 0, **changes}
    return WalSettings(**values)  # type: ignore[arg-type]


def open_store(directory: Path, clock: Clock | None = None, **changes: object) -> Store:
    """A data directory, opened."""
    return Store(directory, settings(**changes), now_ns=clock or Clock())


def read_all(store: Store, after_seq: int = 0) -> list[tuple[int, bytes]]:
    """Every entry behind a seq: its seq and its lines."""
    found = []
    while entries := store.wal.read(after_seq, bytes_max=MIB):
        found += [(entry.seq, entry.lines()) for entry in entries]
        after_seq = entries[-1].seq
    return found


def fill(store: Store, count: int, *, start: int = 1, filler: int = 100_000) -> None:
    """Commits entries one by one; with the filler, each takes about its size on disk (hex halves)."""
    for number in range(start, start + count):
        noise = os.urandom(filler).hex().encode()
        store.wal.commit([[NewEntry(b'm t="%s" %d\n' % (noise, number), 1, 5)]])
