"""The file that `--resume` keeps: enough to go on where it was, after whatever end.

It is replaced whole and synced, so it is there as it was before or as it is after. It is small: what was settled before
does not grow it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from wal_ingest.cli.infile import STDIN
from wal_ingest.cli.send.ledger import Mark
from wal_ingest.errors import ConfigError, StorageFailed
from wal_ingest.points.json_words import json_reason
from wal_ingest.wal.directory import sync_directory

_VERSION = 1
_DIGEST_BYTES = 64 * 1024


class Identity(Struct, frozen=True, kw_only=True):
    """A file as it was: where, how large, when changed, and the SHA-256 of its first 64 KiB."""

    name: str
    bytes: int
    mtime_ns: int
    digest: str


class Progress(Struct, kw_only=True, forbid_unknown_fields=True):
    """What the file holds. `how` are the options that decide what is sent, as they are typed."""

    version: int
    client_id: str
    to: str
    how: dict[str, str]
    files: list[Identity]
    mark: Mark
    done: bool = False


def identity_of(name: str) -> Identity:
    """Raises `ConfigError` for what is no file that can be read again."""
    path = Path(name)
    if name == STDIN or (path.exists() and not path.is_file()):
        raise ConfigError(f"{name} is no file, and cannot be read again", hint="leave --resume away")
    try:
        about = path.stat()
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(_DIGEST_BYTES)).hexdigest()
    except OSError as exc:
        raise ConfigError(f"{name} cannot be read: {exc.strerror}") from exc
    return Identity(name=str(path.absolute()), bytes=about.st_size, mtime_ns=about.st_mtime_ns, digest=digest)


class ProgressFile:
    """The file, and what it says. `is_new` says that it was not there."""

    def __init__(
        self, path: Path, *, client_id: str, to: str, how: Mapping[str, str], names: Sequence[str]
    ) -> None:
        """Reads it, or makes it with `client_id`. Raises `ConfigError` when it is about something else."""
        self.path = path
        files = [identity_of(name) for name in names]
        self.is_new = not path.exists()
        if self.is_new:
            self.progress = Progress(
                version=_VERSION, client_id=client_id, to=to, how=dict(how), files=files, mark=Mark()
            )
            self._write()
            return
        self.progress = self._read()
        self._must_be_about(to, how, names, files)

    def _read(self) -> Progress:
        other = "choose another name for --resume"
        try:
            progress = msgspec.json.decode(self.path.read_bytes(), type=Progress)
        except OSError as exc:
            raise ConfigError(f"{self.path} cannot be read: {exc.strerror}") from exc
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise ConfigError(
                f"{self.path} is no progress of wal-ingest send: {json_reason(exc)}", hint=other
            ) from exc
        if progress.version != _VERSION:
            raise ConfigError(
                f"{self.path} has version {progress.version}, which is not known here", hint=other
            )
        return progress

    def _must_be_about(
        self, to: str, how: Mapping[str, str], names: Sequence[str], files: Sequence[Identity]
    ) -> None:
        kept = self.progress
        begun = f"{self.path} was begun"
        if kept.to != to:
            raise ConfigError(f"{begun} with --to {kept.to}", hint="a node knows its own streams only")
        for option in kept.how.keys() | how.keys():
            was, now = kept.how.get(option, ""), how.get(option, "")
            if was != now:
                raise ConfigError(f"{begun} {f'with {option} {was}' if was else f'without {option}'}")
        if len(kept.files) != len(files):
            raise ConfigError(f"{begun} with other files: {', '.join(file.name for file in kept.files)}")
        for name, was_file, now_file in zip(names, kept.files, files, strict=True):
            if (was_file.bytes, was_file.mtime_ns, was_file.digest) != (
                now_file.bytes,
                now_file.mtime_ns,
                now_file.digest,
            ):
                raise ConfigError(
                    f"{name} has changed since {begun}: {_difference(was_file, now_file)}",
                    hint="send what is new in it by itself, or all of it with another file for --resume",
                )

    def keep(self, mark: Mark, *, done: bool = False) -> None:
        """Makes a mark durable. Raises `StorageFailed`."""
        self.progress.mark = mark
        self.progress.done = done
        self._write()

    def _write(self) -> None:
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        text = msgspec.json.format(msgspec.json.encode(self.progress), indent=2) + b"\n"
        try:
            with new.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError as exc:
            new.unlink(missing_ok=True)
            raise StorageFailed(
                self.path, f"cannot be written: {exc.strerror}", number=exc.errno or 0
            ) from exc
        sync_directory(self.path.absolute().parent)


def _difference(was: Identity, now: Identity) -> str:
    if was.bytes != now.bytes:
        return f"it has {now.bytes:,} bytes, and had {was.bytes:,}"
    if was.digest != now.digest:
        return "it begins with other bytes"
    return "it was written to"


class AppendedFile:
    """A file of rejected records that is added to from run to run; what is written is synced."""

    def __init__(self, name: str) -> None:
        self._path = Path(name)

    def write(self, data: bytes) -> None:
        """Raises `StorageFailed`."""
        try:
            with self._path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise StorageFailed(
                self._path, f"cannot be written: {exc.strerror}", number=exc.errno or 0
            ) from exc
