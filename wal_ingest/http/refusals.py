"""Which request was refused, and why: its id, and a line in the log, of which there are never too many.

A client may name its request with `X-Request-Id`; the answer carries the same id. A refused request without one is
given an id, so that what a client was told and what the log says can be brought together. Of an accepted request
nothing is logged.

No line carries a header but that id, a token, or a body; the reason is the sentence that the client was told.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable

import structlog

REQUEST_ID = b"x-request-id"
_USABLE = re.compile(rb"[!-~](?:[ -~]{0,126}[!-~])?")

# Lines by the second: enough to see what is wrong, too few to fill a disk when a whole fleet is misconfigured.
LINES_PER_S = 10

_log = structlog.get_logger("wal_ingest.http")


def client_request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The id that a client gave its request, None when it gave none.

    One that is empty, longer than 128 bytes or not printable ASCII is replaced by an id of ours: it goes into the log.
    """
    for name, value in headers:
        if name == REQUEST_ID:
            return value if _USABLE.fullmatch(value) else new_request_id()
    return None


def new_request_id() -> bytes:
    """An id that no other request has: 16 hexadecimal digits."""
    return os.urandom(8).hex().encode()


class RefusalLog:
    """Writes a line for each refused request, but no more than `LINES_PER_S` in a second.

    `failed` is called with the words for each request that failed for a reason that nobody foresaw, `counted` with the
    route and the status of each refusal, also of those that get no line.
    """

    def __init__(
        self,
        *,
        monotonic_s: Callable[[], float],
        failed: Callable[[str], None] = lambda _words: None,
        counted: Callable[[str, int], None] = lambda _route, _status: None,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._failed = failed
        self._counted = counted
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def refused(self, request_id: bytes, route: str, status: int, reason: str, source: str) -> None:
        """A request was answered with a 4xx or 503; `source` is the address that it came from."""
        self._counted(route, status)
        if self._may_write():
            write = _log.warning if status >= 500 else _log.info
            write("request refused", **_fields(request_id, route, status, reason, source))

    def broke(self, request_id: bytes, route: str, error: Exception, source: str) -> None:
        """A request was answered 500 because of an error of ours; called while that is being handled."""
        reason = f"{type(error).__name__}: {error}"
        self._counted(route, 500)
        self._failed(f"a request to {route} failed: {reason}")
        if self._may_write():
            _log.exception("a request failed", **_fields(request_id, route, 500, reason, source))

    def say_left_out(self) -> None:
        """Says how many lines were spared, once their second is over; to be called now and then."""
        second = int(self._monotonic_s())
        if second == self._second:
            return
        self._second, self._lines = second, 0
        if self._left_out:
            left_out, self._left_out = self._left_out, 0
            _log.warning("more requests were refused than are told one by one", left_out=left_out)

    def _may_write(self) -> bool:
        self.say_left_out()
        if self._lines >= LINES_PER_S:
            self._left_out += 1
            return False
        self._lines += 1
        return True


def _fields(request_id: bytes, route: str, status: int, reason: str, source: str) -> dict[str, object]:
    return {
        "request_id": request_id.decode(),
        "route": route,
        "status": status,
        "reason": reason,
        "source": source,
    }
