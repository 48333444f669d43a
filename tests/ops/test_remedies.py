"""One remedy per state of a sink: the page, the alerts, the dashboard and the runbook say the same."""

from __future__ import annotations

import pytest

from tests.ops.test_alerts import ALERTS, ROOT, RUNBOOK, help_of
from wal_ingest.service.remedies import CONDITIONS

# The alert and the section of the runbook about a state.
PLACES = {
    "retrying": ("WalIngestSinkDown", "Sink down"),
    "failed": ("WalIngestSinkFailed", "Sink failed"),
    "paused": ("WalIngestSinkPaused", "Sink paused"),
}


def words_of(run: str) -> str:
    """A command without the name of the sink."""
    return " ".join(word for word in run.split() if not word.startswith("{"))


@pytest.mark.parametrize("state", PLACES)
def test_the_runbook_names_the_remedy_of_a_state(state: str) -> None:
    remedy = CONDITIONS[state].remedy
    assert remedy is not None
    section = RUNBOOK.read_text().split(f"\n## {PLACES[state][1]}\n")[1].split("\n## ")[0]
    assert words_of(remedy.run) in section


def test_a_failed_sink_is_resumed_wherever_it_is_spoken_of_and_never_restarted() -> None:
    remedy = CONDITIONS["failed"].remedy
    assert remedy is not None
    command = words_of(remedy.run)
    assert command == "wal-ingest sink resume"
    description = ALERTS["WalIngestSinkFailed"]["annotations"]["description"]
    assert command in description
    assert "restart" not in description
    dashboard = (ROOT / "ops/grafana/wal-ingest.json").read_text()
    assert f"failed: until `{command}`." in dashboard
    assert "until a restart" not in dashboard


@pytest.mark.parametrize("state", sorted(CONDITIONS))
def test_the_command_of_a_remedy_exists(state: str) -> None:
    remedy = CONDITIONS[state].remedy
    if remedy is None:
        assert CONDITIONS[state].meaning == ""
        return
    assert help_of(*words_of(remedy.run).split()[1:])
