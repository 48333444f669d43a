"""The route `/stream`: handshakes, the streams that are open, and their end at a stop.

Invariant: of one `client_id` at most one stream is open. A second connection ends the first (whose peer is gone more
often than not, without our having noticed), and is welcomed only when nothing of the first can reach the WAL any more:
else it could be told that a frame is not durable which becomes so a moment later.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

import trio

from wal_ingest.errors import ComeBackLater, RequestError
from wal_ingest.http import answers
from wal_ingest.http.access import Access
from wal_ingest.http.appending import Appender
from wal_ingest.http.asgi import Scope, Send, source_of
from wal_ingest.http.body import BodyBudget, Receive
from wal_ingest.http.checking import Checker
from wal_ingest.http.hypercorn_mends import EXTENSION
from wal_ingest.http.observer import Nobody, Observer
from wal_ingest.http.refusals import RefusalLog, new_request_id
from wal_ingest.http.requests import Dialect, read_query
from wal_ingest.http.stream import protocol
from wal_ingest.http.stream.intake import ROUTE, Asked, Door
from wal_ingest.http.stream.pace import Pace
from wal_ingest.http.stream.session import Session
from wal_ingest.settings import ServerSettings
from wal_ingest.wal.streams import Position

_FULL_RETRY_AFTER_S = 10
_HANGS_RETRY_AFTER_S = 10

# How long a stream's queued frames may take to be stored and answered when an operator makes the node forget it.
_LEAVE_S_MAX = 5.0
_FORGOTTEN = "retry after 1 s: an operator had this stream forgotten (wal-ingest stream forget)"


class Streams:
    """The ASGI application behind `/stream`, for scopes of type `websocket`.

    `position` tells how far a client's stream has come: `Positions.of` of the WAL.
    """

    def __init__(
        self,
        *,
        appender: Appender,
        position: Callable[[str], Position | None],
        settings: ServerSettings,
        now_ns: Callable[[], int],
        checker: Checker | None = None,
        budget: BodyBudget | None = None,
        observer: Observer | None = None,
        refusals: RefusalLog | None = None,
        monotonic_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings
        self._access = Access(settings.write_token)
        self._door = Door(
            appender,
            checker or Checker(settings),
            budget or BodyBudget(settings.bodies_bytes_max),
            settings,
            observer or Nobody(),
            refusals or RefusalLog(monotonic_s=monotonic_s),
            now_ns,
            monotonic_s,
            position,
            Pace(monotonic_s),
        )
        self._open: set[Session] = set()
        self._by_client: dict[str, Session] = {}
        # Streams that ended before it was known what becomes of their last append.
        self._undecided: dict[str, Session] = {}
        # Under these ids no stream may begin at this time.
        self._kept_out: set[str] = set()
        self._stopping = False

    @property
    def count(self) -> int:
        """How many streams are open."""
        return len(self._open)

    def stop(self) -> None:
        """Ends every stream: what was read is stored and acked, then it is closed with 1012."""
        self._stopping = True
        for session in list(self._open):
            session.end(protocol.STOPPING, "the server is shutting down")

    def connected(self) -> list[str]:
        """The ids under which streams are open."""
        return list(self._by_client)

    @asynccontextmanager
    async def kept_out(self, client_id: str) -> AsyncIterator[bool]:
        """Ends the stream under an id, and lets none begin under it within the block; gives whether one was open.

        What it has in line is stored and acked first, for as long as that takes no longer than usual. In the block
        nothing of the stream can reach the WAL. Raises ComeBackLater where that is not known: the disk hangs.

        **Cancellation:** the stream has ended, or will.
        """
        session = self._by_client.get(client_id)
        self._kept_out.add(client_id)
        try:
            if session is not None:
                session.end(protocol.TRY_AGAIN_LATER, _FORGOTTEN)
                with trio.move_on_after(_LEAVE_S_MAX) as leaving:
                    await session.settled.wait()
                if leaving.cancelled_caught:
                    session.end(protocol.TRY_AGAIN_LATER, _FORGOTTEN, drop=True)
                    await session.settled.wait()
            for each in (session, self._undecided.get(client_id)):
                if each is not None and each.may_still_store():
                    raise ComeBackLater(f"the disk has not finished with a frame of {client_id!r}")
            yield session is not None
        finally:
            self._kept_out.discard(client_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One WebSocket, from its handshake to its end. A handshake that cannot be taken is told by a close code.

        Cancellation: see `Session`.
        """
        if (await receive())["type"] != "websocket.connect":
            return
        try:
            self._access.check(scope["headers"], scope["query_string"])
            subprotocol = protocol.check_subprotocols(scope["subprotocols"])
            asked = self._asked(scope, plain=subprotocol is None)
        except RequestError as exc:
            self._door.observer.answered(ROUTE, answers.result_of(exc.status), 0, 0)
            self._door.refusals.refused(new_request_id(), ROUTE, exc.status, str(exc), source_of(scope))
            await _turn_away(scope, send, protocol.POLICY, str(exc))
            return
        if self._stopping:
            await _turn_away(scope, send, protocol.STOPPING, "the server is shutting down")
            return
        if asked.client_id in self._kept_out:
            await _turn_away(scope, send, protocol.TRY_AGAIN_LATER, _FORGOTTEN)
            return
        full = self._full(scope)
        if full:
            self._door.observer.answered(ROUTE, "unavailable", 0, 0)
            reason = f"retry after {_FULL_RETRY_AFTER_S} s: {full}"
            await _turn_away(scope, send, protocol.TRY_AGAIN_LATER, reason)
            return
        session = Session(self._door, asked, scope["extensions"][EXTENSION], send)
        self._open.add(session)
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
            if asked.client_id is not None:
                await self._take_over(asked.client_id, session)
            await session.run()
        finally:
            self._open.discard(session)
            session.settled.set()
            if asked.client_id is not None:
                self._remember(asked.client_id, session)
                if self._by_client.get(asked.client_id) is session:
                    del self._by_client[asked.client_id]

    def _full(self, scope: Scope) -> str:
        """Why there is no room for another stream, empty when there is."""
        if len(self._open) >= self._settings.streams_max:
            return "too many streams are open (server.streams_max)"
        if scope["extensions"][EXTENSION].is_one_too_many:
            return "too many connections are open (server.connections_max)"
        return ""

    def _asked(self, scope: Scope, *, plain: bool) -> Asked:
        query = read_query(Dialect.NATIVE, scope["query_string"])
        said = dict(reversed(parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True)))
        client_id = said.get("client_id")
        if client_id is not None:
            protocol.check_client_id(client_id)
        return Asked(
            None if plain else client_id, plain, query.precision, query.destination, source_of(scope)
        )

    async def _take_over(self, client_id: str, session: Session) -> None:
        """Ends the stream that is open under this id, and waits until nothing of it can reach the WAL any more.

        Where that is not known within a usual time the new stream is ended too.
        """
        before = self._by_client.get(client_id)
        self._by_client[client_id] = session
        if before is not None:
            before.end(protocol.REPLACED, "another connection came with the same client_id", drop=True)
            try:
                await before.settled.wait()
            finally:
                self._remember(client_id, before)
        else:
            await trio.lowlevel.checkpoint()
        undecided = self._undecided.get(client_id)
        if undecided is None:
            return
        if undecided.may_still_store():
            self._door.observer.answered(ROUTE, "unavailable", 0, 0)
            reason = f"retry after {_HANGS_RETRY_AFTER_S} s: the disk has not finished with a frame of before"
            session.end(protocol.TRY_AGAIN_LATER, reason)
        else:
            del self._undecided[client_id]

    def _remember(self, client_id: str, session: Session) -> None:
        """Keeps a stream in mind that ends before it is decided."""
        if not session.may_still_store():
            return
        if len(self._undecided) > 2 * self._settings.streams_max:  # of clients that never came back
            self._undecided = {name: each for name, each in self._undecided.items() if each.may_still_store()}
        self._undecided[client_id] = session


async def _turn_away(scope: Scope, send: Send, code: int, reason: str) -> None:
    """Accepts and closes at once: a browser tells its page of a close code, and of nothing else."""
    offered = scope["subprotocols"]
    subprotocol = protocol.SUBPROTOCOL if protocol.SUBPROTOCOL in offered else None
    await send({"type": "websocket.accept", "subprotocol": subprotocol})
    await send({"type": "websocket.close", "code": code, "reason": protocol.close_reason(reason)})
