"""`wal-ingest sink` and `wal-ingest dead-letters` against real nodes, running and stopped."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.influxdb import InfluxDB
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, run_command, to_influxdb

TEXT = {"Content-Type": "text/plain"}
# Nobody listens there.
AWAY: dict[str, object] = {
    "influxdb.url": "http://127.0.0.1:9",
    "influxdb.bucket": "b",
    "archive.enabled": "on",
}


class Node:
    """A node with its command line."""

    def __init__(self, root: Path, settings: dict[str, object]) -> None:
        self.data_dir = root / "data"
        self.settings = settings
        self.service = Service(self.data_dir, logs=root, settings=settings)

    def __enter__(self) -> Node:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.service.process.running:
            self.service.kill()

    def run(self, *arguments: str, code: int = 0) -> str:
        ran = run_command(*arguments, "--data-dir", self.data_dir, settings=self.settings)
        assert ran.returncode == code, f"{arguments}: exit code {ran.returncode}: {ran.stdout}{ran.stderr}"
        return ran.stdout if code == 0 else ran.stdout + ran.stderr

    def sink(self, name: str = "influxdb") -> dict[str, object]:
        told: dict[str, object] = json.loads(self.run("sink", "status", "--json"))[name]
        return told


@pytest.fixture
def away(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path, AWAY) as node:
        yield node


def test_a_sink_that_is_away_is_shown_with_its_last_error(away: Node) -> None:
    away.service.post("/metrics", b"m f=1 1\n", TEXT)
    wait_until(lambda: away.sink()["state"] == "retrying", "the sink shows as retrying")
    told = away.sink()
    assert told["waiting_points"] == 1
    assert "127.0.0.1:9 cannot be reached" in str(told["last_error"])
    assert told["last_error_at"]
    shown = away.run("sink", "status")
    assert "retrying" in shown
    assert "influxdb: last error at" in shown
    assert "address: WRONG" in away.run("sink", "check", code=1)
    checks = json.loads(away.run("sink", "check", "archive", "--json"))
    assert all(check["right"] for check in checks["archive"])


def test_a_pause_holds_over_a_restart_and_stops_only_its_own_sink(away: Node) -> None:
    assert "paused" in away.run("sink", "pause", "archive")
    away.service.post("/metrics", b"m f=1 1\n", TEXT)
    assert away.sink("archive")["state"] == "paused"
    assert away.service.stop() == 0
    assert away.sink("archive")["state"] == "paused"
    assert away.sink("archive")["running"] is False
    away.service.start()
    away.service.post("/metrics", b"m f=2 2\n", TEXT)
    assert away.sink("archive")["waiting_points"] == 2
    assert 'wal_ingest_sink_state{sink="archive",state="paused"} 1.0' in away.service.get("/metrics")
    assert "resumed" in away.run("sink", "resume", "archive")
    away.service.wait_drained("archive")
    assert away.sink("archive")["confirmed_points"] == 2


def test_a_node_that_does_not_run_is_paused_and_resumed_all_the_same(away: Node) -> None:
    assert away.service.stop() == 0
    away.run("sink", "pause", "influxdb")
    assert away.sink()["state"] == "paused"
    away.run("sink", "resume", "influxdb")
    assert away.sink()["state"] == "ok"


@pytest.mark.parametrize("running", [True, False])
def test_a_range_that_is_given_up_is_named_first_and_accounted_for(away: Node, running: bool) -> None:
    for _ in range(4):
        away.service.post("/metrics", b"m f=1 1\nm f=2 2\n", TEXT)
    if not running:
        assert away.service.stop() == 0
    refused = away.run("sink", "skip", "influxdb", "--through-seq", "3", code=2)
    assert "influxdb will never get 6 points in seqs 1 to 3" in refused
    assert "say --yes" in refused
    assert away.sink()["waiting_points"] == 8
    done = away.run("sink", "skip", "influxdb", "--through-seq", "3", "--yes")
    assert "gave up 6 points; its cursor is at seq 3" in done
    told = away.sink()
    assert (told["waiting_points"], told["expired_points"], told["cursor_seq"]) == (2, 6, 3)
    assert json.loads(away.run("wal", "status", "--json"))["sinks"]["influxdb"]["unaccounted_points"] == 0
    assert "nothing to give up" in away.run("sink", "skip", "influxdb", "--until", "1h", "--yes")
    assert "2 points in seqs 4 to 4" in away.run("sink", "skip", "influxdb", "--until", "0s", "--yes")
    assert "nothing to give up" in away.run("sink", "skip", "influxdb", "--all", "--yes")


def test_mistakes_are_told_with_what_to_do(away: Node) -> None:
    assert "there are: " in away.run("sink", "pause", "influx", code=2)
    assert "did you mean influxdb?" in away.run("sink", "check", "influx", code=2)
    assert "give exactly one of" in away.run("sink", "skip", "influxdb", code=2)
    assert "is no time" in away.run("sink", "skip", "influxdb", "--until", "yesterday", code=2)
    nowhere = run_command("sink", "pause", "influxdb", "--data-dir", "/nonexistent/data")
    assert nowhere.returncode == 2
    assert "there is no WAL in /nonexistent/data" in nowhere.stderr


def without_database(node: Node) -> None:
    """Starts the node again without the address of its database, as when a file of variables was not read."""
    assert node.service.stop() == 0
    for name in ("influxdb.url", "influxdb.bucket"):
        del node.settings[name]
        del node.service.settings[name]
    node.service.start()


def test_what_waits_for_a_database_that_is_missing_from_the_settings_stays_until_it_is_forgotten(
    tmp_path: Path,
) -> None:
    settings = {"influxdb.url": "http://127.0.0.1:9", "influxdb.bucket": "b"}
    quick = {"wal.segment_s_max": 1, "wal.keep_confirmed_bytes_max": 0}
    with Node(tmp_path, {**settings, **quick}) as node:
        for _ in range(3):
            node.service.post("/metrics", b"m f=1 1\nm f=2 2\n", TEXT)
        assert "is in the node's settings" in node.run("sink", "forget", "influxdb", "--yes", code=2)
        without_database(node)
        assert "a required sink is absent from the settings" in node.service.process.log_tail()
        assert node.service.ready() == 200
        node.service.wait_drained("archive")
        node.service.post("/metrics", b"m f=3 3\n", TEXT)
        # A segment that is sealed and confirmed by all that run would go now.
        wait_until(lambda: len(list((node.data_dir / "wal").glob("*.lmdb"))) > 2, "the next segment is begun")
        node.service.wait_drained("archive")
        assert json.loads(node.run("wal", "status", "--json"))["first_seq"] == 1
        assert (node.sink()["state"], node.sink()["waiting_points"]) == ("absent", 7)
        assert 'wal_ingest_sink_state{sink="influxdb",state="absent"} 1.0' in node.service.get("/metrics")
        refused = node.run("sink", "forget", "influxdb", code=2)
        assert "influxdb will never get 7 points that wait for it" in refused
        assert "gave up 7 points" in node.run("sink", "forget", "influxdb", "--yes")
        wait_until(
            lambda: json.loads(node.run("wal", "status", "--json"))["first_seq"] > 1,
            "its segments are dropped",
        )
        told = node.sink()
        assert (told["state"], told["expired_points"], told["waiting_points"]) == ("forgotten", 7, 0)
        assert 'state="absent"} 1.0' not in node.service.get("/metrics")


def test_a_database_that_is_back_in_the_settings_gets_what_waited_for_it(tmp_path: Path) -> None:
    settings = {"influxdb.url": "http://127.0.0.1:9", "influxdb.bucket": "b"}
    with Node(tmp_path, dict(settings)) as node:
        node.service.post("/metrics", b"m f=1 1\n", TEXT)
        without_database(node)
        assert node.service.stop() == 0
        assert node.sink()["state"] == "absent"
        node.service.settings.update(settings)
        node.service.start()
        assert "absent" not in node.service.process.log_tail()
        assert node.sink()["waiting_points"] == 1
        assert node.service.stop() == 0
        assert (
            "is in the node's settings"
            in run_command(
                "sink", "forget", "influxdb", "--data-dir", node.data_dir, "--yes", settings=settings
            ).stderr
        )
        assert "gave up 1 point" in node.run("sink", "forget", "influxdb", "--yes")


def test_commands_for_a_node_that_was_killed_need_no_node(away: Node) -> None:
    away.service.post("/metrics", b"m f=1 1\n", TEXT)
    away.service.kill()
    assert "gave up 1 point;" in away.run("sink", "skip", "influxdb", "--all", "--yes")


@pytest.fixture
def conflicted(influxdb: InfluxDB, tmp_path: Path) -> Iterator[tuple[Node, InfluxDB, str]]:
    """A node with three dead letters: `hot` has another type than what came before."""
    bucket = influxdb.fresh_database()
    with Node(tmp_path, to_influxdb(influxdb.url, bucket=bucket)) as node:
        now = time.time_ns()
        node.service.post("/metrics", f"temp,room=a value=20.5 {now}\n".encode(), TEXT)
        node.service.wait_drained("influxdb")
        bad = [f'temp,room=bad{n} value="hot" {now + n}' for n in range(3)]
        good = [f"temp,room=good value={n}.5 {now + n}" for n in range(5)]
        node.service.post("/metrics", "\n".join([*good, *bad, ""]).encode(), TEXT)
        node.service.wait_drained("influxdb")
        yield node, influxdb, bucket


@pytest.mark.needs("influxdb")
def test_dead_letters_are_listed_shown_exported_and_written_after_the_bucket_was_mended(
    conflicted: tuple[Node, InfluxDB, str], tmp_path: Path
) -> None:
    node, influxdb, bucket = conflicted
    [group] = json.loads(node.run("dead-letters", "list", "--json"))
    assert (group["sink"], group["points"]) == ("influxdb", 3)
    assert "field type conflict" in group["reason"]
    assert "field type conflict" in node.run("dead-letters", "list")
    rows = json.loads(node.run("dead-letters", "show", "--json", "--reason", "conflict", "--limit", "2"))
    assert [row["line"].split(" ")[0] for row in rows] == ["temp,room=bad0", "temp,room=bad1"]
    assert node.run("dead-letters", "show").count("\ntemp,room=bad") == 3
    file = tmp_path / "letters.lp.gz"
    node.run("dead-letters", "export", str(file))
    assert gzip.decompress(file.read_bytes()).decode() == node.run("dead-letters", "export", "-")
    assert "is there already" in node.run("dead-letters", "export", str(file), code=2)
    assert len(node.run("dead-letters", "export", "-", "--json").splitlines()) == 3
    assert "0 of 3 points written, 3 refused again" in node.run("dead-letters", "retry", code=1)

    influxdb.query('DROP MEASUREMENT "temp"', database=bucket)
    assert "3 of 3 points written" in node.run("dead-letters", "retry")
    assert "there are no dead letters" in node.run("dead-letters", "list")
    assert len(influxdb.rows(bucket, "SELECT * FROM temp")) == 3
    told = node.service.wait_drained("influxdb")["sinks"]["influxdb"]
    assert (told["confirmed_points"], told["parked"], told["unaccounted_points"]) == (9, 0, 0)
    assert "no such dead letters" in node.run("dead-letters", "retry")


@pytest.mark.needs("influxdb")
def test_dead_letters_are_dropped_only_after_a_yes_and_accounted_for(
    conflicted: tuple[Node, InfluxDB, str],
) -> None:
    node, _, _ = conflicted
    asked = node.run("dead-letters", "drop", code=2)
    assert "3 points that influxdb refused" in asked
    assert "field type conflict" in asked
    assert "no such dead letters" in node.run("dead-letters", "drop", "--reason", "nonsense", "--yes")
    assert node.service.stop() == 0
    assert "dropped 3 points" in node.run("dead-letters", "drop", "--yes")
    told = json.loads(node.run("wal", "status", "--json"))["sinks"]["influxdb"]
    assert (told["parked"], told["expired_points"], told["unaccounted_points"]) == (0, 3, 0)


@pytest.mark.needs("influxdb")
def test_a_retry_of_a_sink_that_is_away_says_so_at_once(conflicted: tuple[Node, InfluxDB, str]) -> None:
    node, _, _ = conflicted
    node.settings = {**node.settings, "influxdb.url": "http://127.0.0.1:9"}
    assert "cannot be reached" in node.run("dead-letters", "retry", code=1)
    assert len(json.loads(node.run("dead-letters", "show", "--json"))) == 3


@pytest.mark.needs("influxdb")
def test_dead_letters_of_a_sink_that_is_off_by_now_can_be_dropped_beside_the_running_node(
    conflicted: tuple[Node, InfluxDB, str], tmp_path: Path
) -> None:
    node, _, _ = conflicted
    assert node.service.stop() == 0
    with Node(tmp_path, {}) as without:
        assert "is not on in these settings" in without.run(
            "dead-letters", "retry", "--sink", "influxdb", code=2
        )
        assert "dropped 3 points" in without.run("dead-letters", "drop", "--sink", "influxdb", "--yes")
        assert "there are no dead letters" in without.run("dead-letters", "list")
        told = json.loads(without.run("wal", "status", "--json"))["sinks"]["influxdb"]
    assert (told["parked"], told["expired_points"], told["unaccounted_points"]) == (0, 3, 0)


def test_what_is_lost_right_behind_a_range_that_is_given_up_goes_with_it_and_is_counted(
    tmp_path: Path,
) -> None:
    settings: dict[str, object] = {**AWAY, "wal.segment_s_max": 0.1}
    with Node(tmp_path, settings) as node:
        for seq in (1, 2, 3):
            node.service.post("/metrics", b"m f=1 1\nm f=2 2\n", TEXT)
            wait_until(lambda: len(node.service.status()["segments"]) > seq, "the segment is sealed")  # noqa: B023
        assert node.service.stop() == 0
        (node.data_dir / "wal" / f"{2:020}.lmdb").write_bytes(b"no LMDB")
        done = node.run("sink", "skip", "influxdb", "--through-seq", "1", "--yes")
    assert "4 points in seqs 1 to 2" in done
    assert "gave up 4 points; its cursor is at seq 2" in done


@pytest.mark.needs("influxdb")
def test_a_forgotten_sink_keeps_its_dead_letters_and_names_the_command_that_drops_them(
    conflicted: tuple[Node, InfluxDB, str],
) -> None:
    node, _, _ = conflicted
    without_database(node)
    said = node.run("sink", "forget", "influxdb", "--yes")
    _, _, named = said.partition("To drop them: wal-ingest ")
    assert "dropped 3 points" in node.run(*named.splitlines()[0].split(), "--yes")
