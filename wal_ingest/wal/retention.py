"""How long segments are kept after every required sink has confirmed them. Pure.

They are kept for operators, who can write them again into a database that was restored from a backup. They are
the first to go when space is short: nothing new is ever refused for their sake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Kept(Protocol):
    """A segment, as far as this rule is concerned."""

    last_seq: int
    bytes: int
    last_accepted_ns: int


def droppable_seq(
    segments: Sequence[Kept],
    confirmed_seq: int,
    *,
    now_ns: int,
    keep_s: float,
    keep_bytes_max: int,
    space_is_short: bool,
) -> int:
    """Up to which seq confirmed segments may be dropped; 0 when none may.

    `segments` are in order, oldest first. One is kept while it is younger than `keep_s` seconds (by the acceptance
    of its last entry) and it and the newer confirmed ones together have no more than `keep_bytes_max` bytes.
    A segment behind one that goes never stays: the log has no holes.
    """
    confirmed = [segment for segment in segments if segment.last_seq <= confirmed_seq]
    kept_bytes = 0
    for segment in reversed(confirmed):
        kept_bytes += segment.bytes
        # An age below zero is a clock that was set back: it says nothing, and the bytes are the bound then.
        too_old = (now_ns - segment.last_accepted_ns) / 1e9 >= keep_s
        if space_is_short or too_old or kept_bytes > keep_bytes_max:
            return segment.last_seq
    return 0
