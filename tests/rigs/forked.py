"""`wal-ingest` processes that skip the second of imports: a process that has imported everything forks for each.

Why: the tests start some hundreds of nodes, and on two cores their imports took a third of the whole run. `make proof`
and everything that is started under another program (strace, LD_PRELOAD) still starts the command as a user does; so
does any run with WAL_TESTS_EXEC=1.

What differs from the command: the code that runs before `main`, the tree of commands, which is built once, and nothing
else that we know of. The child has the arguments, environment, working directory and standard streams that it was
given, no other open file, and signals as a fresh interpreter sets them. It is forked twice, so it becomes a child of
the test process (which adopts orphans), and its end can be waited for.

Where a shell or `subprocess` starts the command, `quick_command()` stands in for it (quick_command.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, TypedDict

import wal_ingest

_MESSAGE_BYTES_MAX = 1 << 20
_PR_SET_CHILD_SUBREAPER = 36
_EXEC = "WAL_TESTS_EXEC"
_STAND_IN = Path(__file__).with_name("quick_command.py")

# The command as a user has it.
COMMAND = Path(sys.executable).with_name("wal-ingest")

# Of other people's modules, the large ones that our modules import within functions.
_IMPORTED_LATE = (
    "httpx",
    "influxdb_client",
    "psutil",
    "rich.progress",
    "rich.table",
    "trio_websocket",
    "urllib3",
)

# What only a fresh program reads: the dynamic loader, the interpreter.
LOADER = frozenset({"LD_PRELOAD", "PYTHONPATH", "PYTHONHASHSEED", "PYTHONSTARTUP"})


def is_enabled() -> bool:
    """Whether nodes may be forked: not where each must start as a user starts it."""
    return os.environ.get(_EXEC) != "1"


def can_be_forked(env: Mapping[str, str] | None) -> bool:
    """Whether `wal-ingest` may be forked in this environment, None for this process's own."""
    return is_enabled() and (env is None or all(env.get(name) == os.environ.get(name) for name in LOADER))


class _Request(TypedDict):
    arguments: list[str]
    env: dict[str, str]
    cwd: str
    umask: int


