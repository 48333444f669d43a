"""The archive sink: gzip files of line protocol, an hour each, readable with `zcat`.

    <data_dir>/archive/2026-11-22/21.lp.gz         points accepted in that hour (UTC)
    <data_dir>/archive/2026-11-22/21.part1.lp.gz   more of them, where the file before was not to be touched
    <data_dir>/archive/set-aside/…                 bytes that were written but never confirmed, kept as evidence

`zcat <data_dir>/archive/*/*.lp.gz` reads all of it: every file is a whole number of gzip members as far as it is
confirmed, and nothing confirmed is ever behind half of one.

Invariants:

* `Confirmed` is returned only after the members are appended, the file is synced and still in its place, and (for
  a new file) the directories that lead to it are synced.
* The position names the length of every file written to lately, each a whole number of gzip members.
* Only a file whose length is the remembered one is ever appended to. Any other (forgotten, shorter, of a lost
  state) may end in half a member, behind which nothing could be read: the hour goes on in a new part. A
  remembered part that is gone is not begun again either: its length would be taken for that of the new file.
* Only bytes behind a remembered length, parts behind a remembered one, and files of an hour later than any
  confirmed one, are ever taken out of their place, and only on `open`; they are copied (or moved) to `set-aside`
  and synced there first.
* A sync is never repeated after it failed: the kernel may have dropped the pages and would report success.

What a crash leaves behind, step by step of a write:

1. *directories or file made*: an empty file, or none. It is used, or moved to `set-aside`.
2. *members appended, wholly or in part, synced or not*: the file is longer than the position says (or not,
   when the disk had not taken it). On `open` the surplus is set aside and the file cut; the points are still
   in the WAL and are written again. So a crash leaves no doubles in the archive.
3. *confirmed, cursor not yet committed*: the same.
4. *cursor committed*: nothing to do.

During set-aside: *surplus copied, file not cut*: it is copied once more, under another name. *File cut, not
synced*: as before, or done.

Without a position (a new node, or a lost state) nothing can be told about the files that are there: they are kept as
they are. Their latest hour becomes the first position, which is durable before the first write: a file of a later
hour is then known for unconfirmed. Points that a lost state had delivered may be in the archive twice, and so may
those written into an hour of which nothing, or nothing any more, is remembered when the process crashed.

An operator may move files away at any time, the current one too: what was on its way into it is written again.

A full disk: what was appended in part is cut off again (those bytes were never confirmed nor synced) and the
batch is `Unavailable`. A file that cannot be opened is `Misconfigured`. A failed sync, or a cut that fails,
raises `ArchiveBroken`: final for this process.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Hashable
from pathlib import Path

from wal_ingest.errors import ArchiveBroken
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.log import RunSync
from wal_ingest.flusher.outcome import Confirmed, Misconfigured, Outcome, Unavailable
from wal_ingest.flusher.sinks.archive_files import (
    archive_files,
    set_unconfirmed_aside,
    sync,
    sync_directory,
)
from wal_ingest.flusher.sinks.archive_position import (
    ArchivePosition,
    ConfirmedFile,
    file_of_hour,
    hour_of_ns,
)
from wal_ingest.settings import ArchiveSettings
from wal_ingest.wal.directory import open_unlinked, reason_of
from wal_ingest.wal.entry import Entry

log = logging.getLogger(__name__)

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# How often in a row a file may be taken away under a write before the write is given up for a while.
_TAKEN_AWAY_MAX = 3


class ArchiveSink:
    """Appends batches to the file of the hour in which they were accepted. One write at a time."""

    name = "archive"
    in_flight_max = 1
    # A write ends with a sync, on the disk that the WAL syncs on too: few large ones leave it alone.
    batch_points_max: int | None = 50_000

    def __init__(self, data_dir: Path, settings: ArchiveSettings, *, run_sync: RunSync) -> None:
        self.required = settings.required
        self._root = data_dir / "archive"
        self._run_sync = run_sync
        self._position = ArchivePosition()
        self._fd = -1
        self._current = ConfirmedFile(-1, 0, 0)
        self._path = self._root

    def group(self, entry: Entry) -> Hashable:
        """Entries share a batch when they were accepted in the same hour."""
        return hour_of_ns(entry.accepted_ns)

    async def open(self, position: bytes | None) -> bytes | None:
        """Sets aside what was never confirmed; without a position, gives the one to begin with.

        Raises ArchiveBroken when the directory cannot be used, OperatorNeeded for a position that cannot be read.
        """
        remembered = None if position is None else ArchivePosition.decode(position, where=self._root)
        await self._run_sync(self._recover, remembered)
        return self._position.encode() if remembered is None else None

    async def write(self, batch: Batch) -> Outcome:
        """Appends and syncs. Raises ArchiveBroken when a sync fails.

        **Cancellation:** none while it runs; the append is finished and its outcome told.
        """
        return await self._run_sync(self._write, batch)

    async def check(self) -> list[Check]:
        """Looks at the directory, and whether this user may write there."""
        return await self._run_sync(self._check)

    def _check(self) -> list[Check]:
        there = next(path for path in (self._root, *self._root.parents) if path.exists())
        if not there.is_dir():
            return [Check("directory", False, f"{there} is no directory")]
        if not os.access(there, os.W_OK | os.X_OK):
            return [Check("directory", False, f"this user may not write to {there}")]
        stat = os.statvfs(there)
        free = stat.f_bavail * stat.f_frsize
        return [
            Check("directory", True, f"{self._root} can be written to"),
            Check("free disk", free > 0, f"{free // 2**20:,} MiB"),
        ]

    async def aclose(self) -> None:
        """Closes the file; everything confirmed is synced already."""
        self._close()

    def _recover(self, remembered: ArchivePosition | None) -> None:
        try:
            self._root.mkdir(mode=0o750, parents=True, exist_ok=True)
            if remembered is not None:
                self._position = remembered
                set_unconfirmed_aside(self._root, remembered)
                return
            hours = [hour for _, hour, _ in archive_files(self._root)]
            if hours:
                log.warning("archive: nothing is remembered of the files in %s: kept as they are", self._root)
            self._position = ArchivePosition(max(hours, default=-1))
        except OSError as exc:
            raise ArchiveBroken(self._root, f"cannot be used: {exc.strerror}") from exc

    # -- writing (in a thread, one call at a time) ------------------------------------------------------

    def _write(self, batch: Batch) -> Outcome:
        hour = hour_of_ns(batch.accepted_ns)
        for _ in range(_TAKEN_AWAY_MAX):
            try:
                if hour != self._current.hour or not self._in_place(self._current.length):
                    self._open_file(hour)
            except OSError as exc:  # nothing was written
                self._close()
                said = f"{self._root / file_of_hour(hour)} cannot be opened: {reason_of(exc)}"
                return Unavailable(said) if exc.errno in _NO_SPACE else Misconfigured(said)
            try:
                _write_all(self._fd, batch.body)
            except OSError as exc:
                self._undo(exc)
                return Unavailable(f"{self._path}: {exc.strerror}")
            sync(self._fd, self._path)
            length = self._current.length + len(batch.body)
            # Looked at after the sync: a file that was unlinked meanwhile has just lost these points.
            if self._in_place(length):
                self._current = self._current._replace(length=length)
                self._position = self._position.grown(self._current)
                return Confirmed(self._position.encode())
            log.warning("archive: %s was moved or changed while it was written to", self._path)
        return Unavailable(f"{self._path} does not stay in its place")

    def _in_place(self, length: int) -> bool:
        """Whether the current file is still the one behind its path, linked, and just so long."""
        try:
            there = self._path.stat()
        except OSError:
            return False
        here = os.fstat(self._fd)
        return os.path.samestat(here, there) and here.st_nlink > 0 and here.st_size == length

    def _open_file(self, hour: int) -> None:
        """Makes a file of the hour the current one. Its name is durable before anything in it is confirmed.

        The directories are synced even when all of it exists already: a process that crashed may have made
        them and never come to the sync.
        """
        self._close()
        part, length = self._choose(hour)
        path = self._root / file_of_hour(hour, part)
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        # A file that is there keeps its mode: older versions made it readable for everybody.
        self._fd = open_unlinked(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for directory in (path.parent, self._root, self._root.parent):
            sync_directory(directory)
        self._path = path
        self._current = ConfirmedFile(hour, part, length)

    def _choose(self, hour: int) -> tuple[int, int]:
        """The part to write an hour's points to, and its length: the remembered one as it was left, or a new one."""
        known = self._position.of_hour(hour)
        day = Path(file_of_hour(hour)).parent.name
        sizes = {part: path.stat().st_size for path, at, part in archive_files(self._root, day) if at == hour}
        if known is not None:
            if sizes.get(known.part) == known.length:
                return known.part, known.length
            if known.part in sizes:
                log.warning(
                    "archive: %s has %d bytes, %d were confirmed: it is left as it is, the hour goes on in a new part",
                    self._root / file_of_hour(hour, known.part),
                    sizes[known.part],
                    known.length,
                )
        used = max(sizes, default=-1)
        forbidden = -1 if known is None else known.part
        # An empty file is as good as a new one: it was begun and never came to its first append.
        if used > forbidden and sizes[used] == 0:
            return used, 0
        return max(used, forbidden) + 1, 0

    def _undo(self, exc: OSError) -> None:
        """After a failed append: back to the last good length. Raises ArchiveBroken when that cannot be had."""
        if exc.errno not in _NO_SPACE:
            raise ArchiveBroken(self._path, f"cannot be written: {exc.strerror}") from exc
        try:
            os.ftruncate(self._fd, self._current.length)
        except OSError as cut_exc:
            raise ArchiveBroken(self._path, f"cannot be cut back: {cut_exc.strerror}") from cut_exc

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        self._current = ConfirmedFile(-1, 0, 0)
        if fd >= 0:
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
