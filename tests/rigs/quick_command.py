"""Stands in for the command `wal-ingest` in a test: has a process forked that has imported everything, and acts for it.

`tests.rigs.forked` copies this program into a folder of its own, beside a file that says where the process is. It
gives its arguments, environment, working directory and standard streams away, passes signals on, and ends as the
command ends. Killed, it takes the command along. Whatever a forked process cannot have in the same way, more open
files, another user, what only a fresh interpreter reads, it leaves to the real command.
"""

# Importing pathlib takes as long as all else here.
# ruff: noqa: PTH109, PTH116, PTH120, PTH123, PTH208

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import sys
from types import FrameType

with open(f"{os.path.dirname(__file__)}/parent.json", encoding="utf-8") as file:
    PARENT = json.load(file)
COMMAND: str = PARENT["command"]
ADDRESS: str = PARENT["address"]
# What only a fresh program reads, the dynamic loader, the interpreter, as the process that forks has it.
LOADER: dict[str, str | None] = PARENT["loader"]

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)


def main() -> None:
    # A signal that comes before there is a process waits for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    connection = connect()
    if connection is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        os.execv(COMMAND, [COMMAND, *sys.argv[1:]])
    os.umask(umask := os.umask(0o077))
    request = {"arguments": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "umask": umask}
    fds = array.array("i", (0, 1, 2))
    connection.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    pid = int(connection.recv(64))

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # One that has just ended cannot be signalled; how it ended is on its way.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    # The pipes that the command writes to must not stay open, or be taken for read, by this process.
    for fd in (0, 1, 2):
        os.close(fd)
    code = int(connection.recv(64) or b"1")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def connect() -> socket.socket | None:
    """The process that forks; None when the real command is needed."""
    open_files = {int(name) for name in os.listdir("/proc/self/fd")}
    # One more, for the listing itself; lists are read before they are closed.
    if not {0, 1, 2} <= open_files or len(open_files) > 4:
        return None
    if any(os.environ.get(name) != value for name, value in LOADER.items()):
        return None
    if os.geteuid() != os.stat(ADDRESS).st_uid:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(ADDRESS)
    return connection


main()