class ForkedChild:
    """A process that was forked for us, with the part of `subprocess.Popen` that the rigs use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._pidfd)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        if self.poll() is None:
            select.select([self._pidfd], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("wal-ingest", timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class _Parent:
    """The process that forks, started `under` another program. It ends with the test process, by its socket."""

    def __init__(self, under: Sequence[str] = ()) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._folder = tempfile.TemporaryDirectory(prefix="wal-ingest-forked-")
        address = str(Path(self._folder.name) / "socket")
        self.command = Path(self._folder.name) / "wal-ingest"
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            listener.listen()
            self._process = subprocess.Popen(
                [
                    *under,
                    sys.executable,
                    "-m",
                    "tests.rigs.forked",
                    str(theirs.fileno()),
                    str(listener.fileno()),
                ],
                pass_fds=[theirs.fileno(), listener.fileno()],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
            )
        loader = {name: os.environ.get(name) for name in LOADER}
        parent = {"command": str(COMMAND), "address": address, "loader": loader}
        self.command.with_name("parent.json").write_text(json.dumps(parent))
        # Without the site module and the environment it begins in 0.03 s.
        self.command.write_text(f"#!{sys.executable} -IS\n{_STAND_IN.read_text()}")
        self.command.chmod(0o755)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(timeout=10)
        self._folder.cleanup()

    def fork(self, request: _Request, fds: Sequence[int]) -> int:
        socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
        answer = self._socket.recv(64)
        if not answer:
            raise ChildProcessError("the process that forks nodes has ended")
        return int(answer)


_parent: _Parent | None = None


def start(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    fds: tuple[int, int, int],
) -> ForkedChild:
    """Starts `wal-ingest` with these arguments; `fds` become its standard input, output and error."""
    request = _Request(arguments=list(arguments), env=dict(env), cwd=str(cwd), umask=_umask())
    return ForkedChild(_the_parent().fork(request, fds))


def quick_command() -> Path:
    """A program that does what `wal-ingest` does, and starts sooner; in `make proof` that command itself.

    Not for a node whose memory or open files are looked at: the process is not the one that runs. A program that
    changes limits or rights of what it starts would change this program's: see `quick_command_under`.
    """
    return _the_parent().command if is_enabled() else COMMAND


@contextlib.contextmanager
def quick_command_under(*program: str) -> Iterator[list[str]]:
    """The beginning of a command line that starts `wal-ingest` under a program, such as one that takes rights away.

    What the program changes is changed once, in a process of its own that forks for each command.
    """
    if not is_enabled():
        yield [*program, str(COMMAND)]
        return
    parent = _Parent(program)
    try:
        yield [str(parent.command)]
    finally:
        parent.close()


def search_path() -> str:
    """A PATH on which `wal-ingest` is `quick_command()`, and the other programs are found as ever."""
    return os.pathsep.join([str(quick_command().parent), str(COMMAND.parent), os.environ["PATH"]])


def _the_parent() -> _Parent:
    global _parent
    if _parent is None:
        _parent = _Parent()
    return _parent


def _umask() -> int:
    # There is no way to ask for it alone.
    os.umask(umask := os.umask(0o077))
    return umask


def run(
    arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, stdin: bytes, s_max: float
) -> subprocess.CompletedProcess[bytes]:
    """Runs `wal-ingest` to its end, with pipes as its standard streams. Raises subprocess.TimeoutExpired."""
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe(), os.pipe()
    child = start(arguments, env=env, cwd=cwd, fds=(in_read, out_write, err_write))
    for fd in (in_read, out_write, err_write):
        os.close(fd)
    with ThreadPoolExecutor(3) as threads:
        out, err = threads.submit(_read_all, out_read), threads.submit(_read_all, err_read)
        threads.submit(_write_all, in_write, stdin)
        try:
            code = child.wait(s_max)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait(10)
            raise
        return subprocess.CompletedProcess(["wal-ingest", *arguments], code, out.result(), err.result())


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as pipe:
        return pipe.read()


def _write_all(fd: int, data: bytes) -> None:
    # The command may end before it has read everything.
    with contextlib.suppress(BrokenPipeError), open(fd, "wb") as pipe:
        pipe.write(data)


def stop() -> None:
    """Ends the process that forks; what it has forked is not touched."""
    global _parent
    if _parent is not None:
        _parent.close()
        _parent = None


def _import_all() -> None:
    """Imports what commands import when they run, and builds the tree of commands, which is most of their start."""
    for module in pkgutil.walk_packages(wal_ingest.__path__, "wal_ingest."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    app = importlib.import_module("wal_ingest.cli").app
    typer_main = importlib.import_module("typer.main")
    build, built = typer_main.get_command, typer_main.get_command(app)
    vars(typer_main)["get_command"] = lambda asked: built if asked is app else build(asked)


def _serve_forks(requests: socket.socket, listener: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([requests, listener], [], [])
        _reap()
        if listener in ready:
            _fork_for(listener.accept()[0])
            continue
        message, fds, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES_MAX, 3)
        if not message:
            return
        pid_read, pid_write = os.pipe()
        middle = os.fork()
        if not middle:
            child = os.fork()
            if child:
                os.write(pid_write, str(child).encode())
                os._exit(0)
            _become(json.loads(message), fds)
        os.close(pid_write)
        for fd in fds:
            os.close(fd)
        # The child has a new parent when its own has ended; then it can be waited for there.
        os.waitpid(middle, 0)
        requests.send(os.read(pid_read, 64))
        os.close(pid_read)


def _fork_for(connection: socket.socket) -> None:
    """Forks for a program that stands in for the command: a process that waits, and the command as its child."""
    if os.fork():
        connection.close()
        return
    message, fds, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES_MAX, 3)
    if not message:
        os._exit(1)
    child = os.fork()
    if not child:
        _become(json.loads(message), fds)
    for fd in fds:
        os.close(fd)
    connection.send(str(child).encode())
    pidfd = os.pidfd_open(child)
    ready, _, _ = select.select([pidfd, connection.fileno()], [], [])
    if connection.fileno() in ready:
        # It sends nothing more: it was killed.
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _reap() -> None:
    # Those that waited for a command and are done.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(request: _Request, fds: Sequence[int]) -> NoReturn:
    try:
        for place, fd in enumerate(fds):
            os.dup2(fd, place)
        os.closerange(3, 1024)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        os.umask(request["umask"])
        # Streams over the new files, as at the start of an interpreter.
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
        error = io.BufferedWriter(io.FileIO(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(error, line_buffering=True, errors="backslashreplace")
        # What usage texts call the program by.
        sys.argv = [str(Path(sys.executable).with_name("wal-ingest")), *request["arguments"]]
        sys.modules["__main__"].__package__ = None
        from wal_ingest.cli import main

        main()
    except BaseException:
        # Everything is caught, as at the end of an interpreter: above this frame is the server of forks, whose own
        # loop must not go on in a child. A traceback that cannot be written (stderr is gone) changes nothing.
        with contextlib.suppress(BaseException):
            sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
    finally:
        os._exit(1)


if __name__ == "__main__":
    _import_all()
    gc.collect()
    _serve_forks(*(socket.socket(fileno=int(fd)) for fd in sys.argv[1:]))
