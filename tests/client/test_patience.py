"""How long a client waits before it tries again."""

from __future__ import annotations

from random import Random

import pytest

from wal_ingest.client.errors import StreamClosed, Unreachable
from wal_ingest.client.patience import is_misconfigured, wait_s


def waits(failure: StreamClosed | Unreachable, failures: int) -> list[float]:
    rng = Random(1)
    return [
        wait_s(failure, failures, retry_s_min=0.25, retry_s_max=30, hold_s=15, rng=rng) for _ in range(500)
    ]


@pytest.mark.parametrize(
    ("failures", "ceiling_s"), [(1, 0.25), (2, 0.5), (5, 4.0), (9, 30.0), (10_000, 30.0)]
)
def test_waits_double_up_to_a_limit_and_spread_over_all_of_it(failures: int, ceiling_s: float) -> None:
    seen = waits(Unreachable("away"), failures)
    assert 0 <= min(seen) < ceiling_s / 20
    assert ceiling_s * 0.95 < max(seen) <= ceiling_s


@pytest.mark.parametrize(
    "failure",
    [StreamClosed(1013, "retry after 40 s: busy"), Unreachable("busy", status=503, retry_after_s=40)],
)
def test_a_wait_that_was_asked_for_is_kept_and_spread(failure: StreamClosed | Unreachable) -> None:
    seen = waits(failure, 1)
    assert 40 <= min(seen) < 42
    assert 55 < max(seen) <= 60


@pytest.mark.parametrize("asked_s", [3_600, 10**8])
def test_a_retry_after_of_an_hour_is_obeyed_for_minutes(asked_s: int) -> None:
    seen = waits(Unreachable("maintenance", status=503, retry_after_s=asked_s), 1)
    assert 300 <= min(seen) <= max(seen) <= 330


def test_a_wait_is_read_from_the_reason_of_1013_alone() -> None:
    assert StreamClosed(1013, "retry after 12 s: too many streams").retry_after_s == 12
    assert StreamClosed(1013, "too many streams").retry_after_s == 0
    assert StreamClosed(1012, "retry after 12 s: x").retry_after_s == 0


@pytest.mark.parametrize(
    ("failure", "misconfigured"),
    [
        (Unreachable("", status=401), True),
        (Unreachable("", status=404), True),
        (Unreachable("", status=301), True),
        (Unreachable("", wrong_peer=True), True),
        (StreamClosed(1008, "token"), True),
        (Unreachable("refused"), False),
        (Unreachable("", status=429), False),
        (Unreachable("", status=408), False),
        (Unreachable("", status=502), False),
        (StreamClosed(1006, ""), False),
        (StreamClosed(1012, ""), False),
    ],
)
def test_what_only_a_person_can_mend_is_told_apart(
    failure: StreamClosed | Unreachable, misconfigured: bool
) -> None:
    assert is_misconfigured(failure) is misconfigured
    if misconfigured:
        assert 15 <= min(waits(failure, 1)) <= max(waits(failure, 1)) < 19
