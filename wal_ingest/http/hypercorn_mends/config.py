"""Hypercorn's configuration, and its messages through structlog."""

from __future__ import annotations

import math
import time
from typing import Any
from wsgiref.handlers import format_date_time

import structlog
from hypercorn.config import Config
from hypercorn.logging import Logger

from wal_ingest.http.hypercorn_mends.crowd import Crowd
from wal_ingest.http.hypercorn_mends.pings import Pings
from wal_ingest.http.hypercorn_mends.shields import Shields
from wal_ingest.http.hypercorn_mends.turns import Turns
from wal_ingest.http.hypercorn_mends.unparsed import OnUnparsed

# A connection is worth more than a thousand requests: reconnecting costs the fleet more than it gives.
_REQUESTS_PER_CONNECTION_MAX = 2**62

# So many pieces of a body, of up to 128 KiB each, wait for the application. They are not counted yet, so they are few:
# with hypercorn's ten, sixteen bodies that found no room took up to 20 MiB more than they were allowed.
_PIECES_MAX = 2

# So many connections are taken down in one turn of the scheduler.
_ENDS_IN_A_TURN = 8

_log = structlog.get_logger("wal_ingest.http")


class ServerConfig(Config):
    """Hypercorn's configuration, and what our connections need beside it."""

    def __init__(
        self,
        *,
        header_bytes_max: int,
        keep_alive_s: float,
        answer_s_max: float,
        stop_s_max: float,
        ping_s: float,
        shields: Shields,
        on_unparsed: OnUnparsed,
        crowd: Crowd,
    ) -> None:
        self.h11_max_incomplete_size = header_bytes_max
        self.keep_alive_timeout = keep_alive_s
        self.keep_alive_max_requests = _REQUESTS_PER_CONNECTION_MAX
        self.graceful_timeout = stop_s_max
        self.max_app_queue_size = _PIECES_MAX
        self.shutdown_timeout = math.inf  # `serve` ends everything at its own deadline
        self.include_server_header = False
        self.alpn_protocols = ["http/1.1"]
        self.accesslog = None
        self.errorlog = None
        self.logger_class = _Log
        self.answer_s_max = answer_s_max
        self.shields = shields
        self.on_unparsed = on_unparsed
        self.crowd = crowd
        self.websocket_ping_interval = None  # hypercorn's own would be a task for each
        self.pings = Pings(ping_s)
        self.ends = Turns(_ENDS_IN_A_TURN)
        self._headers_second = 0
        self._headers: list[tuple[bytes, bytes]] = []

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 -- hypercorn's signature
        """`Date`, which RFC 9110 §6.6.1 asks for, formatted once a second rather than once a request."""
        second = int(time.time())
        if second != self._headers_second:
            self._headers_second = second
            self._headers = [(b"date", format_date_time(second).encode("ascii"))]
        return self._headers


class _Log(Logger):
    """Hypercorn's own messages, said through structlog; access lines are not written at all."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    async def access(self, *_: Any) -> None:
        pass

    async def critical(self, message: str, *args: Any, **_: Any) -> None:
        _log.critical(message % args if args else message)

    async def error(self, message: str, *args: Any, **_: Any) -> None:
        _log.error(message % args if args else message)

    async def warning(self, message: str, *args: Any, **_: Any) -> None:
        _log.warning(message % args if args else message)

    async def info(self, message: str, *args: Any, **_: Any) -> None:
        _log.debug(message % args if args else message)

    async def debug(self, message: str, *args: Any, **_: Any) -> None:
        _log.debug(message % args if args else message)

    async def exception(self, message: str, *args: Any, **_: Any) -> None:
        _log.exception(message % args if args else message)
