"""The documents are true: the README's commands are run, and its tables are compared with the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wal_ingest
from tests.rigs.processes import Process, free_port, wait_until
from wal_ingest.cli import app
from wal_ingest.config import FIELDS
from wal_ingest.metrics import TABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

# Commands that start a server: run in the background, and known by their first words.
SERVERS = ("make run", "wal-ingest serve", "victoria-metrics", "INFLUXDB_URL=")
# Commands that only look may be run until they show what the page shows: delivery takes a moment.
LOOKS = ("zcat", "wal-ingest wal", "curl -s http://127.0.0.1:8428/")


def section(heading: str) -> str:
    """What stands under a second-level heading."""
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def between(marker: str) -> str:
    """What stands between two marker comments."""
    found = re.search(rf"<!-- {marker} -->\n(.*?)<!-- /{marker} -->", README, re.DOTALL)
    assert found is not None
    return found[1]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Every command of the console blocks, in order, with the output that the page shows."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            yield line, output


def masked(output: str) -> str:
    """What differs from run to run, made alike: dates, process ids, sizes on disk, the edges of tables."""
    output = output.replace("\r\n", "\n")
    output = re.sub(r"^date: .*$", "date: D", output, flags=re.MULTILINE)
    output = re.sub(r"process \d+", "process P", output)
    output = re.sub(r"\d+\.\d KiB", "S KiB", output)
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


class Reader:
    """Someone who types what the page says, in an empty folder, with the page's ports moved to free ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self._ports = {port: str(free_port()) for port in ("8400", "8401", "8428")}
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("WAL_INGEST_", "INFLUXDB_"))
        }
        self._env = {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}

    def type(self, command: str, shown: str) -> None:
        """Runs one command and compares what it says with what the page shows."""
        command_here, shown = self._here(command), masked(self._here(shown))
        if command.startswith(SERVERS):
            self._start(
                command_here.replace("make run", f"wal-ingest serve --bind 127.0.0.1:{self._ports['8400']}"),
                shown,
            )
        elif command.startswith(LOOKS):
            wait_until(
                lambda: self._run(command_here) == shown, f"`{command}` shows what the page shows", s_max=15
            )
        else:
            assert self._run(command_here) == shown, command

    def _here(self, text: str) -> str:
        for port, free in self._ports.items():
            text = text.replace(port, free)
        return text

    def _run(self, command: str) -> str:
        ran = subprocess.run(
            ["bash", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
            cwd=self.folder,
            env=self._env,
        )
        return masked(ran.stdout)

    def _start(self, command: str, shown: str) -> None:
        out = self.folder / f"server-{len(self.processes)}.out"
        process = Process(
            command.split()[0],
            ["bash", "-c", f"exec env {command}"],
            log=self.folder / f"server-{len(self.processes)}.err",
            stdout=out,
            env=self._env,
            cwd=self.folder,
        )
        self.processes.append(process)
        if shown:
            wait_until(lambda: masked(out.read_text()) == shown, f"`{command}` prints {shown!r}", s_max=20)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader whose servers end with the test."""
    reader = Reader(tmp_path)
    yield reader
    for process in reader.processes:
        process.end()


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
    told = set(re.findall(r"^\| `(wal-ingest [a-z ]+)` \|", section("Commands"), re.MULTILINE))
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
    "page", ["README.md", "TESTING.md", "CHANGELOG.md", "wal_ingest/http/API.md", "wal_ingest/wal/FORMAT.md"]
)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_changelog_speaks_of_this_version() -> None:
    assert f"## {wal_ingest.__version__}" in (ROOT / "CHANGELOG.md").read_text()
