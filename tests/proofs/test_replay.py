"""A rehearsed outage: the database loses what it was given last, and a replay brings it back while the node goes on."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.account import account_archive, account_victoria_metrics, archive_lines, samples_of
from tests.rigs.fleet import MS, Plan, Shape
from tests.rigs.load import Load
from tests.rigs.processes import Process, wait_until
from tests.rigs.service import COMMAND, Service, environment, run_command, to_influxdb
from tests.rigs.victoria_metrics import VictoriaMetrics

SHAPES = (Shape("lines", gzip=True, timed=True), Shape("v2", gzip=False, timed=True))


def plan_of(name: str) -> Plan:
    return Plan(name, (time.time_ns() - 7200 * 1000 * MS) // MS * MS, points=40, shapes=SHAPES)


def progress_of(data_dir: Path) -> dict[str, Any]:
    """What the one replay of a data directory has remembered; empty before that."""
    found = list((data_dir / "replay").glob("*.json"))
    told: dict[str, Any] = json.loads(found[0].read_text()) if found else {}
    return told


def _wait_until_delivered(service: Service) -> None:
    """Returns when the database has what is in the log by now."""
    last_seq = service.status()["last_seq"]
    wait_until(
        lambda: service.status()["sinks"]["influxdb"]["cursor_seq"] >= last_seq,
        f"the database has everything up to seq {last_seq}",
        every_s=0.2,
    )


def interrupted_replay(service: Service, arguments: list[str], log: Path) -> str:
    """Runs a slow replay until it has remembered a place, and interrupts it; what it said on standard error."""
    process = Process(
        "wal-ingest replay",
        [COMMAND, *arguments, "--rate", "2000"],
        log=log,
        stdout=log.with_suffix(".out"),
        env=environment(service.settings),
    )
    wait_until(
        lambda: not process.running or progress_of(service.data_dir).get("confirmed", 0) > 0,
        "the replay remembers how far it has come",
        also=log,
    )
    assert process.running, process.log_tail()
    process.signal(signal.SIGINT)
    wait_until(lambda: not process.running, "the replay ends after SIGINT", s_max=15)
    assert process.exit_code == 1, process.log_tail()
    return log.read_text()


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
def test_a_database_restored_from_a_backup_gets_back_what_it_lost_while_the_node_goes_on(
    tmp_path: Path,
) -> None:
    plan = plan_of("rehearsal")
    stored, backup = tmp_path / "data", tmp_path / "backup"
    with VictoriaMetrics(tmp_path) as database:
        settings = to_influxdb(database.url, wal__segment_bytes_max=1024 * 1024, wal__keep_confirmed_s=3600)
        with Service(tmp_path / "node", logs=tmp_path, settings=settings) as service:
            with Load(service.port, plan, clients=2) as load:
                load.wait_for_acks(100)
                since_s = time.time()
                _wait_until_delivered(service)  # else points from before `since` would come after the backup
                database.stop()
                shutil.copytree(stored, backup)
                database.start()
                load.wait_for_acks(load.acked_so_far + 400)
                before_samples = database.count(*plan.matches)

                # The disaster: what was written since the backup is gone, and the node has it confirmed.
                database.stop()
                shutil.rmtree(stored)
                shutil.copytree(backup, stored)
                database.start()

                arguments = ["replay", "--since", f"{since_s:.6f}", "--data-dir", str(service.data_dir)]
                acked = load.acked_so_far
                said = interrupted_replay(service, arguments, tmp_path / "replay.err")
                assert "the same command goes on from here" in said
                halfway = progress_of(service.data_dir)
                assert halfway["finished_ns"] == 0
                assert halfway["place"]["seq"] > 0
                again = run_command(*arguments, settings=service.settings, s_max=120)
                assert again.returncode == 0, again.stderr
                assert "going on with the replay of" in again.stderr
                assert load.acked_so_far > acked, "the node took nothing meanwhile"
                load.wait_for_acks(load.acked_so_far + 50)
            assert all(one.acked for one in load.sent)
            told = service.wait_drained("influxdb", s_max=90)
            assert service.stop() == 0

        done = progress_of(service.data_dir)
        assert done["finished_ns"] > 0
        assert done["confirmed"] > halfway["confirmed"] > 0
        assert (done["rejected"], done["lost"]) == (0, [])
        # The delivery's own account has nothing of the replay in it.
        sink = told["sinks"]["influxdb"]
        assert sink["cursor_seq"] == told["last_seq"] == len(load.sent)
        assert sink["confirmed_points"] == told["points_accepted"]
        assert sink["unaccounted_points"] == 0
        expected = samples_of(load.sent)
        assert before_samples < expected
        wait_until(lambda: database.count(*plan.matches) >= expected, f"{expected} samples", every_s=1)
        account_victoria_metrics(database.values(*plan.matches), load.sent).check()


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
def test_without_the_replay_the_restored_database_lacks_points(tmp_path: Path) -> None:
    plan = plan_of("unmended")
    stored, backup = tmp_path / "data", tmp_path / "backup"
    with VictoriaMetrics(tmp_path) as database:
        with Service(tmp_path / "node", logs=tmp_path, settings=to_influxdb(database.url)) as service:
            with Load(service.port, plan, clients=2, requests=20) as load:
                load.wait(s_max=30)
            service.wait_drained("influxdb")
            database.stop()
            shutil.copytree(stored, backup)
            database.start()
            with Load(service.port, plan_of("unmended_later"), clients=2, requests=20) as later:
                later.wait(s_max=30)
            service.wait_drained("influxdb")
            database.stop()
            shutil.rmtree(stored)
            shutil.copytree(backup, stored)
            database.start()
        account_victoria_metrics(database.values(*plan.matches), load.sent).check()
        assert database.count('{__name__=~"unmended_later_.*"}') == 0


@pytest.mark.timeout(300)
@pytest.mark.needs("victoria-metrics")
def test_what_the_wal_has_dropped_comes_from_the_archive(tmp_path: Path) -> None:
    plan = plan_of("archived")
    settings = {"wal.segment_bytes_max": 1024 * 1024, "wal.segment_s_max": 1, "flusher.batch_wait_s_max": 0.2}
    with (
        VictoriaMetrics(tmp_path) as database,
        Service(tmp_path / "node", logs=tmp_path, settings=settings) as service,
        Load(service.port, plan, clients=2) as load,
    ):
        load.wait_for_acks(200)
        wait_until(lambda: service.status()["first_seq"] > 1, "the WAL drops its first segment", every_s=0.2)
        load.stop()
        replay = run_command(
            *("replay", "--since", "1h", "--to", database.url, "--bucket", "any", "--json"),
            *("--data-dir", service.data_dir),
            settings=service.settings,
            s_max=120,
        )
        told = json.loads(replay.stdout)
        assert [source["source"] for source in told["sources"]] == ["archive", "wal"]
        assert told["state"] == "done"
        assert told["confirmed"] >= samples_of(load.sent) / 2  # two fields a point
        assert "whole hours are replayed" in replay.stderr
        expected = samples_of(load.sent)
        wait_until(lambda: database.count(*plan.matches) >= expected, f"{expected} samples", every_s=1)
        account_victoria_metrics(database.values(*plan.matches), load.sent).check()
        service.wait_drained("archive")
        assert service.stop() == 0
        account_archive(archive_lines(service.data_dir), load.sent).check()
