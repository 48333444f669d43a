"""The Grafana dashboard: well formed, and every query is one that a real server's metrics can answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ops.exposed import Exposed, complaints
from tests.ops.test_alerts import promtool
from wal_ingest.metrics import TABLE

ROOT = Path(__file__).parent.parent.parent
DASHBOARD: dict[str, Any] = json.loads((ROOT / "ops/grafana/wal-ingest.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
PROVISIONING = ROOT / "ops/grafana/provisioning"


def queries() -> Iterator[tuple[str, str]]:
    """Every query with the title of what asks it, Grafana's own variables replaced."""
    for panel in PANELS:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def test_the_panels_have_ids_and_places_of_their_own() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for one, other in itertools.combinations([panel["gridPos"] for panel in PANELS], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in PANELS)


def test_everything_asks_the_data_source_that_the_reader_chose() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"] == chosen, panel["title"]
            assert all(target["datasource"] == chosen for target in panel["targets"]), panel["title"]
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "instance", "sink"]


@pytest.mark.needs("promtool")
def test_every_query_parses(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:query:{number}", "expr": query} for number, (_, query) in enumerate(queries())
    ]
    assert len(rules) > 30
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    ran = promtool("check", "rules", path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_query_asks_for_what_a_real_server_exposes(exposed: Exposed) -> None:
    for title, query in queries():
        assert list(complaints(query, exposed)) == [], title
    for variable in DASHBOARD["templating"]["list"][1:]:
        assert list(complaints(variable["definition"], exposed)) == [], variable["name"]


def test_no_metric_is_left_out_of_the_dashboard() -> None:
    asked = " ".join(query for _, query in queries())
    left_out = {metric.name for metric in TABLE if metric.exposed_name not in asked}
    # What the alerts are for, and what others tell better.
    assert left_out == {
        "build_info",
        "dead_letters_bytes",
        "dead_letters_bytes_max",
        "sink_letters_without_room",
        "sink_state_since_seconds",
        "wal_refusing",
        "wal_segments",
    }


def test_grafana_is_given_the_source_and_the_dashboard_where_compose_puts_them() -> None:
    compose = yaml.safe_load((ROOT / "ops/docker/compose.yaml").read_text())["services"]
    [source] = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    [provider] = yaml.safe_load((PROVISIONING / "dashboards/wal-ingest.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    assert mounts["../grafana/wal-ingest.json"] == provider["options"]["path"] + "/wal-ingest.json"
    assert mounts["../grafana/provisioning"] == "/etc/grafana/provisioning"
