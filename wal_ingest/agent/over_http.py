"""Delivery over `POST /metrics`: at least once. For a node behind a proxy that knows no WebSocket.

One entry is one request, and the next one goes when it was answered. Where the answer is lost the entry goes again:
every point carries its time, so a second copy of it changes nothing.

The standard library's client, in a thread: one request at a time needs no more, and costs no memory.
"""

from __future__ import annotations

import http.client
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from wal_ingest.agent.patience import PASSING
from wal_ingest.agent.spool import Spool
from wal_ingest.client import peer
from wal_ingest.client.address import Address
from wal_ingest.client.errors import Unreachable
from wal_ingest.confirmation import (
    NotConfirmed,
    WriteProtocol,
    confirmation_of,
    foreign_answer,
    hint_for,
    refusal_of,
)
from wal_ingest.wal.entry import Entry

ANSWER_S_MAX = 30.0
_ANSWER_BYTES_MAX = 64 * 1024
_REFUSED_FOR_GOOD = (400, 413, 415)

_log = structlog.get_logger("wal_ingest.agent")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a POST was answered. `retry_after_s` is 0 when the node named no wait; `body` is its beginning."""

    status: int
    body: bytes
    retry_after_s: int = 0
    content_type: str = ""

    @property
    def said(self) -> str:
        """The body's beginning, on one line."""
        return " ".join(self.body.decode(errors="replace").split())[:400]


Post = Callable[[bytes], Awaitable[Answer]]
"""Sends a gzip body of lines; raises Unreachable when it got no answer."""


class HttpPost:
    """A kept-alive connection to the node's `/metrics`."""

    def __init__(self, address: Address, token: str) -> None:
        self._address = address
        self._headers = {
            "Host": address.authority,
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Encoding": "gzip",
            "User-Agent": "wal-ingest-agent",
        }
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._answered = False
        self._connection = self._new_connection()

    def _new_connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._address.tls else http.client.HTTPConnection
        return kind(self._address.host, self._address.port, timeout=ANSWER_S_MAX)

    async def __call__(self, body: bytes) -> Answer:
        """Raises Unreachable when there was no answer.

        **Cancellation:** returns at once. The request may be taken all the same.
        """
        done = False
        try:
            answer = await trio.to_thread.run_sync(self._post, self._connection, body, abandon_on_cancel=True)
            done = True
        finally:
            if not done:
                # The thread may still be at work on the old one.
                self._connection = self._new_connection()
        return answer

    def close(self) -> None:
        """Hangs up. No request may be under way."""
        self._connection.close()

    def _post(self, connection: http.client.HTTPConnection, body: bytes) -> Answer:
        try:
            connection.request("POST", self._address.target, body, self._headers)
            answer = connection.getresponse()
            said = answer.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            raise peer.failed_post(
                self._address, exc, tls=self._address.tls, answered=self._answered
            ) from exc
        self._answered = True
        if not answer.isclosed():
            connection.close()  # more was said than anybody reads
        after = answer.headers.get("Retry-After", "").strip()
        asked = int(after) if after.isascii() and after.isdigit() and len(after) < 10 else 0
        return Answer(answer.status, said, asked, answer.headers.get("Content-Type", ""))


def _not_taken(answer: Answer) -> Unreachable:
    """The error for an answer that is neither a confirmation nor a verdict on the points."""
    passing = answer.status in PASSING
    words = None if passing else foreign_answer(answer.status, answer.content_type, answer.body)
    tls = peer.expects_tls(answer.body)
    return Unreachable(
        "the port is for TLS" if tls else words or f"answered {answer.status}: {answer.said}",
        status=answer.status,
        retry_after_s=answer.retry_after_s,
        wrong_peer=not passing,
        hint=peer.USE_TLS if tls else "" if passing else hint_for(answer.status),
    )


class OverHttp:
    """A way to the node. `connected` is called after each entry that was taken.

    `protocol` says which answers confirm an entry.
    """

    def __init__(
        self,
        spool: Spool,
        post: Post,
        *,
        connected: Callable[[], None],
        protocol: WriteProtocol = WriteProtocol.NATIVE,
    ) -> None:
        self._spool = spool
        self._post = post
        self._connected = connected
        self._protocol = protocol

    async def deliver(self) -> None:
        """Sends what is in the spool until something is in the way. Never returns.

        Raises `Unreachable`, `StorageFailed`.

        **Cancellation:** what was answered is settled; what is under way goes again next time.
        """
        spool = self._spool
        while True:
            for entry in await spool.wait_read(spool.settled_seq):
                if entry in spool.refused:
                    await spool.settle([entry], refused={entry.seq})
                    continue
                answer = await self._post(entry.gzip_member())
                if 200 <= answer.status < 300:
                    self._check_confirmed(answer, entry)
                    await spool.settle([entry])
                elif answer.status in _REFUSED_FOR_GOOD and refusal_of(answer.body) is not None:
                    reason = f"{answer.status}: {answer.said}"
                    path = await trio.to_thread.run_sync(spool.refused.keep, entry, reason)
                    _log.error("refused by the node", points=entry.points, reason=reason, kept=str(path))
                    await spool.settle([entry], refused={entry.seq})
                else:
                    raise _not_taken(answer)
                self._connected()

    def _check_confirmed(self, answer: Answer, entry: Entry) -> None:
        """Raises `Unreachable` for a 2xx that is no confirmation: the entry stays in the spool."""
        found = confirmation_of(
            self._protocol,
            answer.status,
            answer.body,
            content_type=answer.content_type,
            points=entry.points,
        )
        if isinstance(found, NotConfirmed):
            raise Unreachable(
                found.reason, status=answer.status, wrong_peer=True, hint=hint_for(answer.status)
            )
