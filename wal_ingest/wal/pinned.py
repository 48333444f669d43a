"""One segment's file, held open and read from outside: by its tree, or page by page where that is damaged.

Beside a running server the file may change between two looks. An entry proves itself by its CRC, so what was read is
right whatever happened meanwhile; only what is *missing* is believed no sooner than it was looked for in a state of the
file that cannot have been overwritten.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from bisect import bisect_left, bisect_right
from dataclasses import replace
from pathlib import Path

from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.lmdb_pages import Found, PageReader
from wal_ingest.wal.lost import Lost, with_points
from wal_ingest.wal.page_scan import PageScan
from wal_ingest.wal.segment import Ends, SegmentHeader, decode_item, ends_in

_CHUNK_BYTES = 4 << 20
_TRIES_MAX = 50
_NOT_THERE = "the entry is not there"


class PinnedSegment:
    """A segment that is read by its tree. Raises `WalDamaged` when it does not even tell its ends, `StorageFailed`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = PageReader(path)
        try:
            self.ends = self._ends()
        except BaseException:
            self._reader.close()
            raise

    def close(self) -> None:
        """Lets go of the file."""
        self._reader.close()

    def refresh(self) -> None:
        """Looks again where the segment ends: a server may be writing to it. Raises as opening does."""
        self.ends = self._ends()

    def _ends(self) -> Ends:
        for tries_left in range(_TRIES_MAX - 1, -1, -1):  # pragma: no branch
            self._reader.refresh()
            try:
                ends = ends_in(self._reader)
            except WalDamaged:
                if self._reader.is_current() or not tries_left:
                    raise
            else:
                if self._reader.is_whole() or not tries_left:
                    return ends
        raise AssertionError("the last try returns or raises")  # pragma: no cover: as it says

    @functools.cached_property
    def first_accepted_ns(self) -> int | None:
        """When the first entry was accepted, in Unix nanoseconds; None when there is none, or it cannot be read."""
        first_seq = self.ends.header.first_seq
        return next(
            (item.accepted_ns for item in self.read(first_seq, first_seq) if isinstance(item, Entry)), None
        )

    def read(self, first_seq: int, last_seq: int, *, bytes_max: int = _CHUNK_BYTES) -> list[Entry | Lost]:
        """From `first_seq` on, up to `last_seq` or about `bytes_max` stored bytes, without a hole.

        Empty only when the range holds no seq of this segment. Raises `UnknownFormatVersion`, `StorageFailed`.
        """
        first_seq = max(first_seq, self.ends.header.first_seq)
        last_seq = min(last_seq, self.ends.last_seq)
        if first_seq > last_seq:
            return []
        for _try in range(_TRIES_MAX):
            with contextlib.suppress(WalDamaged):  # its meta pages were whole when it was opened
                self._reader.refresh()
            found = self._read(first_seq, last_seq, bytes_max)
            if not any(isinstance(item, Lost) for item in found) or self._was_whole():
                return found
            # Less at a time is read sooner.
            bytes_max //= 2
        raise StorageFailed(self.path, "it changes faster than it can be read")

    def _was_whole(self) -> bool:
        try:
            return self._reader.is_whole()
        except WalDamaged:  # a meta page: nobody writes to such a file
            return True

    def _read(self, first_seq: int, last_seq: int, bytes_max: int) -> list[Entry | Lost]:
        found: list[Entry | Lost] = []
        expected, reason, offset = first_seq, _NOT_THERE, None
        points_after = self.ends.points_after if last_seq == self.ends.last_seq else None
        for item in self._reader.whatever_from(first_seq.to_bytes(8, "big")):
            if not isinstance(item, Found):
                reason, offset = item.reason, item.offset
                continue
            try:
                entry = decode_item((item.key, item.value), self.path)
            except UnknownFormatVersion:
                raise
            except WalDamaged as exc:
                reason, offset = exc.reason, item.offset
                continue
            if entry.seq < expected:  # a page that the tree leads to twice
                continue
            if entry.seq > last_seq or bytes_max <= 0:
                last_seq = min(last_seq, entry.seq - 1)
                points_after = entry.points_before if entry.seq == last_seq + 1 else None
                break
            bytes_max -= len(item.value)
            if entry.seq > expected:
                found.append(Lost(self.path.name, expected, entry.seq - 1, None, reason, offset))
            found.append(entry)
            expected, reason, offset = entry.seq + 1, _NOT_THERE, None
        if expected <= last_seq:
            found.append(Lost(self.path.name, expected, last_seq, None, reason, offset))
        points_before = self.ends.header.points_before if first_seq == self.ends.header.first_seq else None
        return with_points(found, points_before=points_before, points_after=points_after)


