"""The node's sinks: which there are, and each one's life, with the pauses that an operator puts into it.

Invariants:

* One `Delivery` at a time moves a sink's cursor. Whatever else changes the cursor or the dead letters of a sink (an
  operator's `skip`, `drop`, `retry`) does so between two of them: see `SinkRunner.amend`.
* A pause is on disk before it begins and before it ends: a node that is started again goes on as it was told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.sinks.archive import ArchiveSink
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.flusher.status import Progress, SinkState, SinkStatus
from wal_ingest.settings import Settings
from wal_ingest.wal.store import Store

T = TypeVar("T")

SinkMaker = Callable[[], Sink]


def sink_makers(settings: Settings, data_dir: Path) -> dict[str, SinkMaker]:
    """How to make each sink that the settings turn on, by its name; the archive when nothing else is."""
    makers: dict[str, SinkMaker] = {}
    if settings.influxdb.url:
        makers[InfluxDBSink.name] = lambda: InfluxDBSink(
            settings.influxdb, run_sync=trio.to_thread.run_sync, now_ns=time.time_ns
        )
    if settings.archive.enabled == "on" or (settings.archive.enabled == "auto" and not makers):
        makers[ArchiveSink.name] = lambda: ArchiveSink(
            data_dir, settings.archive, run_sync=trio.to_thread.run_sync
        )
    return makers


def standby_names(settings: Settings) -> frozenset[str]:
    """The sinks that are on only where the settings turn on no other."""
    return frozenset([ArchiveSink.name]) if settings.archive.enabled == "auto" else frozenset()


def absent_reason(name: str) -> str:
    """What to say of a required sink that the settings do not name."""
    return (
        f"the settings do not name this required sink; its points wait in the log: configure it again, "
        f"or give them up with: wal-ingest sink forget {name}"
    )


def absent_statuses(store: Store) -> list[SinkStatus]:
    """The sinks that hold segments though the settings do not name them, as the node shows them."""
    return [
        SinkStatus(
            name=name,
            required=True,
            state=SinkState.ABSENT,
            since_ns=record.absent_since_ns or 0,
            last_error=absent_reason(name),
            last_error_ns=record.absent_since_ns or 0,
            confirmed_points=0,
            parked_points=0,
            retried_writes=0,
            rejected_writes=0,
            in_flight=0,
            cursor=store.cursor(name),
        )
        for name, record in store.absent_sinks().items()
    ]


# Makes a delivery to a sink, which keeps its numbers in what it is given.
DeliveryMaker = Callable[[Sink, Progress], Delivery]


class SinkRunner:
    """One sink for the life of the node. `run` is that life; `stop` ends it in an orderly way."""

    def __init__(
        self,
        make_sink: SinkMaker,
        make_delivery: DeliveryMaker,
        store: Store,
        *,
        now_ns: Callable[[], int],
    ) -> None:
        self._make_sink = make_sink
        self._make_delivery = make_delivery
        self._store = store
        self._now_ns = now_ns
        self._sink = make_sink()
        self.name = self._sink.name
        self.required = self._sink.required
        self.progress = Progress(now_ns())
        self._delivery: Delivery | None = None
        self._quiet = trio.Event()
        self._quiet.set()
        self._changed = trio.Event()
        self._one_at_a_time = trio.Lock()
        self._amending = False
        self._stopping = False
        since_ns = store.state.paused_since_ns(self.name)
        if since_ns is not None:
            self.progress.enter(SinkState.PAUSED, since_ns)

    def status(self) -> SinkStatus:
        """A snapshot; cheap, no I/O."""
        status = self.progress.status(
            self.name,
            required=self.required,
            cursor=self._delivery.cursor if self._delivery is not None else self._store.cursor(self.name),
        )
        since_ns = self._store.state.paused_since_ns(self.name)
        return status if since_ns is None else replace(status, state=SinkState.PAUSED, since_ns=since_ns)

    def stop(self) -> None:
        """Begins an orderly stop; `run` returns when it is done."""
        self._stopping = True
        self._end_delivery()

    async def run(self) -> None:
        """Delivers whenever nobody has asked it not to, until `stop`. Raises as `Delivery.run` does."""
        while not self._stopping:
            changed = self._changed
            if self._may_deliver():
                await self._deliver()
                if self.progress.state is SinkState.FAILED and not self._stopping:
                    await changed.wait()  # an optional sink that broke down: an operator may resume it
            else:
                await changed.wait()

    async def _deliver(self) -> None:
        self._delivery = self._make_delivery(self._sink, self.progress)
        # What the one before was in was about points that may have been given up since.
        self.progress.enter(SinkState.IDLE, self._now_ns())
        self._quiet = trio.Event()
        try:
            await self._delivery.run()
        finally:
            self._delivery = None
            # A sink is used for one delivery: what it held is freed, what it remembered may be old.
            self._sink = self._make_sink()
            self._quiet.set()

    def _may_deliver(self) -> bool:
        return not self._amending and self._store.state.paused_since_ns(self.name) is None

    def _end_delivery(self) -> None:
        if self._delivery is not None:
            self._delivery.stop()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- what operators ask for ------------------------------------------------------------------------

    async def pause(self) -> None:
        """Ends delivery, also across restarts, until `resume`. Returns when nothing is under way any more.

        Raises `StorageFailed`.
        """
        async with self._one_at_a_time:
            now_ns = self._now_ns()
            await trio.to_thread.run_sync(lambda: self._store.state.pause(self.name, now_ns=now_ns))
            self._end_delivery()
            await self._quiet.wait()
            self.progress.enter(SinkState.PAUSED, now_ns)

    async def resume(self) -> None:
        """Delivers again: after a `pause`, or after an optional sink broke down. Raises `StorageFailed`."""
        async with self._one_at_a_time:
            await trio.to_thread.run_sync(self._store.state.resume, self.name)
            if self._delivery is None:
                self.progress.enter(SinkState.IDLE, self._now_ns())
            self._wake()

    async def amend(self, change: Callable[[], T]) -> T:
        """Changes what is remembered of the sink, in a thread, while no delivery is under way. Raises what it raises.

        **Cancellation:** while it waits, nothing has changed; the change itself is not cut short.
        """
        async with self._one_at_a_time:
            self._amending = True
            try:
                self._end_delivery()
                await self._quiet.wait()
                return await trio.to_thread.run_sync(change)
            finally:
                self._amending = False
                self._wake()


Runners = Mapping[str, SinkRunner]
