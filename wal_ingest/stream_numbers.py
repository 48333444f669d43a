"""Which numbers a frame of a stream may have: for the node, which refuses others, and for its clients. Pure.

One frame with the highest number of all would leave its stream no number to go on with. So a stream that the node does
not know begins in the lower half of the numbers, and each number is at most `NUMBERS_AHEAD_MAX` above the last one. The
gap is wide enough for senders that number by a clock in milliseconds and were silent for weeks.
"""

from __future__ import annotations

NUMBER_MAX = (1 << 53) - 1
"""Every number up to here is exact in JavaScript too."""

FIRST_NUMBER_MAX = 1 << 52
"""The highest number for the first frame of a stream that the node does not know."""

NUMBERS_AHEAD_MAX = 1 << 32
"""How far a number may be above the last one of its stream."""

# A stream with fewer numbers than this left is given up by our clients: enough for thousands of years.
_LEFT_MIN = 1 << 51


def highest_after(last: int) -> int:
    """The highest number that the next frame may have; `last` is 0 for a stream that is not known."""
    if not last:
        return FIRST_NUMBER_MAX
    return min(last + NUMBERS_AHEAD_MAX, NUMBER_MAX)


def leaves_room(durable: int) -> bool:
    """Whether a client can go on above the number that a welcome calls durable."""
    return durable <= NUMBER_MAX - _LEFT_MIN
