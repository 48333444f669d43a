"""What a segment that was set aside still holds: readers get it in its place, as if the file were whole.

Invariants:

* Nothing is delivered that does not prove itself by its checksum. What does not is passed over, and the points that the
  entries around it count say how many were lost.
* The file is evidence: it is read, never changed. It is read with `pread`, without LMDB's engine, which a damaged file,
  or one with a sector that the disk cannot read, could crash.
* A file that a person salvaged is not read here: its entries are in the log once more.
"""

from __future__ import annotations

import errno
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from wal_ingest.errors import StorageFailed, WalDamaged
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.pinned import ScannedSegment
from wal_ingest.wal.salvage import place, read_note
from wal_ingest.wal.segment import Ends, SegmentHeader

_NO_WAL = uuid.UUID(int=0)


class Remains:
    """The entries of one damaged segment that can be read. Any thread may read; the caller closes it.

    `lost_points` are the points of the others, None where nobody can tell.
    """

    def __init__(self, scanned: ScannedSegment, *, points_max: int | None = None) -> None:
        """`points_max` is what the next segment counts before itself: what counts further is not read.

        An earlier version went on counting below what it had set aside.
        """
        self.path = scanned.path
        ends = scanned.ends
        self.header: SegmentHeader = ends.header
        self.last_seq = ends.last_seq
        self.points_after = ends.points_after if points_max is None else min(ends.points_after, points_max)
        self.readable_points = scanned.points
        self.lost_points = scanned.lost_points
        self._scanned: ScannedSegment | None = scanned
        self._mutex = threading.Lock()

    @property
    def first_seq(self) -> int:
        """The seq of its first entry, whether that can be read or not."""
        return self.header.first_seq

    def moved(self, path: Path) -> None:
        """The file has another name now."""
        self.path = path

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        """Entries behind a seq, in order, up to about `bytes_max` bytes; none where no more can be read.

        Raises `StorageFailed` where the process has no descriptor left (then later), and where the disk gives nothing
        any more.
        """
        with self._mutex:
            try:
                if self._scanned is None:
                    self._scanned = ScannedSegment(self.path, delivering=True)
                found = self._scanned.readable(after_seq, bytes_max=bytes_max)
            except WalDamaged:
                return []
            except StorageFailed as exc:
                if exc.number != errno.ENOENT:
                    raise
                return []  # a person took the file away
        return [
            entry
            for entry in found
            if entry.seq <= self.last_seq and entry.points_before + entry.points <= self.points_after
        ]

    def rest(self) -> None:
        """Frees what reading holds, until it is read again."""
        with self._mutex:
            if self._scanned is not None:
                self._scanned.close()
                self._scanned = None


def remains_of(path: Path, ends: Ends) -> list[Remains]:
    """What can be read of a segment that turned out damaged, and whose ends are known; none where nothing can.

    Raises `StorageFailed`.
    """
    try:
        scanned = ScannedSegment(path, delivering=True)
    except WalDamaged:
        return []
    scanned.stand_for(ends)
    return [Remains(scanned)]


def open_remains(paths: Sequence[Path], neighbours: Sequence[Ends], wal_id: uuid.UUID) -> list[Remains]:
    """What can be read of damaged segments, in order; `neighbours` are the ends of those that are whole.

    Files of another WAL, files that were salvaged, and those that nothing can be read from are left out. Raises
    `StorageFailed`.
    """
    scanned: list[ScannedSegment] = []
    for path in paths:
        if read_note(path) is not None:
            continue
        try:
            segment = ScannedSegment(path, delivering=True)
        except WalDamaged:
            continue
        if segment.ends.header.wal_id in (wal_id, _NO_WAL):
            scanned.append(segment)
        else:
            segment.close()
    scanned.sort(key=lambda segment: segment.ends.header.first_seq)
    place(scanned, neighbours)
    remains = [Remains(segment, points_max=_points_behind(segment, neighbours)) for segment in scanned]
    last_seq = max((ends.header.first_seq for ends in neighbours), default=0)
    for each in remains[-1:]:
        if each.first_seq > last_seq:
            each.lost_points = None  # nothing that follows says how far it went
    return remains


def _points_behind(segment: ScannedSegment, neighbours: Sequence[Ends]) -> int | None:
    """The points before the first whole segment that follows."""
    first_seq = segment.ends.header.first_seq
    behind = [ends.header for ends in neighbours if ends.header.first_seq > first_seq]
    return min(behind, key=lambda header: header.first_seq).points_before if behind else None
