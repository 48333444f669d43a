"""Chaos in short: the healthy build comes out green, a broken one does not. `make chaos` is the long form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ops.chaos.faults import FAULTS
from ops.chaos.mutant import MUTATIONS
from ops.chaos.mutations import judge
from ops.chaos.run import Order, run
from tests.rigs.seeds import round_seed


@pytest.mark.needs("victoria-metrics", "loop", "cc")
def test_a_few_faults_under_load_lose_nothing_and_leave_a_report(tmp_path: Path) -> None:
    faults = ("db_down+kill", "db_400+power_cut", "clock_jump")
    report = run(Order(6, round_seed(), faults), folder=tmp_path)
    report.write(tmp_path)

    assert report.green, report.text()
    assert report.account.parked > 0
    assert {hit.fault for hit in report.hits} == {"db_down", "kill", "db_400", "power_cut", "clock_jump"}
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["green"]
    assert written["points"]["acked"] == report.account.acked
    assert (tmp_path / "report.txt").read_text() == report.text()


@pytest.mark.slow
@pytest.mark.needs("victoria-metrics", "loop")
def test_a_build_that_reuses_seqs_is_caught(tmp_path: Path) -> None:
    verdict = judge("reused_seq", tmp_path, control=False)

    assert "lost" in verdict.evidence


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.needs("victoria-metrics", "loop", "cc")
@pytest.mark.parametrize("name", [name for name in MUTATIONS if name != "none"])
def test_every_broken_build_is_caught_and_the_healthy_one_is_not_accused(name: str, tmp_path: Path) -> None:
    verdict = judge(name, tmp_path)

    assert verdict.evidence
    assert verdict.control == ""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.needs("victoria-metrics", "loop", "cc")
def test_two_minutes_with_every_fault_lose_nothing(tmp_path: Path) -> None:
    report = run(Order(120, round_seed()), folder=tmp_path)

    assert report.green, report.text()
    assert {hit.fault for hit in report.hits} == set(FAULTS)
