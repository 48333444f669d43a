"""What came in during the last minutes: requests taken and refused, and points with implausible times. Pure, bounded.

Counts only rise; every `SPACING_S` a copy of them is kept, and the difference to the oldest copy is the window.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass

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


# Words of the metrics' label `oddity` that are about times.
_TIME_ODDITIES = frozenset({"time_past", "time_future"})


@dataclass(frozen=True, slots=True)
class OddTimes:
    """Points of one source with implausible times. `oddity` is time_past (before 1990) or time_future.

    `looks_like` is the unit that they would be plausible in, such as "seconds"; empty for none.
    """

    source: str
    oddity: str
    looks_like: str
    points: int

    @property
    def says(self) -> str:
        """In words, without the count."""
        when = "before 1990" if self.oddity == "time_past" else "more than a day ahead"
        looks = f": this looks like {self.looks_like}" if self.looks_like else ""
        return f"from {self.source} with times {when}{looks}"


class RecentOddTimes:
    """The points with implausible times of the last `WINDOW_S` seconds, rounded up to the next `SPACING_S`, by source.

    At most `sources_max` sources are remembered; beyond them the one that was silent longest is forgotten.
    """

    def __init__(self, sources_max: int = 100) -> None:
        self._sources_max = sources_max
        # By source, oddity and unit: points by the time at which a span of `SPACING_S` began, oldest first.
        self._spans: OrderedDict[tuple[str, str, str], deque[list[float]]] = OrderedDict()

    def noticed(self, at_s: float, source: str, oddity: str, looks_like: str, points: int) -> None:
        """So many points were accepted although they are odd."""
        if oddity not in _TIME_ODDITIES:
            return
        key = (source, oddity, looks_like)
        spans = self._spans.setdefault(key, deque())
        self._spans.move_to_end(key)
        if not spans or at_s >= spans[-1][0] + SPACING_S:
            spans.append([at_s, 0])
        spans[-1][1] += points
        self._forget(spans, at_s)
        if len(self._spans) > self._sources_max:
            self._spans.popitem(last=False)

    def listed(self, at_s: float) -> list[OddTimes]:
        """Those of the window, most points first."""
        for key, spans in list(self._spans.items()):
            self._forget(spans, at_s)
            if not spans:
                del self._spans[key]
        found = [
            OddTimes(*key, int(sum(points for _, points in spans))) for key, spans in self._spans.items()
        ]
        return sorted(found, key=lambda odd: -odd.points)

    @staticmethod
    def _forget(spans: deque[list[float]], at_s: float) -> None:
        while spans and spans[0][0] <= at_s - WINDOW_S - SPACING_S:
            spans.popleft()
