"""Everything durable of one data directory, opened together: the lock, the state, the WAL.

The order of opening: lock (nobody else may even look for what to mend), state, WAL; the WAL needs to know
how far the cursors have come, and the checkpoint of streams, so that no seq is given out twice. Last the positions of
streams, which are read from both.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import msgspec

from wal_ingest.errors import (
    ConfigError,
    SectorUnreadable,
    StorageFailed,
    UnknownFormatVersion,
    WalDamaged,
    WalFull,
)
from wal_ingest.settings import FlusherSettings, WalSettings
from wal_ingest.wal.checkpoint import Checkpoint, read_through
from wal_ingest.wal.cursor import Cursor, DeadLetter, open_in
from wal_ingest.wal.directory import DirectoryLock, make_directory, sync_directory
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.extent import (
    Extent,
    LostRange,
    derived,
    is_older,
    is_there,
    missing_between,
    missing_ends,
    set_aside_starts,
)
from wal_ingest.wal.letter_room import LetterLimits
from wal_ingest.wal.log import Wal
from wal_ingest.wal.recovery import DAMAGED_DIR, SetAside, end_after
from wal_ingest.wal.required import Presence, Requirement, at_start
from wal_ingest.wal.segment import read_ends, segment_paths, set_aside
from wal_ingest.wal.state import STATE_NAME, State, check_state
from wal_ingest.wal.streams import Position

WAL_DIR = "wal"


class Store:
    """One data directory, held by this process alone: `state` and `wal` until `close`."""

    def __init__(
        self,
        data_dir: Path,
        settings: WalSettings,
        *,
        now_ns: Callable[[], int],
        letters_bytes_max: int | None = None,
    ) -> None:
        """Opens or begins a data directory; `letters_bytes_max` is `flusher.dead_letters_bytes_max`, or its default.

        `state_trouble` says afterwards what was wrong with the state file, or is empty; `overtaken` names the sinks
        whose cursors are from before the oldest entry kept, as in an old state file; `missing` are the entries that
        are in no file though they should be. Raises `DataDirLocked`, `ConfigError` (the directory cannot be made),
        `UnknownFormatVersion`, `WalDamaged` (all segments belong to another WAL), `StorageFailed`.
        """
        make_directory(data_dir)
        # Its name may be as new as the process that was killed right after making it.
        sync_directory(data_dir.absolute().parent)
        self.data_dir = data_dir
        self._now_ns = now_ns
        self._extent_mutex = threading.Lock()
        self._lock = DirectoryLock(data_dir)
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.close)
            wal_dir = data_dir / WAL_DIR
            self.state_trouble = _set_damaged_state_aside(data_dir)
            adopt = None
            if not (data_dir / STATE_NAME).exists():
                adopt = _identity_in(wal_dir)
                if adopt is not None and not self.state_trouble:
                    self.state_trouble = "the state file was missing"
            limits = LetterLimits(
                FlusherSettings().dead_letters_bytes_max if letters_bytes_max is None else letters_bytes_max,
                settings.free_disk_bytes_min // 2,
            )
            self.state = State(data_dir, now_ns=now_ns(), adopt=adopt, limits=limits)
            undo.callback(self.state.close)
            cursors = self.state.cursors().values()
            through = read_through(self.state)
            passed = [cursor.seq for cursor in cursors] + ([through.seq] if through is not None else [])
            recorded = self.state.extent
            extent = recorded or derived(cursors, self.state.streams_seq)
            open_is_there = True
            if recorded is not None:
                passed.append(recorded.next_seq - 1)
                if recorded.open_seq is not None:
                    open_is_there = is_there(wal_dir, recorded.open_seq)
                    # What was appended to a segment that is gone, nobody knows; its seqs are not given out again.
                    passed.append(recorded.open_seq - 1 if open_is_there else end_after(recorded.open_seq))
            points = [cursor.points for cursor in cursors] + [(recorded.points if recorded else None) or 0]
            self.wal = Wal.open(
                wal_dir,
                settings,
                wal_id=self.state.wal_id,
                above_seq=max(passed, default=0),
                points_above=max(points),
                now_ns=now_ns,
                dropped_seq=None if recorded is None else recorded.first_seq - 1,
            )
            self.overtaken = self._forget_overtaken_positions()
            self.missing = self._note_missing(extent, open_is_there=open_is_there)
            self._checkpoint = Checkpoint(self.state, self.wal, settings, through, now_ns=now_ns)
            self._save_positions_before_drop = self.wal.before_drop
            self.wal.before_drop = self._before_drop
            self.wal.begun = self._note_extent
            undo.pop_all()

    def _note_missing(self, extent: Extent | None, *, open_is_there: bool) -> list[LostRange]:
        """What is in no file though it should be: written down, and returned."""
        forgotten = {name for name, each in self.state.requirements().items() if each.forgotten}
        cursors = [cursor for name, cursor in self.state.cursors().items() if name not in forgotten]
        set_aside = set_aside_starts(self.wal.directory)
        # What was there before this life: not the segment that it has begun.
        pieces = [piece for piece in self.wal.pieces() if piece.last_seq >= piece.first_seq]
        if self.state.extent is not None and is_older(self.state.extent, pieces):
            extent = None
        found = [
            *missing_ends(extent, cursors, pieces, open_is_there=open_is_there, set_aside=set_aside),
            *missing_between(pieces, set_aside),
        ]
        known = self.state.lost
        new = [
            msgspec.structs.replace(each, found_ns=self._now_ns())
            for each in found
            if not any(old.first_seq <= each.first_seq and each.last_seq <= old.last_seq for old in known)
        ]
        self._note_extent(lost=new)
        return found

    def _note_extent(
        self, *, first_seq: int = 0, lost: Sequence[LostRange] = (), stopped: bool = False
    ) -> None:
        """Writes down where the log begins and ends now; `first_seq` is where it begins once something is dropped."""
        with self._extent_mutex:
            pieces = [piece for piece in self.wal.pieces() if piece.first_seq >= first_seq]
            last_seq, points = self.wal.end
            self.state.note_extent(
                Extent(
                    first_seq=pieces[0].first_seq if pieces else last_seq + 1,
                    points_before=pieces[0].header.points_before if pieces else points,
                    next_seq=last_seq + 1,
                    points=points,
                    open_seq=None if stopped else self.wal.open_seq,
                ),
                lost,
            )

    def _before_drop(self, last_seq: int) -> None:
        self._save_positions_before_drop(last_seq)
        self._note_extent(first_seq=last_seq + 1)

    def _forget_overtaken_positions(self) -> list[str]:
        """Drops the sinks' own positions that are older than the log; returns the sinks.

        Where the log begins behind a cursor, somebody restored an old state file (or a segment is gone). What the sink
        got since then it may have as the only one, so it must not be told that everything behind its old position was
        never confirmed: the archive would take that out of its files.
        """
        names = []
        for name, cursor in self.state.cursors().items():
            if cursor.position is not None and cursor.seq + 1 < self.wal.first_seq:
                self.state.commit_cursor(name, replace(cursor, position=None))
                names.append(name)
        return names

    def cursor(self, sink: str) -> Cursor:
        """The sink's durable cursor; for a sink that never had one, the place before the oldest entry kept."""
        cursor = self.state.cursor(sink)
        before = self.wal.first_points_before
        return cursor or Cursor(self.wal.first_seq - 1, points=before, since=before)

    def commit_cursor(self, sink: str, cursor: Cursor, letters: Sequence[DeadLetter] = ()) -> None:
        """Moves a cursor and parks dead letters: `State.commit_cursor`."""
        self.state.commit_cursor(sink, cursor, letters)

    def expire(self, sink: str, through_seq: int | None, *, read: Callable[[int], Sequence[Entry]]) -> Cursor:
        """Moves a sink's cursor past entries that an operator gives up, durably, and returns it.

        Up to `through_seq`, None for all that is there, and past what is lost right behind it. Their points are counted
        as expired. `read` gives entries behind a seq, at least one where there is one, and sets damage aside
        (`read_past_damage`). Nobody else may be moving this cursor. Raises `StorageFailed`.
        """
        cursor = self.cursor(sink)
        seq, points_after = self.wal.end
        if through_seq is not None and cursor.seq < through_seq < seq:
            # The next entry says how many points there were before it, those of lost entries between among them;
            # so the cursor goes right up to it. Where nothing behind can be read, there is nothing behind.
            for entry in read(through_seq)[:1]:
                seq, points_after = entry.seq - 1, entry.points_before
        elif through_seq is not None:
            seq = min(seq, through_seq)
        if seq > cursor.seq:
            # The sink's own position stays: it belongs to what it has.
            ahead = _settled_after(cursor, seq, read)
            cursor = cursor.expired_to(seq=seq, points_after=points_after, ahead=ahead)
            self.commit_cursor(sink, cursor)
        return cursor

    # -- which sinks must have a point before it goes ---------------------------------------------------

    def note_sinks(self, present: Mapping[str, Presence], *, standby_names: Set[str]) -> None:
        """Remembers durably for which sinks segments wait; `present` are those that today's settings name.

        Called at a start, before anything is delivered or dropped. Raises `StorageFailed`.
        """
        records = at_start(
            self.state.requirements(),
            self.state.cursors(),
            present,
            standby_names=standby_names,
            first_seq=self.wal.first_seq,
            last_seq=self.wal.last_seq,
            now_ns=self._now_ns(),
        )
        self.state.note_requirements(records)

    def absent_sinks(self) -> dict[str, Requirement]:
        """The sinks that today's settings do not name, and for which segments wait all the same."""
        return {
            name: record
            for name, record in self.state.requirements().items()
            if record.holds(self.cursor(name).seq)
        }

    def forget_sink(self, sink: str, *, read: Callable[[int], Sequence[Entry]]) -> Cursor:
        """Gives up an absent sink: what waits for it counts as expired, and nothing is kept for it any more.

        Its dead letters stay. `read` is as for `expire`. A crash between the two steps leaves a sink that still holds
        what is accepted from then on; it can be forgotten once more. Raises `StorageFailed`.
        """
        cursor = self.expire(sink, None, read=read)
        record = self.state.requirements().get(sink) or Requirement(True)
        since_ns = record.absent_since_ns if record.absent_since_ns is not None else self._now_ns()
        self.state.note_requirements(
            {sink: msgspec.structs.replace(record, absent_since_ns=since_ns, forgotten=True)}
        )
        return cursor

    # -- reading ---------------------------------------------------------------------------------------

    def read_past_damage(
        self,
        after_seq: int,
        *,
        bytes_max: int,
        seal: Callable[[], None],
        tell: Callable[[SetAside], None],
    ) -> list[Entry]:
        """`Wal.read`; damage is met here: the segment is set aside, and reading goes on behind it.

        `seal` seals the segment that is written to, which only the writer may do while there is one; `tell` is told of
        what was set aside. Raises `UnknownFormatVersion`, `StorageFailed`.
        """
        while True:
            try:
                return self.wal.read(after_seq, bytes_max=bytes_max)
            except UnknownFormatVersion:
                raise
            except WalDamaged as exc:
                if self.wal.is_written_to(exc.path):
                    seal()
                moved = self.wal.set_aside(exc.path, exc.reason)
                if moved is not None:
                    tell(moved)

    @property
    def positions_are_due(self) -> bool:
        """Whether `save_positions` has something to write that would spare the next start some reading."""
        return self._checkpoint.is_due

    def save_positions(self, now_ns: int) -> bool:
        """Writes down how far each stream has come, durably; forgets those that were silent for too long.

        False where the disk has no room for that: then the next time. Not for the thread of the event loop: it waits
        for the disk. Raises `StorageFailed`: final for this process.
        """
        return self._checkpoint.save(now_ns)

    def forget_stream(self, client_id: str) -> Position:
        """Forgets how far a stream has come, durably, and returns what was known; its points stay where they are.

        Nothing of the stream may be on its way into the log. Blocks, as `save_positions`. Raises `ConfigError` for a
        stream that is not known, `WalFull` where the disk has no room to write it down: then a later save does, or a
        crash brings the stream back. Raises `StorageFailed`: final for this process.
        """
        position = self.wal.forget_stream(client_id)
        if position is None:
            raise unknown_stream(client_id)
        if not self.save_positions(self._now_ns()):
            raise WalFull(
                f"{client_id!r} is forgotten until this node ends: the disk has no room to write that down",
                retry_after_s=60,
            )
        return position

    def close(self) -> None:
        """Closes all of it and lets go of the directory. No read or commit may be under way."""
        try:
            # Where it fails nothing is lost: the next start reads the same from the log.
            with contextlib.suppress(StorageFailed, WalDamaged):
                self.save_positions(self._now_ns())
            with contextlib.suppress(StorageFailed):
                self._note_extent(stopped=True)
        finally:
            self.wal.close()
            self.state.close()
            self._lock.close()


