"""Every file operation of the WAL, the state and the archive fails once, and once for good; nothing accepted is lost.

A library that is preloaded (faults.c) fails the nth operation below the data directory: opening, writing, syncing,
truncating, reserving, renaming, removing, reading, whoever asks for it, Python or LMDB. A life (scenario.py) is led
with the first operation failing, then the second, … until one comes through untouched, and what each leaves on disk
is opened again and compared with what senders were told.

`make test` strikes every ninety-sixth operation, another one in each mode; `make proof` strikes all. Run one by hand
with `python -m tests.faults.driver`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.driver import CHANGES, MODES, READ
from tests.faults.scenario import LIVES

pytestmark = pytest.mark.needs("cc")

_ROOT = Path(__file__).parents[2]
_SOURCE = Path(__file__).with_name("faults.c")
# Each mode of each life begins at another operation, so that all together strike many places.
_STEP = 96


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that is preloaded, compiled."""
    built = tmp_path_factory.mktemp("faults") / "faults.so"
    command: list[str | Path] = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Werror",
        "-o",
        built,
        _SOURCE,
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=60)
    return built


class Driver:
    """One process for all tests: its imports take longer than what it does in some of them."""

    def __init__(self, library: Path, log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.driver", library],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=_ROOT,
                env=os.environ | {"LD_PRELOAD": str(library)},
                text=True,
            )

    def report(self, *asked: str | int) -> str:
        """What it prints for these arguments."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        return line

    def end(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture(scope="module")
def driver(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    process = Driver(library, tmp_path_factory.mktemp("driver") / "stderr")
    yield process
    process.end()


def run_driver(
    driver: Driver, directory: Path, life: str, mode: str, *, step: int, first: int = 1
) -> dict[str, Any]:
    """The driver's report."""
    report: dict[str, Any] = json.loads(driver.report(str(directory), life, mode, step, first))
    print(
        f"{life}, {mode}: {report['struck']} of {report['operations']} operations struck;",
        ", ".join(f"{count} × {ending}" for ending, count in sorted(report["endings"].items())),
    )
    return report


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("life", LIVES)
def test_nothing_accepted_is_lost_when_one_of_the_operations_fails(
    driver: Driver, tmp_path: Path, life: str, mode: str
) -> None:
    first = 1 + (list(MODES).index(mode) * 2 + list(LIVES).index(life)) % _STEP
    report = run_driver(driver, tmp_path, life, mode, step=_STEP, first=first)
    assert report["wrong"] == []
    assert report["struck"] >= (report["operations"] - first) // _STEP


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("life", LIVES)
def test_nothing_accepted_is_lost_whichever_operation_fails(
    driver: Driver, tmp_path: Path, life: str, mode: str
) -> None:
    report = run_driver(driver, tmp_path, life, mode, step=1)
    assert report["wrong"] == []
    # A fault changes what follows it, so the last operations of an untouched life may never be reached.
    assert report["struck"] >= 0.9 * report["operations"] > 0


def test_the_lives_have_every_kind_of_operation(driver: Driver, tmp_path: Path) -> None:
    seen = 0
    for life in LIVES:
        seen |= run_driver(driver, tmp_path, life, "EIO once", step=10_000)["seen"]
    assert seen == CHANGES | READ


def test_a_life_that_breaks_the_promise_is_found_out(driver: Driver, tmp_path: Path) -> None:
    """Without this, a judge that lets everything pass would look just as green."""
    report = run_driver(driver, tmp_path, "acknowledge too early", "EIO once", step=5)
    assert any("points are not in the archive" in wrong for wrong in report["wrong"])
