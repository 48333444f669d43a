"""One segment: a run of consecutive entries in one LMDB file, dropped together.

Invariants:

* The file `<first seq, 20 digits>.lmdb` appears under that name only with its header record in it, and the
  name is durable before any seq in it is acknowledged.
* Key 0 (no entry ever has it) holds the header record; keys from the first seq on hold entries, without gaps.
* Only the last segment is written to, and only by the process that made it. A sealed one is never changed again,
  so it is read without LMDB's lock file.

What a crash leaves: before the rename, a file `….lmdb.new` that never held an entry; after it, a segment
with no entries, which is as good as a full one.
"""

from __future__ import annotations

import errno
import struct
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from wal_ingest.errors import DiskFull, SectorUnreadable, StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.directory import remove, rename, sync_directory
from wal_ingest.wal.entry import Entry, EntryDamaged, EntryVersionUnknown, decode
from wal_ingest.wal.gzip_codec import crc32
from wal_ingest.wal.leftover import Leftover
from wal_ingest.wal.lmdb_file import Item, LmdbFile, lock_path, verify
from wal_ingest.wal.lmdb_pages import PageReader, snapshot
from wal_ingest.wal.space import Reserve, give_back, is_no_descriptors, is_no_space

SUFFIX = ".lmdb"
SEQ_DIGITS = 20
NEW_SUFFIX = ".lmdb.new"
VERSION = 1
MAGIC = b"walingst"

_HEADER = struct.Struct(">8sHH16sQQQ")
HEADER_KEY = bytes(8)

# Address space beyond the size at which a segment is sealed: the group that crosses the line must fit.
_MAP_BYTES_SPARE = 4 << 30

# Disk space is taken ahead in steps of this size, so that not every commit asks for some.
_RESERVE_STEP_BYTES = 4 << 20
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The record under key 0. `created_ns` is Unix time in nanoseconds; `points_before` counts all points of
    the WAL in front of the segment's first entry."""

    wal_id: uuid.UUID
    first_seq: int
    points_before: int
    created_ns: int

    def encode(self) -> bytes:
        """The record's bytes, its CRC last."""
        body = _HEADER.pack(
            MAGIC, VERSION, 0, self.wal_id.bytes, self.first_seq, self.points_before, self.created_ns
        )
        return body + crc32(body).to_bytes(4, "big")

    @classmethod
    def decode(cls, value: bytes, path: Path) -> SegmentHeader:
        """Raises `UnknownFormatVersion` for a version from the future, `WalDamaged` for anything else amiss."""
        if len(value) < 10 or not value.startswith(MAGIC):
            raise WalDamaged(path, "no segment of a wal-ingest WAL")
        version = int.from_bytes(value[8:10], "big")
        if version != VERSION:
            raise UnknownFormatVersion(
                path, f"segment format version {version} is not known to this program ({VERSION} is)"
            )
        body, crc = value[: _HEADER.size], value[_HEADER.size :]
        if len(crc) != 4 or crc32(body) != int.from_bytes(crc, "big"):
            raise WalDamaged(path, "the checksum of the segment's header record does not match")
        _magic, _version, _reserved, wal_id, first_seq, points_before, created_ns = _HEADER.unpack(body)
        return cls(uuid.UUID(bytes=wal_id), first_seq, points_before, created_ns)


@dataclass(frozen=True, slots=True)
class Ends:
    """What a segment says of itself: its header, and where its entries end.

    `last_seq` is `first_seq - 1` while there is no entry.
    """

    header: SegmentHeader
    last_seq: int
    points_after: int
    last_accepted_ns: int
    bytes: int


def read_ends(path: Path) -> Ends:
    """Reads a segment's ends without LMDB's engine, also while a server writes to it.

    Raises `UnknownFormatVersion`, `WalDamaged`, `StorageFailed`.
    """
    return snapshot(path, ends_in)


def ends_in(reader: PageReader) -> Ends:
    """The ends that one state of a segment's file says. Raises as `read_ends` does."""
    path = reader.path
    record = reader.get(HEADER_KEY)
    if record is None:
        raise WalDamaged(path, "the segment has no header record")
    header = SegmentHeader.decode(record, path)
    if segment_name(header.first_seq) != path.name:
        raise WalDamaged(path, f"the header says that its first seq is {header.first_seq}")
    last = reader.last()
    if last is None or last[0] == HEADER_KEY:
        return Ends(header, header.first_seq - 1, header.points_before, header.created_ns, reader.used_bytes)
    entry = decode_item(last, path)
    return Ends(header, entry.seq, entry.points_before + entry.points, entry.accepted_ns, reader.used_bytes)


