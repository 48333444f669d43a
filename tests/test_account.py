"""The account of a running node: the same figures on every surface, and they add up after points were given up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.rigs.processes import wait_until
from tests.rigs.service import Service, run_command

# Each part of the account, and the metrics that add up to it.
METRICS = {
    "accepted": ["sink_accepted_points_total"],
    "delivered": ["sink_confirmed_points_total"],
    "waiting": ["sink_waiting_points"],
    "parked": ["sink_dead_letters"],
    "given_up": ["sink_skipped_points_total", "sink_expired_points_total"],
    "unaccounted": ["sink_unaccounted_points"],
}
TEXT = {"Content-Type": "text/plain"}


def wal_ingest(data_dir: Path, *arguments: str) -> str:
    """What a command prints on standard output."""
    ran = run_command(*arguments, "--data-dir", data_dir)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def from_metrics(service: Service) -> dict[str, dict[str, float]]:
    samples = {
        (sample.name.removeprefix("wal_ingest_"), sample.labels.get("sink")): sample.value
        for family in text_string_to_metric_families(service.get("/metrics"))
        for sample in family.samples
        if "state" not in sample.labels
    }
    return {
        sink: {part: sum(samples[name, sink] for name in names) for part, names in METRICS.items()}
        for sink in ("influxdb", "archive")
    }


def test_every_surface_of_a_node_shows_the_same_account_and_none_is_green_over_points_given_up(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    away = {"archive.enabled": "on", "influxdb.url": "http://127.0.0.1:9", "influxdb.bucket": "b"}
    with Service(data_dir, logs=tmp_path, settings=away) as service:
        service.post("/metrics", b"m f=1 1\n" * 250, TEXT)
        wal_ingest(data_dir, "sink", "skip", "influxdb", "--all", "--yes")
        service.post("/metrics", b"m f=1 1\n" * 50, TEXT)

        def settled() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(service.get("/status.json"))
            # The page samples once a second: until then it does not know of what was given up.
            is_settled = found["account"]["archive"]["waiting"] == 0 and "given up" in found["verdict"]["key"]
            return found if is_settled else {}

        status = wait_until(settled, "the archive has all points, and the page knows of those given up")
        ready = json.loads(service.get("/readyz"))
        metrics = from_metrics(service)
        on_disk = json.loads(wal_ingest(data_dir, "wal", "status", "--json"))
        printed = wal_ingest(data_dir, "wal", "status")
    account = status["account"]
    assert account["influxdb"] == {
        "accepted": 300,
        "delivered": 0,
        "waiting": 50,
        "parked": 0,
        "given_up": 250,
        "unaccounted": 0,
    }
    assert account["archive"]["delivered"] == account["archive"]["accepted"] == 300
    assert account == ready["account"] == metrics == on_disk["account"]
    assert "influxdb: 300 accepted = 0 delivered + 50 waiting + 0 parked + 250 given up" in printed
    assert status["verdict"]["level"] != "good"
    assert "250 points of influxdb given up" in status["verdict"]["sentence"]
    assert "delivered" not in status["verdict"]["sentence"]
    assert ready["verdict"]["level"] == status["verdict"]["level"]
    [act] = [event for event in status["events"] if event["kind"] == "operator"]
    assert act["message"].startswith("sink skip (sink=influxdb, ")
    assert "expired_points=250" in act["message"]
    [line] = [line for line in service.process.log.read_text().splitlines() if "operator" in line]
    assert '"level": "warning"' in line
    assert f'"uid": {os.getuid()}' in line


def test_a_command_without_a_node_says_on_standard_error_who_changed_what(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path):
        pass
    ran = run_command("sink", "pause", "archive", "--data-dir", tmp_path / "data")
    assert "no node is running; changed on disk: sink pause (sink=archive) by " in ran.stderr
    assert f"(uid {os.getuid()}, pid " in ran.stderr


def test_requests_that_are_all_refused_are_in_the_verdict_with_their_reasons(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path, settings={"server.write_token": "secret"}) as service:
        for token in ("wrong", "secret"):
            with pytest.raises(HTTPError, match=r"40[01]"):
                service.post("/metrics", b"nonsense\n", TEXT | {"Authorization": f"Bearer {token}"})
        verdict = json.loads(service.get("/status.json"))["verdict"]
    assert verdict["level"] == "bad"
    reasons = "1 not understood (400), 1 without a valid token (401)"
    assert verdict["sentence"].startswith(f"REFUSING ALL 2 requests of the last 5 min: {reasons}")
