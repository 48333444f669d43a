"""Has a way to the node tried again and again, and says when that begins or ceases to work.

It never gives up: what it cannot deliver waits in the spool. A state is told of once, when it begins.
"""

from __future__ import annotations

from random import Random
from typing import Protocol

import structlog
import trio

from wal_ingest.agent.patience import PASSING, asked_s, back_off_s, hold_s
from wal_ingest.client.errors import POLICY_VIOLATION, StreamClosed, Unreachable
from wal_ingest.errors import ComeBackLater

_log = structlog.get_logger("wal_ingest.agent")


class Way(Protocol):
    """A way to the node."""

    async def deliver(self) -> None:
        """Delivers until something is in the way; raises `ComeBackLater` then. Never returns."""
        ...


class Courier:
    """`connected` is for the way to call when the node answers well."""

    def __init__(self, *, rng: Random) -> None:
        self._rng = rng
        self._failures = 0
        # What is in the way, None while nothing is known to be.
        self._trouble: str | None = None
        self._told = False
        # Why nothing is delivered, with what to do about it; empty while the node confirms.
        self.reason = ""

    async def run(self, way: Way) -> None:
        """Delivers until cancelled. Raises `StorageFailed` when the spool's disk fails."""
        while True:
            try:
                await way.deliver()
            except ComeBackLater as exc:
                self._failures += 1
                self.reason = f"{exc}; try: {exc.hint}" if exc.hint else str(exc)
                wait_s = self._wait_s(exc)
                self._tell(exc, wait_s)
            await trio.sleep(wait_s)

    def connected(self) -> None:
        """The node answers."""
        self._failures = 0
        self.reason = ""
        if self._trouble is not None or not self._told:
            _log.info("delivering")
        self._trouble = None
        self._told = True

    def _wait_s(self, exc: ComeBackLater) -> float:
        if is_misconfigured(exc):
            return hold_s(self._rng)
        if isinstance(exc, Unreachable | StreamClosed) and exc.retry_after_s:
            return asked_s(exc.retry_after_s, self._rng)
        return back_off_s(self._failures, self._rng)

    def _tell(self, exc: ComeBackLater, wait_s: float) -> None:
        kind = _kind(exc)
        if kind == self._trouble:
            return
        self._trouble = kind
        reason = str(exc)
        hint = {"hint": exc.hint} if exc.hint else {}
        if is_misconfigured(exc):
            _log.error("not delivering, a person must look; everything is kept", reason=reason, **hint)
        else:
            _log.warning(
                "not delivering; everything is kept", reason=reason, retry_s=round(wait_s, 1), **hint
            )


def is_misconfigured(exc: ComeBackLater) -> bool:
    """Whether only a person can mend it: a wrong token, address or path."""
    if isinstance(exc, StreamClosed):
        return exc.code == POLICY_VIOLATION
    return isinstance(exc, Unreachable) and (
        exc.wrong_peer or (exc.status != 0 and exc.status not in PASSING)
    )


def _kind(exc: ComeBackLater) -> str:
    """What makes two troubles the same, so that it is told of once."""
    if isinstance(exc, StreamClosed):
        return f"closed {exc.code}"
    if isinstance(exc, Unreachable):
        # For a wrong peer the text decides: an expired certificate is not the same trouble as an untrusted one.
        return f"Unreachable {exc.status} {exc if exc.wrong_peer else ''}"
    return type(exc).__name__
