"""The waits of one sink's writes: held by a misconfiguration, sent away by Retry-After, backing off after failures.

While the sink is held exactly one task probes it. Cancellation anywhere here leaves nothing behind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from random import Random

import trio

from wal_ingest.flusher.outcome import Misconfigured, Unavailable, plain
from wal_ingest.flusher.retry import PROBE_S, RETRY_AFTER_S_MAX, back_off_s, retry_after_s
from wal_ingest.flusher.suspicion import Suspicion
from wal_ingest.settings import FlusherSettings

log = logging.getLogger(__name__)


class Patience:
    """What all tasks that write to one sink wait for. `changed` is called when `holding` changed.

    `confirmed_writes` counts since the start of this process.
    """

    def __init__(
        self, sink: str, settings: FlusherSettings, *, rng: Random, changed: Callable[[], None]
    ) -> None:
        self._sink = sink
        self._settings = settings
        self._rng = rng
        self._changed = changed
        self._held: trio.Event | None = None
        self._refused: set[Hashable] = (
            set()
        )  # groups that access was refused for, and nothing else answered since
        self._not_before = -float("inf")
        self._sent_away_s = -float("inf")  # when the server last named a time
        self._probe_s = -float("inf")  # when one write may be tried before that time
        self._returned = trio.lowlevel.ParkingLot()
        self._recovered = trio.lowlevel.ParkingLot()
        self._taught = trio.lowlevel.ParkingLot()
        self.confirmed_writes = 0

    @property
    def holding(self) -> bool:
        """Whether the sink is misconfigured, as far as is known."""
        return self._held is not None or bool(self._refused)

    def refused(self, group: Hashable, outcome: Misconfigured) -> None:
        """Access was refused and nothing shows that it is about points: `holding` until another answer comes."""
        if not self.holding:
            log.error("%s: everything is kept, nothing is delivered: %s", self._sink, plain(outcome.reason))
        self._refused.add(group)
        self._changed()

    def answered(self, group: Hashable) -> None:
        """The sink judged points of a group, well or badly."""
        if group in self._refused:
            self._refused.discard(group)
            self._changed()

    def sent_away(self, asked_s: float) -> None:
        """The server named a time to come back: nothing but a probe is written before it, by any task."""
        now_s = trio.current_time()
        if now_s >= self._not_before:
            self._probe_s = now_s + PROBE_S
        self._sent_away_s = now_s
        self._not_before = max(self._not_before, now_s + min(asked_s, RETRY_AFTER_S_MAX))

    def confirmed(self, began_s: float) -> None:
        """A write that began then was confirmed: the others need not wait any longer.

        It ends the time that the server named only if it began after the server had named it.
        """
        self.confirmed_writes += 1
        self._recovered.unpark_all()
        if began_s > self._sent_away_s and self._not_before > trio.current_time():
            self._not_before = -float("inf")
            self._returned.unpark_all()

    async def gate(self, *, through_hold: bool = False) -> None:
        """Waits while the sink is held, or the server's time has not come. Always a checkpoint.

        While that time is far, one task is let through now and then: its write is the probe.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._held is not None and not through_hold:
                await self._held.wait()
                continue
            now_s = trio.current_time()
            if now_s >= self._not_before:
                return
            if now_s >= self._probe_s:
                self._probe_s = now_s + PROBE_S
                return
            # They were sent away together and should not come back in the same instant.
            jitter_s = self._rng.random() * self._settings.retry_s_min
            with trio.move_on_after(min(self._not_before, self._probe_s) - now_s + jitter_s):
                await self._returned.park()

    async def hold(self, recovered: Callable[[], bool], *, probing: bool) -> bool:
        """Waits until it makes sense to write again; true for the one task that does so as the probe."""
        if self._held is None:
            self._held = trio.Event()
            probing = True
        if probing:
            await self.before_probe(recovered)
        else:
            await self._held.wait()
        return probing

    async def before_probe(self, recovered: Callable[[], bool]) -> None:
        """Waits between two writes to a sink that refuses access, until `recovered` at most."""
        with trio.move_on_after(self._settings.hold_retry_s):
            while not recovered():
                await self._recovered.park()

    def release(self) -> None:
        """Ends the hold: the probe was answered, or another task should probe. Only for the task that probes."""
        assert self._held is not None
        self._held.set()
        self._held = None
        self._changed()

    def taught(self) -> None:
        """Something was learnt of refused points: what backs off may pass without those."""
        self._taught.unpark_all()

    async def back_off(
        self, outcome: Unavailable, suspicion: Suspicion, leave: Callable[[], bool] = lambda: False
    ) -> None:
        """Sleeps; a success elsewhere ends it early unless the server named the time or the piece is suspect.

        What was learnt does where `leave` says so then. Without it the same would only be written again: no minutes
        would pass until it failed often enough to be parked.
        """
        settings, passed = self._settings, self.confirmed_writes
        limits = {"retry_s_min": settings.retry_s_min, "retry_s_max": settings.retry_s_max}
        if outcome.retry_after_s is not None:
            # No longer than the next probe: which task is let through then, the gate decides.
            wait_s = min(retry_after_s(outcome.retry_after_s, rng=self._rng, **limits), PROBE_S)
            with trio.move_on_after(wait_s):
                await self._returned.park()
            return
        # Failures of an outage say nothing about how long a point must be tried once others pass.
        tries = suspicion.counted if suspicion.counted > 1 else suspicion.failures
        delay_s = back_off_s(tries, rng=self._rng, **limits)
        # The least wait keeps a sink that answers every other write from being asked in a tight loop.
        certain_s = delay_s if suspicion.counted > 1 else min(delay_s, settings.retry_s_min)
        with trio.move_on_after(certain_s):
            while True:
                await self._taught.park()
                if leave():
                    return
        if self.confirmed_writes == passed:
            with trio.move_on_after(delay_s - certain_s):
                await self._recovered.park()
