"""What a client is told, in the manner of the endpoint that it called. Pure.

Ours says 202 with what was stored; InfluxDB's say 204 with nothing, because its replication accepts nothing
else. Back-pressure is 503 everywhere: a 429 makes some senders drop, a 503 makes all of them try again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus

from wal_ingest.errors import BodyTooSlow, ComeBackLater, PointError, RequestError
from wal_ingest.http.check import Checked
from wal_ingest.http.observer import Reason
from wal_ingest.http.requests import Dialect
from wal_ingest.points.times import TimeOutsideWindow

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
_REASONS = {
    401: Reason.UNAUTHORIZED,
    405: Reason.METHOD,
    408: Reason.TOO_SLOW,
    409: Reason.NUMBER,
    413: Reason.TOO_LARGE,
    415: Reason.MEDIA_TYPE,
    500: Reason.FAILED,
    503: Reason.UNAVAILABLE,
}
_HEADER_TEXT_MAX = 400
_LINES_IN_MESSAGE_MAX = 5


def accepted(dialect: Dialect, *, points: int, seq: int) -> Answer:
    """The answer to a request whose points are durable; `seq` is that of its last entry."""
    if dialect is not Dialect.NATIVE:
        return NO_CONTENT
    body = b'{"received": true, "points": %d, "seq": %d}\n' % (points, seq)
    return Answer(202, (_JSON_TYPE, (b"content-length", b"%d" % len(body))), body)


def partly(dialect: Dialect, checked: Checked) -> tuple[Problem, Answer]:
    """What is answered when lines were left out of a request, once the others are durable; and what the log says.

    The words are each InfluxDB's own, because clients look for them: a Telegraf that finds "partial write" or "unable
    to parse" does not send the request again.
    """
    words = "\n".join(
        f"unable to parse '{each.text}': {each.error.reason}"
        for each in checked.refusals[:_LINES_IN_MESSAGE_MAX]
    )
    if checked.lines.points:
        words = f"partial write: {words} dropped={checked.dropped}"
    problem = Problem(400, words)
    if dialect is Dialect.INFLUXDB_V3:
        data = [
            {
                "original_line": each.text,
                "line_number": each.error.line,
                "error_message": each.error.reason,
            }
            for each in checked.refusals
        ]
        content = {"error": "partial write of line protocol occurred", "data": data}
        return problem, _json_answer(400, content)
    if dialect is Dialect.INFLUXDB_V2 and checked.lines.points:
        # What InfluxDB 2 sends when it has written a part: with 400 its clients take nothing to be written.
        content = {
            "code": "unprocessable entity",
            "message": f"failure writing points to database: {words}",
        }
        headers = [(b"x-platform-error-code", b"unprocessable entity")]
        return replace(problem, status=422), _json_answer(422, content, headers)
    return problem, refused(dialect, problem)


def _json_answer(status: int, content: object, headers: Headers = (), *, closes: bool = False) -> Answer:
    body = json.dumps(content).encode() + b"\n"
    return Answer(status, (_JSON_TYPE, *headers, (b"content-length", b"%d" % len(body))), body, closes)


def problem_of(error: RequestError | ComeBackLater, dialect: Dialect = Dialect.NATIVE) -> Problem:
    """What an error says to the client, in the manner of the dialect."""
    if isinstance(error, BodyTooSlow) and dialect is not Dialect.NATIVE:
        # Telegraf and others drop a request that is answered 408, and send one again that is answered 503.
        return Problem(503, str(error), retry_after_s=1)
    if isinstance(error, ComeBackLater):
        return Problem(503, str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, PointError):
        return Problem(error.status, str(error), error.line, error.column, error.index)
    return Problem(error.status, str(error))


def refused(dialect: Dialect, problem: Problem, *, closes: bool = False, allow: bytes = b"") -> Answer:
    """The answer to a request of which nothing was stored; `allow` lists the methods of a 405."""
    headers: list[tuple[bytes, bytes]] = [_JSON_TYPE]
    content: dict[str, object]
    if dialect is Dialect.INFLUXDB_V3:
        content = _v3_content(problem)
    elif dialect is Dialect.INFLUXDB_V2:
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


def _v3_content(problem: Problem) -> dict[str, object]:
    """InfluxDB 3 names the line of a refused body apart."""
    if problem.line is None:
        return {"error": problem.message}
    data = {"original_line": "", "line_number": problem.line, "error_message": problem.message}
    return {"error": "parsing failed for write_lp endpoint", "data": data}


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
    if status == 401:
        return "unauthorized"
    if status == 413:
        return "too_large"
    if status < 500:
        return "invalid"
    return "unavailable" if status == 503 else "failed"


def reason_of(error: Exception | None, status: int) -> Reason:
    """The word that refusals are counted by, of an error or, where there is none, of a status."""
    if isinstance(error, TimeOutsideWindow):
        return Reason.TIME
    if isinstance(error, PointError):
        return Reason.TOO_LONG if "(server.line_bytes_max)" in error.reason else Reason.MALFORMED
    if isinstance(error, BodyTooSlow):
        return Reason.TOO_SLOW
    return _REASONS.get(status, Reason.REQUEST)


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
