"""The write-ahead log: segments in order, the last of them written to.

Invariants:

1. A seq is handed out once. The next one is above every seq in the segments *and* above every cursor, so that
   nothing new can hide behind a cursor that has already passed.
2. What `commit` has returned is on disk: data synced, then LMDB's meta page synced, then memory moved on,
   then the caller told. Neither `last_seq` nor `positions` ever runs ahead of the disk, and they move together.
3. A segment is dropped only when the caller says that everything in it is confirmed, and the cursors that say so
   are durable by then. The last segment is never dropped: it carries the numbering on, as the cursors do.
4. Nothing is repaired by deleting. A file that is not what it should be is moved aside whole, and what proves itself by
   its checksum is still read from there, in its place in the order (see `remains`).
5. Nothing is appended to a file from an earlier life of the process: each life begins a segment of its own.

Opening: the syncs that a killed process may have left undone are made up for first (a kill -9 leaves pages
in the page cache that look committed; delivering those and moving a cursor past them, then losing
power, would give their seqs out twice). Then the segments' headers and last entries are read, without LMDB's
engine, which a damaged file could crash; before its first real use each file is verified once.

Threads: `commit`, `seal_if_due` and `open` belong to the writer thread; `read`, `truncate` and `set_aside` may
run on any; the list of segments has a lock of its own, held for list operations only.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wal_ingest.errors import DiskFull, WalDamaged
from wal_ingest.settings import WalSettings
from wal_ingest.wal.directory import make_directory, sync_directory
from wal_ingest.wal.entry import Entry, Mark, NewEntry, encode
from wal_ingest.wal.leftover import Leftover
from wal_ingest.wal.lmdb_file import Item, MapFull
from wal_ingest.wal.recovery import (
    DAMAGED_DIR,
    Gap,
    SetAside,
    end_of,
    find_gaps,
    note_reason,
    recover,
    set_aside_earlier,
    start_of,
)
from wal_ingest.wal.remains import Remains, open_remains, remains_of
from wal_ingest.wal.segment import Segment, SegmentHeader
from wal_ingest.wal.streams import Position, Positions


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append got: the seqs of its entries, both ends included. It is durable by then."""

    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class PositionChanges:
    """What changed in the positions of streams up to and including `last_seq`, when the log began with `first_seq`.

    By client's id; None where a stream is forgotten.
    """

    last_seq: int
    first_seq: int
    changes: dict[str, Position | None]


