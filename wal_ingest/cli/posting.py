"""Bodies to a node's write endpoints over HTTP, one at a time over one connection; blocks."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from wal_ingest.client import peer
from wal_ingest.client.peer import failed_post
from wal_ingest.errors import ConfigError, WalIngestError

ANSWER_S_MAX = 60.0
COME_BACK = (408, 429, 500, 502, 503, 504)
"""Statuses behind which the same body is sent again."""
RETRY_S = 1.0
RETRY_S_MAX = 60.0
_SAID_BYTES_MAX = 1 << 16


class NoAnswer(WalIngestError):
    """A node could not be reached, or gave no answer: what became of the body is unknown.

    `wrong_peer` says that what answers there is no node, and waiting changes nothing; `hint` says what to do.
    """

    def __init__(self, message: str, *, wrong_peer: bool = False, hint: str = "") -> None:
        super().__init__(message)
        self.wrong_peer = wrong_peer
        self.hint = hint


class NotTaken(WalIngestError):
    """The points were refused, or the server could not be reached; what was taken before stays taken.

    Unlike `Interrupted`, somebody else decided it.
    """


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its status, the wait that it asks for (at least `RETRY_S`, at most `RETRY_S_MAX`), and its body."""

    status: int
    retry_after_s: float
    body: bytes
    content_type: str = ""

    @property
    def text(self) -> str:
        """The body, for people."""
        return self.body.decode(errors="replace").strip()[:400]


class Poster:
    """A way to a node. It connects when it is used, and again after anything went wrong."""

    def __init__(self, url: str, *, token: str = "") -> None:
        """Raises `ConfigError` with a URL that is none."""
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError as exc:
            raise ConfigError(f"{url!r} has no port that can be: {exc}") from exc
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"{url!r} is no address of a server", hint="give one like http://127.0.0.1:8400"
            )
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=ANSWER_S_MAX)
        self._place = f"{parts.hostname}:{self._connection.port}"
        self._tls = parts.scheme == "https"
        self._answered = False
        self._base = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def post(
        self, path: str, query: Mapping[str, str], body: bytes, *, content_type: str, gzipped: bool
    ) -> Said:
        """The answer to a body. Empty values of the query are left out. Raises `NoAnswer`."""
        asked = urlencode({name: value for name, value in query.items() if value})
        target = self._base + path + (f"?{asked}" if asked else "")
        headers = {"Content-Type": content_type, **self._headers}
        if gzipped:
            headers["Content-Encoding"] = "gzip"
        try:
            self._connection.request("POST", target, body, headers)
            answer = self._connection.getresponse()
            said = answer.read(_SAID_BYTES_MAX)
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            found = failed_post(self._place, exc, tls=self._tls, answered=self._answered)
            raise NoAnswer(str(found), wrong_peer=found.wrong_peer, hint=found.hint) from exc
        self._answered = True
        if not self._tls and peer.expects_tls(said):
            raise NoAnswer(f"{self._place}: the port is for TLS", wrong_peer=True, hint=peer.USE_TLS)
        after = answer.headers.get("Retry-After", "").strip()
        retry_after_s = float(after) if after.isascii() and after.isdigit() else RETRY_S
        # A server that says 0 is asked again soon, not without a pause.
        wait_s = min(max(retry_after_s, RETRY_S), RETRY_S_MAX)
        return Said(answer.status, wait_s, said, answer.headers.get("Content-Type", ""))

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()
