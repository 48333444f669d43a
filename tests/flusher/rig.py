"""A delivery over twins, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import trio

from tests.flusher.fake_sink import FakeSink
from tests.flusher.twins import MemoryLog, MemoryState, now_ns, run_inline
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.settings import FlusherSettings

SETTINGS = FlusherSettings(
    batch_points_max=10,
    batch_wait_s_max=1.0,
    cursor_commit_s=0.5,
    retry_s_min=0.25,
    retry_s_max=30.0,
    hold_retry_s=15.0,
)


class DeliveryRig:
    """Log, state and sink that outlive the deliveries which `running` starts, as they outlive processes."""

    def __init__(
        self, *, in_flight_max: int = 1, required: bool = True, settings: FlusherSettings = SETTINGS
    ) -> None:
        self.log = MemoryLog()
        self.state = MemoryState()
        self.sink = FakeSink(in_flight_max=in_flight_max, required=required)
        self.settings = settings
        self.told: list[int] = []
        self.grace_s = 5.0

    def delivery(self) -> Delivery:
        return Delivery(
            self.sink,
            self.log,
            self.state,
            self.settings,
            run_sync=run_inline,
            now_ns=now_ns,
            rng=Random(7),
            confirmed=lambda name: self.told.append(self.state.cursor(name).seq),
            grace_s=self.grace_s,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Delivery]:
        """Runs a delivery, and stops it in an orderly way at the end."""
        delivery = self.delivery()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(delivery.run)
            yield delivery
            delivery.stop()

    async def deliver_all(self) -> None:
        """Runs a delivery until every entry is confirmed or parked, durably."""
        async with self.running():
            await self.state.reached(self.log.last_seq)

    def accounted(self) -> list[bytes]:
        """Each line that is confirmed or parked, once."""
        return sorted({*self.sink.confirmed, *(letter.line for letter in self.state.letters)})
