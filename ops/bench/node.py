"""The server under measure as a process of its own, and the requests of a fleet, prebuilt."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_READY_S_MAX = 30.0
_STOP_S_MAX = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")

# How many different bodies are sent in turn: enough that nothing on the way sees the same bytes at once.
BODIES = 32


class Node:
    """A running server: its port, what it has cost, and what it holds."""

    def __init__(self, process: subprocess.Popen[str], port: int, data_dir: Path) -> None:
        self._process = process
        self.port = port
        self.data_dir = data_dir

    def _pids(self) -> list[int]:
        """The server and its worker process, if that runs."""
        pid = self._process.pid
        # Each process counts for the thread that started it.
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [pid, *(int(child) for children in tasks for child in children.read_text().split())]

    def cpu_s(self) -> float:
        """User and system time in seconds so far, of all threads and of the worker process."""
        own = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        # Those of ended children are in the two fields after our own.
        ticks = sum(map(int, own[11:15]))
        for pid in self._pids()[1:]:
            with contextlib.suppress(FileNotFoundError):
                ticks += sum(
                    map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
                )
        return ticks / _TICKS

    def descriptors(self) -> int:
        """How many files and sockets it has open."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def forget_peak(self) -> None:
        """Makes VmHWM that of the time from now on."""
        for pid in self._pids():
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def memory_mib(self, *names: str) -> list[float]:
        """Figures of /proc/PID/status in MiB, such as VmRSS, RssAnon, RssFile, VmHWM: of both processes together."""
        totals = dict.fromkeys(names, 0)
        for pid in self._pids():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in totals:
                        totals[name] += int(value.split()[0])
        return [kib / 1024 for kib in totals.values()]


@contextmanager
def running_node(settings: Mapping[str, object], *, below: Path | None = None) -> Iterator[Node]:
    """Starts `wal-ingest serve` over a fresh data directory (inside `below`), and removes both afterwards.

    `settings` are named "section.key". Raises RuntimeError when the server does not get ready.
    """
    with tempfile.TemporaryDirectory(prefix="wal-ingest-bench-", dir=below) as folder:
        data_dir = Path(folder) / "data"
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("WAL_INGEST_", "INFLUXDB_"))
        }
        for name, value in settings.items():
            env[f"WAL_INGEST_{name.upper().replace('.', '__')}"] = str(value)
        command = [
            sys.executable,
            "-m",
            "wal_ingest",
            "serve",
            "--bind",
            "127.0.0.1:0",
            "--data-dir",
            str(data_dir),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)
        try:
            yield Node(process, _ready_port(process), data_dir)
        finally:
            _end(process)


def _ready_port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    said, _, _ = select.select([process.stdout], [], [], _READY_S_MAX)
    line = process.stdout.readline() if said else ""
    match = re.search(r"ready on http://[^ ]+:(\d+)", line)
    if match is None:
        raise RuntimeError(f"the server printed no ready line but {line!r}")
    return int(match[1])


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def make_requests(points: int, *, packed: bool, timed: bool = True, token: str = "") -> list[bytes]:
    """`BODIES` whole HTTP requests of line protocol with so many points each."""
    shown = f"Authorization: Bearer {token}\r\n" if token else ""
    base_ns = time.time_ns()
    requests = []
    for body_number in range(BODIES):
        lines = []
        for index in range(points):
            unique = body_number * points + index
            time_text = f" {base_ns + unique * 1_000_003}" if timed else ""
            lines.append(
                f"cpu,host=web-{unique % 5000:04d},region=eu-west usage={unique % 1000 / 10},load={unique % 77 / 8}"
                f"{time_text}\n"
            )
        body = "".join(lines).encode()
        encoding = ""
        if packed:
            body = gzip.compress(body, 1)
            encoding = "Content-Encoding: gzip\r\n"
        head = (
            "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
            f"{shown}{encoding}Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests
