"""A segment's file read without its tree: every page is looked at, and what proves itself is taken.

For files whose tree is damaged. An entry proves itself by its CRC, which covers its seq, so it does not matter how it
was found. Three ways, each taking only what those before it left:

1. The tree, as far as it can be walked.
2. Every page that says that it is a leaf, whether the tree leads there or not. LMDB writes changed pages beside the
   old ones, so a destroyed leaf often has an older copy elsewhere in the file.
3. Values in pages of their own whose leaf is gone. They do not hold their seq, but they say how many points of the
   WAL are in front of them, so they can be put behind the entry that ends there, or before the one that begins
   where they end; the CRC then says whether that is their seq.

Entries of a transaction that was never finished may turn up too. Nobody was told that they were accepted, and nobody
was told that they were not: they are taken.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wal_ingest.errors import SectorUnreadable, StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.entry import HEADER_BYTES, Entry, EntryDamaged, decode, extent
from wal_ingest.wal.lmdb_layout import (
    BIG,
    LEAF,
    MAGIC,
    META,
    NODE,
    OVERFLOW,
    PAGE_HEADER,
    PAGE_HEADER_BYTES,
    PAGE_SIZES,
    page_number,
)
from wal_ingest.wal.lmdb_pages import Found, PageReader, read_bytes
from wal_ingest.wal.recovery import start_of
from wal_ingest.wal.segment import HEADER_KEY, SegmentHeader, decode_item

_KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class _Where:
    """Where an entry's value lies in the file, and which points of the WAL are its."""

    offset: int
    length: int
    points_before: int
    points_after: int


