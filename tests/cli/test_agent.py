"""`wal-ingest agent` as a process, against a real node."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rigs.processes import Process, wait_until
from tests.rigs.service import COMMAND, Service, environment, run_command
from wal_ingest.cli.agent import _size_bytes
from wal_ingest.errors import ConfigError
from wal_ingest.points.line_protocol import accept_line_protocol
from wal_ingest.points.lines import Precision


class Agent:
    """A running agent over the spool `spool` in a folder."""

    def __init__(self, folder: Path, to: str, *more: str) -> None:
        self.out = folder / "agent.out"
        self.out.unlink(missing_ok=True)
        arguments = ["--to", to, "--interval", "1", "--host", "web-17", "--only", "mem,system", *more]
        self.process = Process(
            "wal-ingest agent",
            [COMMAND, "agent", *arguments],
            log=folder / "agent.err",
            stdout=self.out,
            env=environment({}),
            cwd=folder,
        )
        wait_until(
            lambda: not self.process.running or self.out.read_text().endswith("\n"), "the agent is ready"
        )


@contextmanager
def agent(folder: Path, to: str, *more: str) -> Iterator[Agent]:
    running = Agent(folder, to, *more)
    try:
        yield running
    finally:
        running.process.end()


def lines_in(data_dir: Path) -> list[str]:
    """What a WAL holds, oldest first."""
    ran = run_command("wal", "cat", "--data-dir", data_dir)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def waiting(spool: Path) -> int:
    told = json.loads(run_command("wal", "status", "--json", "--data-dir", spool).stdout)
    points: int = told["sinks"]["node"]["waiting_points"]
    return points


def events(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "agent.err").read_text().splitlines()]


def kept(service: Service) -> list[str]:
    """The lines that the node accepted."""
    return lines_in(service.data_dir)


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_one_round_is_delivered_to_a_node(tmp_path: Path, scheme: str) -> None:
    settings = {"server.write_token": "secret", "wal.keep_confirmed_s": 3600}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        to = f"{scheme}://127.0.0.1:{service.port}"
        spool = tmp_path / "spool"
        more = ("--host", "web 17", "--tag", "dc=a", "--token", "secret")
        ran = run_command("agent", "--to", to, "--once", "--spool-dir", spool, *more)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == (f"wal-ingest 0.1.0 agent measures web 17 once for {to}, spool in {spool}\n")
        lines = kept(service)
        assert {line.partition(",")[0] for line in lines} >= {"cpu", "mem", "swap", "system", "agent"}
        assert all(",dc=a," in line and r",host=web\ 17" in line for line in lines)
        assert lines == lines_in(spool)
        assert waiting(spool) == 0


def test_what_a_node_that_is_away_does_not_get_is_delivered_once_whoever_is_killed(tmp_path: Path) -> None:
    settings = {"wal.keep_confirmed_s": 3600}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        to = f"ws://127.0.0.1:{service.port}"
        spool = tmp_path / "agent-spool"
        with agent(tmp_path, to) as first:
            wait_until(lambda: kept(service), "a round arrives")
            first.process.kill()
        with agent(tmp_path, to) as second:
            some = len(kept(service))
            wait_until(lambda: len(kept(service)) > some, "a round of the second life arrives")
            service.kill()
            wait_until(lambda: waiting(spool) >= 4, "rounds wait in the spool")
            assert second.process.running
            second.process.kill()
        service.start()
        with agent(tmp_path, f"ws://127.0.0.1:{service.port}") as third:
            wait_until(lambda: waiting(spool) == 0, "everything is delivered")
            assert third.process.stop() == 0
        spooled, stored = lines_in(spool), kept(service)
    assert stored == sorted(set(stored), key=stored.index), "nothing is there twice"
    # The spool keeps only what is not settled, and the segment it is in.
    assert set(spooled) <= set(stored)
    assert len(stored) >= 8


def test_a_stop_keeps_what_is_measured_and_says_so(tmp_path: Path) -> None:
    with agent(tmp_path, "ws://127.0.0.1:1", "--spool-dir", "s") as running:
        wait_until(lambda: waiting(tmp_path / "s") >= 2, "a round waits in the spool")
        assert running.process.stop() == 0
    told = events(tmp_path)
    assert [entry["event"] for entry in told] == ["not delivering; everything is kept", "stopping", "stopped"]
    assert "Connection refused" in str(told[0]["reason"])
    assert told[-1]["waiting_points"] == waiting(tmp_path / "s") == len(lines_in(tmp_path / "s"))


def test_a_wrong_token_is_an_operators_matter_and_does_not_stand_in_the_log(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path, settings={"server.write_token": "secret"}) as service:
        to = f"ws://127.0.0.1:{service.port}?token=also-wrong"
        with agent(tmp_path, to, "--token", "quite-wrong") as running:
            wait_until(lambda: (tmp_path / "agent.err").read_text().count("\n"), "the agent says something")
            running.process.signal(signal.SIGINT)
            wait_until(lambda: not running.process.running, "Ctrl-C stops it")
            assert running.process.exit_code == 0
            assert running.out.read_text().endswith(f"127.0.0.1:{service.port}, spool in ./agent-spool\n")
    assert events(tmp_path)[0]["event"] == "not delivering, a person must look; everything is kept"
    assert "wrong" not in (tmp_path / "agent.err").read_text()


def test_a_dry_run_prints_lines_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ran = run_command(
        "agent", "--dry-run", "--only", "system, mem", "--host", "web-17", "--spool-dir", tmp_path / "s"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    body = ran.stdout.encode()
    lines = accept_line_protocol(body, precision=Precision.NS, now_ns=1, line_bytes_max=65_536)
    assert (lines.data, lines.points) == (body, 2)
    assert re.match(r"mem,host=web-17 total=\d+i,", ran.stdout)
    assert list(tmp_path.iterdir()) == []


TO = ("--to", "ws://127.0.0.1:8400")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "--to is missing"),
        (("--to", "127.0.0.1:8400"), "is no address of a node"),
        (("--to", "ws://"), "names no host"),
        ((*TO, "--interval", "0.5"), "--interval 0.5: from 1 to 3600 seconds"),
        ((*TO, "--interval", "nan"), "--interval nan"),
        ((*TO, "--only", "cpu,memory"), "nothing is called 'memory'"),
        ((*TO, "--tag", "host=a"), "the agent has a tag host of its own"),
        ((*TO, "--tag", "dc=a", "--tag", "dc=b"), "dc is given twice"),
        ((*TO, "--tag", "dc"), "an empty tag value"),
        ((*TO, "--tag", "=a"), "an empty tag key"),
        ((*TO, "--host", "a\nb"), "a line feed"),
        ((*TO, "--spool-bytes-max", "much"), "is no size"),
        ((*TO, "--spool-bytes-max", "1MiB"), "at least 4MiB"),
        ((*TO, "--spool-dir", "/proc/spool"), "cannot be made"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], error: str
) -> None:
    ran = run_command("agent", "--once", "--spool-dir", tmp_path / "s", *arguments)
    assert ran.returncode == 2, ran.stderr
    assert error in ran.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("4194304", 4 << 20), ("4096KiB", 4 << 20), ("64 MiB", 64 << 20), ("1GiB", 1 << 30)]
)
def test_a_size_is_bytes_or_a_number_with_its_unit(text: str, size: int) -> None:
    assert _size_bytes(text) == size
    with pytest.raises(ConfigError):
        _size_bytes(f"-{text}")
