"""When a batch that only ever fails is itself to blame. Pure.

Some servers answer 500, or break the connection, for one particular batch for ever. Others do so for every batch while
they are overloaded. The difference is in the neighbours: a failure *counts* against a batch only when some
other write of the same sink was confirmed since its last failure. In an outage nothing is confirmed,
nothing counts, and nothing is ever bisected or parked.
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


@dataclass(slots=True)
class Suspicion:
    """What speaks against one piece of a batch.

    `failures` are all failures in a row, `counted` those that happened while others passed. `inherited` says
    that the piece comes from a batch that was bisected on suspicion, so that less is asked for. `last_pass`
    is an ever-rising number of the latest write of the same group that was confirmed, 0 for none.
    """

    inherited: bool = False
    failures: int = 0
    counted: int = 0
    _seen_pass: int = 0

    def failed(self, *, suspect: bool, last_pass: int) -> None:
        """Notes a failure; `suspect` says that it may be about this very piece."""
        self.failures += 1
        if suspect and (self.counted == 0 or last_pass > self._seen_pass):
            self.counted += 1
        self._seen_pass = last_pass

    def wants_control(self, *, last_pass: int) -> bool:
        """Whether a write that is known to pass should be tried first, for lack of neighbours to compare with."""
        patience = BISECT_AGAIN_AFTER if self.inherited else BISECT_AFTER
        return self.counted > 0 and self.failures >= patience and last_pass == self._seen_pass

    def proven(self, *, points: int) -> bool:
        """Whether it is time to bisect, or to park a piece of one point."""
        if points == 1:
            return self.counted >= (PARK_AGAIN_AFTER if self.inherited else PARK_AFTER)
        return self.counted >= (BISECT_AGAIN_AFTER if self.inherited else BISECT_AFTER)
