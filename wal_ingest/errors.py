"""Every error that crosses a module boundary, named for its remedy.

Four families, and a caller needs to know only the family:

* `RequestError`: *fix your request*. Nothing of it was stored; sending it again unchanged fails again.
* `ComeBackLater`: *the request is fine, this node is not*. Nothing of it was stored; send it again after
  `retry_after_s`.
* `OperatorNeeded`: *a person must look*. Nothing mends itself, nothing is deleted to get going again.
* `ConfigError`: *fix the settings or the command line*.

A sink's refusals are no exceptions but values: see `wal_ingest.flusher.outcome`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class WalIngestError(Exception):
    """The root of every error that wal-ingest raises on purpose.

    `str(error)` is a sentence for a person; `hint` says what to try, or is empty.
    """

    hint: str = ""


# -- fix your request -----------------------------------------------------------------------------------


class RequestError(WalIngestError):
    """Fix your request: nothing of it was stored. `status` is the HTTP status that says so."""

    status = 400


class PointError(RequestError):
    """A point is malformed: where it is (`line` and `column`, or `index`, whichever applies) and why.

    `line` and `column` count from 1, the column in bytes, and belong to line protocol (and, for the line,
    to NDJSON). `index` counts from 0 and belongs to a JSON array.
    """

    def __init__(
        self, reason: str, *, line: int | None = None, column: int | None = None, index: int | None = None
    ) -> None:
        where = ""
        if index is not None:
            where = f"index {index}: "
        elif line is not None and column is not None:
            where = f"line {line}, column {column}: "
        elif line is not None:
            where = f"line {line}: "
        super().__init__(where + reason)
        self.reason = reason
        self.line = line
        self.column = column
        self.index = index


class BadRequest(RequestError):
    """The request as a whole makes no sense: an unknown precision, an empty body, a broken encoding."""


class BodyTooLarge(RequestError):
    """The body is larger than a limit. Bytes count after decompression: split the request."""

    status = 413

    def __init__(self, what: str, *, limit_bytes: int, setting: str) -> None:
        super().__init__(f"{what} is larger than the limit of {limit_bytes} bytes ({setting})")
        self.limit_bytes = limit_bytes
        self.setting = setting


class UnsupportedMedia(RequestError):
    """The content type or content encoding is one that this node does not speak."""

    status = 415


class BodyTooSlow(RequestError):
    """The body did not arrive in time. Nothing of it was stored."""

    status = 408


# -- come back later ------------------------------------------------------------------------------------


class ComeBackLater(WalIngestError):
    """The request is fine but cannot be taken now: nothing of it was stored, send it again later.

    `retry_after_s` is the wait in seconds that the sender is told (HTTP 503 and `Retry-After`).
    """

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WalFull(ComeBackLater):
    """The WAL has reached `wal.wal_bytes_max`, or the disk its floor `wal.free_disk_bytes_min`.

    Unlike `AppendQueueFull`, which passes within milliseconds, this lasts until a sink has caught up.
    """


class DiskFull(ComeBackLater):
    """The disk has no room for the next write, or the process no file descriptor for the next segment.

    Nothing was written: the same may be tried again later.

    Unlike `StorageFailed`, which leaves open what is on disk and is final for the process.
    """


class AppendQueueFull(ComeBackLater):
    """More bytes wait for the disk than `wal.append_queue_bytes_max` allows: the disk is the bottleneck."""


class Stopping(ComeBackLater):
    """The node is shutting down and takes nothing new."""


class CommitTooSlow(ComeBackLater):
    """A commit takes longer than `wal.commit_wait_s_max`: the disk hangs, or nearly so.

    The outcome is *unknown*, as with `WalBroken`, but nothing has failed yet: the commit may still return. `is_open`
    tells whether that is so still; an append that was refused at once was never open.
    """

    def __init__(
        self, message: str, *, retry_after_s: int = 1, is_open: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.is_open = is_open


class WalBroken(ComeBackLater):
    """A write or sync of the WAL failed; that is final for this process.

    The outcome of every append that waited is *unknown* (the points may or may not be on disk), so the
    sender is told to send again. A sync is never retried: after a failed one the kernel may have thrown the
    pages away and report success next time. The process exits and recovers from what the disk holds.
    """


# -- an operator must look ------------------------------------------------------------------------------


class OperatorNeeded(WalIngestError):
    """A person must look: the command ends with exit code 3 and changes nothing."""


class WalDamaged(OperatorNeeded):
    """A file of the WAL does not hold what it should. `path` is the file, `reason` what is wrong with it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class SectorUnreadable(WalDamaged):
    """The disk cannot read a part of a file (EIO). Where nothing is written to the file any more, that is damage."""


class UnknownFormatVersion(WalDamaged):
    """A file was written by a newer wal-ingest. It is refused by name and left exactly as it is."""

    hint = "install the version of wal-ingest that wrote it; nothing was changed"


class StorageFailed(OperatorNeeded):
    """The operating system or LMDB failed an operation on a durable file: which file, and with what words.

    Unlike `WalDamaged`, the bytes on disk may be perfectly fine (a full disk, a missing permission, an I/O
    error). On the write path this is final for the process (see `WalBroken`).
    """

    def __init__(self, path: Path, reason: str, *, number: int = 0) -> None:
        """`number` is the operating system's error number, 0 when there is none."""
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.number = number


class NoRoomForLetters(OperatorNeeded):
    """There is no room for more dead letters: under their limit, above the disk's floor, or on the disk at all.

    Nothing was written: the points stay in the log, the cursor before them, and the same may be tried again later.
    """

    hint = (
        "wal-ingest dead-letters list; then export, retry or drop some, free disk space, or raise "
        "flusher.dead_letters_bytes_max"
    )

    def __init__(self, sink: str, reason: str) -> None:
        super().__init__(f"no room for dead letters of {sink}: {reason}")
        self.sink = sink
        self.reason = reason


class ArchiveBroken(OperatorNeeded):
    """A sync of the archive failed, or a failed append cannot be taken back; that is final for this process.

    Like `WalBroken` it is never retried, and a restart recovers from what the disk holds; unlike it nothing
    that was accepted is in doubt: the points are still in the WAL.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


# -- fix the settings -----------------------------------------------------------------------------------


class ConfigError(WalIngestError):
    """The settings or the command line are wrong: exit code 2, nothing was started."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NoWal(ConfigError):
    """There is no write-ahead log in a directory: the wrong one was named, or no server ever ran there."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(
            f"there is no WAL in {data_dir}", hint="name the server's data directory with --data-dir"
        )


class DataDirLocked(ConfigError):
    """Another server has this data directory open. `pid` is its process id, 0 when it cannot be told."""

    def __init__(self, path: Path, pid: int) -> None:
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{path} is in use by {who}",
            hint="stop that server first, or give this one a directory of its own with --data-dir",
        )
        self.path = path
        self.pid = pid
