"""Asks silent peers whether they are there: one task for all WebSockets, which looks at each of them now and then."""

from __future__ import annotations

from typing import Protocol

import structlog
import trio

# A peer that is silent is asked, and one that does not answer is dropped, a quarter of the time later at the most.
_LOOKS = 4

# So many are looked at before the other tasks have their turn.
_LOOKED_AT_IN_A_TURN = 500


_log = structlog.get_logger("wal_ingest.http")


class Pinged(Protocol):
    """A WebSocket, as far as this knows it."""

    def look(self, now_s: float, every_s: float) -> None:
        """Asks its peer when it has been silent for `every_s`, and drops it when it did not answer for as long."""
        ...


class Pings:
    """The WebSockets that are open."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._open: set[Pinged] = set()

    def add(self, websocket: Pinged) -> None:
        self._open.add(websocket)

    def discard(self, websocket: Pinged) -> None:
        self._open.discard(websocket)

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await trio.sleep(self._every_s / _LOOKS)
            for count, websocket in enumerate(list(self._open), 1):
                try:
                    websocket.look(trio.current_time(), self._every_s)
                except Exception:  # one of them must not end the server
                    _log.exception("a peer could not be asked")
                if count % _LOOKED_AT_IN_A_TURN == 0:
                    await trio.lowlevel.checkpoint()
