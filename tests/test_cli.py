"""The command line as a user types it: output, exit codes, and what to try next."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.rigs.forked import quick_command
from tests.rigs.service import environment
from tests.wal.factories import new_entry, open_store
from wal_ingest import __version__
from wal_ingest.cli import app
from wal_ingest.cli.output import age_text, bytes_text
from wal_ingest.wal.cursor import Cursor, Trouble

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs `wal-ingest` in a folder to its end."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("WAL_INGEST_", "INFLUXDB_"))
    }
    return subprocess.run(
        [quick_command(), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=cwd,
        env={**kept, "COLUMNS": "200", **environ},
    )


def test_help_names_every_command_and_the_exit_codes(tmp_path: Path) -> None:
    ran = run("--help", cwd=tmp_path)
    assert ran.returncode == 0
    for word in ("serve", "wal", "config", "Exit codes: 0 done"):
        assert word in ran.stdout


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == f"wal-ingest {__version__}\n"


def test_the_package_is_the_command_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wal_ingest", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, cwd=tmp_path)
    assert ran.stdout == f"wal-ingest {__version__}\n"


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    ran = run("srve", cwd=tmp_path)
    assert ran.returncode == 2
    assert "srve" in ran.stderr


def test_the_settings_are_shown_with_their_origin_and_without_secrets(tmp_path: Path) -> None:
    environ = {"INFLUXDB_TOKEN": "hush-hush", "WAL_INGEST_SERVER__BIND": "0.0.0.0:9"}
    table = run("config", "--data-dir", "/d", cwd=tmp_path, **environ)
    assert table.returncode == 0
    assert "hush-hush" not in table.stdout
    rows = {line.split()[0]: line.split()[1:] for line in table.stdout.splitlines()}
    assert rows["server.bind"] == ["0.0.0.0:9", "WAL_INGEST_SERVER__BIND"]
    assert rows["server.data_dir"] == ["/d", "command", "line"]
    assert rows["influxdb.token"] == ["********", "INFLUXDB_TOKEN"]
    told = json.loads(run("config", "--json", cwd=tmp_path, **environ).stdout)
    assert told["server.bind"] == {"value": "0.0.0.0:9", "from": "WAL_INGEST_SERVER__BIND"}
    assert "hush-hush" not in json.dumps(told)


def test_a_settings_file_is_checked_without_starting_anything(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(run("config", "sample", cwd=tmp_path).stdout)
    bad.write_text("[wal]\nsegmnt_s_max = 3\n")
    checked = run("config", "check", good, cwd=tmp_path)
    assert (checked.returncode, checked.stdout) == (0, f"{good}: fine\n")
    refused = run("config", "check", bad, cwd=tmp_path)
    assert refused.returncode == 2
    assert (
        refused.stderr
        == f"error: {bad}, line 2: unknown setting wal.segmnt_s_max\ntry: did you mean wal.segment_s_max?\n"
    )


def test_a_status_of_nothing_names_the_directory(tmp_path: Path) -> None:
    ran = run("wal", "status", "--data-dir", tmp_path / "nowhere", cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: there is no WAL in ")
    assert "try: " in ran.stderr


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory with a sealed segment, 40 points, and a sink that has confirmed half."""
    store = open_store(tmp_path / "data")
    store.wal.commit([[new_entry(1, points=20)]])
    store.wal.seal()
    store.wal.commit([[new_entry(2, points=20)]])
    store.commit_cursor("influxdb", Cursor(1, 20, parked=3, confirmed=17))
    store.state.note_trouble("influxdb", Trouble("holding", "401 unauthorized", 1_700_000_000_000_000_000))
    store.close()
    return tmp_path / "data"


def test_a_status_for_people_says_what_waits(tmp_path: Path, data_dir: Path) -> None:
    ran = run("wal", "status", "--data-dir", data_dir, cwd=tmp_path)
    assert ran.returncode == 0
    assert "40 points accepted, 40 kept in seqs 1 to 2" in ran.stdout
    rows = [line.split() for line in ran.stdout.splitlines()]
    [sink] = [row for row in rows if row[:1] == ["influxdb"]]
    # cursor, confirmed, waiting
    assert sink[1:4] == ["1", "17", "20"]
    assert sink[-3:] == ["3", "0", "holding"]
    assert "influxdb: holding for " in ran.stdout
    assert "401 unauthorized" in ran.stdout
    assert "unaccounted" not in ran.stdout
    assert [row[-1] for row in rows if row and row[0].endswith(".lmdb")] == ["sealed", "to"]


def test_a_status_for_programs_has_every_number(tmp_path: Path, data_dir: Path) -> None:
    told = json.loads(run("wal", "status", "--json", "--data-dir", data_dir, cwd=tmp_path).stdout)
    assert told["points_accepted"] == 40
    assert told["server_pid"] is None
    assert [segment["points"] for segment in told["segments"]] == [20, 20]
    sink = told["sinks"]["influxdb"]
    assert sink["waiting_points"] == 20
    assert sink["confirmed_points"] + sink["parked"] + sink["waiting_points"] == told["points_accepted"]
    assert (sink["state"], sink["reason"]) == ("holding", "401 unauthorized")


def test_a_data_directory_in_use_is_refused_with_the_others_process_id(
    tmp_path: Path, data_dir: Path
) -> None:
    store = open_store(data_dir)
    ran = run("serve", "--data-dir", data_dir, "--bind", "127.0.0.1:0", cwd=tmp_path)
    store.close()
    assert ran.returncode == 2
    assert f"in use by process {os.getpid()}" in ran.stderr
    assert "try: " in ran.stderr


@pytest.mark.parametrize("bind", ["nonsense", "127.0.0.1:99999", "256.1.1.1:80"])
def test_an_address_that_cannot_be_is_a_usage_error(tmp_path: Path, bind: str) -> None:
    ran = run("serve", "--data-dir", tmp_path / "data", "--bind", bind, cwd=tmp_path)
    assert ran.returncode == 2
    assert "server.bind" in ran.stderr


def test_a_data_directory_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    ran = run("serve", "--data-dir", blocker / "data", "--bind", "127.0.0.1:0", cwd=tmp_path)
    assert ran.returncode == 2
    assert "cannot be made" in ran.stderr


def test_sizes_and_ages_read_well() -> None:
    assert [bytes_text(size) for size in (0, 1023, 1536, 33554432, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "32.0 MiB",
        "5.0 TiB",
    ]
    assert [age_text(age) for age in (None, 3.2, 600.0, 9000.0, 200_000.0)] == [
        "-",
        "3 s",
        "10 min",
        "2.5 h",
        "2.3 d",
    ]


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with the words that are typed for it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


LEAVES = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_help_has_an_example_that_the_command_line_takes(words: tuple[str, ...]) -> None:
    """It is parsed, not run."""
    command = LEAVES[words]
    shown = command.epilog or ""
    examples = re.findall(rf"wal-ingest ({' '.join(words)}\b[^|\n]*)", shown)
    assert examples, f"no example in the help of {' '.join(words)}"
    for example in examples:
        typed = shlex.split(example.partition(" > ")[0].partition(" || ")[0])[len(words) :]
        command.make_context(words[-1], typed)


def test_a_shell_can_complete_commands(tmp_path: Path) -> None:
    completion = {"_WAL_INGEST_COMPLETE": "complete_bash", "COMP_WORDS": "wal-ingest s", "COMP_CWORD": "1"}
    ran = subprocess.run(
        [quick_command()],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=environment({}) | completion,
        cwd=tmp_path,
    )
    assert ran.stdout.split() == ["serve", "send", "sink", "stream"]
