"""Child processes that a test starts itself: on free ports, with a log, ended by their own pid in time.

Polling lives here and only here: a real process cannot be asked to set an event.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TypeVar

from tests.rigs import forked

T = TypeVar("T")

# Every process of this test run, so that a failing test can show what its servers said.
STARTED: list[Process] = []


def wait_until(
    question: Callable[[], T], what: str, *, s_max: float = 30.0, every_s: float = 0.05, also: object = None
) -> T:
    """The first true answer to `question`. Raises AssertionError when there is none within `s_max` seconds.

    `also` is anything whose text helps to understand a failure.
    """
    deadline = time.monotonic() + s_max
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            more = "" if also is None else f"; {also}"
            raise AssertionError(f"after {s_max:g} s still not: {what} (last answer {answer!r}{more})")
        time.sleep(every_s)


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def http_status(url: str, *, s_max: float = 2.0) -> int:
    """The status of a GET, 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=s_max) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code
    except OSError:
        return 0


class Process:
    """One child process. `log` gets its standard error, and its standard output unless `stdout` is given.

    The command `wal-ingest` itself is started the quick way (see `tests.rigs.forked`).
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str | Path],
        *,
        log: Path,
        stdout: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: IO[bytes] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._child: subprocess.Popen[bytes] | forked.ForkedChild
        with log.open("ab") as err, (stdout or log).open("ab") as out, Path(os.devnull).open("rb") as nothing:
            if argv[0] == forked.COMMAND and forked.can_be_forked(env):
                self._child = forked.start(
                    [str(part) for part in argv[1:]],
                    env=env or os.environ,
                    cwd=cwd or Path.cwd(),
                    fds=((stdin or nothing).fileno(), out.fileno(), err.fileno()),
                )
                STARTED.append(self)
                return
            self._child = subprocess.Popen(
                [str(part) for part in argv],
                stdin=stdin if stdin is not None else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(env) if env is not None else None,
                cwd=cwd,
            )
        STARTED.append(self)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._child.poll()

    @property
    def running(self) -> bool:
        return self.exit_code is None

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self._child.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP, and back only when the kernel says that every thread has stopped."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: not self.running or self._stopped(), f"{self.name} has stopped", every_s=0.002)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def _stopped(self) -> bool:
        for task in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            try:
                state = task.read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if state != "T":
                return False
        return True

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.signal(signal.SIGKILL)
        self._child.wait(timeout=10)

    def stop(self, *, s_max: float = 15.0) -> int:
        """SIGTERM, and the exit code. Raises AssertionError, after a kill -9, when `s_max` is not enough."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return self._child.wait(timeout=s_max)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {s_max:g} s of SIGTERM") from None

    def end(self) -> None:
        """Ends it one way or the other, for clean-up: never raises for a process that is already gone."""
        if self.running:
            self.kill()

    def status_kib(self, field: str) -> int:
        """A figure of /proc/PID/status in KiB, such as VmRSS, VmHWM, RssAnon, RssFile."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise KeyError(field)

    def cpu_s(self) -> float:
        """User and system time in seconds so far, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log_tail(self, *, lines: int = 40) -> str:
        if not self.log.exists():
            return "(its log is gone)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def find_program(name: str) -> str | None:
    """Where a program is, looking into the system folders that an ordinary user's PATH leaves out too."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])
    return shutil.which(name, path=path)
