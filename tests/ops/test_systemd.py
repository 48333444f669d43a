"""The systemd unit: valid, hardened, and not so hard that the program cannot run. No systemd runs it here."""

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
from wal_ingest.cli.output import OPERATOR_NEEDED, USAGE
from wal_ingest.config import FIELDS

ROOT = Path(__file__).parent.parent.parent
UNIT = ROOT / "ops/systemd/wal-ingest.service"

# `systemd-analyze security` counts from 0 (locked up) to 100. Ours is 12: it needs the network, and files.
EXPOSURE_MAX = 15

# What the unit's processes do before or after the filter counts for them.
_OF_THE_TRACER = {"execve", "exit_group", "restart_syscall"}


def options() -> dict[str, list[str]]:
    """The unit's settings: every value of each, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
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


@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    [start] = options()["ExecStart"]
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace(shlex.split(start)[0], str(COMMAND)))
    ran = systemd_analyze("verify", "--man=no", here)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
def test_the_unit_is_hardened() -> None:
    ran = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", UNIT)
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


def test_systemd_waits_longer_for_the_end_than_the_program_takes() -> None:
    [seconds] = options()["TimeoutStopSec"]
    assert float(seconds) > FIELDS["server.stop_s_max"].default


def test_a_wal_that_failed_is_started_again_and_wrong_settings_are_not() -> None:
    assert options()["Restart"] == ["on-failure"]
    never = [int(code) for code in options()["RestartPreventExitStatus"][0].split()]
    assert USAGE in never
    assert OPERATOR_NEEDED not in never


def allowed_calls() -> set[str]:
    """The system calls that the unit's filter lets through, groups resolved."""
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
    for line in options()["SystemCallFilter"]:
        calls = set().union(*map(resolved, line.removeprefix("~").split()))
        allowed = allowed - calls if line.startswith("~") else allowed | calls
    assert {"read", "fdatasync", "accept4"} <= allowed
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
    text = trace.read_text()
    made = set(re.findall(r"^\d+ +(\w+)\(", text, re.MULTILINE))
    assert len(made) > 30
    assert made - allowed_calls() - _OF_THE_TRACER == set()
    assert re.findall(r"^.*PROT_WRITE\|PROT_EXEC.*$", text, re.MULTILINE) == []
    families = set(re.findall(r"\bsocket\((AF_\w+)", text))
    assert families <= set(options()["RestrictAddressFamilies"][0].split())


def test_the_signal_that_systemd_sends_is_the_one_that_stops_in_order() -> None:
    assert "KillSignal" not in options(), (
        f"{signal.SIGTERM.name} is the default, and what the program waits for"
    )
