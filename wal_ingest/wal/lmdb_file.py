"""One LMDB file: the only module that imports `lmdb`.

How durable a write is: `write` runs begin, put and commit on the calling thread, in one call. LMDB writes the
changed pages beside the old ones, syncs them (`fdatasync`), then writes the meta page that makes them the
present state through a descriptor opened with `O_DSYNC`. When `write` has returned, both syncs have.
py-lmdb must never see a transaction begun on one thread and committed on another: the commit would return
silently and every later writer hang for ever. That is why no transaction leaves this module.

Reads copy what they return and end their transaction before they return: a read transaction that is held
keeps pages from being reused, and the file grows without bound.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import lmdb
import lmdb.verify

from wal_ingest.errors import SectorUnreadable, StorageFailed, WalDamaged
from wal_ingest.wal.directory import FILE_MODE, open_unlinked, reason_of, remove, rename
from wal_ingest.wal.lmdb_pages import read_bytes, snapshot
from wal_ingest.wal.space import free_disk_bytes

# 0.9.x, data format 1: what every LMDB tool can read.
_LIB_VERSION = 0

# What LMDB makes it for 126 readers.
_LOCK_FILE_BYTES = 8192

_CHUNK_BYTES = 1 << 20

# A disk with less than this cannot take another commit.
_FULL_BYTES = 64 << 10
# What one transaction of `LmdbFile.records` reads.
_READ_BYTES = 1 << 20

_NO_GUARD = nullcontext()

# MDB_PANIC is none of these: it says that a write failed before, and nothing of what is on disk.
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.CursorFullError,
    lmdb.BadTxnError,
)

Item = tuple[bytes, bytes]


class MapFull(StorageFailed):
    """The transaction did not fit into the map and was aborted: nothing of it is in the file."""


class LmdbFile:
    """An LMDB environment in a single file, with its errors in our own words.

    `map_bytes` is address space, reserved once and never resized; the file grows with what is written.
    `lock=False` takes no lock file and is right only where nobody writes any more. Raises `WalDamaged` when the
    file is no LMDB file, `StorageFailed` when it cannot be opened.
    """

    def __init__(self, path: Path, *, map_bytes: int, readonly: bool = False, lock: bool = True) -> None:
        self.path = path
        self._map_bytes = map_bytes
        self._readonly = readonly
        self._lock = lock
        self._open()

    def _open(self) -> None:
        path = self.path
        if not self._readonly and path.is_symlink():
            # LMDB itself opens files through links.
            raise StorageFailed(path, reason_of(OSError(errno.ELOOP, "")), number=errno.ELOOP)
        try:
            if self._lock:
                _reserve_lock_file(path)
            self._env = lmdb.open(
                os.fspath(path),
                map_size=self._map_bytes,
                subdir=False,
                readonly=self._readonly,
                create=not self._readonly,
                lock=self._lock,
                max_dbs=0,
                mode=FILE_MODE,
                lib_version=_LIB_VERSION,
            )
            self._page_bytes = self._env.stat()["psize"]
            with self._env.begin() as txn:
                last = txn.id()  # as the lock file has it; `info` says what the file has
        except lmdb.Error as exc:
            raise self._translated(exc) from exc
        except OSError as exc:
            raise StorageFailed(
                path, f"the lock file cannot be made: {reason_of(exc)}", number=exc.errno or 0
            ) from exc
        if self._lock and last != snapshot(path, lambda reader: reader.transaction):
            self._env.close()
            raise StorageFailed(
                path,
                f"another program has {lock_path(path)} open since before this file was put here, and LMDB would read "
                "an older state: end that program (lsof names it), then start again",
            )

    # -- writing ---------------------------------------------------------------------------------------

    def append(self, items: Sequence[Item]) -> None:
        """Writes items whose keys rise above every key in the file, in one durable transaction."""
        try:
            with self._env.begin(write=True) as txn, txn.cursor() as cursor:
                consumed, added = cursor.putmulti(items, append=True)
                if not consumed == added == len(items):
                    # LMDB skips a key that does not rise, and says so only here. Raising aborts.
                    raise StorageFailed(self.path, f"{added} of {len(items)} entries could be appended")
        except lmdb.MapFullError as exc:
            raise MapFull(self.path, "the map is full") from exc
        except lmdb.Error as exc:
            raise self._translated(exc) from exc

    def write(self, puts: Iterable[Item], deletes: Iterable[bytes] = ()) -> None:
        """Puts and deletes in one durable transaction; all of it happens or none."""
        try:
            with self._env.begin(write=True) as txn:
                for key in deletes:
                    txn.delete(key)
                for key, value in puts:
                    txn.put(key, value)
        except lmdb.MapFullError as exc:
            raise MapFull(self.path, "the map is full") from exc
        except lmdb.Error as exc:
            raise self._translated(exc) from exc

    def records(self, prefix: bytes, *, guard: AbstractContextManager[object] = _NO_GUARD) -> Iterator[Item]:
        """The records whose keys begin with a prefix, in order. Raises `StorageFailed`.

        Reads in short transactions, each under `guard`, so it may run for long; what is written meanwhile may be among
        them or not.
        """
        key = prefix
        while True:
            with guard:
                items = self.read_from(key, bytes_max=_READ_BYTES)
            if not items:
                return
            for item in items:
                if not item[0].startswith(prefix):
                    return
                yield item
            key = items[-1][0] + b"\0"

    def copy(self, path: Path) -> None:
        """Writes a copy without the free pages into a new file, or an empty one, synced. Raises `StorageFailed`."""
        try:
            # Not truncated: that would free the space that is held for it.
            fd = open_unlinked(path, os.O_WRONLY | os.O_CREAT)
            try:
                self._env.copyfd(fd, compact=True)
                os.fsync(fd)
            finally:
                os.close(fd)
        except lmdb.Error as exc:
            raise self._translated(exc) from exc
        except OSError as exc:
            raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc

    def replace_by(self, path: Path) -> None:
        """Puts another file in this one's place, and goes on with it. Raises `StorageFailed`: final, it is closed then.

        The caller syncs the directory. No read and no write may be under way in another thread.
        """
        self._env.close()
        put_in_place(path, self.path)
        self._open()

    def sync(self) -> None:
        """Makes durable what a process that was killed may have left in the page cache only."""
        try:
            self._env.sync(True)
        except lmdb.Error as exc:
            raise self._translated(exc) from exc

    # -- reading ---------------------------------------------------------------------------------------

    def read_from(self, key: bytes, *, bytes_max: int, items_max: int | None = None) -> list[Item]:
        """Items with keys from `key` on, in order, until their values reach `bytes_max` bytes.

        At least one item is returned when there is one, however large it is.
        """
        items: list[Item] = []
        left = bytes_max
        try:
            with self._env.begin() as txn, txn.cursor() as cursor:
                if not cursor.set_range(key):
                    return items
                for item in cursor.iternext():
                    items.append(item)
                    left -= len(item[1])
                    if left <= 0 or len(items) == items_max:
                        break
        except lmdb.Error as exc:
            raise self._translated(exc) from exc
        return items

    @property
    def used_bytes(self) -> int:
        """Bytes of the file that hold pages in use or once used: what it takes on disk."""
        try:
            return (self._env.info()["last_pgno"] + 1) * self._page_bytes
        except lmdb.Error as exc:
            raise self._translated(exc) from exc

    @property
    def live_bytes(self) -> int:
        """Bytes of the pages that hold something now: what `used_bytes` would be if nothing were free in between."""
        try:
            stat = self._env.stat()
        except lmdb.Error as exc:
            raise self._translated(exc) from exc
        pages: int = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return pages * self._page_bytes

    def free_stale_readers(self) -> int:
        """Frees the reader slots of processes that were killed while they read; returns how many."""
        try:
            return self._env.reader_check()
        except lmdb.Error as exc:
            raise self._translated(exc) from exc

    def close(self) -> None:
        """Unmaps the file. No read may be under way in another thread."""
        self._env.close()

    def _translated(self, exc: lmdb.Error) -> StorageFailed | WalDamaged:
        if isinstance(exc, _DAMAGE):
            return WalDamaged(self.path, str(exc))
        # Errors that py-lmdb raises by itself carry no number.
        number = getattr(exc, "code", 0)
        # LMDB calls a write that was cut short an I/O error, whatever cut it short.
        full = number == errno.EIO and _is_full(self.path)
        return StorageFailed(self.path, f"{exc}, as the disk is full" if full else str(exc), number=number)


def _is_full(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return free_disk_bytes(path.parent) < _FULL_BYTES
    return False


def lock_path(path: Path) -> Path:
    """Where LMDB keeps the lock file of `path`."""
    return path.with_name(path.name + "-lock")


def put_in_place(path: Path, target: Path) -> None:
    """Gives a file that no process has open the name of an LMDB file; the caller syncs the directory.

    An LMDB tool that has the earlier file open keeps its lock file too. It says which transaction was the last one.
    LMDB would look for that one in the new file, whose transactions count from one again, and find an empty database.
    Raises `StorageFailed`.
    """
    rename(path, target)
    remove(lock_path(target))


def verify(path: Path) -> None:
    """Walks a whole file without the engine. Raises `WalDamaged` with the first thing that is wrong.

    The engine trusts what it maps, and a damaged file ends the process (an assertion, SIGBUS). So a file from
    an earlier life is verified once before it is opened: 15 ms for a segment of 1,000-point entries, 0.4 s
    for one of single points. Every byte is read before: where the disk cannot, a mapped file ends the process, too.
    """
    try:
        _read_all(path)
        problems: list[str] = lmdb.verify.verify(os.fspath(path), subdir=False)  # type: ignore[no-untyped-call]
    except lmdb.verify.VerifyError as exc:
        raise WalDamaged(path, str(exc)) from exc
    except OSError as exc:
        if exc.errno == errno.EIO:
            raise SectorUnreadable(path, f"it cannot be read: {exc.strerror}") from exc
        raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc
    if problems:
        raise WalDamaged(path, problems[0])


def _read_all(path: Path) -> None:
    """Reads a file to its end. Raises `SectorUnreadable`, `StorageFailed`, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        offset = 0
        while data := read_bytes(path, fd, offset, _CHUNK_BYTES):
            offset += len(data)
    finally:
        os.close(fd)


def _reserve_lock_file(path: Path) -> None:
    """Makes the lock file with its space. LMDB would map a sparse one, and a full disk then is a SIGBUS."""
    fd = open_unlinked(lock_path(path), os.O_RDWR | os.O_CREAT)
    try:
        os.posix_fallocate(fd, 0, _LOCK_FILE_BYTES)
    finally:
        os.close(fd)
