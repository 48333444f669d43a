"""`wal-ingest serve` as a real process: started as a user starts it, ended as operators and power cuts do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.rigs import forked
from tests.rigs.processes import Process, http_status, wait_until

_READY = re.compile(r"ready on http://127\.0\.0\.1:(\d+)")
_OURS = ("WAL_INGEST_", "INFLUXDB_", "DATABASE_URL")

COMMAND = forked.COMMAND


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """This process's environment with no settings of its own but these, named "section.key"."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        env[f"WAL_INGEST_{section.upper()}__{key.upper()}"] = str(value)
    return env


def run_bytes(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    s_max: float = 60.0,
) -> subprocess.CompletedProcess[bytes]:
    """Runs `wal-ingest` with arguments to its end; `env` goes over the environment without settings."""
    whole_env = environment({}) | dict(env or {})
    if forked.can_be_forked(whole_env):
        return forked.run(
            [str(argument) for argument in arguments], env=whole_env, cwd=Path.cwd(), stdin=stdin, s_max=s_max
        )
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=s_max,
        env=whole_env,
        input=stdin,
    )


def run_command(
    *arguments: str | Path,
    settings: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
    s_max: float = 30.0,
) -> subprocess.CompletedProcess[str]:
    """Runs `wal-ingest` with arguments to its end; `env` on top of the environment with these settings alone."""
    ran = run_bytes(*arguments, env=environment(settings or {}) | dict(env or {}), s_max=s_max)
    return subprocess.CompletedProcess(ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


class Service:
    """One server over a data directory. It can be started again after an end of any kind.

    `settings` are named "section.key". `under` is put in front of the command line (strace), `env` on top of
    the environment (LD_PRELOAD). `command` is what is started instead of `wal-ingest`. Each start takes a free port,
    unless `bind_port` names one.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        logs: Path,
        settings: Mapping[str, object] | None = None,
        under: Sequence[str | Path] = (),
        env: Mapping[str, str] | None = None,
        command: Sequence[str | Path] = (COMMAND,),
        bind_port: int = 0,
    ) -> None:
        self.data_dir = data_dir
        # Confirmed segments go at once, so that a test sees truncation while it watches.
        self.settings = {"wal.keep_confirmed_s": 0, **(settings or {})}
        self._logs = logs
        self._under = under
        self._command = command
        self._bind = f"127.0.0.1:{bind_port}"
        self._env = dict(env or {})
        self._starts = 0
        self._process: Process | None = None
        self.port = 0
        self.ready_line = ""

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.end()

    @property
    def process(self) -> Process:
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, s_max: float = 30.0) -> None:
        """Starts it and waits for its ready line. Raises AssertionError when it ends before that."""
        self._starts += 1
        out = self._logs / f"serve-{self._starts}.out"
        out.unlink(missing_ok=True)
        self._process = Process(
            f"wal-ingest (start {self._starts})",
            [*self._under, *self._command, "serve", "--data-dir", self.data_dir, "--bind", self._bind],
            log=self._logs / f"serve-{self._starts}.err",
            stdout=out,
            env=environment(self.settings) | self._env,
            cwd=self._logs,
        )
        wait_until(
            lambda: not self.process.running or out.read_text().endswith("\n"),
            "the server prints its ready line",
            s_max=s_max,
            every_s=0.02,
        )
        self.ready_line = out.read_text()
        match = _READY.search(self.ready_line)
        assert match is not None, f"no ready line but {self.ready_line!r}\n{self.process.log_tail()}"
        self.port = int(match[1])

    def stop(self, *, s_max: float = 15.0) -> int:
        """SIGTERM to the server (not to what it runs under), and its exit code."""
        if self._under:
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGTERM)
            wait_until(lambda: not self.process.running, "the server stops", s_max=s_max)
        return self.process.stop(s_max=s_max)

    def kill(self) -> None:
        self.process.kill()

    def ready(self) -> int:
        """The status of `/readyz`."""
        return http_status(f"{self.url}/readyz")

    def post(self, target: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of a POST that must be taken."""
        request = urllib.request.Request(f"{self.url}{target}", data=body, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=10) as answer:
            status: int = answer.status
            return status

    def get(self, target: str) -> str:
        """The body of a GET that must be answered with 200."""
        with urllib.request.urlopen(f"{self.url}{target}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def status(self) -> dict[str, Any]:
        """`wal-ingest wal status --json` over the data directory, whether the server runs or not."""
        ran = run_command("wal", "status", "--json", "--data-dir", self.data_dir, settings=self.settings)
        assert ran.returncode == 0, f"wal status: exit code {ran.returncode}: {ran.stderr}"
        told: dict[str, Any] = json.loads(ran.stdout)
        return told

    def waiting_points(self, sink: str) -> int:
        """How many points wait for a sink; all that are kept as long as it has no cursor yet."""
        return _waiting(self.status(), sink)

    def wait_drained(self, sink: str, *, s_max: float = 60.0) -> dict[str, Any]:
        """Waits until nothing waits for a sink; gives the whole status then."""

        def drained() -> dict[str, Any] | None:
            assert self.process.running, f"the server ended\n{self.process.log_tail()}"
            told = self.status()
            return told if _waiting(told, sink) == 0 else None

        told = wait_until(drained, f"nothing waits for {sink}", s_max=s_max, every_s=0.2)
        assert told is not None
        return told


def _waiting(told: dict[str, Any], sink: str) -> int:
    waiting: int = told["sinks"][sink]["waiting_points"] if sink in told["sinks"] else told["points_kept"]
    return waiting


def to_influxdb(url: str, *, bucket: str = "any", **settings: object) -> dict[str, object]:
    """Settings of a server that writes to an InfluxDB API at `url`, with waits short enough for a test.

    More settings are named `section__key`.
    """
    return {
        "influxdb.url": url,
        "influxdb.org": "any",
        "influxdb.bucket": bucket,
        "influxdb.token": "any",
        "wal.segment_s_max": 1,
        "flusher.batch_wait_s_max": 0.2,
        "flusher.cursor_commit_s": 0.2,
        "flusher.retry_s_max": 2,
        "log.level": "warning",
        **{name.replace("__", ".", 1): value for name, value in settings.items()},
    }
