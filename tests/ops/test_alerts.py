"""The alert rules: each fires in a test, asks for metrics that exist, and leads to the runbook."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from typer.testing import CliRunner

from tests.ops.exposed import Exposed, complaints, exposed_in
from wal_ingest.cli import app

ROOT = Path(__file__).parent.parent.parent
RULES = ROOT / "ops/prometheus/alerts.yml"
RULE_TESTS = ROOT / "ops/prometheus/alerts_test.yml"
RUNBOOK = ROOT / "RUNBOOK.md"

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
CASES: dict[str, Any] = yaml.safe_load(RULE_TESTS.read_text())
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for group in GROUPS for rule in group["rules"]}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.needs("promtool")
def test_the_rules_are_well_formed() -> None:
    ran = promtool("check", "rules", RULES)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.needs("promtool")
def test_every_alert_fires_when_it_should_and_none_on_a_healthy_node() -> None:
    ran = promtool("test", "rules", RULE_TESTS)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("config", ["ops/prometheus/prometheus.yml", "ops/docker/prometheus.yml"])
def test_the_sample_scrapes_are_well_formed_and_find_the_rules(config: str, tmp_path: Path) -> None:
    for path in (ROOT / config, RULES):
        shutil.copy(path, tmp_path)
    ran = promtool("check", "config", tmp_path / "prometheus.yml")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(ALERTS)} rules found" in ran.stdout


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("alert", ALERTS)
def test_a_rule_that_never_fires_would_be_noticed(alert: str, tmp_path: Path) -> None:
    rule = ALERTS[alert]
    never = {**rule, "expr": f"({rule['expr']}) and on () vector(0) == 1"}
    groups = [
        {**group, "rules": [never if each is rule else each for each in group["rules"]]} for group in GROUPS
    ]
    tests = {**CASES, "tests": [test for test in CASES["tests"] if test["name"] == alert]}
    # JSON is YAML, and written ten times as fast.
    (tmp_path / "alerts.yml").write_text(json.dumps({"groups": groups}))
    (tmp_path / "alerts_test.yml").write_text(json.dumps(tests))
    assert promtool("test", "rules", tmp_path / "alerts_test.yml").returncode == 1


def test_every_alert_has_a_case_in_which_it_fires_and_a_moment_before_in_which_it_does_not() -> None:
    tests = {test["name"]: test for test in CASES["tests"]}
    assert set(tests) == set(ALERTS) | {"healthy"}
    for alert in ALERTS:
        quiet, firing = tests[alert]["alert_rule_test"]
        assert quiet["alertname"] == firing["alertname"] == alert
        assert "exp_alerts" not in quiet
        assert len(firing["exp_alerts"]) == 1
    healthy = tests["healthy"]["promql_expr_test"]
    assert len(healthy) > 3
    assert {(case["expr"], case.get("exp_samples")) for case in healthy} == {
        ('ALERTS{alertstate="firing"}', None)
    }


def test_the_healthy_node_has_every_series_that_the_alerts_ask_for() -> None:
    tests = CASES["tests"]
    [healthy] = [test for test in tests if test["name"] == "healthy"]
    shown = exposed_in("\n".join(f"{series['series']} 0" for series in healthy["input_series"]))
    for alert, rule in ALERTS.items():
        assert [one for one in complaints(rule["expr"], shown) if " is not exposed" in one] == [], alert


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_asks_for_what_a_real_server_exposes(alert: str, exposed: Exposed) -> None:
    assert list(complaints(ALERTS[alert]["expr"], exposed)) == []


def test_a_quantile_can_come_out_above_the_threshold_of_its_alert(exposed: Exposed) -> None:
    found = 0
    for alert, rule in ALERTS.items():
        if not rule["expr"].startswith("histogram_quantile"):
            continue
        found += 1
        [histogram] = re.findall(r"(wal_ingest_\w+)_bucket", rule["expr"])
        threshold = float(rule["expr"].rpartition(">")[2])
        assert threshold < exposed.highest_bucket(histogram), alert
    assert found == 2


def help_of(*command: str) -> str:
    """What `wal-ingest … --help` prints; empty when there is no such command."""
    ran = CliRunner().invoke(app, [*command, "--help"])
    return ran.stdout if ran.exit_code == 0 else ""


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_type_first(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert not rule["annotations"]["summary"].endswith(".")
    what, _, command = rule["annotations"]["description"].partition(" Start with: ")
    assert what.endswith(".")
    assert command
    if command.startswith("wal-ingest "):
        words = [word for word in command.split()[1:] if not word.startswith(("-", "{", "$", "}"))]
        assert help_of(*words[:2]), command


def test_an_alert_leads_to_the_section_of_the_runbook_that_its_group_is_named_for() -> None:
    for group in GROUPS:
        for rule in group["rules"]:
            assert urlsplit(rule["annotations"]["runbook_url"]).fragment == group["name"], rule["alert"]


def test_the_runbook_has_a_section_for_every_group_of_alerts() -> None:
    if not RUNBOOK.exists():
        pytest.skip("RUNBOOK.md is not written yet")
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
    for group in GROUPS:
        assert anchors.count(group["name"]) == 1, group["name"]


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_url_is_one_that_can_be_clicked_and_its_section_is_there(alert: str) -> None:
    url = urlsplit(ALERTS[alert]["annotations"]["runbook_url"])
    assert (url.scheme, url.netloc) == ("https", "runbooks.example.org")
    assert url.path.endswith("/RUNBOOK.md")
    headings = re.findall(r"^## (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert url.fragment in [heading.lower().replace(" ", "-") for heading in headings]
