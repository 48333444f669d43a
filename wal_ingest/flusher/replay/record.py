"""What a replay remembers of itself: its place and its counts in `<id>.json`, and the points that were rejected.

Invariants:

* The place is written only after every point before it is confirmed, or rejected and in the file, synced first.
* `<id>.json` is replaced whole: the new one is synced, then renamed, then the directory is synced. A crash leaves the
  old one or the new one.
* One process at a time works on a replay: it holds a lock on `<id>.lock`, which the kernel lets go of with the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wal_ingest.errors import ConfigError, StorageFailed, WalIngestError
from wal_ingest.flusher.replay.places import Place
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.directory import FILE_MODE, make_directory, open_unlinked, reason_of, sync_directory
from wal_ingest.wal.lost import Lost

FORMAT = 1
_ID_CHARS = 12


class Saved(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A replay as it is remembered. `asked` is the command; times are Unix nanoseconds, `seconds` those spent on it.

    `since_ns`, `until_ns`, `first_seq` and `last_seq` are the range as it was fixed at the first start. `place` is None
    before anything was settled. `finished_ns` is 0 until all of it is.
    """

    format: int = FORMAT
    id: str
    asked: dict[str, str]
    since_ns: int | None
    until_ns: int | None
    first_seq: int
    last_seq: int | None
    started_ns: int
    updated_ns: int
    finished_ns: int = 0
    place: Place | None = None
    confirmed: int = 0
    rejected: int = 0
    rejected_file: str = ""
    lost: list[Lost] = []
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """What this process has settled so far, in order: up to `place`, with so many points `confirmed` and `rejected`.

    `lost` is everything that could not be read so far; `finished` says that nothing is left.
    """

    place: Place | None
    confirmed: int
    rejected: int
    lost: tuple[Lost, ...]
    finished: bool


def replay_id(asked: dict[str, str]) -> str:
    """The name of a replay: the same for the same command."""
    text = json.dumps(asked, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:_ID_CHARS]


class Record:
    """The files of one replay in `directory`, locked for this process until `close`.

    Raises ConfigError when the directory cannot be written to, `ReplayRuns` when another process is at it.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}.json"
        self.rejected_path = directory / f"{name}.rejected.jsonl"
        self._rejected_fd = -1
        try:
            make_directory(directory)
            self._lock = open_unlinked(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT)
        except (OSError, ConfigError) as exc:
            reason = reason_of(exc) if isinstance(exc, OSError) else str(exc)
            raise ConfigError(
                f"the progress of a replay cannot be kept in {directory}: {reason}",
                hint="name a directory that you may write to, with --state-dir DIR",
            ) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise ReplayRuns(f"this replay ({name}) is running already") from exc

    def close(self) -> None:
        """Lets go of the files."""
        for fd in (self._rejected_fd, self._lock):
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def load(self) -> Saved | None:
        """What was remembered by an earlier run; None when there was none. Raises ConfigError, StorageFailed."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise _failed(self.path, "cannot be read", exc) from exc
        try:
            version = msgspec.json.decode(data)["format"]
            if version == FORMAT:
                return msgspec.json.decode(data, type=Saved)
            reason = f"format {version!r} is not known to this program ({FORMAT} is)"
        except (msgspec.DecodeError, KeyError, TypeError) as exc:
            reason = f"it cannot be read: {exc}"
        raise ConfigError(f"{self.path}: {reason}", hint="--restart begins anew")

    def begin_anew(self) -> None:
        """Forgets the earlier run; its rejected points are kept once more, as `….before`. Raises StorageFailed."""
        try:
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self.rejected_path.replace(self.rejected_path.with_name(f"{self.rejected_path.name}.before"))
        except OSError as exc:
            raise _failed(self.path, "cannot be removed", exc) from exc

    def save(self, saved: Saved, letters: Sequence[DeadLetter] = ()) -> None:
        """Remembers rejected points, then the place behind them, durably. Raises StorageFailed."""
        if letters:
            self._keep(letters)
        text = msgspec.json.format(msgspec.json.encode(saved), indent=2) + b"\n"
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            with open(fresh, "wb", opener=open_unlinked) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as exc:
            raise _failed(fresh, "cannot be written", exc) from exc
        sync_directory(self.path.parent)

    def _keep(self, letters: Sequence[DeadLetter]) -> None:
        data = memoryview(b"".join(map(_row_of, letters)))
        try:
            if self._rejected_fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                if self.rejected_path.parent == self.path.parent:
                    # Our own file. One that somebody named may well be a link, such as /dev/stderr.
                    flags |= os.O_NOFOLLOW
                self._rejected_fd = os.open(self.rejected_path, flags, FILE_MODE)
                sync_directory(self.rejected_path.absolute().parent)
                if _ends_within_a_row(self.rejected_path):
                    os.write(self._rejected_fd, b"\n")
            while data:
                data = data[os.write(self._rejected_fd, data) :]
            os.fsync(self._rejected_fd)
        except OSError as exc:
            raise _failed(self.rejected_path, "cannot be written", exc) from exc


class ReplayRuns(WalIngestError):
    """Another process is at the same replay; it is left to it."""


def _ends_within_a_row(path: Path) -> bool:
    """Whether an earlier run came to half a row only: it is written again whole, and must not be glued to that."""
    if not path.stat().st_size:  # new, or no file but a pipe
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _row_of(letter: DeadLetter) -> bytes:
    row = {
        "line": letter.line.decode().rstrip("\n"),
        "reason": letter.reason,
        "status": letter.status,
        "seq": letter.seq or None,
        "org": letter.destination.org,
        "bucket": letter.destination.bucket,
        "rejected_ns": letter.parked_ns,
    }
    return msgspec.json.encode(row) + b"\n"


def _failed(path: Path, what: str, exc: OSError) -> StorageFailed:
    error = StorageFailed(path, f"{what}: {exc.strerror}", number=exc.errno or 0)
    error.hint = "make room or mend it, and run the same command again: it goes on where it was"
    return error
