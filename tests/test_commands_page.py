"""docs/COMMANDS.md: its commands are run over a prepared WAL, and its tables have the keys of what is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.influxdb import InfluxDB
from tests.rigs.pages import Reader, commands, masked
from tests.rigs.prepared import POINTS, prepare
from tests.rigs.processes import wait_until
from tests.rigs.service import run_command
from tests.wal.test_damage import flip, zero_tree
from wal_ingest.agent.probes import host_probes, psutil_figures
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.letter_files import LETTERS_DIR, file_name
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.salvage import Note, write_note
from wal_ingest.wal.state import State

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/COMMANDS.md").read_text()
# The sections on the log are one story: each goes on where the one before ended.
LOG = [heading for heading in re.findall(r"^## (.*)$", PAGE, re.MULTILINE) if heading.startswith("wal ")]


def section(heading: str) -> str:
    """What stands under a second-level heading."""
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.mark.needs("jq")
def test_the_commands_about_the_log_do_what_the_page_shows(tmp_path: Path) -> None:
    prepare(tmp_path / "data")
    reader = Reader(tmp_path, errors_too=True)
    steps = [step for heading in LOG for step in commands(section(heading))]
    assert len(steps) >= 20
    for command, shown in steps:
        reader.type(command, shown)


def keys_told(command: str) -> set[str]:
    """The keys in the page's table for a command's JSON."""
    found = re.search(rf"<!-- json {command} -->\n(.*?)<!-- /json -->", PAGE, re.DOTALL)
    assert found is not None, f"the page has no table of the keys of {command}"
    told = set()
    for row in found[1].splitlines()[2:]:
        told |= set(re.findall(r"`([^`]+)`", row.split("|")[1]))
    return told


def keys_of(value: Any, prefix: str = "") -> set[str]:
    """The keys of a JSON value, as the page writes them: `a.b`, `a[].b`."""
    if isinstance(value, dict):
        found: set[str] = set()
        for key, each in value.items():
            found |= keys_of(each, f"{prefix}.{key}" if prefix else key)
        return found
    if isinstance(value, list):
        return set().union(*(keys_of(each, f"{prefix}[]") for each in value))
    return {prefix}


def printed(*arguments: str | Path, cwd: Path) -> set[str]:
    """The keys of all documents that a command prints."""
    ran = run_command("wal", *arguments, "--json", "--data-dir", cwd / "data")
    assert ran.returncode in (0, 3), ran.stderr
    text = ran.stdout
    documents = text.splitlines() if arguments[0] == "cat" else [text]
    return set().union(*(keys_of(json.loads(document)) for document in documents))


def test_the_page_has_every_key_of_what_the_commands_print_as_json(tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare(data)
    _first, second, third = sorted((data / "wal").glob("*.lmdb"))
    assert keys_told("wal cat") == printed("cat", "--limit", "1", cwd=tmp_path)
    out = tmp_path / "out.lp.gz"
    assert keys_told("wal export") == printed("export", out, "--seq", "5..6", cwd=tmp_path)
    # A segment that was set aside and leaves a gap, one with a lost entry, and dead letters in trouble.
    state = State(data, now_ns=1)
    state.commit_cursor("influxdb", Cursor(2, 2 * POINTS, confirmed=2 * POINTS - 1, parked=1))
    state.close()
    (data / LETTERS_DIR).mkdir()
    (data / LETTERS_DIR / file_name(1)).write_bytes(b"too many")
    in_letters = {key for key in printed("verify", cwd=tmp_path) if key.startswith("dead_letters.")}
    zero_tree(second)
    assert keys_told("wal import") == printed("import", out, cwd=tmp_path)
    flip(third, 20000)
    verified = printed("verify", cwd=tmp_path)
    assert printed("ls", cwd=tmp_path) == keys_told("wal ls")
    once = printed("salvage", third, cwd=tmp_path)
    assert run_command("wal", "salvage", "--all", "--data-dir", data).returncode == 0
    assert once | printed("salvage", "--all", cwd=tmp_path) == keys_told("wal salvage")
    gone = Lost(second.name, 3, 3, 1000, "gone", None)
    note = Note(salvaged_ns=1, entries=1, points=1000, to="there", lost=[gone])
    write_note(data / "wal/damaged" / second.name, note)
    assert verified | in_letters | printed("verify", cwd=tmp_path) == keys_told("wal verify")


def test_the_agent_does_what_the_page_shows(tmp_path: Path) -> None:
    # What it logs stands on standard error; the page shows the rest.
    reader = Reader(tmp_path)
    steps = list(commands(section("agent")))
    assert len(steps) == 4
    try:
        for command, shown in steps:
            reader.type(command, shown)
    finally:
        reader.end()


@pytest.mark.needs("jq")
def test_send_does_what_the_page_shows(tmp_path: Path) -> None:
    reader = Reader(tmp_path, errors_too=True)
    try:
        steps = list(commands(section("send")))
        assert len(steps) >= 12
        for command, shown in steps:
            reader.type(command, shown)
        sent = run_command("send", tmp_path / "cpu.lp", "--json", "--to", reader.here("ws://127.0.0.1:8400"))
        assert keys_told("send") == keys_of(json.loads(sent.stdout))
    finally:
        reader.end()


def test_the_page_has_every_measurement_of_the_agent_and_every_tag() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|(.*?)\|(.*?)\|$", section("agent"), re.MULTILINE)
    told = {name: (set(re.findall(r"`([a-z]+)`", tags)), fields) for name, tags, fields in rows}
    probes = host_probes(psutil_figures())
    assert set(told) == {*probes, "agent"}
    for name, probe in probes.items():
        for reading in probe():
            tags, fields = told[name]
            assert set(reading.tags) == tags
            # Of the CPU's seconds only some are named.
            assert name == "cpu" or set(reading.fields) <= set(re.findall(r"`(\w+)`", fields))


def masked_sinks(output: str) -> str:
    """As `masked`; and ages, and the version of the InfluxDB at hand."""
    output = re.sub(r"\b\d+ s\b", "A s", masked(output))
    return re.sub(r"as InfluxDB \S+", "as InfluxDB V", output)


@pytest.mark.needs("jq", "influxdb", "curl")
def test_the_commands_about_sinks_and_dead_letters_do_what_the_page_shows(
    influxdb: InfluxDB, tmp_path: Path
) -> None:
    influxdb.query("CREATE DATABASE metrics")
    reader = Reader(
        tmp_path,
        errors_too=True,
        mask=masked_sinks,
        looks=("wal-ingest sink status", "wal-ingest dead-letters list"),
        env={"INFLUXDB_URL": influxdb.url, "INFLUXDB_ORG": "acme", "INFLUXDB_BUCKET": "metrics"},
    )
    reader.moved["8086"] = influxdb.url.rpartition(":")[2]
    try:
        for command, shown in [*commands(section("sink")), *commands(section("dead-letters"))]:
            reader.type(command, shown)
        for command in ("sink status", "sink check"):
            told = {f"<sink>{key.removeprefix('influxdb')}" for key in asked(reader, command)}
            assert told == keys_told(command)
        reader.type(
            "curl -so /dev/null http://127.0.0.1:8400/metrics -H 'Content-Type: text/plain' "
            """--data-binary 'temp,room=e value=17 1763800003000000000'""",
            "",
        )
        wait_until(lambda: asked(reader, "dead-letters list"), "there is a dead letter")
        for command in ("dead-letters list", "dead-letters show"):
            assert asked(reader, command) == keys_told(command)
    finally:
        reader.end()


@pytest.mark.needs("jq")
def test_the_commands_about_streams_do_what_the_page_shows(tmp_path: Path) -> None:
    reader = Reader(tmp_path, errors_too=True, mask=masked_sinks, looks=("wal-ingest stream list",))
    try:
        for command, shown in commands(section("stream")):
            if command.startswith("wal-ingest stream forget") and "--yes" in command:
                assert asked(reader, "stream list") == keys_told("stream list")
            reader.type(command, shown)
    finally:
        reader.end()


def asked(reader: Reader, command: str) -> set[str]:
    """The keys of what a command prints as JSON."""
    arguments: list[str | Path] = [*command.split(), "--json", "--data-dir", reader.folder / "data"]
    settings = {
        "influxdb.url": reader.env.get("INFLUXDB_URL", ""),
        "influxdb.bucket": reader.env.get("INFLUXDB_BUCKET", ""),
    }
    return keys_of(json.loads(run_command(*arguments, settings=settings).stdout))