def unknown_stream(client_id: str) -> ConfigError:
    """The error for a stream of which nothing is known."""
    return ConfigError(
        f"no stream is called {client_id!r}", hint="wal-ingest stream list shows those that are known"
    )


def _set_damaged_state_aside(data_dir: Path) -> str:
    """Moves a state file that cannot be used out of the way, whole; returns what was wrong with it, or "".

    No point that waits is lost by going on without it: every sink is given everything that is kept once more. Its
    dead letters stay in the file that is set aside. A file from a
    newer wal-ingest is not damaged: `UnknownFormatVersion`, and it stays.
    """
    path = data_dir / STATE_NAME
    if not path.exists():
        return ""
    try:
        check_state(path)
    except UnknownFormatVersion:
        raise
    except SectorUnreadable as exc:
        # Its cursors and dead letters may be readable elsewhere: setting it aside is a person's decision.
        raise StorageFailed(path, exc.reason, number=errno.EIO) from exc
    except WalDamaged as exc:
        directory = data_dir / WAL_DIR / DAMAGED_DIR
        make_directory(directory)
        moved = set_aside(path, directory)
        sync_directory(directory)
        sync_directory(data_dir)
        return f"the state file was damaged ({exc.reason}) and is set aside as {moved}"
    return ""


def _identity_in(wal_dir: Path) -> uuid.UUID | None:
    """The identity that the oldest readable segment carries: what a lost state file is made again with."""
    for path in segment_paths(wal_dir):
        try:
            return read_ends(path).header.wal_id
        except WalDamaged:
            continue
    return None


def _settled_after(cursor: Cursor, seq: int, read: Callable[[int], Sequence[Entry]]) -> int:
    """How many points after `seq` a sink has settled ahead of its cursor, as far as they can be read."""
    settled = 0
    while seq < cursor.reach and (entries := read(seq)):
        for entry in entries:
            if entry.seq <= cursor.reach:
                settled += entry.points - sum(
                    count for _, count in open_in(cursor.open, entry.seq, entry.points)
                )
        seq = entries[-1].seq
    return settled
