"""The data directory: one server at a time, and names that survive a power cut.

A new file's name, a rename and a removal are durable only once the *directory* has been synced; syncing the
file does not do it. Every step here that creates or removes a name ends with that sync.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import time
from pathlib import Path

from wal_ingest.errors import ConfigError, DataDirLocked, StorageFailed

LOCK_NAME = "LOCK"
# Readable for a group, as the whole directory is; a stricter umask makes it less.
FILE_MODE = 0o640
_LINK = "it is a symbolic link, and files of a data directory are never written through one"
_LINK_HINT = (
    "see where it leads and who made it, then remove it; a directory may be a link, a file in it may not"
)
# The kernel remounts a failing disk read-only, and it may be repaired or mounted again while we are down.
_STORAGE_ERRORS = frozenset({errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENODEV, errno.ENXIO})
_FLOCK_TRIES = 5
_FLOCK_PAUSE_S = 0.04


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Raises `StorageFailed`, which is never to be tried again."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        reason = f"the directory could not be synced: {exc.strerror}"
        raise StorageFailed(path, reason, number=exc.errno or 0) from exc


def open_unlinked(path: str | Path, flags: int) -> int:
    """Opens a file to write: never through a symbolic link, and with `FILE_MODE` where it is made.

    So a link with the name of one of our files, in a directory that others may write to, costs no file elsewhere.
    An `opener` for `open`. Raises OSError; see `reason_of`.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


def reason_of(exc: OSError) -> str:
    """Why a file could not be opened: the system's words, and plainer ones for a link."""
    return _LINK if exc.errno == errno.ELOOP else str(exc.strerror)


def rename(path: Path, target: Path) -> None:
    """Gives a file another name; the caller syncs the directories. Raises `StorageFailed`."""
    try:
        path.rename(target)
    except OSError as exc:
        reason = f"cannot be renamed to {target}: {exc.strerror}"
        raise StorageFailed(path, reason, number=exc.errno or 0) from exc


def remove(path: Path) -> None:
    """Removes a file's name, if it is there; the caller syncs the directory. Raises `StorageFailed`."""
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        raise StorageFailed(path, f"cannot be removed: {exc.strerror}", number=exc.errno or 0) from exc


def exists(path: Path) -> bool:
    """Whether a name is there. Raises PermissionError when this user may not look.

    `Path.exists` answers false then on newer Pythons, and a command would say that there is nothing.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_directory(path: Path) -> None:
    """Makes a directory and its missing parents, each name durable. Raises `ConfigError` where it cannot."""
    if exists(path) and path.is_dir():
        return
    missing = [path, *path.parents]
    missing = missing[: next(i for i, parent in enumerate(missing) if exists(parent))]
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o750, exist_ok=True)
        except OSError as exc:
            _raise_if_storage(directory, exc)
            raise ConfigError(
                f"{directory} cannot be made: {exc.strerror}",
                hint="choose a directory that this user may write to, with --data-dir",
            ) from exc
        sync_directory(directory.parent)


def _raise_if_storage(path: Path, exc: OSError) -> None:
    """Raises `StorageFailed` when the disk is to blame, and not the settings: a later start may succeed then."""
    if exc.errno in _STORAGE_ERRORS:
        raise StorageFailed(path, f"the disk failed: {exc.strerror}", number=exc.errno or 0) from exc


class DirectoryLock:
    """Holds a data directory for this process until closed or dead.

    An `flock` on `<data_dir>/LOCK`; the kernel lets go of it with the process, so a crash leaves nothing to clean up.
    The file holds the owner's process id, for the message that the second server prints.
    """

    def __init__(self, data_dir: Path) -> None:
        """Raises `DataDirLocked` with the other's process id, `ConfigError` when the file cannot be opened."""
        path = data_dir / LOCK_NAME
        try:
            self._fd = open_unlinked(path, os.O_RDWR | os.O_CREAT)
        except OSError as exc:
            _raise_if_storage(path, exc)
            hint = _LINK_HINT if exc.errno == errno.ELOOP else ""
            raise ConfigError(f"{path} cannot be opened: {reason_of(exc)}", hint=hint) from exc
        try:
            _flock_patiently(self._fd)
        except OSError as exc:
            pid = _pid_in(self._fd)
            os.close(self._fd)
            raise DataDirLocked(data_dir, pid) from exc
        # Only for people to read; a full disk must not keep a server from draining.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Lets go of the directory."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


def _flock_patiently(fd: int) -> None:
    """Takes the lock. `holder_of` holds it for microseconds when it asks, which is no second server."""
    for tries_left in range(_FLOCK_TRIES - 1, -1, -1):  # pragma: no branch: the last try returns or raises
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not tries_left:
                raise
            time.sleep(_FLOCK_PAUSE_S)
        else:
            return


def holder_of(data_dir: Path) -> int | None:
    """The process id of the server that has a data directory open, 0 when it cannot be told, None when none has."""
    try:
        fd = os.open(data_dir / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as exc:
        # No server holds a link. Otherwise the lock belongs to another user: this one may not open it.
        return None if exc.errno == errno.ELOOP else 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _pid_in(fd)
    else:
        return None
    finally:
        os.close(fd)


def _pid_in(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def allow_many_files() -> None:
    """Raises this process's limit of open files as far as it may: segments, and streams, are many.

    The usual soft limit of 1,024 is there for programs that call select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
