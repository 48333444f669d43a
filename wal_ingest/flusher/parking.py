"""Dead letters: made of a piece's lines, and spoken of now and then rather than every time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from wal_ingest.flusher.batches import Batch
from wal_ingest.wal.cursor import DeadLetter

log = logging.getLogger(__name__)

# A sender with a wrong field type has a point in every batch: thousands of warnings a minute would hide the others.
SAY_EVERY_S = 60.0


def letters_of(sink: str, batch: Batch, reason: str, status: int, *, parked_ns: int) -> Iterator[DeadLetter]:
    """A dead letter for each line, with the entry and destination that it came with."""
    parts = (part for part in batch.parts for _ in range(part.points))
    for line in batch.split():
        part = next(parts, None)
        yield DeadLetter(
            sink=sink,
            seq=part.seq if part else batch.first_seq,
            line=line,
            reason=reason,
            status=status,
            parked_ns=parked_ns,
            destination=part.destination if part else batch.destination,
        )


class ParkingLog:
    """Says that points are parked: at once, then at most once in `SAY_EVERY_S` with the count since."""

    def __init__(self, sink: str) -> None:
        self._sink = sink
        self._unsaid = 0
        self._reason = ""
        self._not_before_s = -float("inf")

    def parked(self, points: int, reason: str, *, now_s: float) -> None:
        """Notes parked points; `now_s` is any clock that only goes forward, in seconds."""
        self._unsaid += points
        self._reason = reason
        if now_s >= self._not_before_s:
            self._not_before_s = now_s + SAY_EVERY_S
            self.say()

    def say(self) -> None:
        """Says what was not said yet."""
        points, self._unsaid = self._unsaid, 0
        if points:
            log.warning("%s: parked %d points, the last because of: %s", self._sink, points, self._reason)
