"""What is remembered of each sink: how far it has come, and what it will never take. Pure records."""

from __future__ import annotations

from dataclasses import dataclass

from wal_ingest.wal.entry import Destination


@dataclass(frozen=True, slots=True)
class Cursor:
    """Up to which seq a sink has confirmed (or parked) every point; seq 0 is before the first entry.

    `points` is how many points the WAL had taken up to and including that seq, so a sink's lag in points is a
    subtraction even after the segments are gone. `parked` counts the points that were parked on the way.
    `position` is the sink's own (see `outcome.Confirmed`).
    """

    seq: int = 0
    points: int = 0
    parked: int = 0
    position: bytes | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A point that a sink will never take: its canonical line (with `\\n`), the entry it came with, and why.

    `status` is the sink's code, 0 when it has none; `parked_ns` is Unix time in nanoseconds.
    """

    sink: str
    seq: int
    line: bytes
    reason: str
    status: int
    parked_ns: int
    destination: Destination
