"""What a client is told, in the manner of the endpoint that it called. Pure.

Ours says 202 with what was stored; InfluxDB's say 204 with nothing, because its replication accepts nothing
else. Back-pressure is 503 everywhere: a 429 makes some senders drop, a 503 makes all of them try again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from wal_ingest.errors import ComeBackLater, PointError, RequestError
from wal_ingest.http.requests import Dialect

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `closes` says that the connection cannot be used for another request."""

    status: int
    headers: Headers
    body: bytes = b""
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request was not accepted. `line` and `column` count from 1, `index` from 0."""

    status: int
    message: str
    line: int | None = None
    column: int | None = None
    index: int | None = None
    retry_after_s: int | None = None


_JSON_TYPE = (b"content-type", b"application/json")
NO_CONTENT = Answer(204, ())

# The codes that InfluxDB 2's API description lists; there is none for 408.
_CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    413: "request too large",
    415: "unsupported media type",
    500: "internal error",
    503: "unavailable",
}
_HEADER_TEXT_MAX = 400


def accepted(dialect: Dialect, *, points: int, seq: int) -> Answer:
    """The answer to a request whose points are durable; `seq` is that of its last entry."""
    if dialect is not Dialect.NATIVE:
        return NO_CONTENT
    body = b'{"received": true, "points": %d, "seq": %d}\n' % (points, seq)
    return Answer(202, (_JSON_TYPE, (b"content-length", b"%d" % len(body))), body)


def problem_of(error: RequestError | ComeBackLater) -> Problem:
    """What an error says to the client."""
    if isinstance(error, ComeBackLater):
        return Problem(503, str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, PointError):
        return Problem(error.status, str(error), error.line, error.column, error.index)
    return Problem(error.status, str(error))


def refused(dialect: Dialect, problem: Problem, *, closes: bool = False, allow: bytes = b"") -> Answer:
    """The answer to a request of which nothing was stored; `allow` lists the methods of a 405."""
    headers: list[tuple[bytes, bytes]] = [_JSON_TYPE]
    content: dict[str, object]
    if dialect is Dialect.INFLUXDB_V2:
        code = _CODES.get(problem.status, "invalid")
        content = {"code": code, "message": problem.message}
        headers.append((b"x-platform-error-code", code.encode()))
    elif dialect is Dialect.INFLUXDB_V1:
        content = {"error": problem.message}
        headers.append((b"x-influxdb-error", _header_text(problem.message)))
    else:
        content = {"error": problem.message}
        for name in ("line", "column", "index"):
            place = getattr(problem, name)
            if place is not None:
                content[name] = place
    body = json.dumps(content).encode() + b"\n"
    headers.append((b"content-length", b"%d" % len(body)))
    if problem.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % problem.retry_after_s))
    if allow:
        headers.append((b"allow", allow))
    if problem.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="wal-ingest"'))
    if closes:
        headers.append((b"connection", b"close"))
    return Answer(problem.status, headers, body, closes)


def upgrade_required() -> Answer:
    """The answer to a request without a WebSocket handshake where streams are."""
    body = b'{"error": "streams begin with a WebSocket handshake, sub-protocol wal-ingest.v1"}\n'
    headers = (
        _JSON_TYPE,
        (b"content-length", b"%d" % len(body)),
        (b"upgrade", b"websocket"),
        (b"connection", b"close"),
    )
    return Answer(426, headers, body, closes=True)


def with_request_id(answer: Answer, request_id: bytes) -> Answer:
    """The same answer, with the id that tells which request it is to."""
    return replace(answer, headers=(*answer.headers, (b"x-request-id", request_id)))


def result_of(status: int) -> str:
    """What became of a request, in the word that the metrics have for it."""
    if status < 400:
        return "accepted"
    if status == 413:
        return "too_large"
    if status < 500:
        return "invalid"
    return "unavailable" if status == 503 else "failed"


def unexpected() -> Problem:
    """What is said of an error that nobody foresaw: its details are in the log, not in the answer."""
    return Problem(
        500,
        f"{HTTPStatus.INTERNAL_SERVER_ERROR.phrase}: nothing of this request was acknowledged; see the log",
    )


def _header_text(message: str) -> bytes:
    """The message as a header value: a reason may quote any byte of a body, a header may hold only some."""
    text = "".join(char if " " <= char <= "~" else "?" for char in message[:_HEADER_TEXT_MAX])
    return text.strip().encode("ascii")
