"""Ingest: a bare ASGI callable in front of the admin app.

Invariants:

1. A 2xx is sent only after `append` returned: the points are durable.
2. A request is stored whole or not at all: all its entries are handed over in one `append`. Where its dialect takes
   the good lines of a request, "whole" is these, and the bad ones are reported after that append.
3. One time of acceptance for the whole request: it stamps lines without a time, and is on every entry.
4. A request that fails, whatever way, is answered, and neither its connection's neighbours nor the server notice.

The order of a request is that of `_read` and `_store`: token, limits, body, decode, validate, cut into entries, append.

Cancellation leaves nothing half done: before `append` nothing is stored; what `append` leaves behind is its
contract (all of it or nothing, and unknown to the sender, who sends again).

Why not a route of the Quart app: there, chunked bodies have no early limit on newer versions, and each request
costs half as much again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from wal_ingest.addresses import parse_bind
from wal_ingest.errors import BadRequest, ComeBackLater, RequestError
from wal_ingest.http import answers, queries
from wal_ingest.http.access import Access
from wal_ingest.http.answers import Answer, Problem, upgrade_required
from wal_ingest.http.appending import Appender
from wal_ingest.http.asgi import (
    AsgiCallable,
    Scope,
    Send,
    answer_early,
    refuse_websocket,
    source_of,
    with_plain_path,
    without_body,
)
from wal_ingest.http.body import BodyBudget, ClientGone, Hold, Receive, read_body
from wal_ingest.http.check import Checked, Reading
from wal_ingest.http.checking import Checker
from wal_ingest.http.hypercorn_mends import Unparsed
from wal_ingest.http.observer import Nobody, Observer, Reason
from wal_ingest.http.origins import OriginRefused, Origins
from wal_ingest.http.proxies import TrustedProxies
from wal_ingest.http.refusals import RefusalLog, client_request_id, new_request_id
from wal_ingest.http.requests import (
    Dialect,
    Format,
    Query,
    read_content_type,
    read_headers,
    read_query,
    takes_partial,
)
from wal_ingest.points import Lines
from wal_ingest.settings import ServerSettings
from wal_ingest.wal.entry import NewEntry

ROUTES = {
    "/metrics": Dialect.NATIVE,
    "/api/v2/write": Dialect.INFLUXDB_V2,
    "/write": Dialect.INFLUXDB_V1,
    "/api/v3/write_lp": Dialect.INFLUXDB_V3,
}
QUERY_PATH = "/query"
STREAM_PATH = "/stream"
# The route, for the log and the counts, of a request that the HTTP parser refused: its own is unknown.
UNPARSED_ROUTE = "unparsed"
# The route, for the counts, of a refused request to any other path, the status page included.
OTHER_ROUTE = "other"
_PATH_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class _Asked:
    """What one request asks for: `written` is None when it does not say; `now_ns` is its time of acceptance."""

    query: Query
    encoding: str
    reading: Reading
    source: str
    now_ns: int


class Ingest:
    """The ASGI application: the write routes itself, everything else by `fallback`."""

    def __init__(
        self,
        *,
        appender: Appender,
        fallback: AsgiCallable,
        settings: ServerSettings,
        now_ns: Callable[[], int],
        checker: Checker | None = None,
        budget: BodyBudget | None = None,
        streams: AsgiCallable | None = None,
        observer: Observer | None = None,
        refusals: RefusalLog | None = None,
        monotonic_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._appender = appender
        self._fallback = fallback
        self._settings = settings
        self._now_ns = now_ns
        self._checker = checker or Checker(settings)
        self._access = Access(settings.write_token)
        self._origins = Origins(
            bind_host=parse_bind(settings.bind)[0],
            allowed_origins=settings.allowed_origins,
            allowed_hosts=settings.allowed_hosts,
        )
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._observer: Observer = observer or Nobody()
        self._refusals = refusals or RefusalLog(monotonic_s=monotonic_s)
        self._monotonic_s = monotonic_s
        self.budget = budget or BodyBudget(settings.bodies_bytes_max)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI scope, answered.

        Cancellation: before the append nothing is stored; during it the outcome is unknown to the sender.
        """
        if scope["type"] in ("http", "websocket"):
            if self._proxies:
                scope["client"] = (self._proxies.source(source_of(scope), scope["headers"]), 0)
            try:
                self._origins.check(scope["headers"])
            except OriginRefused as exc:
                await self._refuse_origin(exc, scope, receive, send)
                return
        if scope["type"] == "http":
            scope = with_plain_path(scope)
            dialect = ROUTES.get(scope["path"])
            # `GET /metrics` is Prometheus' and not a write that was sent the wrong way.
            reads = dialect is Dialect.NATIVE and scope["method"] in ("GET", "HEAD")
            if dialect is not None and not reads:
                await self._write_route(dialect, scope, receive, send)
            elif scope["path"] == STREAM_PATH and self._streams is not None:
                await answer_early(upgrade_required(), receive, send)
            elif scope["path"] == QUERY_PATH:
                await answer_early(await queries.answer(scope, receive), receive, send)
            else:
                await self._fallback(scope, without_body(receive), send)
        elif scope["type"] == "websocket":
            scope = with_plain_path(scope)
            if self._streams is not None and scope["path"] == STREAM_PATH:
                await self._streams(scope, receive, send)
            else:
                await refuse_websocket(send)
        else:
            await self._fallback(scope, receive, send)

    async def _refuse_origin(self, error: OriginRefused, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403, also to a WebSocket handshake: the page must not see the stream's first message."""
        problem = answers.problem_of(error)
        request_id = client_request_id(scope["headers"])
        dialect = ROUTES.get(scope["path"], Dialect.NATIVE)
        answer = self._refuse(dialect, problem, scope, request_id, closes=True)
        if scope["type"] == "websocket":
            await refuse_websocket(send, answer)
        else:
            await answer_early(answer, receive, send)

    async def _write_route(self, dialect: Dialect, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = client_request_id(scope["headers"])
        if scope["method"] != "POST":
            problem = Problem(405, "points are written with POST")
            # On the native route, GET is for Prometheus.
            allow = b"GET, HEAD, POST" if dialect is Dialect.NATIVE else b"POST"
            answer = self._refuse(dialect, problem, scope, request_id, closes=True, allow=allow)
            await answer_early(answer, receive, send)
            return
        hold = Hold(self.budget, source_of(scope))
        body_is_read = False
        try:
            asked, body = await self._read(dialect, scope, receive, hold)
            body_is_read = True
            answer, checked = await self._store(dialect, asked, body, hold)
            self._report(scope["path"], asked.source, checked)
            if checked.dropped:
                answer = self._refuse_lines(dialect, scope, request_id, checked, len(body))
            else:
                if request_id is not None:
                    answer = answers.with_request_id(answer, request_id)
                self._observer.answered(scope["path"], "accepted", checked.lines.points, len(body))
        except ClientGone:
            return
        except (RequestError, ComeBackLater) as exc:
            problem = answers.problem_of(exc, dialect)
            answer = self._refuse(
                dialect,
                problem,
                scope,
                request_id,
                closes=not body_is_read,
                reason=answers.reason_of(exc, problem.status),
            )
            # Its frames hold the body and what was made of it, and an error that came through a thread is part
            # of a cycle: without this, refused bodies pile up until the next collection.
            exc.__traceback__ = None
        except Exception as exc:
            # Whatever it was, it is this request's: say so, keep the trace, and serve the next one.
            closes = not body_is_read
            answer = self._refuse(dialect, answers.unexpected(), scope, request_id, closes=closes, error=exc)
        finally:
            # Before the answer goes out: a client that never reads it must not hold the others' memory.
            hold.release()
        if answer.closes:
            await answer_early(answer, receive, send)
        else:
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            await send({"type": "http.response.body", "body": answer.body})

    def unparsed(self, refused: Unparsed) -> None:
        """Counts and logs a request that the HTTP parser refused.

        It is invalid also where the status is 501 or 505: nothing of this node failed.
        """
        self._observer.answered(UNPARSED_ROUTE, "invalid", 0, 0)
        self._refusals.refused(
            refused.request_id, UNPARSED_ROUTE, refused.status, refused.reason, refused.source
        )

    def _refuse(
        self,
        dialect: Dialect,
        problem: Problem,
        scope: Scope,
        request_id: bytes | None,
        *,
        closes: bool,
        allow: bytes = b"",
        error: Exception | None = None,
        reason: Reason | None = None,
    ) -> Answer:
        """Counts and logs a refusal (`error` is what nobody foresaw) and makes its answer, which carries an id."""
        request_id = request_id or new_request_id()
        route, source = scope["path"][:_PATH_CHARS_MAX], source_of(scope)
        counted = route if route in ROUTES or route == STREAM_PATH else OTHER_ROUTE
        self._observer.answered(counted, answers.result_of(problem.status), 0, 0)
        word = reason or answers.reason_of(None, problem.status)
        self._observer.refused(counted, word.value, source, 0)
        if error is None:
            self._refusals.refused(request_id, route, problem.status, problem.message, source)
        else:
            self._refusals.broke(request_id, route, error, source)
        answer = answers.refused(dialect, problem, closes=closes, allow=allow)
        return answers.with_request_id(answer, request_id)

    def _refuse_lines(
        self, dialect: Dialect, scope: Scope, request_id: bytes | None, checked: Checked, body_bytes: int
    ) -> Answer:
        """As `_refuse`, for lines that were left out of a request whose others are durable by now."""
        request_id = request_id or new_request_id()
        route, source = scope["path"], source_of(scope)
        problem, answer = answers.partly(dialect, checked)
        points = checked.lines.points
        self._observer.answered(
            route, "partial" if points else "invalid", points, body_bytes if points else 0
        )
        reasons = Counter(answers.reason_of(each.error, 400) for each in checked.refusals)
        # Lines beyond those that are described are counted with the first one's reason.
        reasons[next(iter(reasons))] += checked.dropped - len(checked.refusals)
        for reason, lines in reasons.items():
            self._observer.refused(route, reason.value, source, lines)
        self._refusals.refused(request_id, route, problem.status, problem.message, source)
        return answers.with_request_id(answer, request_id)

    def _report(self, route: str, source: str, checked: Checked) -> None:
        for odd in checked.odd:
            self._observer.noticed(route, odd.oddity.value, source, odd.points, odd.looks_like)

    async def _read(
        self, dialect: Dialect, scope: Scope, receive: Receive, hold: Hold
    ) -> tuple[_Asked, bytes]:
        """Limits, then the body. What is refused here is refused before the body is whole."""
        settings = self._settings
        self._access.check(scope["headers"], scope["query_string"])
        query = read_query(dialect, scope["query_string"])
        headers = read_headers(scope["headers"], bytes_max=settings.body_bytes_max)
        written: Format | None = Format.LINE_PROTOCOL
        if dialect is Dialect.NATIVE:
            written = read_content_type(headers.content_type) if headers.content_type is not None else None
        body = await read_body(
            receive,
            hold,
            bytes_max=settings.body_bytes_max,
            body_s_max=settings.body_s_max,
            bytes_per_s_min=settings.body_bytes_per_s_min,
        )
        reading = Reading(written, query.precision, takes_partial(dialect, query, settings.partial_writes))
        return _Asked(query, headers.encoding, reading, source_of(scope), self._now_ns()), body

    async def _store(
        self, dialect: Dialect, asked: _Asked, body: bytes, hold: Hold
    ) -> tuple[Answer, Checked]:
        """Decode, validate, cut into entries, append; then, and only then, the answer that says so."""
        checked = await self._checker.take(
            body, asked.encoding, asked.reading, now_ns=asked.now_ns, hold=hold
        )
        lines = checked.lines
        if not lines.points:
            if dialect is Dialect.NATIVE:
                raise BadRequest("the body has no points")
            return answers.NO_CONTENT, checked
        entries = [
            NewEntry(piece.data, piece.points, asked.now_ns, asked.source, asked.query.destination)
            for piece in await self._checker.cut(checked, hold)
        ]
        if len(entries) > 1:
            # The entries have its lines by now, and a large body should not have them twice while it waits.
            checked = replace(checked, lines=Lines(b"", lines.points), pieces=())
            lines = checked.lines
        began_s = self._monotonic_s()
        appended = await self._appender.append(entries)
        self._observer.appended(self._monotonic_s() - began_s)
        return answers.accepted(dialect, points=lines.points, seq=appended.last_seq), checked