def read_entry(path: Path, seq: int) -> Entry | None:
    """One entry, read without LMDB's engine. Raises `WalDamaged`, `StorageFailed`."""
    key = seq.to_bytes(8, "big")
    value = snapshot(path, lambda reader: reader.get(key))
    return None if value is None else decode_item((key, value), path)


class Segment:
    """A segment. `last_seq` is `first_seq - 1` while it holds no entry.

    Written to by one process life only: a segment from an earlier one is sealed, however small, so that
    nothing is ever appended to a file that a crash left behind.

    Thread rules: `append` and `seal` on the writer thread only; `read` on any thread. A lock keeps `seal` and
    `rest` from unmapping the file under a read; `append` does not take it, so reads never hold a commit up.
    """

    def __init__(self, path: Path, ends: Ends, *, map_bytes: int, file: LmdbFile | None) -> None:
        """Use `open` or `create`. With a `file` the segment can be appended to."""
        self.path = path
        self.header = ends.header
        self.last_seq = ends.last_seq
        self.points_after = ends.points_after
        self.last_accepted_ns = ends.last_accepted_ns
        self.bytes = ends.bytes
        self.sealed = file is None
        self._map_bytes = map_bytes
        self._mutex = threading.Lock()
        self._file = file
        self._verified = file is not None
        self._dropped = False
        self._reserve = None if file is None else Reserve(path)

    @classmethod
    def open(cls, path: Path, *, map_bytes: int) -> Segment:
        """An existing segment, for reading. Raises `WalDamaged` (or `UnknownFormatVersion`), `StorageFailed`."""
        return cls(path, read_ends(path), map_bytes=map_bytes, file=None)

    @classmethod
    def create(cls, directory: Path, header: SegmentHeader, *, segment_bytes_max: int) -> Segment:
        """Makes a new segment, its name durable, ready to be appended to.

        Raises `DiskFull` (nothing is there then, or one without an entry), `StorageFailed`.
        """
        path = directory / segment_name(header.first_seq)
        new = path.with_suffix(NEW_SUFFIX)
        map_bytes = map_bytes_for(segment_bytes_max)
        try:
            # The header is committed (and synced) under a name that recovery does not read, so that no
            # crash can leave a segment without one.
            file = LmdbFile(new, map_bytes=map_bytes, lock=False)
            try:
                file.append([(HEADER_KEY, header.encode())])
            finally:
                file.close()
            rename(new, path)
            sync_directory(directory)
            return cls(path, read_ends(path), map_bytes=map_bytes, file=LmdbFile(path, map_bytes=map_bytes))
        except StorageFailed as exc:
            if is_no_space(exc.number) or is_no_descriptors(exc.number):
                # Nothing was ever stored in it, so it may be begun again, from nothing, when there is room.
                remove(new)
                what = "the disk is full" if is_no_space(exc.number) else "too many files are open"
                raise DiskFull(f"{what}: {path} cannot be begun") from exc
            raise

    def reopen_empty(self) -> None:
        """Makes a segment that never held an entry writable: its successor would need the same name."""
        assert self.last_seq < self.first_seq
        verify(self.path)
        self._file = LmdbFile(self.path, map_bytes=self._map_bytes)
        self._reserve = Reserve(self.path)
        self._verified = True
        self.sealed = False

    @property
    def first_seq(self) -> int:
        """The seq of the first entry, whether it is there yet or not."""
        return self.header.first_seq

    @property
    def ends(self) -> Ends:
        """Where it begins and ends now."""
        return Ends(self.header, self.last_seq, self.points_after, self.last_accepted_ns, self.bytes)

    @property
    def points(self) -> int:
        """Points of all entries in the segment."""
        return self.points_after - self.header.points_before

    def append(self, items: list[Item], *, points: int, accepted_ns: int) -> None:
        """Stores items in one durable transaction, then moves the ends on. Writer thread only.

        `points` is how many points the items hold together, `accepted_ns` the last one's time of acceptance. Raises
        `DiskFull` and `MapFull` (nothing was stored), `StorageFailed`, `WalDamaged`.
        """
        file = self._file
        assert file is not None
        assert self._reserve is not None
        self._reserve.hold(self.bytes + _growth_bytes_max(items), step=_RESERVE_STEP_BYTES)
        file.append(items)
        self.last_seq = int.from_bytes(items[-1][0], "big")
        self.points_after += points
        self.last_accepted_ns = accepted_ns
        self.bytes = file.used_bytes

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry] | None:
        """Entries with a seq above `after_seq`, at least one where there is one, up to about `bytes_max` bytes.

        None when the segment has been dropped meanwhile. Raises `WalDamaged` naming the entry, `StorageFailed`.
        """
        first = max(after_seq + 1, self.first_seq)
        with self._mutex:
            if self._dropped:
                return None
            if self._file is None:
                self._file = self._open_sealed()
            items = self._file.read_from(first.to_bytes(8, "big"), bytes_max=bytes_max)
        entries = [decode_item(item, self.path) for item in items]
        self._check_order(entries, first)
        return entries

    def _open_sealed(self) -> LmdbFile:
        if not self._verified:
            verify(self.path)
            self._verified = True
        try:
            return LmdbFile(self.path, map_bytes=self._map_bytes, readonly=True, lock=False)
        except StorageFailed as exc:
            if exc.number != errno.EIO:
                raise
            raise SectorUnreadable(self.path, "a meta page cannot be read: Input/output error") from exc

    def _check_order(self, entries: list[Entry], first: int) -> None:
        """Raises `WalDamaged` when an entry is missing: nothing may be passed over in silence."""
        expected, points_before = first, entries[0].points_before if entries else 0
        for entry in entries:
            if entry.seq != expected or entry.points_before != points_before:
                raise WalDamaged(
                    self.path, f"entry {expected} is missing, or does not count on from the one before"
                )
            expected, points_before = expected + 1, points_before + entry.points
        if not entries and first <= self.last_seq:
            raise WalDamaged(self.path, f"entry {first} is missing")

    def seal(self) -> None:
        """Ends the writing: from here on the segment is read-only. Writer thread only."""
        with self._mutex:
            self.sealed = True
            self.close()
            give_back(self.path)
            # Nobody writes any more, so nobody needs the lock file; it holds nothing durable.
            remove(lock_path(self.path))

    def rest(self) -> None:
        """Unmaps a sealed segment until it is read again: a mapped file counts as resident memory."""
        with self._mutex:
            if self.sealed:
                self.close()

    def drop(self) -> None:
        """Removes the segment's files; the caller syncs the directory. Reads that come later get None."""
        with self._mutex:
            self._dropped = True
            self.close()
            remove(lock_path(self.path))
            remove(self.path)

    def drop_but_for_its_space(self) -> Leftover:
        """`drop`, but the file keeps its space where that can be done; the caller gives it back."""
        leftover = Leftover(self.path)
        try:
            self.drop()
        except BaseException:
            leftover.close()
            raise
        return leftover

    def set_aside(self, directory: Path) -> Path:
        """Moves the file, whole and unchanged, to a directory for damaged ones; the caller syncs both."""
        with self._mutex:
            self._dropped = True
            self.close()
            return set_aside(self.path, directory)

    def close(self) -> None:
        """Unmaps the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None


def segment_name(first_seq: int) -> str:
    """The file name of the segment that begins with `first_seq`."""
    return f"{first_seq:0{SEQ_DIGITS}d}{SUFFIX}"


def segment_paths(directory: Path) -> list[Path]:
    """The segments in a directory, oldest first. Files of any other name are nobody's business here."""
    return sorted(directory.glob("[0-9]" * SEQ_DIGITS + SUFFIX))