class PageScan:
    """Every entry of a file that can be read, by seq; the file is held open until `close`.

    `header` is the segment's header record, None where that is lost; `trouble` says what is wrong with the tree, or is
    empty. Raises `StorageFailed`, `UnknownFormatVersion`.

    A sector that cannot be read is passed over. With `delivering` that is so only while others can be read: a disk that
    gives nothing at all any more raises `StorageFailed`. Delivery would otherwise pass over entries that a later start,
    with the disk in order again, still finds.
    """

    def __init__(self, path: Path, *, delivering: bool = False) -> None:
        self.path = path
        self._delivering = delivering
        # Where bytes were read last, and whether any could not be.
        self._readable_at: int | None = None
        self._met_unreadable = False
        self.header: SegmentHeader | None = None
        self.trouble = ""
        self._entries: dict[int, _Where] = {}
        self._damaged: set[int] = set()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc
        try:
            self._size = os.fstat(self._fd).st_size
            self._page_size = self._find_page_size()
            self._take_tree()
            orphans = self._take_leaves()
            self._take_orphans(orphans)
            if self._delivering and self._met_unreadable and self._readable_at is None:
                raise StorageFailed(path, "no byte of it can be read", number=errno.EIO)
        except BaseException:
            self.close()
            raise
        self._seqs = sorted(self._entries)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._fd)

    @property
    def seqs(self) -> list[int]:
        """The seqs that can be read, rising."""
        return self._seqs

    @property
    def points(self) -> int:
        """Points of the entries that can be read."""
        return sum(where.points_after - where.points_before for where in self._entries.values())

    @property
    def last_seq(self) -> int:
        """The last seq that was there, whether its entry can be read or only its key; 0 when there is none."""
        seq = self._seqs[-1] if self._seqs else 0
        while seq + 1 in self._damaged:
            seq += 1
        return seq

    def entry(self, seq: int) -> Entry:
        """One of `seqs`. Raises `WalDamaged` when the file has changed since, `StorageFailed`."""
        where = self._entries[seq]
        return decode_item(
            (seq.to_bytes(_KEY_BYTES, "big"), self._read(where.offset, where.length)), self.path
        )

    # -- the tree --------------------------------------------------------------------------------------

    def _find_page_size(self) -> int:
        """What the first meta page says; where that is gone, LMDB's usual size on this machine."""
        data = self._read(PAGE_HEADER_BYTES, META.size + 4)
        if len(data) == META.size + 4 and META.unpack_from(data)[0] == MAGIC:
            size: int = struct.unpack_from("=I", data, META.size)[0]
            if size in PAGE_SIZES:
                return size
        return min(max(os.sysconf("SC_PAGE_SIZE"), PAGE_SIZES[0]), PAGE_SIZES[-1])

    def _take_tree(self) -> None:
        try:
            reader = PageReader(self.path)
        except WalDamaged as exc:
            self.trouble = exc.reason
            return
        try:
            for item in reader.whatever_from(b""):
                if isinstance(item, Found):
                    self._note(self._take(item.key, item.value, item.offset))
                else:
                    self._note(item.reason)
                    if item.key is not None:
                        self._damaged.add(int.from_bytes(item.key, "big"))
        finally:
            reader.close()

    def _note(self, trouble: str) -> None:
        """Remembers the first thing that is wrong with the tree."""
        self.trouble = self.trouble or trouble

    def _take(self, key: bytes, value: bytes, offset: int) -> str:
        """Keeps what proves itself, and is not there yet; returns why it does not, or nothing."""
        if key == HEADER_KEY:
            return self._take_header(value) if self.header is None else ""
        seq = int.from_bytes(key, "big")
        if seq in self._entries:
            return ""
        try:
            entry = decode_item((key, value), self.path)
        except UnknownFormatVersion:
            raise
        except WalDamaged as exc:
            self._damaged.add(seq)
            return exc.reason
        after = entry.points_before + entry.points
        self._entries[seq] = _Where(offset, len(value), entry.points_before, after)
        return ""

    def _take_header(self, value: bytes) -> str:
        try:
            self.header = SegmentHeader.decode(value, self.path)
        except WalDamaged as exc:
            # A version that nobody knows, too: entries that prove themselves say that only these bytes are odd.
            return exc.reason
        return ""

    # -- leaves ----------------------------------------------------------------------------------------

    def _take_leaves(self) -> list[int]:
        """Takes what any leaf holds; returns the numbers of the pages at which a large value begins."""
        values: list[int] = []
        number = 0
        while True:
            head = self._read(number * self._page_size, PAGE_HEADER_BYTES)
            if len(head) < PAGE_HEADER_BYTES:
                return values
            said, _pad, flags, lower, upper = PAGE_HEADER.unpack(head)
            if said == number and flags & LEAF:
                for key, value, offset in self._nodes_of(number, lower):
                    self._take(key, value, offset)
            elif said == number and flags & OVERFLOW:
                values.append(number)
                # The pages behind the first hold nothing but the value. Their count is `lower` and `upper` as one;
                # a wrong one may lead astray, so it is believed only as far as the value itself says so.
                number += self._pages_of_value(number, lower | upper << 16) - 1
            number += 1

    def _pages_of_value(self, number: int, said: int) -> int:
        value = self._read(number * self._page_size + PAGE_HEADER_BYTES, HEADER_BYTES)
        length = extent(value)
        needed = -(-(PAGE_HEADER_BYTES + length) // self._page_size)
        return said if said == needed else 1

    def _nodes_of(self, number: int, lower: int) -> Iterator[tuple[bytes, bytes, int]]:
        """Keys, values and the values' offsets of a leaf; nodes that cannot be are passed over."""
        start = number * self._page_size
        page = self._read(start, self._page_size)
        count = (min(lower, len(page)) - PAGE_HEADER_BYTES) // 2
        for index in range(max(0, count)):
            offset = struct.unpack_from("=H", page, PAGE_HEADER_BYTES + 2 * index)[0]
            if offset + NODE.size > len(page):
                continue
            low, high, flags, key_bytes = NODE.unpack_from(page, offset)
            at, length = offset + NODE.size + key_bytes, low | high << 16
            key = page[offset + NODE.size : at]
            if int.from_bytes(key, "big") in self._entries:
                continue
            if flags & BIG:
                where = page_number(page[at : at + 8]) * self._page_size + PAGE_HEADER_BYTES
                if where + length <= self._size:
                    yield key, self._read(where, length), where
            else:
                yield key, page[at : at + length], start + at

    # -- values without a leaf -------------------------------------------------------------------------

    def _take_orphans(self, pages: list[int]) -> None:
        """Gives values their seqs by the points in front of them and behind; their CRC says whether it is so."""
        taken = {where.offset for where in self._entries.values()}
        orphans = []
        for number in pages:
            offset = number * self._page_size + PAGE_HEADER_BYTES
            head = self._read(offset, HEADER_BYTES)
            if offset not in taken and HEADER_BYTES < extent(head) <= self._size - offset:
                orphans.append(_Where(offset, extent(head), *_points_of(head)))
        orphans.sort(key=lambda where: where.points_before)
        behind = {where.points_after: seq for seq, where in self._entries.items()}
        before = {where.points_before: seq for seq, where in self._entries.items()}
        if self.header is not None:
            behind.setdefault(self.header.points_before, self.header.first_seq - 1)
        # Nothing else may be left to hold on to: the first entry is the one that the file is named for.
        named = start_of(self.path)
        # Up and down again: a run of them is found from either of its ends.
        for where in (*orphans, *reversed(orphans)):
            guesses = [behind[where.points_before] + 1] if where.points_before in behind else []
            guesses += [before[where.points_after] - 1] if where.points_after in before else []
            guesses += [named] if named else []
            for seq in guesses:
                if seq not in self._entries and self._proves(where, seq):
                    self._entries[seq] = where
                    behind[where.points_after], before[where.points_before] = seq, seq

    def _proves(self, where: _Where, seq: int) -> bool:
        try:
            decode(self._read(where.offset, where.length), seq=seq)
        except EntryDamaged:
            return False
        return True

    def _read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the file's end. Zeros, which prove nothing, where the disk cannot read."""
        try:
            data = read_bytes(self.path, self._fd, offset, length)
        except SectorUnreadable as exc:
            self._note(exc.reason)
            self._met_unreadable = True
            if self._delivering and self._readable_at is not None:
                self._read_again(self._readable_at)
            return bytes(max(0, min(length, self._size - offset)))
        if data:
            self._readable_at = offset
        return data

    def _read_again(self, offset: int) -> None:
        """Raises `StorageFailed` when a byte that could be read cannot be any more."""
        try:
            read_bytes(self.path, self._fd, offset, 1)
        except SectorUnreadable as exc:
            raise StorageFailed(
                self.path, f"it cannot be read any more: {exc.reason}", number=errno.EIO
            ) from exc


def _points_of(head: bytes) -> tuple[int, int]:
    """Points of the WAL in front of an entry and up to its end, as its header says."""
    points, before = int.from_bytes(head[8:12], "big"), int.from_bytes(head[28:36], "big")
    return before, before + points
