"""The data directory of a node that has run: entries of five points, one a second."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from tests.wal.factories import Clock, open_store
from wal_ingest.wal.entry import Destination, NewEntry

S = 10**9
# 2026-11-22T21:00:00Z; the first entry is from a second later.
START_NS = 1_795_381_200 * S


def make_node_dir(directory: Path, entries: Iterable[bytes], *, sealed_after: Collection[int] = ()) -> Path:
    """Makes it, with an entry for each of the texts of five lines; a segment ends after each seq of `sealed_after`."""
    clock = Clock(START_NS)
    store = open_store(directory, clock, keep_confirmed_s=0)
    for seq, lines in enumerate(entries, 1):
        clock.now_ns = START_NS + seq * S
        store.wal.commit([[NewEntry(lines, 5, clock.now_ns, "", Destination())]])
        if seq in sealed_after:
            store.wal.seal()
    store.close()
    return directory
