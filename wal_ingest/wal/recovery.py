"""Recovery: what an opening finds in the WAL's directory, what it sets aside, and what is missing.

Nothing is deleted. A file that is not what it should be is moved, whole, to `damaged/`, with the reason beside it; and
its seqs, which may be in nobody's sight any more, are never given out again.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.settings import WalSettings
from wal_ingest.wal.directory import make_directory, open_unlinked, reason_of, remove, sync_directory
from wal_ingest.wal.segment import (
    NEW_SUFFIX,
    SEQ_DIGITS,
    Segment,
    SegmentHeader,
    map_bytes_for,
    segment_paths,
    set_aside,
)
from wal_ingest.wal.space import give_back

DAMAGED_DIR = "damaged"

# How far the numbering jumps when the end of a damaged last segment cannot be told: more than any segment can
# hold, so that no seq in it is ever given out again.
_SEQS_PER_SEGMENT_MAX = 1 << 32


@dataclass(frozen=True, slots=True)
class SetAside:
    """A damaged file that was moved out of the way: where it is now, and what was wrong with it.

    `readable_points` are still read from it and delivered; `lost_points` are not, None where nobody can tell how many.
    """

    path: Path
    reason: str
    readable_points: int = 0
    lost_points: int | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Points that are in no segment, though segments before and behind them are there.

    A segment between was set aside, or taken away by somebody else. `first_seq` and `last_seq` bound the seqs that
    are missing; some of them may never have been given out.
    """

    first_seq: int
    last_seq: int
    points: int


class Neighbour(Protocol):
    """A segment, as far as `find_gaps` is concerned."""

    @property
    def header(self) -> SegmentHeader: ...
    @property
    def last_seq(self) -> int: ...
    @property
    def points_after(self) -> int: ...


def find_gaps(segments: Sequence[Neighbour]) -> list[Gap]:
    """The gaps between segments, which are in order. Pure.

    Where only the numbering jumps, and the count of points goes on, nothing is missing.
    """
    return [
        Gap(
            before.last_seq + 1,
            behind.header.first_seq - 1,
            behind.header.points_before - before.points_after,
        )
        for before, behind in itertools.pairwise(segments)
        if behind.header.points_before > before.points_after
    ]


def recover(
    directory: Path, settings: WalSettings, wal_id: uuid.UUID
) -> tuple[list[Segment], list[SetAside]]:
    """Opens what is there for reading, oldest first, and sets aside what is not readable.

    Nothing is changed when this raises `UnknownFormatVersion` or `WalDamaged`.
    """
    segments: list[Segment] = []
    damage: dict[Path, str] = {}
    foreign = 0
    paths = segment_paths(directory)
    for path in paths:
        try:
            segment = Segment.open(path, map_bytes=map_bytes_for(settings.segment_bytes_max))
        except UnknownFormatVersion:
            raise  # by name: a newer wal-ingest can read it
        except WalDamaged as exc:
            damage[path] = exc.reason
            continue
        if segment.header.wal_id == wal_id:
            segments.append(segment)
        else:
            damage[path] = f"it belongs to another WAL ({segment.header.wal_id})"
            foreign += 1
    if foreign and not segments:
        raise WalDamaged(directory, f"none of its {foreign} segments belongs to this WAL ({wal_id})")
    if paths and paths[-1] not in damage:
        _make_up_for_sync(paths[-1])
    for leftover in directory.glob(f"*{NEW_SUFFIX}"):
        # Never had an entry: it gets its real name only after its header, and entries only after that.
        remove(leftover)
    target = directory / DAMAGED_DIR
    damaged = []
    for path, reason in damage.items():
        make_directory(target)
        moved = SetAside(set_aside(path, target), reason)
        sync_directory(directory)
        note_reason(moved)
        damaged.append(moved)
    sync_directory(directory)
    return segments, damaged


def _make_up_for_sync(path: Path) -> None:
    """Syncs what a killed process may have left in the page cache only. Raises `StorageFailed`."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        give_back(path)  # what its last life held for it to grow into
    except OSError as exc:
        raise StorageFailed(path, f"cannot be synced: {exc.strerror}") from exc


def set_aside_earlier(directory: Path) -> list[Path]:
    """Every damaged segment ever set aside: its seqs must not be given out again either."""
    return [path for path in (directory / DAMAGED_DIR).glob("*") if start_of(path)]


def start_of(path: Path) -> int:
    """The first seq in a segment's file name; 0 when the name says none."""
    digits = path.name[:SEQ_DIGITS]
    return int(digits) if len(digits) == SEQ_DIGITS and digits.isdigit() else 0


def end_of(path: Path) -> int:
    """A seq above every seq that a damaged file can hold, told by its name alone."""
    start = start_of(path)
    return end_after(start) if start else 0


def end_after(first_seq: int) -> int:
    """A seq above every seq that a segment which begins with one can hold."""
    return first_seq + _SEQS_PER_SEGMENT_MAX


def note_reason(moved: SetAside) -> None:
    """Leaves the reason beside the file, durable: evidence for whoever looks at it later."""
    note = moved.path.with_name(moved.path.name + ".reason.txt")
    try:
        with open(note, "w", opener=open_unlinked) as file:
            file.write(moved.reason + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise StorageFailed(note, f"cannot be written: {reason_of(exc)}") from exc
    sync_directory(note.parent)
