"""The tutorial is true: one shell types its commands as they are written, and sees what the page shows."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs import forked
from tests.rigs.on_call import alike
from tests.rigs.pages import commands
from tests.rigs.processes import free_port, wait_until
from tests.rigs.service import environment

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/TUTORIAL.md").read_text()

# Commands that only look may be typed until they show what the page shows, as a reader is told to.
LOOKS = ("wal-ingest sink status", "count")
END = "=== typed ==="


class Terminal:
    """One bash with job control in an empty folder, the page's ports moved to free ones."""

    def __init__(self, folder: Path) -> None:
        self._ports = {port: str(free_port()) for port in ("8400", "8428")}
        env = environment({}) | {"COLUMNS": "120"}
        env["PATH"] = forked.search_path()
        self._bash = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=env,
        )
        # Said within, as there is no terminal to have it from.
        self.answer("set -m")

    def type(self, command: str, shown: str) -> None:
        """Types one command; what comes back must be what the page shows."""
        command_here, shown_here = self._here(command), alike(self._here(shown))
        if command.startswith(LOOKS) and shown:
            wait_until(
                lambda: alike(self.answer(command_here)) == shown_here,
                f"`{command}` shows what the page shows",
                s_max=30,
            )
        else:
            assert alike(self.answer(command_here)) == shown_here, command

    def answer(self, command: str) -> str:
        """What a command says, up to its end; one in the background goes on."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\necho '{END}'\n")
        self._bash.stdin.flush()
        lines: list[str] = []
        for line in self._bash.stdout:
            if line.endswith(f"{END}\n"):
                return "".join([*lines, line.removesuffix(f"{END}\n")])
            lines.append(line)
        raise AssertionError(f"the shell ended at `{command}`: {''.join(lines)}")

    def end(self) -> None:
        """Ends the shell and whatever it left running."""
        if self._bash.poll() is None:
            for pid in self.answer("jobs -p").split():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid), signal.SIGKILL)
            self._bash.kill()
        self._bash.wait(timeout=10)
        for pipe in (self._bash.stdin, self._bash.stdout):
            assert pipe is not None
            pipe.close()

    def _here(self, text: str) -> str:
        text = text.replace("make run", "wal-ingest serve --bind 127.0.0.1:8400")
        for port, free in self._ports.items():
            text = text.replace(port, free)
        return text


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A shell that ends with the test, with all that it started."""
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.end()


@pytest.mark.needs("victoria-metrics", "curl", "jq")
def test_a_newcomer_sees_points_breaks_the_database_and_replays(terminal: Terminal, tmp_path: Path) -> None:
    steps = list(commands(PAGE))
    assert len(steps) > 25
    began_s = time.monotonic()
    for command, shown in steps:
        terminal.type(command, shown)
    took_s = time.monotonic() - began_s
    sys.stderr.write(f"the tutorial's commands took {took_s:.1f} s\n")
    assert list(tmp_path.iterdir()) == [], "it cleans up behind itself"
    told = re.search(r"commands below took about (\d+) s\b", PAGE)
    assert told is not None
    assert took_s < 4 * int(told[1]), "the page says how long the machine takes"
