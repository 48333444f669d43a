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
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wal_ingest.errors import OperatorNeeded, StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.lmdb_pages import PageReader, Unreadable
from wal_ingest.wal.segment import Ends, decode_item, ends_in, segment_paths

WAL_DIR = "wal"
_SLACK_NS = 600 * 10**9
_CHUNK_BYTES = 4 << 20
_TRIES_MAX = 50


@dataclass(frozen=True, slots=True)
class Lost:
    """Entries that should be there and cannot be read: in which file, their seqs (both included), how many points
    (None where that cannot be told), and why."""

    file: str
    first_seq: int
    last_seq: int
    points: int | None
    reason: str


class PinnedSegment:
    """One segment's file, held open. Raises `WalDamaged` when it does not even tell its ends, `StorageFailed`."""

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

    def read(self, first_seq: int, last_seq: int, *, bytes_max: int = _CHUNK_BYTES) -> list[Entry | Lost]:
        """From `first_seq` on, up to `last_seq` or about `bytes_max` stored bytes, without a hole.

        Empty only when the range holds no seq of this segment. Raises `UnknownFormatVersion`, `StorageFailed`.
        """
        first_seq = max(first_seq, self.ends.header.first_seq)
        last_seq = min(last_seq, self.ends.last_seq)
        if first_seq > last_seq:
            return []
        for tries_left in range(_TRIES_MAX - 1, -1, -1):  # pragma: no branch
            with contextlib.suppress(WalDamaged):  # its meta pages were whole when it was opened
                self._reader.refresh()
            found = self._read(first_seq, last_seq, bytes_max)
            if self._reader.is_whole() or not tries_left:
                return found
        raise AssertionError("the last try returns")  # pragma: no cover: as it says

    def _read(self, first_seq: int, last_seq: int, bytes_max: int) -> list[Entry | Lost]:
        found: list[Entry | Lost] = []
        expected, reason = first_seq, "the entry is not there"
        for item in self._reader.whatever_from(first_seq.to_bytes(8, "big")):
            if isinstance(item, Unreadable):
                reason = item.reason
                continue
            seq = int.from_bytes(item[0], "big")
            if seq > last_seq or bytes_max <= 0:
                last_seq = min(last_seq, seq - 1)
                break
            bytes_max -= len(item[1])
            try:
                entry = decode_item(item, self.path)
            except UnknownFormatVersion:
                raise
            except WalDamaged as exc:
                reason = exc.reason
                continue
            if seq > expected:
                found.append(self._lost(expected, seq - 1, reason))
            found.append(entry)
            expected, reason = seq + 1, "the entry is not there"
        if expected <= last_seq:
            found.append(self._lost(expected, last_seq, reason))
        return _with_points(found, self.ends)

    def _lost(self, first_seq: int, last_seq: int, reason: str) -> Lost:
        return Lost(self.path.name, first_seq, last_seq, None, reason)


def _with_points(found: list[Entry | Lost], ends: Ends) -> list[Entry | Lost]:
    """The same, and each `Lost` says its points where what stands around it tells them."""
    told: list[Entry | Lost] = []
    for index, item in enumerate(found):
        if isinstance(item, Lost):
            before, after = (
                _points_before(found[:index], item, ends),
                _points_after(found[index + 1 :], item, ends),
            )
            if before is not None and after is not None:
                item = Lost(item.file, item.first_seq, item.last_seq, after - before, item.reason)
        told.append(item)
    return told


def _points_before(found: list[Entry | Lost], lost: Lost, ends: Ends) -> int | None:
    if found and isinstance(found[-1], Entry):
        return found[-1].points_before + found[-1].points
    return ends.header.points_before if lost.first_seq == ends.header.first_seq else None


def _points_after(found: list[Entry | Lost], lost: Lost, ends: Ends) -> int | None:
    if found and isinstance(found[0], Entry):
        return found[0].points_before
    return ends.points_after if lost.last_seq == ends.last_seq else None


class WalReader:
    """The segments of one data directory, oldest first, all held open until `close`.

    `unreadable` are the files that do not even tell their ends. Raises `OperatorNeeded` when there is no WAL.
    """

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / WAL_DIR
        if not self._directory.is_dir():
            error = OperatorNeeded(f"there is no WAL in {data_dir}")
            error.hint = "name the server's data directory with --data-dir"
            raise error
        self.segments: list[PinnedSegment] = []
        self.unreadable: list[Lost] = []
        _allow_many_files()
        self.refresh()

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
        known = {segment.path for segment in self.segments} | {
            self._directory / lost.file for lost in self.unreadable
        }
        if self.segments:
            with contextlib.suppress(WalDamaged):  # what was readable before stays so
                self.segments[-1].refresh()
        for path in segment_paths(self._directory):
            if path in known:
                continue
            try:
                self.segments.append(PinnedSegment(path))
            except UnknownFormatVersion:
                raise
            except WalDamaged as exc:
                self.unreadable.append(Lost(path.name, int(path.stem), int(path.stem), None, exc.reason))
            except StorageFailed:
                if path.exists():  # else it was dropped while we looked
                    raise

    @property
    def first_seq(self) -> int:
        """The first seq that is kept; 1 when there is no segment."""
        return self.segments[0].ends.header.first_seq if self.segments else 1

    @property
    def last_seq(self) -> int:
        """The last seq that is there; one below `first_seq` when there is none."""
        return self.segments[-1].ends.last_seq if self.segments else 0

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
        before: Ends | None = None
        for segment in list(self.segments):
            ends = segment.ends
            end_seq = ends.last_seq if last_seq is None else last_seq
            if before is not None:
                gap = _gap(before, ends, segment.path.name)
                if gap is not None and gap.first_seq <= end_seq and gap.last_seq >= first_seq:
                    yield gap
            before = ends
            if not _may_hold(ends, since_ns, until_ns):
                continue
            seq = first_seq
            while chunk := segment.read(seq, end_seq):
                for item in chunk:
                    if isinstance(item, Lost) or _is_within(item.accepted_ns, since_ns, until_ns):
                        yield item
                last = chunk[-1]
                seq = (last.last_seq if isinstance(last, Lost) else last.seq) + 1


def _gap(before: Ends, ends: Ends, name: str) -> Lost | None:
    """What is missing between two segments; where only the numbering jumps, nothing is."""
    points = ends.header.points_before - before.points_after
    if points <= 0:
        return None
    reason = "no segment is there: it was set aside as damaged, or taken away"
    return Lost(f"before {name}", before.last_seq + 1, ends.header.first_seq - 1, points, reason)


def _may_hold(ends: Ends, since_ns: int | None, until_ns: int | None) -> bool:
    """Whether a segment may hold entries of a range of time."""
    times = (ends.header.created_ns, ends.last_accepted_ns)
    if since_ns is not None and max(times) + _SLACK_NS < since_ns:
        return False
    return until_ns is None or min(times) - _SLACK_NS < until_ns


def _is_within(accepted_ns: int, since_ns: int | None, until_ns: int | None) -> bool:
    return (since_ns is None or accepted_ns >= since_ns) and (until_ns is None or accepted_ns < until_ns)


def _allow_many_files() -> None:
    """A WAL may have more segments than a process may have files open by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
