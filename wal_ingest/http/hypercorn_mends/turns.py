"""Lets a few tasks through in each turn of the scheduler, so that thousands at once do not make one long turn.

When a switch reboots, thousands of connections end at once. The end of each takes half a millisecond, and trio runs
every task that is ready before it looks at sockets again: all others waited for seconds.
"""

from __future__ import annotations

import trio


class Turns:
    """Of callers of `wait` that come together `at_once` go on in one turn, the others in the next ones.

    Where they keep coming a turn may have a few more: what is left of one turn is used before `run` begins the next.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting = trio.lowlevel.ParkingLot()
        self._is_used = trio.Event()

    async def wait(self) -> None:
        """Returns in a turn that has room, at once in this one if it has. `run` must run.

        Cancellation: takes no one's room.
        """
        self._is_used.set()
        if self._left:
            self._left -= 1
        else:
            await self._waiting.park()

    async def run(self) -> None:
        """Begins turns until cancelled."""
        while True:
            await self._is_used.wait()
            await trio.lowlevel.checkpoint()
            self._left = self._at_once - len(self._waiting.unpark(count=self._at_once))
            if self._left == self._at_once:
                self._is_used = trio.Event()
