"""A piece of a batch on its way to a verdict. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.outcome import Confirmed, Rejected, TooLarge
from wal_ingest.flusher.shapes import Shape
from wal_ingest.flusher.suspicion import Suspicion


@dataclass(slots=True, eq=False)
class Piece:
    """A batch, or a part of one, that is to be decided.

    `counted` says that the sink's count of points beyond the retention was tried on it, `denied` how often access was
    refused for it while a control passed, `scout` that it is divided because nothing passes. `shape` is that of all its
    points, where it was looked at (`shape_known`) and they have one; `passed` are the shapes of which a point
    of the same batch was confirmed.
    """

    batch: Batch
    suspicion: Suspicion = field(default_factory=Suspicion)
    counted: bool = False
    denied: int = 0
    scout: bool = False
    shape: Shape | None = None
    shape_known: bool = False
    passed: set[Shape] = field(default_factory=set)

    def part(self, batch: Batch, *, convicted: bool = False, counted: bool = False) -> Piece:
        """A piece of this one."""
        suspicion = Suspicion(inherited=convicted or self.suspicion.inherited, left=self.suspicion.left)
        return Piece(batch, suspicion, counted or self.counted, scout=self.scout, passed=self.passed)


@dataclass(frozen=True, slots=True)
class Convicted:
    """The evidence is against the piece: it failed, again and again, while others passed."""

    reason: str
    status: int = 0


Verdict = Confirmed | TooLarge | Rejected | Convicted
Refusal = Rejected | Convicted
