"""When a batch that only ever fails is itself to blame. Pure.

Some servers answer 500, or break the connection, for one particular batch for ever. Others do so for every
batch while they are overloaded. The difference is in what else is written meanwhile. A failure *counts* against

* a batch that is written in its turn, when other writes of the same group were confirmed since its last failure, and
  at least as many as failed;
* a piece that is investigated, when a *control* (points that were confirmed before, written again) passed since its
  last failure. Other suspects do not matter: many may fail at one time, each for itself. A control that fails is the
  sink's own failure, and takes back what was counted.

In an outage nothing is confirmed, nothing counts, and nothing is ever parked. But where every batch has a bad point,
nothing is confirmed either: so one batch of a group, the *scout*, is divided without evidence. A part that passes is
the first evidence; in an outage the scout costs a few writes.

What one point took minutes to prove holds for its neighbours: see `convictions`.
"""

from __future__ import annotations

from dataclasses import dataclass

# Counted failures after which a batch is bisected, …
BISECT_AFTER = 3
# … a piece of a batch that was bisected already is bisected further, …
BISECT_AGAIN_AFTER = 2
# … and a single line is parked. Its back-off has reached its maximum by then, so that takes minutes.
PARK_AFTER = 15
PARK_AGAIN_AFTER = 10
# … one like points that were parked already, sooner.
PARK_ALIKE_AFTER = 2
# Failures of an investigated batch after which it may be the scout.
SCOUT_AFTER = 4
# Failures after which the batches that follow overtake a batch: others were confirmed, or it may be the first.
LEAVE_AFTER_COUNTED = 2
LEAVE_AFTER = 3


@dataclass(slots=True)
class Neighbours:
    """The writes of one group so far: those confirmed, those that failed in their turn, and how controls ended.

    `control_failed_s` is when a control failed last.
    """

    passed: int = 0
    failed: int = 0
    controls_passed: int = 0
    controls_failed: int = 0
    control_failed_s: float = -float("inf")

    def passed_since(self, passed: int) -> bool:
        """Whether more than so many were confirmed by now."""
        return self.passed > passed


@dataclass(slots=True)
class Suspicion:
    """What speaks against one piece of a batch.

    `failures` are all failures in a row, `counted` those that happened while others passed. `inherited` says
    that the piece comes from a batch that was bisected on suspicion, so that less is required. `left` says that it is
    investigated, beside others.
    """

    inherited: bool = False
    left: bool = False
    failures: int = 0
    counted: int = 0
    passed_before: int = 0
    _seen: Neighbours | None = None

    def failed(self, neighbours: Neighbours, *, suspect: bool) -> None:
        """Notes a failure; `suspect` says that it may be about this very piece."""
        self.failures += 1
        if self._seen is None:
            self._seen = Neighbours()
            self.passed_before = neighbours.passed
        if suspect:
            self._count(neighbours, self._seen)
            neighbours.failed += not self.left
        self._seen.passed, self._seen.failed = neighbours.passed, neighbours.failed
        self._seen.controls_passed = neighbours.controls_passed
        self._seen.controls_failed = neighbours.controls_failed

    def _count(self, now: Neighbours, seen: Neighbours) -> None:
        if self.counted == 0:
            self.counted = 1
        elif not self.left:
            passed = now.passed - seen.passed
            self.counted += passed > 0 and passed >= now.failed - seen.failed
        elif now.controls_failed > seen.controls_failed:
            self.counted = 1
        else:
            self.counted += now.controls_passed > seen.controls_passed

    def wants_control(self, neighbours: Neighbours) -> bool:
        """Whether a write that is known to pass should be tried first, for lack of neighbours to compare with."""
        seen = self._seen
        if self.counted == 0 or seen is None:
            return False
        if self.left:
            return neighbours.controls_passed == seen.controls_passed
        return self.failures >= BISECT_AFTER and neighbours.passed == seen.passed

    @property
    def may_be_left(self) -> bool:
        """Whether others passed meanwhile, so that nothing need wait for this piece."""
        return self.counted >= LEAVE_AFTER_COUNTED

    def may_scout(self, neighbours: Neighbours) -> bool:
        """Whether nothing at all was confirmed since its first failure, for `SCOUT_AFTER` failures."""
        return self.left and self.failures >= SCOUT_AFTER and neighbours.passed == self.passed_before

    def proven(self, *, points: int, alike: bool = False) -> bool:
        """Whether it is time to bisect, or to park a piece of one point; `alike`: points like these were parked."""
        if alike:
            return self.counted >= PARK_ALIKE_AFTER
        if points == 1:
            return self.counted >= (PARK_AGAIN_AFTER if self.inherited else PARK_AFTER)
        return self.counted >= (BISECT_AGAIN_AFTER if self.inherited else BISECT_AFTER)
