"""The systemd units: valid, hardened, and not so hard that the program cannot run. No systemd runs them here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.ops.test_alerts import help_of
from tests.rigs.service import COMMAND, Service, run_command
from wal_ingest.agent.agent import STOP_S_MAX
from wal_ingest.cli.output import OPERATOR_NEEDED, USAGE
from wal_ingest.config import FIELDS

ROOT = Path(__file__).parent.parent.parent
UNIT = ROOT / "ops/systemd/wal-ingest.service"
AGENT = ROOT / "ops/systemd/wal-ingest-agent.service"
UNITS = pytest.mark.parametrize("unit", [UNIT, AGENT], ids=["node", "agent"])

# `systemd-analyze security` counts from 0 (locked up) to 100. Ours are 12 and 15: they need the network, and files; the
# agent looks at all processes and disks.
EXPOSURE_MAX = 15

# What the unit's processes do before or after the filter counts for them.
_OF_THE_TRACER = {"execve", "exit_group", "restart_syscall"}


def options(unit: Path = UNIT) -> dict[str, list[str]]:
    """A unit's settings: every value of each, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def systemd_analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "notice"},
    )


@UNITS
@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_one_that_systemd_understands(tmp_path: Path, unit: Path) -> None:
    [start] = options(unit)["ExecStart"]
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace(shlex.split(start)[0], str(COMMAND)))
    ran = systemd_analyze("verify", "--man=no", here)
    assert (ran.returncode, ran.stderr) == (0, "")


@UNITS
@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_hardened(unit: Path) -> None:
    ran = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_command_line_of_the_unit_is_one_that_the_program_takes() -> None:
    [start] = options()["ExecStart"]
    _program, command, *rest = shlex.split(start)
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    text = help_of(command)
    assert all(option in text for option in given)
    assert given["--data-dir"] == f"/var/lib/{options()['StateDirectory'][0]}"
    # The sample that is installed as the settings is fine as it is.
    checked = run_command("config", "check", ROOT / "ops/wal-ingest.toml")
    assert checked.returncode == 0, checked.stderr


def test_the_command_line_of_the_agents_unit_is_one_that_the_program_takes() -> None:
    [start] = options(AGENT)["ExecStart"]
    _program, command, *rest = shlex.split(start.removesuffix(" $OPTIONS"))
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    text = help_of(command)
    assert all(option in text for option in given)
    assert given["--spool-dir"] == f"/var/lib/{options(AGENT)['StateDirectory'][0]}"
    given["--to"] = re.sub(r".*NODE=(\S+).*", r"\1", options(AGENT)["Environment"][0])
    assert given["--to"] == "ws://127.0.0.1:8400"


def test_systemd_waits_longer_for_the_end_than_the_program_takes() -> None:
    [seconds] = options()["TimeoutStopSec"]
    assert float(seconds) > FIELDS["server.stop_s_max"].default
    [seconds] = options(AGENT)["TimeoutStopSec"]
    assert float(seconds) > 5 * STOP_S_MAX


@UNITS
def test_any_end_is_followed_by_a_start_but_for_wrong_settings(unit: Path) -> None:
    assert options(unit)["Restart"] == ["always"]
    never = [int(code) for code in options(unit)["RestartPreventExitStatus"][0].split()]
    assert USAGE in never
    assert OPERATOR_NEEDED not in never


def allowed_calls(unit: Path = UNIT) -> set[str]:
    """The system calls that a unit's filter lets through, groups resolved."""
    listing = systemd_analyze("syscall-filter").stdout
    groups: dict[str, list[str]] = {}
    for line in re.sub(r"\x1b\[[0-9;]*m", "", listing).splitlines():
        if line.startswith("@"):
            members = groups.setdefault(line.strip(), [])
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())

    def resolved(name: str) -> set[str]:
        return set().union(*map(resolved, groups[name])) if name.startswith("@") else {name}

    allowed: set[str] = set()
    for line in options(unit)["SystemCallFilter"]:
        calls = set().union(*map(resolved, line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    assert {"read", "fdatasync", "accept4", "statfs"} <= allowed
    return allowed


@pytest.mark.needs("systemd-analyze", "strace")
def test_the_program_makes_only_system_calls_and_mappings_that_the_unit_allows(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    under = ("strace", "-f", "-qq", "-e", "signal=none", "-o", trace)
    with Service(tmp_path / "data", logs=tmp_path, under=under) as service:
        for _ in range(3):
            request = urllib.request.Request(f"{service.url}/write", data=b"cpu,host=a user=1 1")
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 204
        with urllib.request.urlopen(f"{service.url}/metrics", timeout=30) as answer:
            assert answer.status == 200
        assert service.stop() == 0
    check_trace(trace, UNIT)


@pytest.mark.needs("systemd-analyze", "strace")
def test_the_agent_makes_only_system_calls_and_mappings_that_its_unit_allows(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with Service(tmp_path / "data", logs=tmp_path) as service:
        for scheme in ("ws", "http"):
            # By name, so that it is looked up as a node's would be.
            to = ("--to", f"{scheme}://localhost:{service.port}", "--spool-dir", tmp_path / scheme)
            command = (
                "strace",
                "-f",
                "-qq",
                "-e",
                "signal=none",
                "-o",
                trace,
                COMMAND,
                "agent",
                *to,
                "--once",
            )
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
            assert ran.returncode == 0, ran.stderr
            check_trace(trace, AGENT)


def check_trace(trace: Path, unit: Path) -> None:
    """Whether all that was done is what the unit allows."""
    text = trace.read_text()
    made = set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))
    assert len(made) > 30
    assert made - allowed_calls(unit) - _OF_THE_TRACER == set()
    assert re.findall(r"^.*PROT_WRITE\|PROT_EXEC.*$", text, re.MULTILINE) == []
    families = set(re.findall(r"\bsocket\((AF_\w+)", text))
    assert families <= set(options(unit)["RestrictAddressFamilies"][0].split())


@UNITS
def test_the_signal_that_systemd_sends_is_the_one_that_stops_in_order(unit: Path) -> None:
    assert "KillSignal" not in options(unit), (
        f"{signal.SIGTERM.name} is the default, and what the program waits for"
    )
