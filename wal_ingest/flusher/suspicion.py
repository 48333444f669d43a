"""When a batch that only ever fails is itself to blame. Pure.

Some servers answer 500, or break the connection, for one particular batch for ever. Others do so for every
batch while they are overloaded. The difference is in the neighbours: a failure *counts* against a batch only when
other writes of the same group were confirmed since its last failure, and at least as many as failed. In an
outage nothing is confirmed, nothing counts, and nothing is ever bisected or parked.

Where no neighbours come by, the latest write that was confirmed is written again as a control. Right after a start
there is none: then the batches after it overtake the failing one (see `overtaking`), and are its neighbours.

What one point took minutes to prove holds for its neighbours: points of the same shape, of the same batch, that fail in
the same words need to fail twice.
"""

from __future__ import annotations

from dataclasses import dataclass

# Counted failures after which a batch is bisected, …
BISECT_AFTER = 5
# … a piece of a batch that was bisected already is bisected further, …
BISECT_AGAIN_AFTER = 2
# … and a single line is parked. Its back-off has grown to the longest by then: minutes, not moments.
PARK_AFTER = 15
PARK_AGAIN_AFTER = 10
# … one like a point that was parked already, sooner.
PARK_ALIKE_AFTER = 2
# Failures after which the batches that follow overtake a batch: others were confirmed, or it may be the first.
LEAVE_AFTER_COUNTED = 2
LEAVE_AFTER = 3


@dataclass(slots=True)
class Neighbours:
    """The writes of one group so far: how many were confirmed, how many failed in a way that may be their own fault."""

    passed: int = 0
    failed: int = 0


@dataclass(slots=True)
class Suspicion:
    """What speaks against one piece of a batch.

    `failures` are all failures in a row, `counted` those that happened while others passed. `inherited` says
    that the piece comes from a batch that was bisected on suspicion, `alike` that a point like it was parked, so that
    less is required.
    """

    inherited: bool = False
    alike: bool = False
    failures: int = 0
    counted: int = 0
    _seen_passed: int = 0
    _seen_failed: int = 0

    def failed(self, neighbours: Neighbours, *, suspect: bool) -> None:
        """Notes a failure; `suspect` says that it may be about this very piece."""
        self.failures += 1
        if suspect:
            passed = neighbours.passed - self._seen_passed
            if self.counted == 0 or (passed > 0 and passed >= neighbours.failed - self._seen_failed):
                self.counted += 1
            neighbours.failed += 1
        self._seen_passed = neighbours.passed
        self._seen_failed = neighbours.failed

    def wants_control(self, neighbours: Neighbours) -> bool:
        """Whether a write that is known to pass should be tried first, for lack of neighbours to compare with."""
        patience = 1 if self.inherited else BISECT_AFTER
        return self.counted > 0 and self.failures >= patience and neighbours.passed == self._seen_passed

    @property
    def may_be_left(self) -> bool:
        """Whether others passed meanwhile, so that nothing need wait for this piece."""
        return self.counted >= LEAVE_AFTER_COUNTED

    def proven(self, *, points: int) -> bool:
        """Whether it is time to bisect, or to park a piece of one point."""
        if self.alike:
            return self.counted >= PARK_ALIKE_AFTER
        if points == 1:
            return self.counted >= (PARK_AGAIN_AFTER if self.inherited else PARK_AFTER)
        return self.counted >= (BISECT_AGAIN_AFTER if self.inherited else BISECT_AFTER)
