"""Seconds where milliseconds are expected: shown by a real node in its verdict, its status and `wal status`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.rigs.service import Service, run_command

SECONDS = b'{"serverId":"s","cpu":1,"ram":1,"timestamp":1763800000}'
SAYS = "from 127.0.0.1 with times before 1990: this looks like seconds"


def test_a_node_says_who_sends_seconds(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        service.post("/metrics", SECONDS, {"Content-Type": "application/json"})
        service.post("/metrics", SECONDS, {"Content-Type": "application/json"})
        status = json.loads(service.get("/status.json"))
        odd = {
            "source": "127.0.0.1",
            "oddity": "time_past",
            "looks_like": "seconds",
            "points": 2,
            "says": SAYS,
        }
        assert status["odd_times"] == [odd]
        assert status["verdict"]["level"] == "attention"
        assert f"2 points of the last 5 min {SAYS}" in status["verdict"]["sentence"]
        shown = run_command("wal", "status", "--data-dir", service.data_dir)
        assert f"2 points of the last minutes {SAYS}" in shown.stdout
        told = json.loads(run_command("wal", "status", "--json", "--data-dir", service.data_dir).stdout)
        assert told["odd_times"] == [odd]
        service.stop()
    # A stopped node keeps none of it: it is only in memory.
    told = json.loads(run_command("wal", "status", "--json", "--data-dir", service.data_dir).stdout)
    assert told["odd_times"] == []
