"""How long to wait before trying the node again. Pure: randomness is an argument.

Five thousand agents lose a node in the same instant, so already the first wait is spread over seconds. They can afford
it: what is measured meanwhile is in their spools. Tries never end.
"""

from __future__ import annotations

from random import Random

# Statuses, in place of a stream or for a POST, after which it is tried again soon. Any other needs a person.
PASSING = frozenset({408, 429, 500, 502, 503, 504})

RETRY_S_MIN = 0.5
RETRY_S_FIRST = 5.0
RETRY_S_MAX = 60.0
HOLD_S = 30.0
"""While the node says that the token or the address is wrong: only a person mends that."""

# A Retry-After beyond this is not obeyed: maintenance pages often say an hour and are gone in minutes.
_ASKED_S_MAX = 300.0


def back_off_s(failures: int, rng: Random) -> float:
    """The wait after the `failures`-th failure in a row (1 is the first): anywhere up to a limit that doubles."""
    limit_s = min(RETRY_S_MAX, RETRY_S_FIRST * 2.0 ** min(failures - 1, 60))
    return rng.uniform(RETRY_S_MIN, limit_s)


def asked_s(retry_after_s: float, rng: Random) -> float:
    """The wait when the node asked for one: never less, and spread, because it asked everybody."""
    wait_s = min(retry_after_s, _ASKED_S_MAX)
    return wait_s + rng.uniform(0, max(wait_s / 2, RETRY_S_FIRST))


def hold_s(rng: Random) -> float:
    """The wait while something is misconfigured."""
    return rng.uniform(HOLD_S / 2, HOLD_S)
