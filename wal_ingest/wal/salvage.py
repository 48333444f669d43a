"""What can still be read in segments that were set aside as damaged, and the note that it was taken.

The damaged file itself is evidence and is never touched. Beside it stand `<file>.reason.txt`, why it was set aside,
and, once something was salvaged from it, `<file>.salvaged.json`: when, how much, where to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.directory import open_unlinked, reason_of, rename, sync_directory
from wal_ingest.wal.entry import Entry, EntryDamaged
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.pinned import ScannedSegment
from wal_ingest.wal.recovery import DAMAGED_DIR, start_of
from wal_ingest.wal.segment import Ends

REASON_SUFFIX = ".reason.txt"
NOTE_SUFFIX = ".salvaged.json"


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What was salvaged from a file: when (Unix nanoseconds), how much, where to, and what was not to be had."""

    salvaged_ns: int
    entries: int
    points: int
    to: str
    lost: list[Lost]


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """A file that was set aside: why, and what was salvaged from it since (None: nothing yet)."""

    path: Path
    reason: str
    note: Note | None

    @property
    def is_segment(self) -> bool:
        """Whether it is a segment; a state file holds no points."""
        return start_of(self.path) > 0


def damaged_files(wal_dir: Path) -> list[DamagedFile]:
    """Everything that was set aside, by name. Raises OSError where the directory may not be read.

    Not by a glob: from Python 3.13 on it finds nothing in a directory that may not be read.
    """
    try:
        found = list((wal_dir / DAMAGED_DIR).iterdir())
    except FileNotFoundError:
        found = []
    paths = sorted(
        path
        for path in found
        if ".lmdb" in path.name and not path.name.endswith((REASON_SUFFIX, NOTE_SUFFIX, NOTE_SUFFIX + ".new"))
    )
    return [DamagedFile(path, _reason(path), read_note(path)) for path in paths]


def _reason(path: Path) -> str:
    try:
        return path.with_name(path.name + REASON_SUFFIX).read_text().strip()
    except OSError:
        return ""


def read_note(path: Path) -> Note | None:
    """The note beside a damaged file; None when nothing was salvaged from it, or nobody can read it."""
    try:
        return msgspec.json.decode(path.with_name(path.name + NOTE_SUFFIX).read_bytes(), type=Note)
    except (OSError, msgspec.MsgspecError):
        return None


def write_note(path: Path, note: Note) -> None:
    """Leaves a note beside a damaged file, durable. Raises `StorageFailed`."""
    target = path.with_name(path.name + NOTE_SUFFIX)
    new = target.with_name(target.name + ".new")
    try:
        with open(new, "wb", opener=open_unlinked) as file:
            file.write(msgspec.json.format(msgspec.json.encode(note)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise StorageFailed(target, f"cannot be written: {reason_of(exc)}", number=exc.errno or 0) from exc
    rename(new, target)
    sync_directory(target.parent)


class Salvage:
    """Damaged files, read side by side: what one cannot tell of its ends, its neighbours may.

    `neighbours` are the ends of segments that are whole. `hopeless` are the files that nothing can be read from.
    Raises `UnknownFormatVersion`, `StorageFailed`.
    """

    def __init__(self, paths: Sequence[Path], neighbours: Sequence[Ends] = ()) -> None:
        self.segments: list[ScannedSegment] = []
        self.hopeless: list[Lost] = []
        for path in paths:
            try:
                self.segments.append(ScannedSegment(path))
            except UnknownFormatVersion:
                raise
            except WalDamaged as exc:
                seq = start_of(path)
                self.hopeless.append(Lost(path.name, seq, seq, None, exc.reason))
        self.segments.sort(key=lambda segment: segment.ends.header.first_seq)
        place(self.segments, neighbours)

    def close(self) -> None:
        """Lets go of the files."""
        for segment in self.segments:
            segment.close()

    def read(self, segment: ScannedSegment) -> Iterator[Entry | Lost]:
        """Everything of one of the segments, in order."""
        first_seq = segment.ends.header.first_seq
        while chunk := segment.read(first_seq, segment.ends.last_seq):
            for item in chunk:
                yield item if isinstance(item, Lost) else checked(item, segment.path.name)
            last = chunk[-1]
            first_seq = (last.last_seq if isinstance(last, Lost) else last.seq) + 1


def place(segments: Sequence[ScannedSegment], neighbours: Sequence[Ends]) -> None:
    """Has damaged segments take from each other, and from whole ones, what they cannot say of their own ends."""
    for segment in segments:
        first_seq = segment.ends.header.first_seq
        around = [*neighbours, *(other.ends for other in segments if other is not segment)]
        before = [ends for ends in around if ends.header.first_seq < first_seq]
        behind = [ends for ends in around if ends.header.first_seq > first_seq]
        segment.stand_between(
            max(before, key=lambda ends: ends.header.first_seq, default=None),
            min(behind, key=lambda ends: ends.header.first_seq, default=None),
        )


def checked(entry: Entry, file: str) -> Entry | Lost:
    """The entry, when its payload gives the lines that it says; else what is lost with it."""
    lines = lines_of(entry, file)
    return lines if isinstance(lines, Lost) else entry


def lines_of(entry: Entry, file: str) -> bytes | Lost:
    """An entry's lines, as many as it says points; else what is lost with it."""
    try:
        lines = entry.lines()
    except EntryDamaged as exc:
        return Lost(file, entry.seq, entry.seq, entry.points, str(exc))
    count = lines.count(b"\n")
    # A string may hold line feeds, so with quotes there may be more of them than points.
    too_many = count > entry.points and b'"' not in lines
    if count < entry.points or too_many or not lines.endswith(b"\n"):
        reason = f"entry {entry.seq}: it says {entry.points} points and has {count} lines"
        return Lost(file, entry.seq, entry.seq, entry.points, reason)
    return lines