class Wal:
    """The log of one data directory. See the module's text for what holds at all times."""

    def __init__(
        self,
        directory: Path,
        settings: WalSettings,
        *,
        wal_id: uuid.UUID,
        segments: list[Segment],
        found_damaged: Sequence[SetAside],
        now_ns: Callable[[], int],
    ) -> None:
        """Use `Wal.open`."""
        self.directory = directory
        self.wal_id = wal_id
        self.damaged: list[SetAside] = list(found_damaged)
        self._settings = settings
        self._segments = segments
        # Of segments that were set aside and not dropped since: what can be read of them, by their first seq.
        self._remains: list[Remains] = []
        self._segments_mutex = threading.Lock()
        # Held while files are removed or moved: truncation and setting aside must not meet over one.
        self._removal_mutex = threading.Lock()
        # A running sum: a WAL may have thousands of segments, and every commit asks for its size.
        self._sealed_bytes = sum(segment.bytes for segment in segments)
        # The segment that is written to; None while the disk is too full to begin one.
        self._active: Segment | None = None
        # What comes next; memory moves on only after the disk.
        self._next_seq = 1
        self._points_total = 0
        self._now_ns = now_ns
        # Of streams: how far each has come. Whoever remembers them across lives fills it, and is told before segments
        # are dropped, with the seq up to which: what was read from them must be written down elsewhere first.
        self.positions = Positions(clients_max=settings.streams_max, mutex=self._segments_mutex)
        self.before_drop: Callable[[int], None] = lambda _last_seq: None
        # Called after a segment was begun, on the writer thread: its name is durable.
        self.begun: Callable[[], None] = lambda: None

    @classmethod
    def open(
        cls,
        directory: Path,
        settings: WalSettings,
        *,
        wal_id: uuid.UUID,
        above_seq: int,
        points_above: int,
        now_ns: Callable[[], int],
        dropped_seq: int | None = None,
    ) -> Wal:
        """Recovers the log in `directory`, or begins one.

        `above_seq` is the highest seq that any cursor has passed and `points_above` what it says of the points
        up to there: the numbering goes on above both. `dropped_seq` is the seq up to which segments were dropped, None
        where that was not written down. Raises `UnknownFormatVersion` or `WalDamaged` (nothing was
        changed; the latter when all segments belong to another WAL), `StorageFailed`, `ConfigError`.
        """
        make_directory(directory)
        segments, damaged = recover(directory, settings, wal_id)
        if dropped_seq is None:
            dropped_seq = segments[0].first_seq - 1 if segments else above_seq
        moved = {each.path for each in damaged}
        aside = [
            path for path in set_aside_earlier(directory) if path in moved or start_of(path) > dropped_seq
        ]
        remains = open_remains(aside, [segment.ends for segment in segments], wal_id)
        damaged = [_counted(each, remains) for each in damaged]
        # Behind a damaged file only the start of the next good one tells where its seqs ended.
        good_seq = segments[-1].first_seq if segments else 0
        ends = [end_of(path) for path in set_aside_earlier(directory) if start_of(path) > good_seq]
        floor_seq = max([above_seq, *ends])
        wal = cls(directory, settings, wal_id=wal_id, segments=segments, found_damaged=damaged, now_ns=now_ns)
        last = segments[-1] if segments else None
        wal._next_seq = max(floor_seq, last.last_seq if last else 0) + 1
        wal._remains = remains
        read_points = [each.points_after for each in remains]
        wal._points_total = max(points_above, last.points_after if last else 0, *read_points)
        if last is not None and last.last_seq < last.first_seq == wal._next_seq and wal._take_over(last):
            wal._active = last
            wal._sealed_bytes -= last.bytes
        else:
            with contextlib.suppress(DiskFull):  # then it is begun by the first commit that finds room
                wal._begin_segment()
        return wal

    def _take_over(self, last: Segment) -> bool:
        """Makes the last segment, which says that it has no entry, writable; false when it was damaged instead.

        Then there may have been entries in it, so the numbering goes on above all that it could have held.
        """
        try:
            last.reopen_empty()
        except WalDamaged as exc:
            moved = self.set_aside(last.path, exc.reason)
            assert moved is not None
            self._next_seq = end_of(moved.path) + 1
            return False
        return True

    # -- writing ---------------------------------------------------------------------------------------

    def commit(self, groups: Sequence[Sequence[NewEntry]]) -> list[Appended]:
        """Makes all entries of all groups durable in one transaction; returns each group's seqs, in order.

        Every group must hold an entry. Raises `DiskFull` (nothing was stored; try again later), `StorageFailed` or
        `WalDamaged`; with the latter two, what became of the entries is unknown, and this log must not be written
        to again by this process.
        """
        self.seal_if_due()
        items: list[Item] = []
        marked: list[tuple[Mark, int, int, int]] = []
        appended: list[Appended] = []
        seq = self._next_seq
        points_after = self._points_total
        for group in groups:
            first_seq = seq
            for entry in group:
                items.append((seq.to_bytes(8, "big"), encode(entry, seq=seq, points_before=points_after)))
                if entry.mark is not None:
                    marked.append((entry.mark, seq, entry.points, entry.accepted_ns))
                points_after += entry.points
                seq += 1
            appended.append(Appended(first_seq, seq - 1))
        points = points_after - self._points_total
        accepted_ns = groups[-1][-1].accepted_ns
        active = self._active or self._begin_segment()
        try:
            active.append(items, points=points, accepted_ns=accepted_ns)
        except MapFull:
            # The transaction was aborted and nothing of it is in the file, so this is no retried sync: the
            # same entries go into a new segment, under the seqs they were going to have.
            self.seal()
            (self._active or self._begin_segment()).append(items, points=points, accepted_ns=accepted_ns)
        with self._segments_mutex:  # see `end`
            self._next_seq = seq
            self._points_total = points_after
            for each in marked:
                self.positions.apply(*each)
        return appended

    def seal_if_due(self) -> None:
        """Seals the segment that is written to when its size or its age says so. Raises `StorageFailed`."""
        active = self._active
        if active is None or active.last_seq < active.first_seq:
            return
        age_s = (self._now_ns() - active.header.created_ns) / 1e9
        # A negative age: the clock was ahead when the segment was begun. A full WAL: only sealed segments can
        # be dropped, so waiting for this one to grow would be waiting for ever.
        due_by_age = not 0 <= age_s < self._settings.segment_s_max
        due_by_size = active.bytes >= self._settings.segment_bytes_max
        if due_by_age or due_by_size or self.bytes >= self._settings.wal_bytes_max:
            self.seal()

    def seal(self) -> None:
        """Seals the segment that is written to, unless it holds no entry yet, and begins the next.

        On a full disk the next is begun by the first commit that finds room. Raises `StorageFailed`.
        """
        active = self._active
        if active is None or active.last_seq < active.first_seq:
            return
        active.seal()
        with self._segments_mutex:
            self._sealed_bytes += active.bytes
            self._active = None
        with contextlib.suppress(DiskFull):
            self._begin_segment()

    def _begin_segment(self) -> Segment:
        header = SegmentHeader(self.wal_id, self._next_seq, self._points_total, self._now_ns())
        segment = Segment.create(self.directory, header, segment_bytes_max=self._settings.segment_bytes_max)
        with self._segments_mutex:
            self._segments.append(segment)
            self._active = segment
        self.begun()
        return segment

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def last_seq(self) -> int:
        """The highest committed seq; 0 before the first."""
        return self._next_seq - 1

    @property
    def points_total(self) -> int:
        """Points of all entries ever committed."""
        return self._points_total

    @property
    def end(self) -> tuple[int, int]:
        """`last_seq` and `points_total` of one moment, for whoever makes a cursor of them while commits go on."""
        with self._segments_mutex:
            return self._next_seq - 1, self._points_total

    @property
    def first_seq(self) -> int:
        """The lowest seq that is still kept, or the next one to come when none is."""
        pieces = self.pieces()
        return pieces[0].first_seq if pieces else self._next_seq

    @property
    def first_points_before(self) -> int:
        """Points of all entries in front of `first_seq`."""
        pieces = self.pieces()
        return pieces[0].header.points_before if pieces else self._points_total

    @property
    def bytes(self) -> int:
        """What the segments take on disk."""
        with self._segments_mutex:
            return self._sealed_bytes + (self._active.bytes if self._active else 0)

    def take_position_changes(self, *, now_ns: int, keep_s: float) -> PositionChanges:
        """What changed in the positions since it was last taken, and of which moment that is.

        Streams that were silent for longer than `keep_s` seconds are forgotten by that.
        """
        with self._segments_mutex:
            self.positions.forget_silent(now_ns=now_ns, keep_s=keep_s)
            first_seq = self._segments[0].first_seq if self._segments else self._next_seq
            return PositionChanges(self._next_seq - 1, first_seq, self.positions.take_changes())

    def forget_stream(self, client_id: str) -> Position | None:
        """Forgets a stream in memory, and gives what was known of it; durable once the changes are written down."""
        with self._segments_mutex:
            return self.positions.forget(client_id)

    def put_position_changes_back(self, taken: PositionChanges) -> None:
        """Changes that could not be written down are to be taken once more."""
        with self._segments_mutex:
            self.positions.put_back(taken.changes)

    def segments(self) -> list[Segment]:
        """The segments, oldest first: a copy of the list."""
        with self._segments_mutex:
            return list(self._segments)

    def pieces(self) -> list[Segment | Remains]:
        """The segments, and what can be read of those that were set aside, in order."""
        with self._segments_mutex:
            if not self._remains:
                return list(self._segments)
            return sorted([*self._segments, *self._remains], key=lambda piece: piece.first_seq)

    def gaps(self) -> list[Gap]:
        """What is missing between the segments that are there, oldest first; not what is lost within one."""
        return find_gaps(self.pieces())

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        """Committed entries with a seq above `after_seq`, in order, up to about `bytes_max` stored bytes.

        One segment's at a time; at least one entry where there is one. Raises `WalDamaged` with the segment's
        path (see `set_aside`), `StorageFailed`.
        """
        pieces, gone = self.pieces(), set[Path]()
        while pieces:
            piece = pieces.pop(0)
            if piece.last_seq <= after_seq or piece.last_seq < piece.first_seq:
                continue
            entries = piece.read(after_seq, bytes_max=bytes_max)
            if entries:
                return entries
            if entries is None:
                # It was dropped or set aside just now. In the latter case it is still to be read, from elsewhere.
                gone.add(piece.path)
                with self._removal_mutex:
                    pieces = [each for each in self.pieces() if each.path not in gone]
        return []

    @property
    def open_seq(self) -> int | None:
        """The first seq of the segment that is written to; None while there is none."""
        active = self._active
        return None if active is None else active.first_seq

    def is_written_to(self, path: Path) -> bool:
        """Whether a file is the segment that is written to: it must be sealed before it can be set aside."""
        return self._active is not None and self._active.path == path

    def rest_segments(self, cursors: Sequence[int]) -> None:
        """Unmaps the sealed segments that none of the cursors is in: nobody reads them just now."""
        for piece in self.pieces():
            if not any(piece.first_seq - 1 <= seq < piece.last_seq for seq in cursors):
                piece.rest()

    # -- giving space back -----------------------------------------------------------------------------

    def truncate(self, confirmed_seq: int) -> int:
        """Drops the sealed segments that end at or before a seq; returns how many.

        The caller's cursors up to `confirmed_seq` are durable. A crash half-way leaves fewer segments or more,
        each whole; the next truncation goes on. Raises `StorageFailed`.
        """
        with self._dropping(confirmed_seq) as going:
            for segment in going:
                segment.drop()
                self._forget(segment)
        return len(going)

    def truncate_gently(self, confirmed_seq: int, *, segments_max: int) -> list[Leftover]:
        """`truncate` of a few segments at the most, whose space is left to the caller to give back, or to close."""
        leftovers: list[Leftover] = []
        try:
            with self._dropping(confirmed_seq, segments_max) as going:
                for segment in going:
                    leftovers.append(segment.drop_but_for_its_space())
                    self._forget(segment)
        except BaseException:
            for leftover in leftovers:
                leftover.close()
            raise
        return leftovers

    @contextlib.contextmanager
    def _dropping(self, confirmed_seq: int, segments_max: int | None = None) -> Iterator[list[Segment]]:
        """Around the dropping of what may go: it is known before, and durable after."""
        with self._removal_mutex:
            sealed = self.segments()[:-1]
            going = list(itertools.takewhile(lambda segment: segment.last_seq <= confirmed_seq, sealed))
            going = going[:segments_max]
            if going:
                self.before_drop(going[-1].last_seq)
            yield going
            if going:
                sync_directory(self.directory)
                self._drop_remains(going[-1].last_seq)

    def _forget(self, segment: Segment) -> None:
        with self._segments_mutex:
            self._segments.remove(segment)
            self._sealed_bytes -= segment.bytes

    def _replace(self, segment: Segment, remains: list[Remains]) -> None:
        """A segment was set aside: no reader sees a moment at which neither it nor what remains of it is there."""
        with self._segments_mutex:
            self._segments.remove(segment)
            self._sealed_bytes -= segment.bytes
            self._remains += remains
            # Frames in it are not confirmed as durable any more.
            self.positions.forget_entries([(segment.first_seq, segment.last_seq)])

    def _drop_remains(self, last_seq: int) -> None:
        with self._segments_mutex:
            gone = [each for each in self._remains if each.last_seq <= last_seq]
            self._remains = [each for each in self._remains if each.last_seq > last_seq]
        for each in gone:
            each.rest()

    def set_aside(self, path: Path, reason: str) -> SetAside | None:
        """Moves a sealed segment that turned out damaged out of the way; what can be read of it is read from there.

        None when the segment is not there any more (another reader did it). Raises `StorageFailed`, and
        `WalDamaged` for the last segment, which is being written to: that one needs a restart.
        """
        with self._removal_mutex:
            segment = next((segment for segment in self.segments() if segment.path == path), None)
            if segment is None:
                return None
            if segment is self._active:
                raise WalDamaged(path, f"{reason}; it is the segment that is being written to")
            directory = self.directory / DAMAGED_DIR
            make_directory(directory)
            # Before it is moved: where no descriptor is left, nothing has happened yet, and it is tried again.
            remains = remains_of(path, segment.ends)
            moved = SetAside(segment.set_aside(directory), reason)
            for each in remains:
                each.moved(moved.path)
            self._replace(segment, remains)
            sync_directory(self.directory)
            note_reason(moved)
        moved = _counted(moved, remains)
        self.damaged.append(moved)
        return moved

    def close(self) -> None:
        """Unmaps every segment. No read or commit may be under way."""
        for segment in self.segments():
            segment.close()
        for each in self._remains:
            each.rest()


def _counted(moved: SetAside, remains: Sequence[Remains]) -> SetAside:
    """The same, with how many points can be read of the file."""
    for each in remains:
        if each.path == moved.path:
            return replace(moved, readable_points=each.readable_points, lost_points=each.lost_points)
    return moved
