"""What was proven against some points, and holds for others like them. Pure.

When a sink fails without a reason (500, a connection closed, 403), a single point is parked only after minutes of
failures. Another point needs fewer when it fails with the same message and

* a point of its shape was parked in this way (kept with the cursor, see `learnt`); or
* points of several shapes were, whatever its own is.

Neither counts while controls fail: then the sink has another trouble, perhaps with the same message.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from wal_ingest.flusher.learnt import LEARNT_S, Learnt, Pattern
from wal_ingest.flusher.outcome import plain, words_of
from wal_ingest.flusher.shapes import Shape, Shaped
from wal_ingest.flusher.suspicion import Neighbours

# After so many points were parked with the same message, any other one needs fewer failures.
PARKED_MIN = 3
# How long after a control failed every point needs all evidence again.
CALM_S = 60.0
# Different messages that are remembered, the oldest forgotten first.
_WORDS_MAX = 64

Words = tuple[int, str]


class Convictions:
    """One sink's. `learnt` keeps the shapes."""

    def __init__(self, learnt: Learnt) -> None:
        self._learnt = learnt
        self._parked: OrderedDict[tuple[Hashable, Words], tuple[int, float]] = OrderedDict()

    def parked(
        self, group: Hashable, reason: str, status: int, *, shape: Shape | None, now_s: float, now_ns: int
    ) -> None:
        """Notes that a point was parked on evidence; `shape` is None when others of its shape pass."""
        key = (group, words_of(reason, status))
        self._parked[key] = (self._parked.get(key, (0, 0.0))[0] + 1, now_s + LEARNT_S)
        self._parked.move_to_end(key)
        if len(self._parked) > _WORDS_MAX:
            self._parked.popitem(last=False)
        if shape is not None:
            pattern = Pattern(group, Shaped(shape))
            self._learnt.learn(pattern, plain(reason), status, now_s=now_s, now_ns=now_ns)

    def of_shape(self, group: Hashable, shape: Shape | None, reason: str, status: int) -> bool:
        """Whether a point of this shape was parked in these words."""
        if shape is None:
            return False
        found = self._learnt.proven(Pattern(group, Shaped(shape)))
        return found is not None and words_of(*found) == words_of(reason, status)

    def alike(
        self,
        group: Hashable,
        shape: Shape | None,
        reason: str,
        status: int,
        neighbours: Neighbours,
        *,
        now_s: float,
    ) -> bool:
        """Whether a piece that fails in these words needs less; `shape` is that of all its points, None for several."""
        if now_s < neighbours.control_failed_s + CALM_S:
            return False
        if self.of_shape(group, shape, reason, status):
            return True
        count, until_s = self._parked.get((group, words_of(reason, status)), (0, 0.0))
        return count >= PARKED_MIN and now_s < until_s
