"""The service as a whole: what ends it, how, and what it says."""

from __future__ import annotations

from pathlib import Path

from tests.rigs.processes import wait_until
from tests.rigs.service import Service, run_command


def test_a_required_sink_that_cannot_go_on_ends_the_node_in_order_with_its_reason(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "archive").write_text("a file where a folder should be")
    ran = run_command("serve", "--data-dir", data_dir, "--bind", "127.0.0.1:0")
    assert ran.returncode == 3
    assert "archive" in ran.stderr.splitlines()[-1]
    assert ran.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ran.stderr


def test_a_stop_is_clean_and_says_so(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        assert service.post("/metrics", b"m f=1 1\n", {"Content-Type": "text/plain"}) == 202
        assert service.stop() == 0
    told = service.status()
    assert told["server_pid"] is None
    assert told["points_accepted"] == 1


def test_a_sink_in_trouble_is_told_everywhere_and_the_node_goes_on_taking_points(tmp_path: Path) -> None:
    settings = {"influxdb.url": "http://127.0.0.1:9", "influxdb.bucket": "b", "archive.enabled": "on"}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        service.post("/metrics", b"m f=1 1\n", {"Content-Type": "text/plain"})
        told = wait_until(
            lambda: (found := service.status()["sinks"])["influxdb"]["state"] != "ok" and found,
            "the status tells of the sink that is away",
        )
        assert told["influxdb"]["state"] == "retrying"
        assert "127.0.0.1:9" in told["influxdb"]["reason"]
        assert told["influxdb"]["waiting_points"] == 1
        assert service.ready() == 200
        assert '"retrying"' in service.get("/readyz")
        assert 'wal_ingest_sink_state{sink="influxdb",state="retrying"} 1.0' in service.get("/metrics")
        wait_until(
            lambda: service.status()["sinks"]["archive"]["confirmed_points"] == 1,
            "the other sink has what it should have",
        )
