"""`make binary`: one file, run by another user on a machine that has nothing else of ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import wal_ingest
from tests.rigs.service import Service

ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534

pytestmark = [pytest.mark.slow, pytest.mark.needs("package-index"), pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make binary` makes, with the environment of this test run."""
    made = tmp_path_factory.mktemp("binary") / "wal-ingest"
    ran = subprocess.run(
        ["make", "--no-print-directory", "binary", f"BINARY={made}", f"VENV={sys.prefix}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return made


@pytest.fixture
def folder(binary: Path) -> Iterator[Path]:
    """A folder of another user's with the program in it and nothing else. (pytest's own are closed to others.)"""
    folder = Path(tempfile.mkdtemp(prefix="wal-ingest-binary-"))
    shutil.copy(binary, folder / "wal-ingest")
    (folder / "tmp").mkdir()
    if os.geteuid() == 0:
        for path in (folder, folder / "tmp"):
            os.chown(path, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def python_for_everybody() -> str:
    """This version of Python where anybody may run it; empty when only this user's own has it."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    another = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    for folder in (Path(sys.executable).resolve().parent, *map(Path, ("/usr/local/bin", "/usr/bin", "/bin"))):
        run = [*(another if os.geteuid() == 0 else ()), str(folder / name), "-c", ""]
        if (folder / name).exists() and subprocess.run(run, capture_output=True, check=False).returncode == 0:
            return str(folder / name)
    return ""


needs_python_for_everybody = pytest.mark.skipif(
    not python_for_everybody(), reason=f"no Python {sys.version_info[:2]} here that another user may run"
)


def elsewhere(folder: Path, **environ: str) -> Sequence[str | Path]:
    """The program as somebody runs it who has no home, and no environment of ours."""
    python = Path(sys.executable).resolve().parent
    environ |= {"PATH": f"{python}:/usr/local/bin:/usr/bin:/bin", "TMPDIR": str(folder / "tmp")}
    another = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return (
        *("env", "-i", *(f"{name}={value}" for name, value in environ.items())),
        *(another if os.geteuid() == 0 else ()),
        folder / "wal-ingest",
    )


@needs_python_for_everybody
def test_it_serves_where_no_home_can_be_written_to_and_cleans_up_behind_itself(folder: Path) -> None:
    logs = folder / "tmp"
    service = Service(folder / "data", logs=logs, command=elsewhere(folder, HOME="/nonexistent"))
    with contextlib.ExitStack() as stack:
        stack.push(service)
        service.start(s_max=120)  # it unpacks some 70 MiB first
        request = urllib.request.Request(
            f"{service.url}/metrics", data=b"cpu,host=web-17 user=0.2", headers={"Content-Type": "text/plain"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 202
        assert list(logs.glob("pex-root*")) != []
        assert service.stop() == 0
        # That every start unpacks it anew, it says itself, with the name of what helps.
        assert "PEX_ROOT" in service.process.log_tail()
    assert list(logs.glob("pex-root*")) == []
    if os.geteuid() == 0:
        assert (folder / "data").stat().st_uid == NOBODY


@needs_python_for_everybody
def test_it_unpacks_itself_once_where_it_is_told_to(folder: Path) -> None:
    for _ in range(2):
        ran = subprocess.run(
            [*elsewhere(folder, PEX_ROOT=str(folder / "tmp/unpacked")), "--version"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            timeout=60,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == f"wal-ingest {wal_ingest.__version__}\n"
    assert (folder / "tmp/unpacked").is_dir()


def test_it_says_which_pythons_it_is_for_where_there_is_none_of_them(folder: Path) -> None:
    (folder / "bin").mkdir()
    ran = subprocess.run(
        ["/usr/bin/env", "-i", f"PATH={folder / 'bin'}", folder / "wal-ingest", "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode != 0
    assert f"python3.{sys.version_info.minor}" in ran.stderr
