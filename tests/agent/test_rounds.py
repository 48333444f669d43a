"""The grid of rounds: even, steady over restarts, and spread over the hosts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.agent.rounds import next_round_ns, phase_ns, round_time_ns

S = 1_000_000_000


@given(st.integers(0, 2**62), st.integers(S, 3600 * S), st.text())
def test_the_next_round_is_on_the_hosts_grid_and_within_one_interval(
    now_ns: int, interval_ns: int, host: str
) -> None:
    phase = phase_ns(host, interval_ns)
    planned_ns = next_round_ns(now_ns, interval_ns, phase)
    assert 0 <= phase < interval_ns
    assert 0 < planned_ns - now_ns <= interval_ns
    assert planned_ns % interval_ns == phase


def test_five_thousand_hosts_are_spread_evenly_over_the_interval() -> None:
    seconds = [0] * 10
    for number in range(5_000):
        seconds[phase_ns(f"web-{number}.example", 10 * S) // S] += 1
    assert all(400 < hosts < 600 for hosts in seconds)


def test_a_rounds_time_is_the_planned_one_unless_the_clock_was_set_meanwhile() -> None:
    assert round_time_ns(100 * S, 100 * S + 3_000_000, 10 * S) == 100 * S
    assert round_time_ns(100 * S, 170 * S, 10 * S) == 170 * S
    assert round_time_ns(100 * S, 40 * S, 10 * S) == 40 * S
