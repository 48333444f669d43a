"""Leaves calm streams their time: one that floods rests between its frames while others come with theirs.

A stream that sends frame upon frame would take all the time that is left over, and then every hiccup of the disk stays
with all others until the backlog is worked off. So while calm streams are served, a flood has one frame under way, and
takes a fifth of one core at the most. Among floods alone nobody rests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# What a stream may take and still be calm: of one core's time this part, and so much at once. A frame of a thousand
# points takes half a millisecond, so that is a hundred of them a second, and forty at once.
_CALM_PART = 0.05
_CALM_BURST_S = 0.02

# A flood that ends is calm again after twice the burst, at the calm part: within a second.
_DEBT_S_MAX = 2 * _CALM_BURST_S

# A calm frame that came within this time says that there are calm streams about.
_RECENT_S = 0.05

# For each second of work on a flood's frame it rests so many.
_REST = 4.0


class Pace:
    """What all streams of a node know of each other."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self.monotonic_s = monotonic_s
        # Whose calm frame was the last, and when; and when the last one came of any other.
        self._calm: Share | None = None
        self._calm_s = -math.inf
        self._other_s = -math.inf

    def calm(self, share: Share, now_s: float) -> None:
        """A calm stream had a frame."""
        if share is not self._calm:
            self._other_s, self._calm = self._calm_s, share
        self._calm_s = now_s

    def has_calm_others(self, share: Share, now_s: float) -> bool:
        """Whether there are calm streams about, other than this one."""
        calm_s = self._other_s if share is self._calm else self._calm_s
        return now_s - calm_s < _RECENT_S


class Share:
    """What one stream has taken of late."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._debt_s = 0.0
        self._last_s = -math.inf

    def spend(self, began_s: float) -> float:
        """How many seconds the stream should rest after a frame that was worked on since `began_s`."""
        now_s = self._pace.monotonic_s()
        cost_s = now_s - began_s
        left_s = self._debt_s - (now_s - self._last_s) * _CALM_PART
        self._debt_s = min(max(left_s, 0.0) + cost_s, _DEBT_S_MAX)
        self._last_s = now_s
        if self._debt_s <= _CALM_BURST_S:
            self._pace.calm(self, now_s)
        elif self._pace.has_calm_others(self, now_s):
            return min(cost_s, _DEBT_S_MAX) * _REST
        return 0.0
