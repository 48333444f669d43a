"""Points back into a WAL: appended directly where no server has the directory open, else sent to the server over HTTP.

Directly, entries keep their source, destination and time of acceptance. Over HTTP they keep their destination, and
the server takes them as it takes anybody's: its 503 is waited out.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from wal_ingest.cli.node import must_not_be_root
from wal_ingest.cli.posting import COME_BACK, RETRY_S, NoAnswer, NotTaken, Poster, Said
from wal_ingest.cli.stopping import Interrupted, Stop
from wal_ingest.confirmation import NotConfirmed, WriteProtocol, confirmation_of, hint_for
from wal_ingest.errors import DataDirLocked, WalIngestError
from wal_ingest.settings import Settings
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.gzip_codec import compress
from wal_ingest.wal.recovery import SetAside
from wal_ingest.wal.store import WAL_DIR, Store
from wal_ingest.wal.writer import Writer

_TEXT = "text/plain; charset=utf-8"
_BROKEN_MAX = 10


class Door(Protocol):
    """A way into a WAL. `to` says for people where it leads."""

    to: str

    def append(self, entries: Sequence[NewEntry]) -> None:
        """Returns when the entries are durable. Raises `NotTaken`, `Interrupted`, `ComeBackLater`, `StorageFailed`."""

    def close(self) -> None:
        """Lets go of the directory, or the connection."""


def open_door(settings: Settings, url: str | None, stop: Stop, *, token: str = "") -> Door:
    """The way in. Raises `ConfigError`: with a URL that is none, or where a server runs and no URL was given.

    `token` is the server's write token; only the way over HTTP needs it.
    """
    if url is not None:
        return HttpDoor(url, stop, token=token)
    try:
        return DirectDoor(settings)
    except DataDirLocked as exc:
        bind = _bind_of_running(settings)
        exc.hint = f"send them through that server, with --url http://{bind}, or stop it first"
        raise


def _bind_of_running(settings: Settings) -> str:
    """Where the node that has the directory open listens, as it says; else as these settings say."""
    from wal_ingest.control import ask

    try:
        return str(ask(Path(settings.server.data_dir), "settings")["server.bind"])
    except (WalIngestError, KeyError, TypeError):
        return settings.server.bind


class DirectDoor:
    """The WAL itself, opened as a server opens it. Limits hold as they do for a server."""

    def __init__(self, settings: Settings) -> None:
        data_dir = Path(settings.server.data_dir)
        must_not_be_root(data_dir)
        # Perhaps the name is mistyped, and no server will ever deliver what goes there.
        is_new = not (data_dir / WAL_DIR).exists()
        self._store = Store(data_dir, settings.wal, now_ns=time.time_ns)
        self._limits = Writer(self._store.wal, settings.wal)
        self.to = f"{'a new' if is_new else 'the'} WAL in {data_dir}"
        for damaged in self.damaged:
            sys.stderr.write(f"set aside as damaged: {damaged.path}: {damaged.reason}\n")

    @property
    def damaged(self) -> list[SetAside]:
        """What was set aside when the directory was opened."""
        return self._store.wal.damaged

    def append(self, entries: Sequence[NewEntry]) -> None:
        """See `Door`. All of them are one commit."""
        self._limits.measure()
        refusal = self._limits.refusal()
        if refusal is not None:
            raise refusal
        self._store.wal.commit([entries])

    def close(self) -> None:
        """See `Door`."""
        self._store.close()


class HttpDoor:
    """A running server's `/metrics`, whose answer proves that it is a node, and how many points it stored."""

    def __init__(self, url: str, stop: Stop, *, token: str = "") -> None:
        self._poster = Poster(url, token=token)
        self._stop = stop
        self._told_busy = False
        self.to = url

    def append(self, entries: Sequence[NewEntry]) -> None:
        """See `Door`. Entries with the same destination are one request."""
        for destination, group in itertools.groupby(entries, key=lambda entry: entry.destination):
            query = {"org": destination.org, "bucket": destination.bucket, "precision": "ns"}
            self._send(list(group), query)

    def _send(self, entries: list[NewEntry], query: dict[str, str]) -> None:
        body = compress(b"".join(entry.lines for entry in entries))
        broken = 0
        while True:
            if self._stop.wished:
                raise Interrupted("interrupted")
            try:
                said = self._poster.post("/metrics", query, body, content_type=_TEXT, gzipped=True)
            except NoAnswer as exc:
                # What became of it is unknown; sending it again is harmless.
                broken += 1
                if broken == _BROKEN_MAX or exc.wrong_peer:
                    error = NotTaken(f"{self.to} cannot be reached: {exc}")
                    error.hint = exc.hint
                    raise error from exc
                self._stop.wait(RETRY_S)
                continue
            if 200 <= said.status < 300:
                self._check_confirmed(said, sum(entry.points for entry in entries))
                return
            if said.status == 413 and len(entries) > 1:
                half = len(entries) // 2
                self._send(entries[:half], query)
                self._send(entries[half:], query)
                return
            if said.status not in COME_BACK:
                raise _not_taken(f"{self.to} answered {said.status}: {said.text}", said.status)
            self._tell_busy(said)
            self._stop.wait(said.retry_after_s)

    def _check_confirmed(self, said: Said, points: int) -> None:
        """Raises `NotTaken` for a 2xx that is no confirmation."""
        found = confirmation_of(
            WriteProtocol.NATIVE, said.status, said.body, content_type=said.content_type, points=points
        )
        if isinstance(found, NotConfirmed):
            raise _not_taken(f"{self.to} is not known to have stored the points: {found.reason}", said.status)

    def _tell_busy(self, said: Said) -> None:
        if not self._told_busy:
            sys.stderr.write(
                f"{self.to} answered {said.status}: {said.text}; going on as soon as it takes points again\n"
            )
            self._told_busy = True

    def close(self) -> None:
        """See `Door`."""
        self._poster.close()


def _not_taken(message: str, status: int) -> NotTaken:
    error = NotTaken(message)
    error.hint = hint_for(status)
    return error
