"""How long to wait before trying the node again, and why. Pure: randomness is an argument."""

from __future__ import annotations

from random import Random

from wal_ingest.client.errors import POLICY_VIOLATION, StreamClosed, Unreachable
from wal_ingest.errors import ComeBackLater

# A Retry-After beyond this is not obeyed: maintenance pages often say an hour and are gone in minutes.
_RETRY_AFTER_S_MAX = 300.0

# Statuses of a client's mistake that pass by themselves.
_PASSING = frozenset({408, 425, 429})


def is_misconfigured(failure: ComeBackLater) -> bool:
    """Whether somebody must mend something before the node takes anything: token, address, parameters."""
    if isinstance(failure, StreamClosed):
        return failure.code == POLICY_VIOLATION
    return isinstance(failure, Unreachable) and (
        failure.wrong_peer or (300 <= failure.status < 500 and failure.status not in _PASSING)
    )


def wait_s(
    failure: ComeBackLater,
    failures: int,
    *,
    retry_s_min: float,
    retry_s_max: float,
    hold_s: float,
    rng: Random,
) -> float:
    """The wait in seconds after the `failures`-th failure in a row (1 is the first).

    Exponential with full jitter, so that a fleet that lost its node in one instant does not come back in one. A wait
    that the node asked for is kept, with up to half as much on top; what is misconfigured waits `hold_s` and a little.
    """
    if is_misconfigured(failure):
        return hold_s * (1 + rng.random() / 4)
    asked_s = min(float(failure.retry_after_s), _RETRY_AFTER_S_MAX)
    if asked_s > 0:
        return asked_s + rng.random() * min(max(asked_s / 2, retry_s_min), retry_s_max)
    return rng.random() * min(retry_s_max, retry_s_min * 2.0 ** min(failures - 1, 60))
