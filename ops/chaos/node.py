"""The server under test and its supervisor, which starts it again whenever it has ended, as systemd would.

An end of its own accord is written down together with the faults that were in effect just then. Some faults may end
it (no descriptor left to open, say); any other such end is a finding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rigs.processes import wait_until
from tests.rigs.service import COMMAND, Service

# How long after a fault its effects may show.
_AFTERMATH_S = 5.0
_START_S_MAX = 20.0
_START_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class End:
    """One end of its own accord, or a start that came to nothing. `excused_by` names the fault that may do that."""

    at_s: float
    what: str
    excused_by: str


class Node:
    """One server. `tend` has to be called all the time; `excuses` are the faults in effect that may end it."""

    def __init__(
        self,
        data_dir: Path,
        *,
        logs: Path,
        settings: Mapping[str, object],
        env: Mapping[str, str],
        command: Sequence[str | Path] = (COMMAND,),
    ) -> None:
        self.service = Service(data_dir, logs=logs, settings=settings, env=env, command=command)
        self.ends: list[End] = []
        self.starts = 0
        self.began_s = time.monotonic()
        self._excuses: dict[str, float] = {}
        self._known_dead = True
        self._start_not_before_s = 0.0

    @property
    def port(self) -> int:
        """Where the latest start listens."""
        return self.service.port

    @property
    def pid(self) -> int:
        return self.service.process.pid

    @property
    def up(self) -> bool:
        return not self._known_dead and self.service.process.running

    def excuse(self, fault: str) -> None:
        """From now on this fault may end the server, until a little after `no_excuse`."""
        self._excuses[fault] = float("inf")

    def no_excuse(self, fault: str) -> None:
        """The fault is over."""
        self._excuses[fault] = time.monotonic() + _AFTERMATH_S

    def kill(self) -> None:
        """kill -9, if it runs; `tend` will start it again."""
        if self.up:
            self.service.kill()
            self._known_dead = True

    def pause(self) -> None:
        """SIGSTOP, and it has stopped."""
        if self.up:
            self.service.process.pause()

    def resume(self) -> None:
        """SIGCONT."""
        if self.up:
            self.service.process.resume()

    def tend(self) -> None:
        """Starts the server when it is not running, unless that has just failed."""
        if self.up:
            return
        if not self._known_dead:
            self._known_dead = True
            self._ended(f"exit code {self.service.process.exit_code}")
        if time.monotonic() < self._start_not_before_s:
            return
        self.starts += 1
        try:
            self.service.start(s_max=_START_S_MAX)
            self._known_dead = False
        except AssertionError as exc:
            self._start_not_before_s = time.monotonic() + _START_AGAIN_S
            self._ended("no start: " + " ".join(str(exc).split())[-600:])
            self.service.process.end()

    def _ended(self, what: str) -> None:
        now_s = time.monotonic()
        excused_by = next((fault for fault, until_s in self._excuses.items() if now_s < until_s), "")
        if what.startswith("exit code"):
            what += ": " + " | ".join(self.service.process.log_tail(lines=2).splitlines())[-600:]
        self.ends.append(End(round(now_s - self.began_s, 1), what, excused_by))

    def start_again(self, settings: Mapping[str, object]) -> None:
        """An orderly stop, and a start with other settings, as an operator would; `tend` sees to it if it fails."""
        if self.up:
            self.service.process.resume()
            self.service.stop(s_max=20)
        self._known_dead = True
        self.service.settings = dict(settings)
        self.tend()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        return self.service.stop(s_max=20)

    def end(self) -> None:
        """Ends it one way or the other."""
        if self.starts:
            self.service.process.end()


def wait_tending(node: Node, seconds: float) -> None:
    """Lets time pass; a server that ends meanwhile is started again."""
    over_s = time.monotonic() + seconds

    def over() -> bool:
        node.tend()
        return time.monotonic() >= over_s

    wait_until(over, "time passes", s_max=seconds + 120)
