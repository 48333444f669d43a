"""The service as a whole: what ends it, how, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rigs.loop_image import make_image, mounted, remount_read_only
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, run_command
from tests.wal.factories import open_store

MIB = 1 << 20


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


@pytest.mark.parametrize(
    ("bind", "token", "warned"),
    [
        ("0.0.0.0:0", "", True),
        ("0.0.0.0:0", "secret", False),
        ("127.0.0.1:0", "", False),
        ("localhost:0", "", False),
        (":0", "", True),
    ],
)
def test_an_address_that_anyone_may_write_to_is_warned_about_at_the_start(
    tmp_path: Path, bind: str, token: str, warned: bool
) -> None:
    # The start ends at once: the directory is none.
    data_dir = tmp_path / "data"
    data_dir.write_text("a file where a folder should be")
    settings = {"server.write_token": token, "log.format": "json"}
    ran = run_command("serve", "--data-dir", data_dir, "--bind", bind, settings=settings)
    assert ran.returncode != 0
    said = [json.loads(line) for line in ran.stderr.splitlines() if line.startswith("{")]
    found = [(line["level"], line["bind"]) for line in said if "set server.write_token" in line["event"]]
    assert found == ([("warning", bind)] if warned else [])


def test_a_required_sink_that_is_absent_from_the_settings_is_an_error_in_the_log(tmp_path: Path) -> None:
    settings = {"influxdb.url": "http://127.0.0.1:9", "influxdb.bucket": "b", "log.level": "error"}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        service.post("/metrics", b"m f=1 1\n", {"Content-Type": "text/plain"})
        assert service.stop() == 0
        service.settings["influxdb.url"] = ""
        service.start()
        assert service.stop() == 0
    before, after = (
        [json.loads(line) for line in (tmp_path / f"serve-{start}.err").read_text().splitlines()]
        for start in (1, 2)
    )
    [error] = after
    assert before == []
    assert (error["level"], error["sink"], error["waiting_points"]) == ("error", "influxdb", 1)
    assert error["event"].startswith("a required sink is absent from the settings")
    assert "wal-ingest sink forget influxdb" in error["remedy"]


@pytest.mark.needs("loop")
@pytest.mark.parametrize("known", [True, False], ids=["a node's directory", "a fresh directory"])
def test_a_read_only_file_system_is_a_matter_for_an_operator(tmp_path: Path, known: bool) -> None:
    """Exit code 3, not 2: the units restart the node after it, and the kernel may have the disk mounted again."""
    make_image(tmp_path / "disk.img", bytes_max=64 * MIB)
    with mounted(tmp_path / "disk.img", tmp_path / "disk", options="noatime") as disk:
        data_dir = disk / "data"
        if known:
            open_store(data_dir).close()
        remount_read_only(disk)
        ran = run_command("serve", "--data-dir", data_dir, "--bind", "127.0.0.1:0")
    assert ran.returncode == 3
    error = next(line for line in ran.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {data_dir}")
    assert error.endswith(": the disk failed: Read-only file system")
    assert "Traceback" not in ran.stderr
