"""The sinks, and the contract that each of them (and each fake of one) obeys.

A sink turns a batch into one outcome (`wal_ingest.flusher.outcome`); it never retries, never splits, never
raises for what its server answers, and knows nothing of cursors, other sinks or the WAL. One test suite
(tests/flusher/sinks/test_contract.py) runs over all of them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.outcome import Outcome
from wal_ingest.wal.entry import Entry


class Sink(Protocol):
    """Where points are written.

    `name` is the cursor's key: renaming a sink starts it again from the oldest entry kept. A `required` sink
    holds truncation back, an optional one does not. `in_flight_max` is how many writes may be under way at
    once; 1 keeps strict order. `batch_points_max` is how many points it wants in one write, None for what the
    settings say.
    """

    name: str
    required: bool
    in_flight_max: int
    batch_points_max: int | None

    def group(self, entry: Entry) -> Hashable:
        """What entries must have in common to share a batch (a destination, an hour). Must be cheap."""
        ...

    async def open(self, position: bytes | None) -> bytes | None:
        """Called once before the first write, with the position that was stored with the cursor, if any.

        Gives the position to store before the first write, None when there is nothing new to remember.
        Raises `OperatorNeeded` or `ConfigError` for what no retry can mend. A server that is away is no error.
        """
        ...

    async def write(self, batch: Batch) -> Outcome:
        """Writes all points of a batch and says what came of it.

        **Cancellation:** may leave the outcome unknown; the batch is then written again after a restart.
        """
        ...

    async def check(self) -> list[Check]:
        """Whether address, permissions and destination are right, as far as can be told without writing a point.

        Never raises for what it finds. The InfluxDB sink wants to be opened before.
        """
        ...

    async def aclose(self) -> None:
        """Frees what the sink holds. Called once, also after a cancelled write."""
        ...
