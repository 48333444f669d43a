"""The rigs themselves: a proof that reads a database wrongly proves nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.rigs.account import account_victoria_metrics, samples_of
from tests.rigs.fleet import EVERY_SHAPE, Plan, Shape, make_request
from tests.rigs.forked import quick_command, search_path
from tests.rigs.influxdb import InfluxDB
from tests.rigs.load import Load
from tests.rigs.loop_image import mounted_image
from tests.rigs.no_sync import no_sync_environment
from tests.rigs.processes import http_status, wait_until
from tests.rigs.service import Service, environment, run_bytes
from tests.rigs.victoria_metrics import VictoriaMetrics


@pytest.mark.needs("victoria-metrics")
def test_victoria_metrics_gives_back_what_was_written_and_counts_doubles_once(
    victoria_metrics: VictoriaMetrics,
) -> None:
    ms = time.time_ns() // 1_000_000
    line = f'rig,host=a value=1.125,flag=true,n=7i {ms}000001\nrig,host="b" value=2 {ms + 1}999999\n'.encode()
    victoria_metrics.write(line)
    victoria_metrics.write(line)
    match = '{__name__=~"rig_.*"}'
    wait_until(lambda: victoria_metrics.count(match) == 4, "all four samples are there", s_max=15)

    assert victoria_metrics.values(match) == {
        'rig_value{host="a"}': {ms: 1.125},
        'rig_flag{host="a"}': {ms: 1.0},
        'rig_n{host="a"}': {ms: 7.0},
        'rig_value{host=""b""}': {ms + 1: 2.0},
    }
    assert victoria_metrics.samples(match)['rig_value{host="a"}'] == [(ms, 1.125), (ms, 1.125)]


@pytest.mark.needs("influxdb")
def test_influxdb_takes_the_newer_path_and_gives_back_types_and_nanoseconds(influxdb: InfluxDB) -> None:
    database = influxdb.fresh_database()
    body = b'm,host=a f=1.5,i=9007199254740993i,s="x y",b=true 1700000000123456789\n'
    url = f"{influxdb.url}/api/v2/write?org=any&bucket={database}&precision=ns"
    with urllib.request.urlopen(url, data=body, timeout=10) as answer:
        assert answer.status == 204

    assert influxdb.rows(database, "SELECT * FROM m") == [
        {
            "time": 1700000000123456789,
            "host": "a",
            "f": 1.5,
            "i": 9007199254740993,
            "s": "x y",
            "b": True,
        }
    ]
    assert influxdb.field_types(database, "m") == {
        "f": "float",
        "i": "integer",
        "s": "string",
        "b": "boolean",
    }


@pytest.mark.needs("victoria-metrics")
def test_an_account_finds_every_point_and_names_the_one_that_is_lost_changed_or_foreign(
    victoria_metrics: VictoriaMetrics,
) -> None:
    now = time.time_ns() // 1_000_000 * 1_000_000
    # Written straight into VictoriaMetrics, which would make a label of the database that v1 names.
    shapes = (Shape("v2", gzip=True, timed=True), Shape("v2", gzip=False, timed=True))
    plan = Plan("rigload", now, points=50, shapes=shapes, vary=True)
    with Load(victoria_metrics.port, plan, clients=3, requests=8) as load:
        load.wait(s_max=20)
    sent = load.acked
    assert len(sent) == 24
    total = samples_of(sent)
    wait_until(lambda: victoria_metrics.count(*plan.matches) >= total, "all samples are there", s_max=20)
    found = victoria_metrics.values(*plan.matches)

    account_victoria_metrics({series: dict(by_ms) for series, by_ms in found.items()}, sent).check()

    first, *_, last = (by_ms for by_ms in found.values() if by_ms)
    first.pop(next(iter(first)))
    last[next(iter(last))] += 1
    found["rigload_value"] = {1: 1.0}
    with pytest.raises(AssertionError, match=r"1 changed.*1 lost.*1 never sent"):
        account_victoria_metrics(found, sent).check()


def test_a_plan_makes_the_same_request_again_and_no_point_twice() -> None:
    plan = Plan("again", 1_700_000_000_000_000_000, points=10, shapes=EVERY_SHAPE, seed=7, vary=True)
    requests = [make_request(plan, client, number) for client in range(2) for number in range(48)]

    assert requests == [make_request(plan, client, number) for client in range(2) for number in range(48)]
    points = [point for request in requests for point in request.points]
    keys = {(point.measurement, point.tags, point.time_ns) for point in points}
    assert len(keys) == len(points)
    assert {request.shape for request in requests} == set(EVERY_SHAPE)


@pytest.mark.needs("loop", "cc")
def test_a_power_cut_keeps_what_was_synced_and_loses_what_was_not(tmp_path: Path) -> None:
    """The disk itself, without wal-ingest: and the preloaded library takes a real sync away."""
    write = "import os,sys; f=open(sys.argv[1],'wb'); f.write(b'x'*100_000); f.flush(); os.fsync(f.fileno())"
    with mounted_image(tmp_path, bytes_max=64 * 1024 * 1024) as disk:
        disk.settle()
        subprocess.run([sys.executable, "-c", write, disk.path / "synced"], check=True)
        unsynced = no_sync_environment(tmp_path)
        subprocess.run([sys.executable, "-c", write, disk.path / "unsynced"], check=True, env=unsynced)
        with disk.as_after_a_power_cut() as where:
            left = {path.name: path.stat().st_size for path in where.iterdir() if path.is_file()}

    assert left == {"synced": 100_000}


@pytest.mark.parametrize("exec_only", ["0", "1"])
def test_a_forked_command_is_like_the_command_itself(
    monkeypatch: pytest.MonkeyPatch, exec_only: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("WAL_TESTS_EXEC", exec_only)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines").write_bytes(b"")
    wrong = run_bytes("config", env={"WAL_INGEST_SERVER__BIND": "nonsense"})
    assert wrong.returncode == 2
    assert b"server.bind" in wrong.stderr
    assert b"Usage: wal-ingest wal cat" in run_bytes("wal", "cat", "--what").stderr
    assert run_bytes("--version").stdout.startswith(b"wal-ingest ")
    # The environment of one command is not that of the next, and files are found from the working directory.
    assert run_bytes("config").returncode == 0
    taken = run_bytes("wal", "import", "-", "lines", "--data-dir", "data", stdin=b"m v=1 1\n" * 20_000)
    assert (taken.returncode, b"20,000 points" in taken.stdout + taken.stderr) == (0, True)


def test_a_forked_node_ends_by_signals_with_their_exit_codes(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        files = sorted(int(fd.name) for fd in Path(f"/proc/{service.process.pid}/fd").iterdir())
        assert files[:3] == [0, 1, 2]
        assert service.stop() == 0
        service.start()
        service.kill()
        assert service.process.exit_code == -9
    assert service.process.pid != os.getpid()


@pytest.mark.parametrize("exec_only", ["0", "1"])
def test_what_stands_in_for_the_command_in_a_shell_is_like_the_command(
    monkeypatch: pytest.MonkeyPatch, exec_only: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("WAL_TESTS_EXEC", exec_only)

    def typed(line: str, **environ: str) -> tuple[int, str, str]:
        env = environment({}) | {"PATH": search_path()} | environ
        ran = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            check=False,
            env=env,
            cwd=tmp_path,
            timeout=60,
        )
        return ran.returncode, ran.stdout, ran.stderr

    code, _out, err = typed("wal-ingest config", WAL_INGEST_SERVER__BIND="nonsense")
    assert (code, "server.bind" in err) == (2, True)
    assert "Usage: wal-ingest wal cat" in typed("wal-ingest wal cat --what")[2]
    assert typed("printf 'm v=1 1\\n' | wal-ingest wal import - --data-dir data")[0] == 0
    assert typed("umask 077; wal-ingest wal cat --data-dir data > lines; cat lines")[1] == "m v=1 1\n"
    # It cannot give away other open files, so the command itself is run.
    code, _out, err = typed("wal-ingest wal import /dev/fd/7 --data-dir data 7< lines")
    assert code == 0, err
    assert typed("wal-ingest wal cat --data-dir data | wc -l")[1] == "2\n"


def test_what_stands_in_for_a_node_passes_signals_on_and_takes_it_along_when_killed(tmp_path: Path) -> None:
    argv: list[str | Path] = [
        quick_command(),
        "serve",
        "--bind",
        "127.0.0.1:0",
        "--data-dir",
        tmp_path / "data",
    ]
    lock = tmp_path / "data/LOCK"
    for ends, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment({})
        ) as node:
            assert node.stdout is not None
            port = int(node.stdout.readline().split(":")[2].split(",")[0])
            assert http_status(f"http://127.0.0.1:{port}/healthz") == 200
            node.send_signal(ends)
            assert node.wait(10) == code
        wait_until(lambda: is_free(lock), "the node has ended")


def is_free(lock: Path) -> bool:
    """Whether no process holds a lock."""
    with lock.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_what_stands_in_ends_by_the_signal_that_the_command_ends_by(tmp_path: Path) -> None:
    assert run_bytes("wal", "import", "-", "--data-dir", tmp_path, stdin=b"m v=1 1\n").returncode == 0
    argv: list[str | Path] = [quick_command(), "wal", "cat", "--follow", "--data-dir", tmp_path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment({})) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == b"m v=1 1\n"
        command.send_signal(signal.SIGUSR1)
        assert command.wait(10) == -signal.SIGUSR1
