"""How many connections are open, and which one is closed for a new one.

Invariants:

1. Descriptors stay in reserve for the files of the WAL and for the sinks: `accept` does not run out of them.
2. At the limit the connection idle longest is closed for the new one, at once and with its descriptor, so that health
   checks are still answered. Without one that has been idle for a moment `make_room` is called, which ends a request
   that has stalled.
3. Up to `SPARE_CONNECTIONS` more are served; beyond them a new connection is closed at once. They are for requests: a
   stream, which stays, is turned away there (`is_over`).
"""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from typing import Protocol

import structlog

# Descriptors for files, sinks and the interpreter, as long as the limit is small; an eighth of a small limit more.
_OTHER_DESCRIPTORS = 64
SPARE_CONNECTIONS = 16

# Where few are idle, one that had a request within this time stays open: its client is at work.
_IDLE_S_MIN = 1.0
_FEW = 8

_log = structlog.get_logger("wal_ingest.http")


class OncePerSecond(logging.Filter):
    """Passes one record a second, without its traceback: trio logs each `accept` that finds no descriptor."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic_s = monotonic_s
        self._passed_s = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a record that is left out."""
        record.exc_info = None
        now_s = self._monotonic_s()
        if now_s - self._passed_s < 1.0:
            return False
        self._passed_s = now_s
        return True


ACCEPT_FILTER = OncePerSecond()


class Closable(Protocol):
    """A connection, as far as the crowd knows it."""

    def close_idle(self) -> None:
        """Closes the connection, which is between two requests, and its descriptor before this returns."""
        ...


def connections_max(setting: int) -> int:
    """The setting, or where that is 0 what the limit of open files leaves room for."""
    if setting:
        return setting
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 1 << 20
    return max(8, soft - soft // 8 - _OTHER_DESCRIPTORS - SPARE_CONNECTIONS)


class Crowd:
    """The open connections; the idle ones in the order in which they became idle."""

    def __init__(
        self,
        limit: int,
        *,
        make_room: Callable[[], object] = lambda: None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self._make_room = make_room
        self.count = 0
        # With the time since when.
        self._idle: dict[Closable, float] = {}
        self._monotonic_s = monotonic_s
        self._logged_s = float("-inf")

    @property
    def is_over(self) -> bool:
        """Whether more connections are open than the limit."""
        return self.count > self.limit

    def enter(self, connection: Closable) -> bool:
        """Counts a new connection; false when it must be closed at once. `leave` is due in both cases."""
        self.count += 1
        admitted = True
        if self.is_over:
            self._log()
            idlest = self._idlest()
            if idlest is not None:
                del self._idle[idlest]
                idlest.close_idle()
            else:
                self._make_room()
            admitted = self.count <= self.limit + SPARE_CONNECTIONS
        if admitted:
            self.idle(connection)
        return admitted

    def _idlest(self) -> Closable | None:
        """The connection to be closed for a new one, if there is one that may be."""
        connection, since_s = next(iter(self._idle.items()), (None, 0.0))
        if len(self._idle) > _FEW:
            return connection
        return connection if self._monotonic_s() - since_s >= _IDLE_S_MIN else None

    def idle(self, connection: Closable) -> None:
        """A connection is between two requests."""
        self._idle[connection] = self._monotonic_s()

    def busy(self, connection: Closable) -> None:
        """A connection has a request."""
        self._idle.pop(connection, None)

    def leave(self, connection: Closable) -> None:
        """A connection ended."""
        self._idle.pop(connection, None)
        self.count -= 1

    def _log(self) -> None:
        now_s = self._monotonic_s()
        if now_s - self._logged_s >= 1.0:
            self._logged_s = now_s
            _log.warning(
                "too many connections: the idlest are closed (server.connections_max)", limit=self.limit
            )
