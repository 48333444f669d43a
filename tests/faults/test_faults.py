"""Every file operation of the WAL, the state and the archive fails once, and once for good; nothing accepted is lost.

A library that is preloaded (faults.c) fails the nth operation below the data directory: opening, writing, syncing,
truncating, reserving, renaming, removing, reading, whoever asks for it, Python or LMDB. A life (scenario.py) is led
with the first operation failing, then the second, … until one comes through untouched, and what each leaves on disk
is opened again and compared with what senders were told.

`make test` strikes every forty-eighth operation, another one in each mode; `make proof` strikes all. Run one by hand
with `python -m tests.faults.driver`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.driver import CHANGES, MODES, READ
from tests.faults.scenario import LIVES

pytestmark = pytest.mark.needs("cc")

_ROOT = Path(__file__).parents[2]
_SOURCE = Path(__file__).with_name("faults.c")
# Each mode of each life begins at another operation, so that all together strike many places.
_STEP = 48


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


def run_driver(
    library: Path, directory: Path, life: str, mode: str, *, step: int, first: int = 1
) -> dict[str, Any]:
    """The driver's report."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults.driver", library, directory, life, mode, str(step), str(first)],
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
        env=os.environ | {"LD_PRELOAD": str(library)},
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    report: dict[str, Any] = json.loads(ran.stdout)
    print(
        f"{life}, {mode}: {report['struck']} of {report['operations']} operations struck;",
        ", ".join(f"{count} × {ending}" for ending, count in sorted(report["endings"].items())),
    )
    return report


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("life", LIVES)
def test_nothing_accepted_is_lost_when_one_of_the_operations_fails(
    library: Path, tmp_path: Path, life: str, mode: str
) -> None:
    first = 1 + (list(MODES).index(mode) * 2 + list(LIVES).index(life)) % _STEP
    report = run_driver(library, tmp_path, life, mode, step=_STEP, first=first)
    assert report["wrong"] == []
    assert report["struck"] >= (report["operations"] - first) // _STEP


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("life", LIVES)
def test_nothing_accepted_is_lost_whichever_operation_fails(
    library: Path, tmp_path: Path, life: str, mode: str
) -> None:
    report = run_driver(library, tmp_path, life, mode, step=1)
    assert report["wrong"] == []
    # A fault changes what follows it, so the last operations of an untouched life may never be reached.
    assert report["struck"] >= 0.9 * report["operations"] > 0


def test_the_lives_have_every_kind_of_operation(library: Path, tmp_path: Path) -> None:
    seen = 0
    for life in LIVES:
        seen |= run_driver(library, tmp_path, life, "EIO once", step=10_000)["seen"]
    assert seen == CHANGES | READ


def test_a_life_that_breaks_the_promise_is_found_out(library: Path, tmp_path: Path) -> None:
    """Without this, a judge that lets everything pass would look just as green."""
    report = run_driver(library, tmp_path, "acknowledge too early", "EIO once", step=5)
    assert any("points are not in the archive" in wrong for wrong in report["wrong"])
