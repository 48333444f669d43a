"""What is kept after confirmation: by age, by size, and never where space is short."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.wal.retention import droppable_seq

NOW_NS = 1_000_000_000_000


@dataclass
class Kept:
    """A segment as the rule sees it."""

    last_seq: int
    bytes: int
    last_accepted_ns: int


def segments(*ages_s: float) -> list[Kept]:
    """Segments of ten entries and a hundred bytes each, of these ages, oldest first."""
    return [Kept(10 * n, 100, NOW_NS - int(age_s * 1e9)) for n, age_s in enumerate(ages_s, 1)]


def drop(kept: list[Kept], confirmed_seq: int, **changes: object) -> int:
    """The rule, with limits of 60 s and 1,000 bytes."""
    limits: dict[str, object] = {"keep_s": 60.0, "keep_bytes_max": 1000, "space_is_short": False, **changes}
    return droppable_seq(kept, confirmed_seq, now_ns=NOW_NS, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ages_s", "confirmed_seq", "changes", "expected"),
    [
        ((90, 70, 50), 30, {}, 20),
        ((90, 70, 50), 15, {}, 10),
        ((90, 70, 50), 5, {}, 0),
        ((50, 40, 30), 30, {}, 0),
        ((50, 40, 30), 30, {"keep_s": 0.0}, 30),
        ((50, 40, 30), 30, {"keep_bytes_max": 250}, 10),
        ((50, 40, 30), 30, {"keep_bytes_max": 0}, 30),
        ((50, 40, 30), 20, {"space_is_short": True}, 20),
        ((-50, -40), 20, {}, 0),
        ((-50, -40), 20, {"keep_bytes_max": 100}, 10),
        ((), 20, {}, 0),
    ],
)
def test_a_confirmed_segment_goes_when_it_is_old_or_there_are_too_many_or_space_is_short(
    ages_s: tuple[float, ...], confirmed_seq: int, changes: dict[str, object], expected: int
) -> None:
    assert drop(segments(*ages_s), confirmed_seq, **changes) == expected


@given(
    ages_s=st.lists(st.floats(-100, 200), max_size=8),
    confirmed_seq=st.integers(0, 100),
    keep_bytes_max=st.integers(0, 1000),
    short=st.booleans(),
)
def test_nothing_unconfirmed_is_ever_droppable(
    ages_s: list[float], confirmed_seq: int, keep_bytes_max: int, short: bool
) -> None:
    found = drop(segments(*ages_s), confirmed_seq, keep_bytes_max=keep_bytes_max, space_is_short=short)
    assert found <= confirmed_seq
