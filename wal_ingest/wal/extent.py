"""Where the log begins and ends, durably, beside the log itself: so a segment that is gone at either end is missed.

Invariants:

* The record never says more than the disk holds. It moves on after a segment has its name, and after a stop; what was
  appended to the last segment since is only in the segment. So no commit costs a sync more.
* It moves past segments before truncation drops them: what is gone by then was confirmed.
* What was found missing is written down once and for all (`lost/…`), together with the extent that goes on without it.

A directory from an earlier version has no record. There the cursors and the checkpoint of streams say what must be
there: everything behind the foremost cursor is kept, since nothing is dropped that no sink has confirmed. A state file
that is older than the log, as one that was restored, says nothing of the log's ends.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.recovery import DAMAGED_DIR, Neighbour, find_gaps, start_of
from wal_ingest.wal.segment import segment_name

KEY_EXTENT = b"extent"
LOST = b"lost/"


class Extent(msgspec.Struct, frozen=True):
    """Every entry from `first_seq` to before `next_seq` is in a segment, as is what was appended since.

    `points_before` and `points` count the points of the WAL before the first of them and up to the last; None where an
    earlier version has not said. `open_seq` is the first seq of the segment that is written to, None after a stop.
    """

    first_seq: int
    points_before: int
    next_seq: int
    points: int | None
    open_seq: int | None = None


class LostRange(msgspec.Struct, frozen=True):
    """Seqs (both included) that were in no file at a start, how many points (None: nobody knows), and when it was seen.

    `found_ns` is Unix time in nanoseconds, 0 where it was not written down yet.
    """

    first_seq: int
    last_seq: int
    points: int | None
    found_ns: int = 0


def derived(cursors: Collection[Cursor], streams_seq: int) -> Extent | None:
    """What a directory of an earlier version says: by its cursors, and by the seq that its checkpoint has come to."""
    foremost = max(cursors, key=lambda cursor: cursor.seq, default=None)
    if foremost is None:
        return None
    next_seq = max(foremost.seq, streams_seq) + 1
    points = foremost.points if next_seq == foremost.seq + 1 else None
    return Extent(foremost.seq + 1, foremost.points, next_seq, points)


def is_older(extent: Extent, pieces: Sequence[Neighbour]) -> bool:
    """Whether a record is older than the log: a segment was begun that it knows nothing of."""
    return any(piece.header.first_seq > extent.next_seq for piece in pieces)


def is_there(wal_dir: Path, first_seq: int) -> bool:
    """Whether the segment that begins with a seq is there, or was set aside."""
    name = segment_name(first_seq)
    return (wal_dir / name).exists() or any((wal_dir / DAMAGED_DIR).glob(f"{name}*"))


def missing_ends(
    extent: Extent | None,
    cursors: Collection[Cursor],
    pieces: Sequence[Neighbour],
    *,
    open_is_there: bool,
    set_aside: Collection[int],
) -> list[LostRange]:
    """What should be before the first piece and after the last one, and is in no file. Pure.

    `cursors` are those of the sinks that are to get points: what all of them have passed is not missed. `set_aside` are
    the first seqs of damaged files, which have a report of their own.
    """
    if extent is None:
        return []
    hindmost = min(cursors, key=lambda cursor: cursor.seq, default=None)
    first_seq, points_before = extent.first_seq, extent.points_before
    if hindmost is not None and hindmost.seq >= first_seq:
        first_seq, points_before = hindmost.seq + 1, hindmost.points
        # Within a file that was set aside, of which a sink has a part: the rest of it is in that file as well.
        passed = [seq for seq in set_aside if extent.first_seq <= seq < first_seq]
        if passed and not any(max(passed) < each.header.first_seq <= first_seq for each in pieces):
            set_aside = [*set_aside, first_seq]
    found = []
    end_seq, end_points = first_seq - 1, points_before
    if pieces:
        header = pieces[0].header
        if header.first_seq > first_seq and header.points_before > points_before:
            found.append(LostRange(first_seq, header.first_seq - 1, header.points_before - points_before))
        if pieces[-1].last_seq > end_seq:
            end_seq, end_points = pieces[-1].last_seq, pieces[-1].points_after
    if extent.open_seq is not None and not open_is_there:
        # How much was appended to it, nobody knows.
        last_seq = max(extent.open_seq, extent.next_seq - 1)
        if last_seq > end_seq:
            found.append(LostRange(end_seq + 1, last_seq, None))
    elif extent.next_seq - 1 > end_seq:
        points = None if extent.points is None else extent.points - end_points
        if points is None or points > 0:
            found.append(LostRange(end_seq + 1, extent.next_seq - 1, points))
    return _unexplained(found, set_aside)


def missing_between(pieces: Sequence[Neighbour], set_aside: Collection[int]) -> list[LostRange]:
    """What is in no file though files before and after it are there. Pure."""
    gaps = [LostRange(gap.first_seq, gap.last_seq, gap.points) for gap in find_gaps(pieces)]
    return _unexplained(gaps, set_aside)


def _unexplained(found: Sequence[LostRange], set_aside: Collection[int]) -> list[LostRange]:
    return [each for each in found if not any(each.first_seq <= seq <= each.last_seq for seq in set_aside)]


def set_aside_starts(wal_dir: Path) -> list[int]:
    """The first seqs of the damaged segments."""
    return [seq for path in (wal_dir / DAMAGED_DIR).glob("*") if (seq := start_of(path))]


def lost_key(lost: LostRange) -> bytes:
    """Where a lost range is written down."""
    return LOST + b"%020d" % lost.first_seq
