"""The agent as a whole: rounds into the spool, the spool to the node, and an orderly end.

How it stops, each step only when the one before has ended: no round is begun any more, and the one under way goes into
the spool; what the node takes within `STOP_S_MAX` is delivered; the spool's thread ends, and its files are closed.
Leaving at once is safe at any point.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from wal_ingest.agent.collect import Collector
from wal_ingest.agent.readings import Reading
from wal_ingest.agent.rounds import next_round_ns, phase_ns, round_time_ns
from wal_ingest.agent.spool import Spool
from wal_ingest.errors import ComeBackLater, WalIngestError
from wal_ingest.signals import Watchdog, report_ignored_signals, stop_on_signals

STOP_S_MAX = 2.0
# From the signal to the exit, whatever hangs.
WATCHDOG_S = 12.0
ONCE_S_MAX = 30.0

_log = structlog.get_logger("wal_ingest.agent")


@dataclass
class Tally:
    """What became of the rounds since the start. `missed` were not taken: the spool had no room."""

    spooled: int = 0
    missed: int = 0


def own_probe(spool: Spool, tally: Tally) -> Callable[[], list[Reading]]:
    """The probe of the agent itself: how much waits, and what was refused."""

    def probe() -> list[Reading]:
        fields = {
            "spool_bytes": spool.disk_bytes,
            "waiting_points": spool.waiting_points,
            "rounds_missed": tally.missed,
            "refused_files": spool.refused.files,
        }
        return [Reading("agent", fields)]

    return probe


class Agent:
    """`collector` measures; `courier` delivers the spool until cancelled; `ready` is called when all of it runs.

    `host` decides where on the grid of `interval_ns` the rounds are. `give_up_s` is how long the node may take nothing
    before it ends with exit code 1 (None: for ever), and `reason` says then why nothing is taken.
    """

    def __init__(
        self,
        spool: Spool,
        collector: Collector,
        courier: Callable[[], Awaitable[None]],
        *,
        host: str,
        interval_ns: int,
        tally: Tally,
        now_ns: Callable[[], int],
        ready: Callable[[], None] = lambda: None,
        give_up_s: float | None = None,
        reason: Callable[[], str] = lambda: "",
    ) -> None:
        self._spool = spool
        self._collector = collector
        self._courier = courier
        self._interval_ns = interval_ns
        self._phase_ns = phase_ns(host, interval_ns)
        self._tally = tally
        self._now_ns = now_ns
        self._ready = ready
        self._stop = trio.Event()
        self._full = False
        self._give_up_s = give_up_s
        self._reason = reason
        self._gave_up = False

    async def run(self) -> int:
        """Measures and delivers until SIGTERM or SIGINT; returns the exit code.

        Raises what the spool's disk failed with: `StorageFailed`, `WalDamaged`.
        """
        return await self._with_parts(self._rounds)

    async def run_once(self) -> int:
        """One round, delivered: exit code 0. Or 1 when the node did not take it in time: it waits in the spool."""
        return await self._with_parts(self._once)

    def stop(self, reason: str) -> None:
        """Has `run` end in order."""
        _log.info("stopping", reason=reason)
        self._stop.set()

    async def _with_parts(self, main: Callable[[], Awaitable[int]]) -> int:
        for trouble in self._spool.trouble:
            _log.error("spool", trouble=trouble)
        code = 1
        watchdog = Watchdog(WATCHDOG_S, message="not stopped in time: ending at once; the spool is on disk")
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._spool.run)
                nursery.start_soon(self._courier)
                await nursery.start(report_ignored_signals)
                with stop_on_signals(self.stop, watchdog):
                    if self._give_up_s is not None:
                        nursery.start_soon(self._give_up, self._give_up_s)
                    self._ready()
                    code = await main()
                    if self._gave_up:
                        code = 1
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise _our_own(group) from group
        finally:
            watchdog.cancel()
        _log.info("stopped", waiting_points=self._spool.waiting_points)
        return code

    async def _rounds(self) -> int:
        while not self._stop.is_set():
            planned_ns = next_round_ns(self._now_ns(), self._interval_ns, self._phase_ns)
            with trio.move_on_after((planned_ns - self._now_ns()) / 1e9):
                await self._stop.wait()
            if not self._stop.is_set():
                await self._round(round_time_ns(planned_ns, self._now_ns(), self._interval_ns))
        with trio.move_on_after(STOP_S_MAX):
            await self._spool.wait_settled(self._spool.last_seq)
        return 0

    async def _give_up(self, after_s: float) -> None:
        """Ends the agent when points wait for the node and it settles none for so long."""
        spool = self._spool
        while True:
            settled_seq = spool.settled_seq
            await spool.wait_appended(settled_seq)
            with trio.move_on_after(after_s):
                await spool.wait_settled(settled_seq + 1)
            if spool.settled_seq == settled_seq:
                break
        self._gave_up = True
        _log.error(
            "gave up: the node took nothing; everything is kept in the spool",
            after_s=after_s,
            reason=self._reason(),
            waiting_points=spool.waiting_points,
        )
        self.stop("--give-up-after")

    async def _once(self) -> int:
        if not await self._round(self._now_ns()):
            return 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_stop, nursery.cancel_scope)
            with trio.move_on_after(self._give_up_s or ONCE_S_MAX) as limit:
                await self._spool.wait_settled(self._spool.last_seq)
            nursery.cancel_scope.cancel()
        if limit.cancelled_caught or self._spool.settled_seq < self._spool.last_seq:
            _log.error("not delivered; it waits in the spool", waiting_points=self._spool.waiting_points)
            return 1
        return 0

    async def _cancel_at_stop(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _round(self, time_ns: int) -> bool:
        """Measures, and makes it durable; whether that went well. A state is told of once, when it begins."""
        lines = await self._collector.collect(time_ns)
        if not lines:
            return False
        try:
            await self._spool.append(lines)
        except ComeBackLater as exc:
            self._tally.missed += 1
            if not self._full:
                self._full = True
                _log.error("rounds are missed: the spool takes no more", reason=str(exc))
            return False
        self._tally.spooled += 1
        if self._full:
            self._full = False
            _log.warning("rounds are kept again", missed_since_start=self._tally.missed)
        return True


def _our_own(error: BaseException) -> BaseException:
    """The first of our own errors in a group of groups; what was given when there is none."""
    if isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(WalIngestError)
        if ours is not None:
            return _our_own(ours.exceptions[0])
    return error