class ScannedSegment:
    """A segment whose tree is damaged, read page by page. Nobody writes to it.

    What its header said is told by its name and its neighbours where it is lost. Raises `WalDamaged` when nothing can
    be read from it, `UnknownFormatVersion`, `StorageFailed`. `delivering` is as for `PageScan`.
    """

    def __init__(self, path: Path, *, delivering: bool = False) -> None:
        self.path = path
        self._scan = PageScan(path, delivering=delivering)
        if not self._scan.seqs:
            self._scan.close()
            raise WalDamaged(path, self._scan.trouble or "there is no entry in it")
        first, last = (self._scan.entry(self._scan.seqs[index]) for index in (0, -1))
        header = self._scan.header
        self._points_before_known = header is not None
        if header is None:
            # A file that was set aside may have any name behind the number.
            named = int(path.name[:20]) if path.name[:20].isdigit() else first.seq
            header = SegmentHeader(
                uuid.UUID(int=0), min(named, first.seq), first.points_before, first.accepted_ns
            )
            self._points_before_known = first.seq == header.first_seq
        last_seq = self._scan.last_seq
        self.trouble = self._scan.trouble
        self._points_after_known = last_seq == last.seq
        size = path.stat().st_size
        self.ends = Ends(header, last_seq, last.points_before + last.points, last.accepted_ns, size)
        self.first_accepted_ns: int | None = first.accepted_ns

    def close(self) -> None:
        """Lets go of the file."""
        self._scan.close()

    def refresh(self) -> None:
        """Nothing is ever added to it."""

    def stand_between(self, before: Ends | None, behind: Ends | None) -> None:
        """Takes from its neighbours what it cannot say itself: how far its entries went."""
        header = self.ends.header
        if before is not None and not self._points_before_known:
            self.ends = replace(self.ends, header=replace(header, points_before=before.points_after))
            self._points_before_known = True
        if behind is not None and behind.header.points_before > self.ends.points_after:
            self.ends = replace(
                self.ends,
                last_seq=behind.header.first_seq - 1,
                points_after=behind.header.points_before,
            )
            self._points_after_known = True

    def stand_for(self, ends: Ends) -> None:
        """Takes the ends that the segment had while it could be read."""
        self.ends = ends
        self._points_before_known = self._points_after_known = True

    @property
    def points(self) -> int:
        """Points of the entries that can be read."""
        return self._scan.points

    @property
    def lost_points(self) -> int | None:
        """Points of the entries that cannot; None where what was around them does not tell."""
        if not (self._points_before_known and self._points_after_known):
            return None
        return self.ends.points_after - self.ends.header.points_before - self.points

    def readable(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        """The entries behind a seq that can be read, at least one where there is one, up to about `bytes_max` bytes."""
        found: list[Entry] = []
        seqs = self._scan.seqs
        for seq in seqs[bisect_right(seqs, after_seq) :]:
            if bytes_max <= 0:
                break
            try:
                entry = self._scan.entry(seq)
            except WalDamaged:  # it was readable when the file was opened
                continue
            bytes_max -= len(entry.payload)
            found.append(entry)
        return found

    def read(self, first_seq: int, last_seq: int, *, bytes_max: int = _CHUNK_BYTES) -> list[Entry | Lost]:
        """As `PinnedSegment.read`."""
        ends = self.ends
        expected = first_seq = max(first_seq, ends.header.first_seq)
        last_seq = min(last_seq, ends.last_seq)
        points_after = ends.points_after if self._points_after_known and last_seq == ends.last_seq else None
        found: list[Entry | Lost] = []
        seqs = self._scan.seqs
        for seq in seqs[bisect_left(seqs, first_seq) :]:
            if seq > last_seq:
                break
            entry = self._scan.entry(seq)
            if bytes_max <= 0:
                last_seq, points_after = seq - 1, entry.points_before
                break
            bytes_max -= len(entry.payload)
            if seq > expected:
                found.append(self._lost(expected, seq - 1))
            found.append(entry)
            expected = seq + 1
        if expected <= last_seq:
            found.append(self._lost(expected, last_seq))
        at_start = first_seq == ends.header.first_seq and self._points_before_known
        points_before = ends.header.points_before if at_start else None
        return with_points(found, points_before=points_before, points_after=points_after)

    def _lost(self, first_seq: int, last_seq: int) -> Lost:
        reason = self._scan.trouble or "it is nowhere in the file"
        return Lost(self.path.name, first_seq, last_seq, None, reason)


SegmentReader = PinnedSegment | ScannedSegment
