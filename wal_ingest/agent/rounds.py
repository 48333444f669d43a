"""When rounds are: on a grid of the wall clock, each host at a place of its own in it. Pure.

The grid makes a host's times evenly spaced, also over restarts. The phase keeps 5,000 agents from sending in the same
millisecond; it is made of the host's name, so it stays the same.
"""

from __future__ import annotations

import zlib

_NS = 1_000_000_000


def phase_ns(host: str, interval_ns: int) -> int:
    """Where in the interval a host has its rounds."""
    return zlib.crc32(host.encode(errors="replace")) * interval_ns >> 32


def next_round_ns(now_ns: int, interval_ns: int, phase: int) -> int:
    """The first place on the grid behind `now_ns`, at most one interval away."""
    return (now_ns - phase) // interval_ns * interval_ns + interval_ns + phase


def round_time_ns(planned_ns: int, now_ns: int, interval_ns: int) -> int:
    """The time that a round's points get: the planned one, unless the clock was set or the machine slept meanwhile."""
    return planned_ns if abs(now_ns - planned_ns) < interval_ns // 2 else now_ns
