"""One direction: http → points → wal → flusher → sinks, and one importer per foreign library."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import wal_ingest

PACKAGE = Path(wal_ingest.__file__).parent

# What each room may import from the others.
MAY_IMPORT = {
    "points": set(),
    "wal": set(),
    "flusher": {"points", "wal"},
    "http": {"points", "wal"},
    "client": {"points", "wal"},
    "agent": {"points", "wal", "client", "signals"},
    "service": {
        "points",
        "wal",
        "flusher",
        "http",
        "metrics",
        "history",
        "control",
        "signals",
        "acts",
        "config",
        "heap",
    },
}
SHARED = {"errors", "settings", "addresses", "listeners", "confirmation", "stream_numbers"}

# The one module, or the one folder, that may import a foreign library.
IMPORTERS = {
    "lmdb": {"wal/lmdb_file.py"},
    "influxdb_client": {"flusher/sinks/influxdb.py"},
    "urllib3": {"flusher/sinks/influxdb.py"},
    "hypercorn": {"http/hypercorn_mends/"},
    "h11": {"http/hypercorn_mends/"},
    "quart": {"http/admin.py"},
    "quart_trio": {"http/admin.py"},
    "re2": {"points/engine.py"},
    "zstandard": {"points/encoding.py"},
    "typer": {"cli/"},
    "prometheus_client": {"metrics.py"},
    "trio_websocket": {"client/"},
    "httpx": {"client/"},
    "psutil": {"agent/"},
    "wsproto": {"http/hypercorn_mends/"},
    "websockets": {"http/hypercorn_mends/frames.py"},
}


@functools.cache
def imports() -> list[tuple[str, str]]:
    """Every import in the package: the file, relative to it, and the module's full name."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = [node.module or ""]
            found += [(path.relative_to(PACKAGE).as_posix(), name) for name in names]
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_behind_it(room: str) -> None:
    allowed = MAY_IMPORT[room] | SHARED | {room}
    for file, name in imports():
        if file.startswith(f"{room}/") and name.startswith("wal_ingest."):
            assert name.split(".")[1] in allowed, f"{file} imports {name}"


def test_only_the_service_knows_both_halves() -> None:
    for half, others in (("http", {"cli", "service", "http"}), ("flusher", {"cli", "service", "flusher"})):
        for file, name in imports():
            if name.startswith(f"wal_ingest.{half}"):
                assert file.split("/")[0] in others, f"{file} imports {name}"
    # A command may write to sinks (replay), but the front door belongs to the service alone.
    assert not [
        file for file, name in imports() if file.startswith("cli/") and name.startswith("wal_ingest.http")
    ]


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_foreign_library_has_one_importer(library: str) -> None:
    for file, name in imports():
        if name.split(".")[0] == library:
            assert file.startswith(tuple(IMPORTERS[library])), f"{file} imports {name}"


@pytest.mark.parametrize(
    "module", ["wal_ingest.client", "wal_ingest.client.stream", "wal_ingest.client.posting"]
)
def test_a_client_does_not_bring_the_server_along(module: str) -> None:
    heavy = ["lmdb", "quart", "quart_trio", "hypercorn", "influxdb_client", "structlog", "prometheus_client"]
    # What only one kind of URL needs comes with the first client for it.
    heavy += ["trio_websocket", "httpx"] if module == "wal_ingest.client" else []
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
