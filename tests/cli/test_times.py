"""Times and ranges of seqs as people type them."""

from __future__ import annotations

import pytest

from wal_ingest.cli.times import exact_time_text, parse_seqs, parse_time_ns, time_text
from wal_ingest.errors import ConfigError

NOW = 1_795_381_200 * 10**9  # 2026-11-22T21:00:00Z


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T21:00:00Z", NOW),
        (" 2026-11-22T21:00:00Z ", NOW),
        ("2026-11-22T22:00:00+01:00", NOW),
        ("2026-11-22T21:00:00", NOW),
        ("2026-11-22 21:00", NOW),
        ("2026-11-22", NOW - 21 * 3600 * 10**9),
        ("2026-11-22T21:00:00.123456Z", NOW + 123_456_000),
        ("1795381200", NOW),
        ("1795381200.5", NOW + 5 * 10**8),
        ("0s", NOW),
        ("90s", NOW - 90 * 10**9),
        ("15m", NOW - 900 * 10**9),
        ("15min", NOW - 900 * 10**9),
        ("1.5h", NOW - 5400 * 10**9),
        ("1d", NOW - 86_400 * 10**9),
        ("1969-12-31T23:59:59Z", -(10**9)),
    ],
)
def test_a_time_is_understood(text: str, expected: int) -> None:
    assert parse_time_ns(text, now_ns=NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "15", "15 m", "m", "-5m", "2026-13-01", "1795381200000000000"]
)
def test_what_is_no_time_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time") as caught:
        parse_time_ns(text, now_ns=NOW)
    assert "2026-11-22T21:00:00Z" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [("17", (17, 17)), ("17..42", (17, 42)), ("17..", (17, None)), ("..42", (1, 42)), (" 3..3 ", (3, 3))],
)
def test_a_range_of_seqs_is_understood(text: str, expected: tuple[int, int | None]) -> None:
    assert parse_seqs(text) == expected


@pytest.mark.parametrize("text", ["", "..", "a", "1-2", "1...2", "-1", "٣"])
def test_what_is_no_range_of_seqs_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no range of seqs"):
        parse_seqs(text)


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ConfigError, match="ends before it begins"):
        parse_seqs("5..4")


def test_times_are_told_to_the_second_for_people_and_to_the_nanosecond_for_programs() -> None:
    assert time_text(NOW + 999_999_999) == "2026-11-22T21:00:00Z"
    assert exact_time_text(NOW + 7) == "2026-11-22T21:00:00.000000007Z"
