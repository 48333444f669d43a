"""Reading a WAL from outside, for commands: beside a running server, through damage, and whatever is dropped meanwhile.

Invariants:

* Nothing is written, not a byte, and LMDB's engine is not used (see `lmdb_pages`).
* What was there when a `WalReader` was opened stays readable until it is closed, though the server drops the
  segment: its file is held open, and a file that is open keeps its bytes when its name goes.
* Every seq between the ends is either given as an `Entry` or lies in a `Lost`. Nothing is passed over in silence.

Times of acceptance rise with the seqs, nearly: appends that waited together are committed in any order, and a clock
may be set. So a range of time is decided entry by entry, and whole segments are left out only where they are
`_SLACK_NS` away from it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from wal_ingest.errors import NoWal, StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.directory import allow_many_files
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.pinned import PinnedSegment, ScannedSegment, SegmentReader
from wal_ingest.wal.recovery import start_of
from wal_ingest.wal.salvage import damaged_files
from wal_ingest.wal.segment import Ends, segment_paths

__all__ = ["Lost", "PinnedSegment", "WalReader"]

WAL_DIR = "wal"
_SLACK_NS = 600 * 10**9


class WalReader:
    """The segments of one data directory, oldest first, all held open until `close`.

    A file whose tree does not even tell its ends is read page by page; `unreadable` are those that nothing can be read
    from. Raises `NoWal`, `UnknownFormatVersion`, `StorageFailed`.
    """

    def __init__(self, data_dir: Path) -> None:
        self.directory = wal_directory(data_dir)
        self.segments: list[SegmentReader] = []
        self.unreadable: list[Lost] = []
        # Where what was let go of ended, so that it is not opened again, and a gap behind it is seen.
        self._released: Ends | None = None
        allow_many_files()
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of every file."""
        for segment in self.segments:
            segment.close()
        self.segments = []

    def refresh(self) -> None:
        """Takes in what was appended since: new segments, and where the last known one ends now.

        Raises `UnknownFormatVersion`, `StorageFailed`.
        """
        paths = segment_paths(self.directory)
        # Only now: by the time that a next segment is there, the one before has got its last entry.
        if self.segments:
            with contextlib.suppress(WalDamaged):  # what was readable before stays so
                self.segments[-1].refresh()
        known = {segment.path.name for segment in self.segments} | {lost.file for lost in self.unreadable}
        done = self._released.header.first_seq if self._released else 0
        for path in paths:
            if path.name not in known and int(path.stem) > done:
                self._open(path)
        for before, segment, behind in zip(
            [None, *self.segments], self.segments, [*self.segments[1:], None], strict=False
        ):
            if isinstance(segment, ScannedSegment):
                segment.stand_between(before.ends if before else None, behind.ends if behind else None)

    def _open(self, path: Path) -> None:
        try:
            try:
                self.segments.append(PinnedSegment(path))
            except UnknownFormatVersion:
                raise
            except WalDamaged:
                self.segments.append(ScannedSegment(path))
        except UnknownFormatVersion:
            raise
        except WalDamaged as exc:
            self.unreadable.append(Lost(path.name, int(path.stem), int(path.stem), None, exc.reason))
        except StorageFailed:
            if path.exists():
                raise
            # The server dropped it while we looked, and before it all that are older; else they would seem to be
            # followed by a gap.
            self.segments = [segment for segment in self.segments if _is_kept(segment)]

    def release_before(self, seq: int) -> None:
        """Lets go of the segments that end in front of a seq, and of the disk space of those that were dropped.

        The last one stays.
        """
        while len(self.segments) > 1 and self.segments[0].ends.last_seq < seq:
            segment = self.segments.pop(0)
            self._released = segment.ends
            segment.close()

    @property
    def first_seq(self) -> int:
        """The first seq that is kept; 1 when there is no segment."""
        return self.segments[0].ends.header.first_seq if self.segments else 1

    @property
    def last_seq(self) -> int:
        """The last seq that is there; one below `first_seq` when there is none."""
        return self.segments[-1].ends.last_seq if self.segments else 0

    @property
    def points(self) -> int:
        """Points between the first seq and the last, lost ones among them."""
        if not self.segments:
            return 0
        return self.segments[-1].ends.points_after - self.segments[0].ends.header.points_before

    def entries(
        self,
        *,
        first_seq: int = 1,
        last_seq: int | None = None,
        since_ns: int | None = None,
        until_ns: int | None = None,
    ) -> Iterator[Entry | Lost]:
        """Entries in order, and what is lost between them, within a range of seqs (both included) and of times.

        `since_ns` is the first time of acceptance in Unix nanoseconds that belongs to the range, `until_ns` the first
        that does not. A `Lost` has no time, so it is given wherever its segment is. Raises `UnknownFormatVersion`,
        `StorageFailed`.
        """
        for gaps, segment in self._walk():
            yield from (gap for gap in gaps if _overlaps(gap, first_seq, last_seq))
            if segment is not None and _may_hold(segment, since_ns, until_ns):
                end_seq = segment.ends.last_seq if last_seq is None else last_seq
                for item in _all_of(segment, first_seq, end_seq):
                    if isinstance(item, Lost) or _is_within(item.accepted_ns, since_ns, until_ns):
                        yield item

    def gaps(self) -> list[Lost]:
        """What is in no segment, or in one that nothing can be read from, though it should be there."""
        return [gap for gaps, _segment in self._walk() for gap in gaps]

    def _walk(self) -> Iterator[tuple[list[Lost], SegmentReader | None]]:
        """Each segment with what is missing in front of it; at the end None, with what is missing behind the last."""
        before = self._released
        unreadable = list(self.unreadable)
        for segment in list(self.segments):
            between = [lost for lost in unreadable if lost.first_seq < segment.ends.header.first_seq]
            unreadable = unreadable[len(between) :]
            gaps = _gaps(before, between, segment.ends, segment.path.name)
            yield [gap for gap in gaps if not self._is_salvaged(gap)], segment
            before = segment.ends
        yield unreadable, None

    def _is_salvaged(self, gap: Lost) -> bool:
        """Whether a gap is there because of files that were set aside, and whose entries were taken out since."""
        inside = [
            file
            for file in damaged_files(self.directory)
            if gap.first_seq <= start_of(file.path) <= gap.last_seq
        ]
        return bool(inside) and all(file.note is not None for file in inside)


