"""The archive sink: gzip files of line protocol, an hour each, readable with `zcat`.

    <data_dir>/archive/2026-11-22/21.lp.gz     points accepted in that hour (UTC)
    <data_dir>/archive/set-aside/…             bytes that were written but never confirmed, kept as evidence

Invariants:

* `Confirmed` is returned only after the members are appended, the file is synced, and (for a new file) so are
  the directories that lead to it.
* The position names the length of every file written to lately, each a whole number of gzip members.
* Only bytes behind a remembered length, and files of an hour later than any confirmed one, are ever taken
  out of a file's place; they are copied (or moved) to `set-aside` and synced there first. Without a position
  nothing is touched.
* A sync is never repeated after it failed: the kernel may have dropped the pages and would report success.

What a crash leaves behind, step by step of a write:

1. *directories or file made*: an empty file, or none. Of a later hour than any confirmed: moved to `set-aside`.
2. *members appended, wholly or in part, synced or not*: the file is longer than the position says (or not,
   when the disk had not taken it). On `open` the surplus is set aside and the file cut; the points are still
   in the WAL and are written again. So a crash leaves no doubles in the archive.
3. *confirmed, cursor not yet committed*: the same.
4. *cursor committed*: nothing to do.

During set-aside: *surplus copied, file not cut*: it is copied once more, under another name. *File cut, not
synced*: as before, or done.

Without a position (a new node, or a lost state) nothing can be told about what is there: it is kept, and
writing goes on at the end of the files. Points that were written before a lost state was noticed may then be
in the archive twice. An operator may move finished files away at any time.

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
from wal_ingest.flusher.log import RunSync
from wal_ingest.flusher.outcome import Confirmed, Misconfigured, Outcome, Unavailable
from wal_ingest.flusher.sinks.archive_position import ArchivePosition, file_of_hour, hour_of_file, hour_of_ns
from wal_ingest.settings import ArchiveSettings
from wal_ingest.wal.entry import Entry

log = logging.getLogger(__name__)

SET_ASIDE = "set-aside"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_COPY_BYTES = 1024 * 1024


class ArchiveSink:
    """Appends batches to the file of the hour in which they were accepted. One write at a time."""

    name = "archive"
    in_flight_max = 1

    def __init__(self, data_dir: Path, settings: ArchiveSettings, *, run_sync: RunSync) -> None:
        self.required = settings.required
        self._root = data_dir / "archive"
        self._run_sync = run_sync
        self._position = ArchivePosition()
        self._fd = -1
        self._hour = -1
        self._length = 0

    def group(self, entry: Entry) -> Hashable:
        """Entries share a batch when they were accepted in the same hour."""
        return hour_of_ns(entry.accepted_ns)

    async def open(self, position: bytes | None) -> None:
        """Sets aside what was never confirmed.

        Raises ArchiveBroken when the directory cannot be used, OperatorNeeded for a position that cannot be read.
        """
        remembered = None if position is None else ArchivePosition.decode(position, where=self._root)
        await self._run_sync(self._recover, remembered)

    async def write(self, batch: Batch) -> Outcome:
        """Appends and syncs. Raises ArchiveBroken when a sync fails.

        **Cancellation:** none while it runs; the append is finished and its outcome told.
        """
        return await self._run_sync(self._append, batch)

    async def aclose(self) -> None:
        """Closes the file; everything confirmed is synced already."""
        self._close()

    # -- writing (in a thread, one call at a time) ------------------------------------------------------

    def _append(self, batch: Batch) -> Outcome:
        hour = hour_of_ns(batch.accepted_ns)
        path = self._root / file_of_hour(hour)
        try:
            if hour != self._hour:
                self._open_hour(hour, path)
        except OSError as exc:  # nothing was written
            self._close()
            said = f"{path} cannot be opened: {exc.strerror}"
            return Unavailable(said) if exc.errno in _NO_SPACE else Misconfigured(said)
        try:
            _write_all(self._fd, batch.body)
        except OSError as exc:
            self._undo(path, exc)
            return Unavailable(f"{path}: {exc.strerror}")
        self._sync(self._fd, path)
        self._length += len(batch.body)
        self._position = self._position.grown(hour, self._length)
        return Confirmed(self._position.encode())

    def _open_hour(self, hour: int, path: Path) -> None:
        """Makes the hour's file the current one. Its name is durable before anything in it is confirmed.

        The directories are synced even when all of it exists already: a process that crashed may have made
        them and never come to the sync.
        """
        self._close()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._length = os.fstat(self._fd).st_size
        for directory in (path.parent, self._root, self._root.parent):
            self._sync_dir(directory)
        self._hour = hour

    def _undo(self, path: Path, exc: OSError) -> None:
        """After a failed append: back to the last good length. Raises ArchiveBroken when that cannot be had."""
        if exc.errno not in _NO_SPACE:
            raise ArchiveBroken(path, f"cannot be written: {exc.strerror}") from exc
        try:
            os.ftruncate(self._fd, self._length)
        except OSError as cut_exc:
            raise ArchiveBroken(path, f"cannot be cut back: {cut_exc.strerror}") from cut_exc

    def _close(self) -> None:
        fd, self._fd, self._hour = self._fd, -1, -1
        if fd >= 0:
            os.close(fd)

    # -- recovery ---------------------------------------------------------------------------------------

    def _recover(self, remembered: ArchivePosition | None) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            if remembered is None:
                if self._files():
                    log.warning(
                        "archive: nothing is remembered of the files in %s: kept as they are", self._root
                    )
                return
            self._position = remembered
            for hour, length in remembered.lengths:
                self._recover_file(self._root / file_of_hour(hour), length)
            for path in self._files():
                if hour_of_file(path) > remembered.hour_max:
                    self._move_aside(path)
        except OSError as exc:
            raise ArchiveBroken(self._root, f"cannot be used: {exc.strerror}") from exc

    def _recover_file(self, path: Path, length: int) -> None:
        try:
            present = path.stat().st_size
        except FileNotFoundError:
            return  # moved away by an operator: the hour begins anew
        if present < length:
            log.warning(
                "archive: %s has %d bytes, %d were confirmed; going on at its end", path, present, length
            )
        elif present > length:
            self._set_tail_aside(path, length)

    def _files(self) -> list[Path]:
        return [path for path in sorted(self._root.glob("????-??-??/??.lp.gz")) if hour_of_file(path) >= 0]

    def _set_tail_aside(self, path: Path, length: int) -> None:
        """Copies what is behind `length`, syncs the copy, and only then cuts the file."""
        aside = self._aside_path(path, f"from-{length}")
        with path.open("rb+", buffering=0) as source:
            with aside.open("xb") as copy:
                source.seek(length)
                while chunk := source.read(_COPY_BYTES):
                    copy.write(chunk)
                copy.flush()
                self._sync(copy.fileno(), aside)
            self._sync_dir(aside.parent)
            source.truncate(length)
            self._sync(source.fileno(), path)
        log.warning(
            "archive: bytes of %s behind %d were never confirmed: set aside as %s", path, length, aside
        )

    def _move_aside(self, path: Path) -> None:
        aside = self._aside_path(path, "whole")
        path.rename(aside)
        self._sync_dir(aside.parent)
        self._sync_dir(path.parent)
        log.warning("archive: %s was never confirmed: set aside as %s", path, aside)

    def _aside_path(self, path: Path, what: str) -> Path:
        """A free name that tells where the bytes come from, such as `2026-11-22T21.lp.gz.from-1234.0`."""
        folder = self._root / SET_ASIDE
        folder.mkdir(exist_ok=True)
        self._sync_dir(self._root)
        number = 0
        while (aside := folder / f"{path.parent.name}T{path.name}.{what}.{number}").exists():
            number += 1
        return aside

    # -- durability -------------------------------------------------------------------------------------

    def _sync(self, fd: int, path: Path) -> None:
        try:
            os.fdatasync(fd)
        except OSError as exc:
            raise ArchiveBroken(path, f"a sync failed: {exc.strerror}") from exc

    def _sync_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as exc:
            raise ArchiveBroken(path, f"a sync failed: {exc.strerror}") from exc
        finally:
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
