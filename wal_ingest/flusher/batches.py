"""Entries become batches: consecutive, of one group, at most so many points. Pure.

A batch is gzip members behind each other, as they lie in the WAL: RFC 1952 makes that one valid stream, and
points that were compressed once at the front door are never decompressed on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

from wal_ingest.wal.entry import Destination
from wal_ingest.wal.gzip_codec import decompress


@dataclass(frozen=True, slots=True)
class Batch:
    """Points on their way to a sink: those of the entries `first_seq` … `last_seq`, both included.

    `body` is their canonical lines as concatenated gzip members, `raw_bytes` the length when decompressed.
    `accepted_ns` is the oldest entry's time of acceptance. `points_after` counts all points up to and including `last_seq`
    since the WAL was born: what the cursor will say once this batch is settled.
    """

    first_seq: int
    last_seq: int
    points: int
    points_after: int
    accepted_ns: int
    destination: Destination
    body: bytes
    raw_bytes: int

    def lines(self) -> bytes:
        """The canonical lines, decompressed."""
        return decompress(self.body, bytes_max=self.raw_bytes)
