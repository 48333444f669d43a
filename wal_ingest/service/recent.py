"""How many write requests of the last minutes were taken and how many refused, by status. Pure, bounded memory.

Counts only rise; every `SPACING_S` a copy of them is kept, and the difference to the oldest copy is the window.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection

WINDOW_S = 300.0
SPACING_S = 10.0


class RecentRequests:
    """The write requests of the last `WINDOW_S` seconds, rounded up to the next `SPACING_S`.

    `routes` are the paths that count: a browser that looks for a missing icon is no sender that loses points. Memory is
    one counter per `SPACING_S`, with as many keys as there are statuses.
    """

    def __init__(self, routes: Collection[str]) -> None:
        self._routes = routes
        self._accepted = 0
        self._refused: Counter[int] = Counter()
        self._kept: deque[tuple[float, int, Counter[int]]] = deque()

    def refused(self, route: str, status: int) -> None:
        """A request was refused with an HTTP status."""
        if route in self._routes:
            self._refused[status] += 1

    def sample(self, at_s: float, accepted: int) -> None:
        """Once a second: the time, and how many requests were accepted since the start."""
        self._accepted = accepted
        if not self._kept or at_s >= self._kept[-1][0] + SPACING_S:
            # The first copy is of the start, so that what came before the first sample counts.
            first = (0, Counter[int]()) if not self._kept else (accepted, self._refused.copy())
            self._kept.append((at_s, *first))
        while len(self._kept) > 1 and self._kept[1][0] <= at_s - WINDOW_S:
            self._kept.popleft()

    def counts(self) -> tuple[int, dict[int, int]]:
        """How many were accepted in the window, and how many refused by HTTP status; only statuses that occurred."""
        accepted, refused = self._kept[0][1:] if self._kept else (0, Counter[int]())
        return self._accepted - accepted, dict(self._refused - refused)
