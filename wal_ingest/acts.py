"""What an operator did to a node: which command, who gave it, and what came of it. Kept for the log and the page."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

# More of an argument says nothing to a reader; a list is given by its length.
_VALUE_CHARS_MAX = 100

_log = structlog.get_logger("wal_ingest.control")


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that gave a command: its user's id and name, and its own id; -1 where the kernel does not say."""

    uid: int
    user: str
    pid: int

    def __str__(self) -> str:
        return f"{self.user} (uid {self.uid}, pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Act:
    """A command that changed something, or failed to: `outcome` is its result, or `error` why there is none."""

    command: str
    peer: Peer
    arguments: Mapping[str, object]
    outcome: Mapping[str, object]
    error: str = ""

    def __str__(self) -> str:
        """Such as: sink skip (sink=influxdb) by root (uid 0, pid 7): expired_points=12."""
        name = self.command.replace(".", " ")
        came = f"failed: {self.error}" if self.error else _pairs(self.outcome) or "done"
        return f"{name} ({_pairs(self.arguments)}) by {self.peer}: {came}"


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def act_of(
    command: str, peer: Peer, arguments: Mapping[str, Any], result: object = None, error: str = ""
) -> Act:
    """The record of a command, with arguments and result cut to what a line can hold."""
    outcome = _short(result) if isinstance(result, Mapping) else {}
    return Act(command, peer, _short(arguments), outcome, error)


def log_act(act: Act) -> None:
    """Logs a command as a warning: who, what, how many."""
    words = "an operator's command failed" if act.error else "an operator's command"
    more = {"error": act.error} if act.error else {}
    _log.warning(
        words,
        command=act.command,
        user=act.peer.user,
        uid=act.peer.uid,
        pid=act.peer.pid,
        arguments=dict(act.arguments),
        outcome=dict(act.outcome),
        **more,
    )


def _short(values: Mapping[str, Any]) -> dict[str, object]:
    return {
        str(name): len(value)
        if isinstance(value, list | dict)
        else value
        if isinstance(value, int | float | None)
        else str(value)[:_VALUE_CHARS_MAX]
        for name, value in values.items()
    }


def own_peer() -> Peer:
    """This process, for a command that needs no node."""
    return Peer(os.geteuid(), user_name(os.geteuid()), os.getpid())


def user_name(uid: int) -> str:
    """The name of a user, `#` and the id where there is none. Blocks: names may come from a directory service."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"#{uid}"
