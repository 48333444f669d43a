"""How long to wait before writing again. Pure: randomness is an argument."""

from __future__ import annotations

from random import Random

# A server's Retry-After beyond this is not obeyed: a maintenance page asks for an hour whatever the maintenance takes.
RETRY_AFTER_S_MAX = 300.0
# While a Retry-After lasts, one write is tried this often.
PROBE_S = 60.0


def back_off_s(failures: int, *, retry_s_min: float, retry_s_max: float, rng: Random) -> float:
    """The wait in seconds after the `failures`-th failure in a row (1 is the first).

    Exponential with equal jitter: between half of `retry_s_min * 2 ** (failures - 1)` and all of it, capped
    at `retry_s_max`. Half of it is certain, so that jitter never makes a tight loop.
    """
    doublings = min(failures - 1, 60)
    ceiling = min(retry_s_max, retry_s_min * 2.0**doublings)
    return ceiling / 2 + rng.random() * ceiling / 2


def retry_after_s(asked_s: float, *, retry_s_min: float, retry_s_max: float, rng: Random) -> float:
    """The wait in seconds when the server requested `asked_s`: at least that, up to the limit, with jitter on top.

    The jitter is up to half of what was requested (at least `retry_s_min`, at most `retry_s_max`), so that many
    nodes which were sent away together do not come back together.
    """
    asked_s = min(asked_s, RETRY_AFTER_S_MAX)
    return asked_s + rng.random() * min(max(asked_s / 2, retry_s_min), retry_s_max)
