"""How a command on the same machine speaks to a running node: a Unix socket in the data directory.

Whoever may open the socket may command the node; it is made for its own user alone (and root), and nothing of it is on
the network. One request a connection, one line of JSON each way:

    → {"command": "sink.pause", "arguments": {"sink": "influxdb"}}
    ← {"result": …}    or    {"error": "…", "hint": "…", "kind": "config" | "operator" | "failed"}

Every command that changes something is logged as a warning with who gave it (the kernel names the process at the other
end of the socket), its arguments and what came of it, and reported to `operated`. That is done here, once for all
commands: one that is added is logged without more.

The path of a Unix socket may have 107 bytes, and a data directory's may be longer. So both sides go by a descriptor of
the directory, through /proc/self/fd.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

from wal_ingest.acts import Act, Peer, act_of, log_act, user_name
from wal_ingest.errors import ConfigError, OperatorNeeded, WalIngestError

CONTROL_NAME = "control.sock"

# Ids of dead letters come in long lists.
_LINE_BYTES_MAX = 32 << 20
_READ_BYTES = 64 << 10
# How long a client may take to say what it wants. What it wants may take longer.
_REQUEST_S_MAX = 10.0
_ANSWER_S_MAX = 300.0

# Takes the arguments, gives something that JSON can say. Raises `WalIngestError` for what the client should be told.
Command = Callable[[Mapping[str, Any]], Awaitable[object]]

# Commands that change nothing, and so are not logged.
READ_ONLY = frozenset({"sinks", "settings", "odd_times", "streams"})

log = logging.getLogger(__name__)


def _peer(stream: trio.SocketStream) -> Peer:
    """Who is at the other end; blocks, as user names may come from a directory service."""
    try:
        found = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _gid = struct.unpack("3i", found)
    except OSError:
        return Peer(-1, "unknown", -1)
    return Peer(uid, user_name(uid), pid)


class NoControl(WalIngestError):
    """Nobody answers on the socket, though there may be a process that has the directory open."""


async def serve_control(
    data_dir: Path,
    commands: Mapping[str, Command],
    *,
    operated: Callable[[Act], None] = lambda _act: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves commands until cancelled. The caller holds the data directory, so a socket that is there is a dead one's.

    `operated` is called after each command that is not in `READ_ONLY`, whatever came of it.

    A file system that has no sockets costs the commands, not the node: it is logged, and this returns.

    **Cancellation:** a command under way is cancelled with it; the socket is removed.
    """
    try:
        listening = _listen(data_dir)
    except OSError as exc:
        log.warning("commands cannot reach this node: %s/%s: %s", data_dir, CONTROL_NAME, exc.strerror)
        task_status.started()
        return
    try:
        with trio.socket.from_stdlib_socket(listening) as sock:
            await trio.serve_listeners(
                functools.partial(_answer, commands=commands, operated=operated),
                [trio.SocketListener(sock)],
                task_status=_Started(task_status),
            )
    finally:
        _remove(data_dir / CONTROL_NAME)


def _listen(data_dir: Path) -> socket.socket:
    _remove(data_dir / CONTROL_NAME)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _directory(data_dir) as directory:
            sock.bind(f"{directory}/{CONTROL_NAME}")
        # Before `listen`: until then nobody can connect.
        (data_dir / CONTROL_NAME).chmod(0o600)
        sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class _Started(trio.TaskStatus[Any]):
    """Says "started" without the listeners, which are nobody's business."""

    def __init__(self, told: trio.TaskStatus[None]) -> None:
        self._told = told

    def started(self, value: object = None) -> None:  # noqa: ARG002 - the listeners
        self._told.started()


async def _answer(
    stream: trio.SocketStream, commands: Mapping[str, Command], operated: Callable[[Act], None]
) -> None:
    """One connection, whatever comes of it: it must not end the node."""
    with contextlib.suppress(trio.BrokenResourceError):
        async with stream:
            # Before the request is read: the kernel knows the peer also when it has gone since.
            peer = await trio.to_thread.run_sync(_peer, stream)
            answer = await _answer_to(await _request(stream), commands, peer, operated)
            with trio.move_on_after(_REQUEST_S_MAX):
                await stream.send_all(json.dumps(answer).encode() + b"\n")


async def _request(stream: trio.abc.Stream) -> bytes:
    request = bytearray()
    with trio.move_on_after(_REQUEST_S_MAX):
        while not request.endswith(b"\n") and len(request) <= _LINE_BYTES_MAX:
            data = await stream.receive_some(_READ_BYTES)
            if not data:
                break
            request += data
    return bytes(request)


async def _answer_to(
    request: bytes, commands: Mapping[str, Command], peer: Peer, operated: Callable[[Act], None]
) -> dict[str, object]:
    try:
        asked = json.loads(request)
        name = asked["command"]
        command, arguments = commands[name], dict(asked.get("arguments", {}))
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": "this node does not know the command", "hint": "", "kind": "failed"}
    answer: dict[str, object]
    try:
        answer = {"result": await command(arguments)}
    except WalIngestError as exc:
        kinds = ((ConfigError, "config"), (OperatorNeeded, "operator"), (WalIngestError, "failed"))
        kind = next(kind for error, kind in kinds if isinstance(exc, error))
        answer = {"error": str(exc), "hint": exc.hint, "kind": kind}
    except Exception as exc:
        log.exception("the command %s failed in a way that is a bug", name)
        answer = {"error": f"{type(exc).__name__}: {exc}", "hint": "see the node's log", "kind": "failed"}
    if name not in READ_ONLY:
        act = act_of(name, peer, arguments, answer.get("result"), str(answer.get("error", "")))
        log_act(act)
        operated(act)
    return answer


def ask(data_dir: Path, command: str, *, answer_s_max: float = _ANSWER_S_MAX, **arguments: object) -> Any:
    """Asks the node that has a data directory open; blocks. Gives what the command gives.

    Raises `NoControl` when nobody answers, and what the node says: `ConfigError`, `OperatorNeeded`, `WalIngestError`.
    """
    try:
        with _directory(data_dir) as directory, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(answer_s_max)
            sock.connect(f"{directory}/{CONTROL_NAME}")
            sock.sendall(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            with sock.makefile("rb") as answers:
                line = answers.readline()
    except PermissionError as exc:
        hint = "run the command as the user that runs the node, or as root"
        raise _no_control(data_dir, exc.strerror or str(exc), hint=hint) from exc
    except OSError as exc:
        raise _no_control(data_dir, exc.strerror or str(exc)) from exc
    if not line.endswith(b"\n"):
        raise _no_control(data_dir, "it ended before it answered")
    answer = json.loads(line)
    if "error" in answer:
        raise _told(answer["kind"], answer["error"], answer["hint"])
    return answer["result"]


def _no_control(
    data_dir: Path,
    reason: str,
    *,
    hint: str = "it may be starting or stopping, or another command may have the directory open: try again",
) -> NoControl:
    error = NoControl(f"the node that has {data_dir} open does not answer on {CONTROL_NAME}: {reason}")
    error.hint = hint
    return error


def _told(kind: str, message: str, hint: str) -> WalIngestError:
    if kind == "config":
        return ConfigError(message, hint=hint)
    error = OperatorNeeded(message) if kind == "operator" else WalIngestError(message)
    error.hint = hint
    return error


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[str]:
    """A short name for a directory with a path of any length."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
