"""When garbage is collected: by the clock, little and often, instead of whenever the interpreter finds it due.

Left to itself the interpreter counts what is made less what is freed. A fleet of streams makes as much as it frees,
while what lives changes all the time: the count stays low, the youngest generation comes to hold half of everything,
and then one collection of it stops the node for a third of a second. Collected ten times a second it holds what a tenth
of a second made, and takes a millisecond or two.

What lives longer is looked through seldom, for with five thousand streams a look at everything stops the node for a
second. Nearly all garbage here is freed without the collector (a connection that ends leaves none to it); what it is
for are cycles that lived longer than a tick. A tick in which far more was made than freed, as while a fleet opens its
streams, passes on what it made at once: it is gone through then and there, and nothing is left behind that would stop
the fleet when it has begun to send. Else what came since the last look is looked through when memory has grown by a
good deal, or after ten minutes, and everything only when there is more than twice the memory that there was, and that
of a fleet besides.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable

import trio

_EVERY_S = 0.1
# Counting all that there is takes as long as collecting what is new, so it is done once a second.
_TICKS_OF_A_COUNT = 10
# However little it is: garbage in large pieces is few blocks.
_TICKS_OF_A_LOOK = 6_000

# A fleet that sends, at 500,000 points a second, makes up to 400 more than it frees in a tick; one that opens its
# streams 200 for each.
_OBJECTS_OF_A_BURST = 1_000

# Blocks are what the interpreter allocates for small objects; a stream is some 300 of them, and 4,000 are 400 KiB.
_BLOCKS_OF_A_LOOK = 500_000
_BLOCKS_SPARE = 2_000_000
_GROWTH = 2

# For a burst within one tick: so many objects more than were freed. The other two generations are the clock's.
_THRESHOLDS = (100_000, 1_000_000, 1_000_000)


def _made() -> int:
    """How many objects were made since the last collection, less those that were freed."""
    return gc.get_count()[0]


class Collector:
    """Collects garbage while it runs. The arguments are for tests."""

    def __init__(
        self,
        *,
        collect: Callable[[int], object] = gc.collect,
        made: Callable[[], int] = _made,
        blocks: Callable[[], int] = sys.getallocatedblocks,
    ) -> None:
        self._collect = collect
        self._made = made
        self._blocks = blocks
        self._ticks = 0
        self._limit_of_new = self._limit_of_all = math.inf

    async def run(self) -> None:
        """Collects until cancelled; then the interpreter is left to itself again.

        What exists at its start (modules, above all) is taken out of the collector's sight for good: a full collection
        walked all of it.
        """
        thresholds = gc.get_threshold()
        self._look(2)
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)
        try:
            while True:
                await trio.sleep(_EVERY_S)
                self.tick()
        finally:
            gc.set_threshold(*thresholds)

    def tick(self) -> None:
        """A tenth of a second has passed."""
        self._ticks += 1
        if self._ticks % _TICKS_OF_A_COUNT == 0:
            blocks = self._blocks()
            if blocks > self._limit_of_all:
                self._look(2)
                return
            if blocks > self._limit_of_new or self._ticks % _TICKS_OF_A_LOOK == 0:
                self._look(1)
                return
            self._set_limits(blocks)
        if self._made() < _OBJECTS_OF_A_BURST:
            self._collect(0)
        else:
            self._look(1)

    def _look(self, generation: int) -> None:
        self._collect(generation)
        blocks = self._blocks()
        self._limit_of_new = math.inf
        if generation == 2:
            self._limit_of_all = math.inf
        self._set_limits(blocks)

    def _set_limits(self, blocks: int) -> None:
        """What has gone since the last look makes room for as much that is new, but not for more."""
        self._limit_of_new = min(self._limit_of_new, blocks + _BLOCKS_OF_A_LOOK)
        self._limit_of_all = min(self._limit_of_all, blocks * _GROWTH + _BLOCKS_SPARE)
