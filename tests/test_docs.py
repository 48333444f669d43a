"""The documents are true: the README's commands are run, and its tables are compared with the program."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import wal_ingest
from tests.rigs.pages import Reader, commands
from tests.rigs.service import Service
from wal_ingest.cli import app
from wal_ingest.config import FIELDS
from wal_ingest.metrics import TABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def section(heading: str) -> str:
    """What stands under a second-level heading."""
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def between(marker: str) -> str:
    """What stands between two marker comments."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", README, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader whose servers end with the test."""
    reader = Reader(tmp_path)
    yield reader
    reader.end()


@pytest.mark.needs("curl")
def test_the_first_steps_do_what_the_readme_shows(reader: Reader) -> None:
    steps = [*commands(section("Run it")), *commands(section("kill -9 loses nothing"))]
    assert len(steps) >= 8
    for command, shown in steps:
        reader.type(command, shown)


@pytest.mark.needs("victoria-metrics", "curl")
def test_the_way_into_a_database_is_as_the_readme_shows(reader: Reader) -> None:
    steps = list(commands(section("With InfluxDB in the loop")))
    assert len(steps) == 4
    for command, shown in steps:
        reader.type(command, shown)


def test_the_example_of_a_client_does_what_the_readme_says(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", section("Instrument a server"), re.DOTALL)
    assert example is not None
    with Service(tmp_path / "data", logs=tmp_path) as node:
        program = example[1].replace("ws://127.0.0.1:8400", f"ws://127.0.0.1:{node.port}")
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
        )
        assert (ran.stdout, ran.stderr) == ("durable: 1 point\n", "")
        assert node.status()["points_accepted"] == 1


def test_an_agent_and_a_file_reach_the_node_as_the_readme_shows(reader: Reader) -> None:
    (reader.folder / "old-points.lp").write_text(
        "cpu usage=0.2 1763800000000000000\ncpu usage=0.3 1763800001000000000\n"
    )
    reader.type("make run", "wal-ingest 0.1.0 ready on http://127.0.0.1:8400, data in ./data")
    steps = list(commands(section("Instrument a server")))
    assert [command.split()[1] for command, _shown in steps] == ["agent", "send"]
    for command, shown in steps:
        reader.type(command, shown)


def settings_table() -> str:
    """The README's table of settings, made from the program's."""
    rows = ["| setting | default | why |", "|---|---|---|"]
    rows += [f"| `{field.name}` | `{field.default!r}` | {field.why} |" for field in FIELDS.values()]
    return "\n".join(rows) + "\n"


def test_every_setting_is_in_the_readme_with_its_default_and_its_reason() -> None:
    assert between("settings") == settings_table()


def metrics_table() -> str:
    """API.md's table of metrics, made from the program's."""
    rows = ["| metric | kind | what it says |", "|---|---|---|"]
    for metric in TABLE:
        labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
        rows.append(f"| `{metric.exposed_name}{labels}` | {metric.kind.value} | {metric.help} |")
    return "\n".join(rows) + "\n"


def test_every_metric_is_in_the_api_page() -> None:
    assert (
        f"<!-- metrics -->\n{metrics_table()}<!-- /metrics -->"
        in (ROOT / "wal_ingest/http/API.md").read_text()
    )


def test_every_command_is_in_the_readme() -> None:
    told = set(re.findall(r"^\| `(wal-ingest [a-z -]+)` \|", section("Commands"), re.MULTILINE))
    known = {f"wal-ingest {command.name}" for command in app.registered_commands}
    for group in app.registered_groups:
        assert group.typer_instance is not None
        if group.name == "config":
            known.add("wal-ingest config")
        for command in group.typer_instance.registered_commands:
            name = command.name or getattr(command.callback, "__name__", "")
            known.add(f"wal-ingest {group.name} {name}")
    assert told == known


def test_every_folder_in_the_readme_is_there_and_every_room_is_in_it() -> None:
    told = set(re.findall(r"^\| `([a-z_]+/[a-z_/.]+)` \|", section("How it is built"), re.MULTILINE))
    assert all((ROOT / path).exists() for path in told)
    rooms = {path.parent.name for path in (ROOT / "wal_ingest").glob("*/__init__.py")} - {"cli"}
    assert {f"wal_ingest/{room}/" for room in rooms} <= told


def test_every_proof_in_the_readme_is_a_test() -> None:
    told = re.findall(r"`(tests/[a-z_/]+\.py)(?:::(test_[a-z_0-9]+))?`", between("proofs"))
    assert told
    for path, name in told:
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), name


def test_every_file_and_command_that_the_page_on_testing_names_is_there() -> None:
    page = (ROOT / "TESTING.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    paths = re.findall(r"`(tests/[a-z_/]+\.py)`", page)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
    targets = re.findall(r"`make ([a-z]+)", page)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
    modules = re.findall(r"`python -m (ops\.[a-z.]+)", page)
    assert modules
    assert [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).exists()] == []


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "TESTING.md",
        "CHANGELOG.md",
        "wal_ingest/http/API.md",
        "wal_ingest/wal/FORMAT.md",
        "docs/COMMANDS.md",
        "docs/TUTORIAL.md",
        "RUNBOOK.md",
        "ops/README.md",
    ],
)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_changelog_speaks_of_this_version() -> None:
    assert f"## {wal_ingest.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_source_distribution_has_every_document() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {path.name for path in ROOT.glob("*.md")} <= set(included)
