"""What another user may not read is named with the user who may, and nothing is called damaged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.forked import quick_command_under
from tests.rigs.processes import find_program
from tests.rigs.service import environment, run_command

# Root without the two privileges that let it pass by every permission.
_LACKING = "-dac_override,-dac_read_search"
_NOBODY = 65_534


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of another user's, which nobody else may enter, with a data directory in it."""
    if os.geteuid() != 0 or find_program("setpriv") is None:
        pytest.skip("needs root and setpriv, to become a user with fewer rights")
    folder = tmp_path_factory.mktemp("private") / "home"
    folder.mkdir()
    points = folder / "points.lp"
    points.write_bytes(b"cpu v=1 1\n")
    ran = run_command("wal", "import", points, "--data-dir", folder / "data")
    assert ran.returncode == 0, ran.stderr
    for path in (folder, *folder.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


@pytest.fixture(scope="module")
def with_fewer_rights() -> Iterator[list[str]]:
    """The command as a user has it who may not look into other users' folders."""
    with quick_command_under("setpriv", "--bounding-set", _LACKING, "--inh-caps", _LACKING) as command:
        yield command


def run(command: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs it to its end."""
    return subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment({}),
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    "words",
    [
        "wal status",
        "wal ls",
        "wal cat",
        "wal verify",
        "wal salvage --all --dry-run",
        "wal export -",
        "sink status",
        "sink check",
        "sink pause archive",
        "sink resume archive",
        "sink skip archive --all --yes",
        "sink forget archive --yes",
        "dead-letters list",
        "dead-letters show",
        "dead-letters export -",
        "dead-letters retry",
        "dead-letters drop --sink archive --yes",
        "stream list",
        "stream forget a",
        "wal import /dev/null",
        "replay --seq 1 --dry-run --to http://127.0.0.1:9 --bucket b",
        "serve --bind 127.0.0.1:0",
    ],
)
def test_a_command_names_the_user_who_may(private: Path, with_fewer_rights: list[str], words: str) -> None:
    ran = run(with_fewer_rights, *words.split(), "--data-dir", private / "data")
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    error, hint = ran.stderr.splitlines()
    assert error.startswith("error: ")
    assert "ermission denied" in error
    assert hint == "try: sudo -u nobody wal-ingest …"


def test_the_agent_names_the_user_who_may_write_its_spool(
    private: Path, with_fewer_rights: list[str]
) -> None:
    spool = private / "spool/deep"
    ran = run(with_fewer_rights, "agent", "--to", "ws://127.0.0.1:9", "--spool-dir", spool)
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "ermission denied" in ran.stderr
    assert "sudo -u nobody" in ran.stderr
