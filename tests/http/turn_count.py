"""The turns of the scheduler, counted: what is spread over several of them, or must not take many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class TurnCount(trio.abc.Instrument):
    """`turn` is the number of the present turn: between two of them the scheduler looks at sockets and timers."""

    def __init__(self) -> None:
        self.turn = 0

    def before_io_wait(self, timeout: float) -> None:
        self.turn += 1


@contextmanager
def counting_turns() -> Iterator[TurnCount]:
    """Counts the turns within the block."""
    count = TurnCount()
    trio.lowlevel.add_instrument(count)
    try:
        yield count
    finally:
        trio.lowlevel.remove_instrument(count)
