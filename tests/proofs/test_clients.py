"""The InfluxDB clients that people use write to wal-ingest unchanged, and ask it how it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.account import archive_lines
from tests.rigs.processes import find_program
from tests.rigs.service import Service

CLIENTS = Path(__file__).parent.parent / "clients"
MODULES = CLIENTS / "node_modules"
BASE_NS = 1_700_000_000_000_000_000


def _serve_and_run(tmp_path: Path, command: list[str | Path]) -> tuple[dict[str, Any], list[str]]:
    """What the client's program printed, and what the archive holds afterwards."""
    with Service(tmp_path / "data", logs=tmp_path) as service:
        ran = subprocess.run([*command, service.url], capture_output=True, text=True, check=False, timeout=60)
        assert ran.returncode == 0, ran.stderr
        service.wait_drained("archive")
        assert service.stop() == 0
    told: dict[str, Any] = json.loads(ran.stdout)
    return told, archive_lines(tmp_path / "data")


def _lines(measurement: str, tags: str, count: int) -> list[str]:
    return [
        f"{measurement},{tags} "
        + f'even={"true" if n % 2 == 0 else "false"},n={n}i,text="say \\"{n}\\", please",value={n + 0.5}'
        + f" {BASE_NS + n}"
        for n in range(count)
    ]


def _of(measurement: str, lines: list[str]) -> list[str]:
    """The lines of a measurement in order of time, spelled alike: fields sorted, booleans in full."""
    found = [line for line in lines if line.startswith(measurement + ",")]
    alike = [line.replace("=T,", "=true,").replace("=F,", "=false,") for line in found]
    return sorted(alike, key=lambda line: int(line.rsplit(" ", 1)[1]))


def test_the_python_client_writes_in_both_of_its_modes_and_asks_for_health(tmp_path: Path) -> None:
    told, lines = _serve_and_run(tmp_path, [sys.executable, CLIENTS / "write_with_python.py"])

    assert told["failures"] == []
    assert told["ping"] is True
    assert told["version"]
    assert told["health"] == "pass"
    assert told["ready"] == "ready"
    assert told["refused"]["status"] == 400
    assert told["refused"]["body"]["code"] == "invalid"
    assert "line 1" in told["refused"]["body"]["message"]
    assert _of("python_sync", lines) == _lines("python_sync", "client=python", 100)
    assert _of("python_batching", lines) == _lines("python_batching", "client=python", 2_500)
    assert _of("python_gzip", lines) == _lines("python_gzip", "client=python", 1)
    assert _of("python_text", lines) == ["python_text,host=a value=1 1700000000000000000"]
    assert len(lines) == 100 + 2_500 + 1 + 1


@pytest.fixture
def node_client() -> list[str | Path]:
    """The command that runs the JavaScript program, its packages installed at their exact versions."""
    wanted = json.loads((CLIENTS / "package.json").read_text())["dependencies"]
    if any(_installed(name) != version for name, version in wanted.items()):
        shutil.rmtree(MODULES, ignore_errors=True)
        npm = find_program("npm")
        assert npm is not None
        ran = subprocess.run(
            [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=CLIENTS,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert ran.returncode == 0, ran.stderr
    node = find_program("node")
    assert node is not None
    return [node, CLIENTS / "write_with_node.mjs"]


def _installed(name: str) -> str:
    manifest = MODULES / name / "package.json"
    return str(json.loads(manifest.read_text())["version"]) if manifest.exists() else ""


@pytest.mark.needs("npm")
def test_the_javascript_client_writes_in_batches_and_asks_for_health(
    tmp_path: Path, node_client: list[str | Path]
) -> None:
    told, lines = _serve_and_run(tmp_path, node_client)

    assert told["health"] == "pass"
    assert told["ready"] == "ready"
    assert told["ping"] is True
    assert told["refused"] == {"isHttpError": True, "status": 400, "code": "invalid"}
    assert _of("nodejs", lines) == _lines("nodejs", "batch=yes,client=node", 2_500)
    assert [line for line in lines if line.startswith("nodejs_ms")] == [
        "nodejs_ms value=1.5 1700000000123000000"
    ]
    assert len(lines) == 2_500 + 1
