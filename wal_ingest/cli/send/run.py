"""One run of `wal-ingest send`, from the files to the figures."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import msgspec
import trio

from wal_ingest.cli.infile import STDIN
from wal_ingest.cli.outfile import OutFile
from wal_ingest.cli.output import count_text
from wal_ingest.cli.progress import bar
from wal_ingest.cli.send.cutting import Place
from wal_ingest.cli.send.driver import Driver, GaveUp
from wal_ingest.cli.send.job import Job
from wal_ingest.cli.send.ledger import Ledger, Mark
from wal_ingest.cli.send.links import way_to
from wal_ingest.cli.send.pieces import How, Piece
from wal_ingest.cli.send.progress_file import AppendedFile, ProgressFile
from wal_ingest.cli.send.sources import Source
from wal_ingest.cli.stopping import Stop
from wal_ingest.errors import ConfigError, WalIngestError
from wal_ingest.wal.gzip_codec import crc32


class Sent(msgspec.Struct, kw_only=True):
    """What `send --json` prints; with `--resume` all runs together, but for the seconds.

    `bytes` are those of the points before compression. `seq` is the last that the node named, null when it named none.
    """

    to: str
    points: int
    rejected: int
    frames: int
    bytes: int
    seconds: float
    seq: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What somebody asked for. `asked` are the options that decide what is sent, as they were typed."""

    files: list[str]
    to: str
    how: How
    asked: Mapping[str, str]
    points_per_s_max: float | None
    resume: str | None
    skip_invalid: str | None
    skip_lines: int
    org: str
    bucket: str
    token: str
    give_up_s: float | None = None


class _Rejects(Protocol):
    """A file for rejected records."""

    def write(self, data: bytes) -> None:
        """Adds to it."""


class _Keeper:
    """Makes known how far it is: first what was rejected, then the mark behind it."""

    def __init__(self, mark: Mark, progress: ProgressFile | None, rejects: _Rejects | None) -> None:
        self.mark = mark
        self._progress = progress
        self._rejects = rejects

    def keep(self, mark: Mark, texts: list[bytes]) -> None:
        """Raises `StorageFailed`."""
        if texts and self._rejects is not None:
            self._rejects.write(b"".join(texts))
        if self._progress is not None and mark != self.mark:
            self._progress.keep(mark)
        self.mark = mark

    def done(self) -> None:
        """Everything is sent. Raises `StorageFailed`."""
        if self._progress is not None:
            self._progress.keep(self.mark, done=True)


def run(wanted: Wanted) -> Sent:
    """Sends it. Raises why it could not be, with a hint that says how to go on; what was sent stays sent."""
    began_s = time.monotonic()
    client_id, mark, progress = f"send-{secrets.token_hex(8)}", Mark(place=Place(0, wanted.skip_lines)), None
    if wanted.resume is not None:
        progress = ProgressFile(
            Path(wanted.resume), client_id=client_id, to=wanted.to, how=wanted.asked, names=wanted.files
        )
        client_id, mark = progress.progress.client_id, progress.progress.mark
    if progress is None or not progress.progress.done:
        mark = _send(wanted, client_id, mark, progress)
    return Sent(
        to=wanted.to,
        points=mark.points,
        rejected=mark.rejected,
        frames=mark.frames,
        bytes=mark.bytes,
        seconds=round(time.monotonic() - began_s, 3),
        seq=mark.seq,
    )


def _send(wanted: Wanted, client_id: str, mark: Mark, progress: ProgressFile | None) -> Mark:
    """Sends what is behind a mark, and gives the one at the end."""
    connect = way_to(wanted.to, client_id=client_id, token=wanted.token, org=wanted.org, bucket=wanted.bucket)
    total = sum(Path(name).stat().st_size for name in wanted.files if Path(name).is_file())
    failed = None
    with Stop(ends=False) as stop, bar("sending", total or None) as shown, contextlib.ExitStack() as held:
        keeper = _Keeper(mark, progress, _rejects(wanted, progress, held))
        job = Job(
            to=wanted.to,
            pieces=_pieces(wanted, mark.file, mark.place),
            ledger=Ledger(mark, crc32=crc32),
            keep=keeper.keep,
            skips=wanted.skip_invalid is not None,
            points_per_s_max=wanted.points_per_s_max,
            give_up_s=wanted.give_up_s,
            stop=stop,
            bar=shown,
            tell=lambda words: print(words, file=sys.stderr),
        )
        try:
            trio.run(Driver(job, connect, rng=Random()).run)
            keeper.done()
        except WalIngestError as exc:
            # Raised behind the block: what was rejected so far must get its file.
            failed = exc
    if failed is not None:
        _say_how_to_go_on(failed, wanted, keeper.mark)
        raise failed
    return keeper.mark


def _pieces(wanted: Wanted, file: int, place: Place) -> Iterator[Piece]:
    for index, name in enumerate(wanted.files):
        if index < file:
            continue
        source = Source(
            name,
            wanted.how,
            file=index,
            skips=wanted.skip_invalid is not None,
            whole=wanted.resume is not None,
            now_ns=time.time_ns,
        )
        yield from source.pieces(place if index == file else Place())


def _rejects(wanted: Wanted, progress: ProgressFile | None, held: contextlib.ExitStack) -> _Rejects | None:
    """The file for rejected records: with progress it is added to, run after run. Raises `ConfigError`."""
    name = wanted.skip_invalid
    if name is None:
        if progress is not None and any(each.cuts for each in progress.progress.mark.numbered):
            raise ConfigError(
                f"{wanted.resume} was begun with --skip-invalid, and the node refused records since",
                hint="give --skip-invalid again",
            )
        return None
    if progress is None:
        return held.enter_context(OutFile(name))
    if progress.is_new and Path(name).exists():
        raise ConfigError(f"{name} is there already", hint="choose another name; nothing is overwritten")
    return AppendedFile(name)


def _say_how_to_go_on(exc: WalIngestError, wanted: Wanted, mark: Mark) -> None:
    if wanted.resume is not None:
        more = f"the same command goes on where this one ended: {wanted.resume} knows"
    elif mark.place.records:
        name = wanted.files[mark.file]
        more = (
            f"taken: {count_text(mark.place.records, 'line', 'lines')} of {name}; go on behind that with "
            f"--skip-lines {mark.place.records}"
        )
    elif isinstance(exc, GaveUp) and STDIN not in wanted.files:
        more = "run it again when the node answers; with --resume PROGRESS it goes on where it was"
    else:
        return
    exc.hint = f"{exc.hint}; {more}" if exc.hint else more
