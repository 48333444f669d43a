"""One round: every probe is asked, and what it read becomes lines.

Invariants:

1. A probe that fails, or hangs, costs the round its own measurement and nothing else. It is told of once, and once more
   when it works again.
2. At most one thread hangs for each probe: while it does, that probe is not asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import structlog
import trio

from wal_ingest.agent.probes import Probe
from wal_ingest.agent.readings import Reading, line_of

# A look at this host takes milliseconds; what takes longer waits for a disk that does not answer.
PROBE_S_MAX = 3.0

_log = structlog.get_logger("wal_ingest.agent")


class Threads(Protocol):
    """Runs a probe in a thread, which is left to itself on cancellation; tests use a twin that runs it on the spot."""

    def __call__(self, work: Callable[[], None], /) -> Awaitable[None]: ...


async def in_thread(work: Callable[[], None]) -> None:
    """**Cancellation:** returns at once; the thread goes on, and what it finds is nobody's any more."""
    await trio.to_thread.run_sync(work, abandon_on_cancel=True)


class Collector:
    """Asks the probes; keeps in mind which of them are in trouble.

    `tags` go onto every line. `probe_s_max` is how long a probe may take.
    """

    def __init__(
        self,
        probes: Mapping[str, Probe],
        tags: Mapping[str, str],
        *,
        threads: Threads = in_thread,
        probe_s_max: float = PROBE_S_MAX,
    ) -> None:
        self._probes = probes
        self._tags = tags
        self._threads = threads
        self._probe_s_max = probe_s_max
        self._hanging: set[str] = set()
        self._failed: set[str] = set()

    async def collect(self, time_ns: int) -> list[str]:
        """The lines of one round, each with the time `time_ns`. Empty when no probe read anything."""
        lines: list[str] = []
        for name, probe in self._probes.items():
            lines += [line_of(reading, self._tags, time_ns) for reading in await self._ask(name, probe)]
        return [line for line in lines if line]

    async def _ask(self, name: str, probe: Probe) -> Sequence[Reading]:
        if name in self._hanging:
            return ()
        found: list[Reading] = []

        def ask() -> None:
            self._hanging.add(name)
            try:
                found.extend(probe())
            finally:
                self._hanging.discard(name)

        try:
            with trio.move_on_after(self._probe_s_max) as limit:
                await self._threads(ask)
        except Exception as exc:  # whatever it is: the others go on
            self._tell(name, f"{type(exc).__name__}: {exc}")
            return ()
        if limit.cancelled_caught:
            self._tell(name, f"no answer within {self._probe_s_max:g} s")
            return ()
        if name in self._failed:
            self._failed.discard(name)
            _log.info("measured again", measurement=name)
        return found

    def _tell(self, name: str, reason: str) -> None:
        if name not in self._failed:
            self._failed.add(name)
            _log.warning("cannot be measured; the others go on", measurement=name, reason=reason)
