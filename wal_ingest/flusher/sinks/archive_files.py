"""The archive's files on disk: which there are, durable names, and bytes set aside. Blocking.

Nothing here deletes: bytes leave a file only after a copy of them is synced, and a file leaves its place only by
being renamed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from wal_ingest.errors import ArchiveBroken
from wal_ingest.flusher.sinks.archive_position import ArchivePosition, hour_and_part
from wal_ingest.wal.directory import open_unlinked

log = logging.getLogger(__name__)

SET_ASIDE = "set-aside"
_COPY_BYTES = 1024 * 1024


def archive_files(root: Path, days: str = "????-??-??") -> Iterator[tuple[Path, int, int]]:
    """Every file of the archive (of the days that the pattern names), with its hour and part."""
    for path in sorted(root.glob(f"{days}/*.lp.gz")):
        named = hour_and_part(path)
        if named is not None:
            yield path, *named


def set_unconfirmed_aside(root: Path, remembered: ArchivePosition) -> None:
    """Takes out of the archive what was certainly never confirmed, and nothing else.

    That is: bytes behind a remembered length, parts of a remembered hour behind the remembered one, and hours
    behind the latest that was ever confirmed. Files are begun in that order, so whatever of these is there was made
    after the position was. Raises ArchiveBroken, OSError.
    """
    for path, hour, part in archive_files(root):
        known = remembered.of_hour(hour)
        if hour > remembered.hour_max or (known is not None and part > known.part):
            _move_aside(root, path)
        elif known is not None and part == known.part:
            present = path.stat().st_size
            if present > known.length:
                _set_tail_aside(root, path, known.length)
            elif present < known.length:
                log.warning("archive: %s has %d bytes, %d were confirmed", path, present, known.length)


def _set_tail_aside(root: Path, path: Path, length: int) -> None:
    """Copies what is behind `length`, syncs the copy, and only then cuts the file."""
    aside = _aside_path(root, path, f"from-{length}")
    with open(path, "rb+", buffering=0, opener=open_unlinked) as source:
        with open(aside, "xb", opener=open_unlinked) as copy:
            source.seek(length)
            while chunk := source.read(_COPY_BYTES):
                copy.write(chunk)
            copy.flush()
            sync(copy.fileno(), aside)
        sync_directory(aside.parent)
        source.truncate(length)
        sync(source.fileno(), path)
    log.warning("archive: bytes of %s behind %d were never confirmed: set aside as %s", path, length, aside)


def _move_aside(root: Path, path: Path) -> None:
    aside = _aside_path(root, path, "whole")
    path.rename(aside)
    sync_directory(aside.parent)
    sync_directory(path.parent)
    log.warning("archive: %s was never confirmed: set aside as %s", path, aside)


def _aside_path(root: Path, path: Path, what: str) -> Path:
    """A free name that tells where the bytes come from, such as `2026-11-22T21.lp.gz.from-1234.0`."""
    folder = root / SET_ASIDE
    folder.mkdir(mode=0o750, exist_ok=True)
    sync_directory(root)
    number = 0
    while (aside := folder / f"{path.parent.name}T{path.name}.{what}.{number}").exists():
        number += 1
    return aside


def sync(fd: int, path: Path) -> None:
    """Makes a file's bytes durable. Raises ArchiveBroken: a failed sync is never repeated."""
    try:
        os.fdatasync(fd)
    except OSError as exc:
        raise ArchiveBroken(path, f"a sync failed: {exc.strerror}") from exc


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises ArchiveBroken when that fails, OSError when it is not there."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        raise ArchiveBroken(path, f"a sync failed: {exc.strerror}") from exc
    finally:
        os.close(fd)
