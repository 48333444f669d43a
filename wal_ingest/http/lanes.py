"""Which body is checked in a thread next: sources take turns.

Invariants:

1. At most `at_once` bodies are in a lane, and at most one of each source.
2. Sources take turns, so a source waits for at most one body of each of the others.
3. At most `waiting_max` bodies of one source wait; more are refused.
"""

from __future__ import annotations

from collections import deque

import trio

from wal_ingest.http.body import TooManyBodies


class Lane:
    """A number of places, given to sources in turn."""

    def __init__(self, at_once: int, *, waiting_max: int) -> None:
        self._free = at_once
        self._waiting_max = waiting_max
        self._inside: set[str] = set()
        # The sources in the order of their turns.
        self._waiting: dict[str, deque[trio.Event]] = {}

    async def enter(self, source: str) -> None:
        """Returns when a place is this body's; `leave` is due then. Raises TooManyBodies.

        Cancellation: no place is taken.
        """
        turns = self._waiting.setdefault(source, deque())
        if not turns and self._free and source not in self._inside:
            del self._waiting[source]
            self._take(source)
            return
        if len(turns) >= self._waiting_max:
            raise TooManyBodies("too many large bodies of this source wait to be checked: send one at a time")
        turn = trio.Event()
        turns.append(turn)
        try:
            await turn.wait()
        except trio.Cancelled:
            turns.remove(turn)
            if not turns:
                del self._waiting[source]
            raise

    def leave(self, source: str) -> None:
        """Gives the place of a body of `source` to the next."""
        self._free += 1
        self._inside.discard(source)
        if self._free:
            next_source = next((each for each in self._waiting if each not in self._inside), None)
            if next_source is not None:
                turns = self._waiting.pop(next_source)
                turns.popleft().set()
                if turns:
                    self._waiting[next_source] = turns  # after the others
                self._take(next_source)

    def _take(self, source: str) -> None:
        self._free -= 1
        self._inside.add(source)