def wal_directory(data_dir: Path) -> Path:
    """Where the segments of a data directory are.

    Raises `NoWal`, `StorageFailed` when this user may not look.
    """
    directory = data_dir / WAL_DIR
    try:
        os.scandir(directory).close()
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NoWal(data_dir) from exc
    except OSError as exc:
        raise StorageFailed(directory, str(exc.strerror), number=exc.errno or 0) from exc
    return directory


def _is_kept(segment: SegmentReader) -> bool:
    if segment.path.exists():
        return True
    segment.close()
    return False


def _all_of(segment: SegmentReader, first_seq: int, last_seq: int) -> Iterator[Entry | Lost]:
    while chunk := segment.read(first_seq, last_seq):
        yield from chunk
        last = chunk[-1]
        first_seq = (last.last_seq if isinstance(last, Lost) else last.seq) + 1


def _gaps(before: Ends | None, between: list[Lost], ends: Ends, name: str) -> list[Lost]:
    """What is missing in front of a segment; where only the numbering jumps, nothing is."""
    last_seq = ends.header.first_seq - 1
    if before is None:
        # How many points a file held that nothing stands in front of, nobody knows.
        behind = [lost.first_seq - 1 for lost in between[1:]] + [last_seq]
        return [
            Lost(lost.file, lost.first_seq, end, None, lost.reason)
            for lost, end in zip(between, behind, strict=False)  # none stand between: one more end
        ]
    points = ends.header.points_before - before.points_after
    if points <= 0:
        return []
    file = ", ".join(lost.file for lost in between) or f"before {name}"
    reason = (
        between[0].reason if between else "no segment is there: it was set aside as damaged, or taken away"
    )
    return [Lost(file, before.last_seq + 1, last_seq, points, reason)]


def _overlaps(lost: Lost, first_seq: int, last_seq: int | None) -> bool:
    return lost.last_seq >= first_seq and (last_seq is None or lost.first_seq <= last_seq)


def _may_hold(segment: SegmentReader, since_ns: int | None, until_ns: int | None) -> bool:
    """Whether a segment may hold entries of a range of time.

    Its first entry may have been accepted long before the segment was begun: salvaged ones keep their time.
    """
    if since_ns is None and until_ns is None:
        return True
    first_ns = segment.first_accepted_ns
    if first_ns is None:
        return True
    times = (first_ns, segment.ends.header.created_ns, segment.ends.last_accepted_ns)
    if since_ns is not None and max(times) + _SLACK_NS < since_ns:
        return False
    return until_ns is None or min(times) - _SLACK_NS < until_ns


def _is_within(accepted_ns: int, since_ns: int | None, until_ns: int | None) -> bool:
    return (since_ns is None or accepted_ns >= since_ns) and (until_ns is None or accepted_ns < until_ns)