def map_bytes_for(segment_bytes_max: int) -> int:
    """Address space to reserve for a segment."""
    return segment_bytes_max + _MAP_BYTES_SPARE


def set_aside(path: Path, directory: Path) -> Path:
    """Moves a damaged file into `directory` under a name that is not taken yet, and returns where it is."""
    target = directory / path.name
    number = 1
    while target.exists():
        number += 1
        target = directory / f"{path.name}.{number}"
    rename(path, target)
    remove(lock_path(path))
    return target


def _growth_bytes_max(items: list[Item]) -> int:
    """How much a file may grow by a transaction, at the most.

    A large value takes whole pages of its own, a small one at worst twice its size in half-full leaves; to that the
    branches above, the list of free pages and the pages that are written anew.
    """
    values = sum(len(value) + _PAGE_BYTES if len(value) > 1000 else 2 * len(value) + 64 for _, value in items)
    return values + values // 8 + 64 * _PAGE_BYTES


def decode_item(item: Item, path: Path) -> Entry:
    """The entry under a key. Raises `WalDamaged` naming it, `UnknownFormatVersion`."""
    if len(item[0]) != len(HEADER_KEY):
        raise WalDamaged(path, f"a key has {len(item[0])} bytes")
    seq = int.from_bytes(item[0], "big")
    try:
        return decode(item[1], seq=seq)
    except EntryVersionUnknown as exc:
        raise UnknownFormatVersion(path, str(exc)) from exc
    except EntryDamaged as exc:
        raise WalDamaged(path, str(exc)) from exc
