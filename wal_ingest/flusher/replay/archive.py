"""The archive as the source of a replay: gzip files of line protocol, an hour of acceptance each.

The files are read member by member. A server may be appending to the newest one: half a member at its end is none yet.
Anywhere else half a member, or bytes that are no gzip, are lost; what follows is looked for and read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wal_ingest.errors import StorageFailed
from wal_ingest.flusher.replay.places import Passed, Place, Select, Unit
from wal_ingest.flusher.sinks.archive_files import archive_files
from wal_ingest.flusher.sinks.archive_position import hour_and_part
from wal_ingest.points import count_points, end_of_points, split_points
from wal_ingest.wal.entry import CODEC_GZIP, CODEC_RAW, Destination, Entry
from wal_ingest.wal.lost import Lost

HOUR_NS = 3_600 * 10**9
_READ_BYTES = 64 * 1024
# A member may be a whole file that somebody compressed anew: from this size on it is passed on in parts, before its
# checksum was seen.
_PART_BYTES = 8 << 20
# How every member begins that wal-ingest writes (RFC 1952: no flags, no time): what is looked for behind damage.
_MEMBER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
_NOWHERE = Destination()
# A guess, for a file of which nothing is decompressed yet.
_BYTES_PER_POINT = 12


class Part(NamedTuple):
    """Whole lines of one gzip member, and where to go on behind them.

    `packed` is the member as it lies when these are all its lines, else None. `lines_before` and `lines_after` count
    within the member; `lines_after` is 0 at its end, where `offset` is that of the next one.
    """

    lines: bytes
    packed: bytes | None
    lines_before: int
    offset: int
    lines_after: int


class Unread(NamedTuple):
    """Bytes that give no lines. `at_end` says that the file ends in them."""

    start: int
    end: int
    reason: str
    at_end: bool


def read_parts(path: Path, *, offset: int, end: int) -> Iterator[Part | Unread]:
    """The lines of a file from the member at `offset` up to the byte `end`. Raises StorageFailed."""
    try:
        with path.open("rb") as file:
            while offset < end:
                member = _Member(file, offset, end)
                yield from member.parts()
                if member.damage:
                    after = _next_member(file, offset + 1, end)
                    yield Unread(offset, after, member.damage, at_end=after == end)
                    offset = after
                else:
                    offset = member.end
    except OSError as exc:
        raise StorageFailed(path, f"cannot be read: {exc.strerror}", number=exc.errno or 0) from exc


class _Member:
    """One gzip member on its way through. When `parts` is done `end` is behind it, or `damage` says what is wrong."""

    def __init__(self, file: BinaryIO, offset: int, end: int) -> None:
        self._file = file
        self._offset = offset
        self._limit = end
        self.end = offset
        self.damage = ""

    def parts(self) -> Iterator[Part]:
        self._file.seek(self._offset)
        inflate = zlib.decompressobj(wbits=31)
        packed, lines, lines_before = bytearray(), bytearray(), 0
        while not inflate.eof:
            data = self._file.read(min(_READ_BYTES, self._limit - self.end))
            if not data:
                self.damage = "it ends within a gzip member"
                return
            try:
                lines += inflate.decompress(data)
            except zlib.error as exc:
                self.damage = f"no gzip member: {exc}"
                return
            self.end += len(data) - len(inflate.unused_data)
            if lines_before == 0:
                packed += data[: len(data) - len(inflate.unused_data)]
            if len(lines) >= _PART_BYTES and not inflate.eof:
                cut = end_of_points(bytes(lines))
                part = bytes(lines[:cut])
                del lines[:cut]
                after = lines_before + count_points(part)
                yield Part(part, None, lines_before, self._offset, after)
                lines_before = after
        whole = bytes(packed) if lines_before == 0 else None
        yield Part(bytes(lines), whole, lines_before, self.end, 0)


def _next_member(file: BinaryIO, offset: int, end: int) -> int:
    """Where the next member seems to begin, at or behind `offset`; `end` when none does."""
    while True:
        file.seek(offset)
        data = file.read(min(_READ_BYTES, end - offset))
        if len(data) < len(_MEMBER):
            return end
        found = data.find(_MEMBER)
        if found >= 0:
            return offset + found
        offset += len(data) - len(_MEMBER) + 1


class ArchiveSource:
    """The files of the hours from `first_hour` to `last_hour`, both included, as long as they are now.

    `points_max` is how many points a unit may have. `after` is a place in the archive to go on from.
    """

    name = "archive"

    def __init__(
        self,
        root: Path,
        first_hour: int,
        last_hour: int,
        *,
        points_max: int,
        select: Select | None = None,
        after: Place | None = None,
    ) -> None:
        self._root = root
        self._points_max = points_max
        self._select = select
        self._after = after
        every = sorted((hour, part, path) for path, hour, part in archive_files(root))
        self._newest = every[-1][2] if every else root
        done = (hour_and_part(root / after.file) if after is not None else None) or (-1, 0)
        self._files = [
            _File(hour, path, file_bytes(path))
            for hour, part, path in every
            if first_hour <= hour <= last_hour and (hour, part) >= done
        ]
        self._begins_later = after is None and not any(hour <= first_hour for hour, _, _ in every)
        self.passed = Passed()

    @property
    def begins_later(self) -> bool:
        """Whether there is no file of the first hour, nor of any before it."""
        return self._begins_later

    @property
    def first_hour(self) -> int | None:
        """The first hour that there is a file of, in hours since 1970; None when there is none."""
        return self._files[0].hour if self._files else None

    def describe(self) -> str:
        count = len(self._files)
        if not count:
            return "nothing of the archive"
        first, last = self._name(self._files[0].path), self._name(self._files[-1].path)
        return f"{first} of the archive" if count == 1 else f"{count} files of the archive, {first} to {last}"

    def expected_points(self) -> int:
        total = sum(file.bytes for file in self._files)
        if not self.passed.stored_bytes:
            return total // _BYTES_PER_POINT
        return round(self.passed.points * total / self.passed.stored_bytes)

    def items(self) -> Iterator[Unit | Lost]:
        for file in self._files:
            name = self._name(file.path)
            here, skip = 0, 0
            if self._after is not None and self._after.file == name:
                here, skip = self._after.offset, self._after.lines
            for part in read_parts(file.path, offset=here, end=file.bytes):
                if isinstance(part, Unread):
                    here = part.end
                    if not (part.at_end and file.path == self._newest):
                        yield Lost(
                            name, 0, 0, None, f"{part.end - part.start:,} bytes: {part.reason}", part.start
                        )
                    continue
                part = _behind(part, skip)
                skip = skip if part.lines_after else 0
                points, accepted_ns = count_points(part.lines), file.hour * HOUR_NS
                self.passed.note(
                    points=points,
                    stored_bytes=part.offset - here,
                    raw_bytes=len(part.lines),
                    accepted_ns=accepted_ns,
                )
                here = part.offset
                place = Place(source="archive", file=name, offset=part.offset, lines=part.lines_after)
                yield from self._units(part, points, accepted_ns, place)

    def _units(self, part: Part, points: int, accepted_ns: int, place: Place) -> Iterator[Unit]:
        """The part's lines, selected, in units of at most so many points. The last one has the place behind them."""
        lines, packed = part.lines, part.packed
        if self._select is not None:
            (lines, points), packed = self._select(lines), None
        if points <= self._points_max:
            yield Unit(_entry(lines, points, accepted_ns, packed), place)
            return
        every = split_points(lines, points)
        for start in range(0, points, self._points_max):
            some = every[start : start + self._points_max]
            at_end = start + len(some) == points
            entry = _entry(b"".join(some), len(some), accepted_ns, None)
            yield Unit(entry, place if at_end else None)

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


class _File(NamedTuple):
    hour: int
    path: Path
    bytes: int


def file_bytes(path: Path) -> int:
    """How long a file is. Raises StorageFailed."""
    try:
        return path.stat().st_size
    except OSError as exc:
        raise StorageFailed(path, f"cannot be read: {exc.strerror}", number=exc.errno or 0) from exc


def _behind(part: Part, skip: int) -> Part:
    """What is left of a part when the first `skip` lines of its member are settled already."""
    settled = skip - part.lines_before
    if settled <= 0:
        return part
    lines = split_points(part.lines, count_points(part.lines))
    return part._replace(lines=b"".join(lines[settled:]), packed=None)


def _entry(lines: bytes, points: int, accepted_ns: int, packed: bytes | None) -> Entry:
    """Lines of the archive as an entry. The archive keeps no seqs: it is 0."""
    return Entry(
        seq=0,
        points=points,
        points_before=0,
        accepted_ns=accepted_ns,
        source="",
        destination=_NOWHERE,
        codec=CODEC_RAW if packed is None else CODEC_GZIP,
        raw_bytes=len(lines),
        payload=lines if packed is None else packed,
    )
