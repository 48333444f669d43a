"""A sink in memory, obeying the contract of `wal_ingest.flusher.sinks`, with scripted answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

import trio

from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.outcome import Confirmed, Outcome
from wal_ingest.wal.entry import Entry

# Gets the lines of a write; answers its outcome, or None for what the sink would say by itself.
Answer = Callable[[list[bytes]], Outcome | Awaitable[Outcome | None] | None]


class FakeSink:
    """Keeps the lines of every confirmed write. `answer` decides what becomes of each; the default confirms."""

    name = "fake"

    def __init__(self, *, in_flight_max: int = 1, required: bool = True) -> None:
        self.required = required
        self.in_flight_max = in_flight_max
        self.batch_points_max: int | None = None
        self.answer: Answer = lambda _lines: None
        self.writes: list[tuple[float, list[bytes]]] = []
        self.confirmed: list[bytes] = []
        self.in_flight = 0
        self.in_flight_peak = 0
        self.opened_with: list[bytes | None] = []
        self.opening: bytes | Exception | None = None
        self.closed = 0
        self._began = trio.lowlevel.ParkingLot()
        self._took = trio.lowlevel.ParkingLot()

    async def wrote(self, count: int) -> None:
        """Returns when so many writes have begun."""
        while len(self.writes) < count:
            await self._began.park()

    async def took(self, line: bytes) -> None:
        """Returns when a line was confirmed."""
        while line not in self.confirmed:
            await self._took.park()

    def group(self, entry: Entry) -> Hashable:
        return entry.destination

    async def open(self, position: bytes | None) -> bytes | None:
        await trio.lowlevel.checkpoint()
        self.opened_with.append(position)
        if isinstance(self.opening, Exception):
            raise self.opening
        return self.opening

    async def write(self, batch: Batch) -> Outcome:
        lines = batch.lines().splitlines(keepends=True)
        assert len(lines) == batch.points
        self.writes.append((trio.current_time(), lines))
        self._began.unpark_all()
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight_peak, self.in_flight)
        try:
            await trio.lowlevel.checkpoint()
            answered = self.answer(lines)
            outcome = answered if answered is None or not isinstance(answered, Awaitable) else await answered
        finally:
            self.in_flight -= 1
        if outcome is None:
            outcome = Confirmed(b"after %d" % batch.last_seq)
        if isinstance(outcome, Confirmed):
            self.confirmed.extend(lines)
            self._took.unpark_all()
        return outcome

    async def check(self) -> list[Check]:
        await trio.lowlevel.checkpoint()
        return [Check("memory", True, "there is some")]

    async def aclose(self) -> None:
        self.closed += 1
