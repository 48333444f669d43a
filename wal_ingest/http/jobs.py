"""Functions run in another process: what both sides of the socket between them say, and the process's own loop.

A job is a function of this package with its arguments, pickled; its answer is what it returned or raised. Large `bytes`
do not go through the pickle but after it as they are: copying 32 MiB would hold the interpreter's lock for 10 ms, and
sending and receiving hold it not at all.

Both sides are the same program, started one from the other, so there is no version in here. This module imports
neither trio nor the server: the process costs 20 MiB and starts in 0.15 s.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import pickle
import signal
import socket
import struct
import traceback
from pathlib import Path
from typing import Any

from wal_ingest.errors import WalIngestError

# From this size on `bytes` go after the pickle.
_APART_BYTES_MIN = 16 * 1024

# The bytes of the pickle and the number of parts after it; then the bytes of each part.
_HEAD = struct.Struct("!QI")
_PART = struct.Struct("!Q")

# The server comes first: it gets the CPU, and where memory runs out the system ends this process.
_NICE = 19
_OOM_SCORE_ADJ = 500


class _Pickler(pickle.Pickler):
    """Leaves large bytes out, and pickles errors whatever their constructor asks for."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.parts: list[bytes] = []

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not bytes or len(obj) < _APART_BYTES_MIN:
            return None
        self.parts.append(obj)
        return len(self.parts) - 1

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            return _error, (type(obj), obj.args, vars(obj))
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parts: list[bytes]) -> None:
        super().__init__(file)
        self._parts = parts

    def persistent_load(self, pid: int) -> bytes:
        return self._parts[pid]


def _error(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(attributes)
    return error


def send(sock: socket.socket, message: Any) -> None:
    """Sends what can be pickled on a blocking socket. Raises OSError."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(message)
    sizes = b"".join(_PART.pack(len(part)) for part in pickler.parts)
    sock.sendall(_HEAD.pack(file.tell(), len(pickler.parts)) + sizes + file.getvalue())
    for part in pickler.parts:
        sock.sendall(part)


def receive(sock: socket.socket) -> Any:
    """What the other side sent. Raises EOFError when it is gone, and OSError."""
    pickled_bytes, count = _HEAD.unpack(_exactly(sock, _HEAD.size))
    sizes = _exactly(sock, count * _PART.size)
    file = io.BytesIO(_exactly(sock, pickled_bytes))
    parts = [_exactly(sock, size) for (size,) in _PART.iter_unpack(sizes)]
    return _Unpickler(file, parts).load()


def _exactly(sock: socket.socket, count: int) -> bytes:
    # In one call, as a rule: then the kernel writes into the very object that is returned.
    data = sock.recv(count, socket.MSG_WAITALL) if count else b""
    while len(data) < count:
        more = sock.recv(count - len(data), socket.MSG_WAITALL)
        if not more:
            raise EOFError
        data += more
    return data


def main(fd: int) -> None:
    """Does the jobs that come on the socket with this descriptor, one after the other, until its other side closes."""
    # A stop, or Ctrl-C, is for the server: jobs under way are finished, and the end of the socket is the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # where a sandbox forbids it
        os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE_ADJ))
    with socket.socket(fileno=fd) as sock, contextlib.suppress(EOFError, ConnectionError):
        while True:
            _answer_one(sock)
            # The frames of an error hold the body, and some of them the error: a cycle, which would stay beside the
            # next body. There are few objects here, so this takes 2 ms.
            gc.collect()


def _answer_one(sock: socket.socket) -> None:
    # A function of its own, so that its variables are gone while the next job is awaited.
    job = receive(sock)
    try:
        answer = (True, job())
    except Exception as exc:  # the other side raises it again
        if not isinstance(exc, WalIngestError):
            exc.add_note(f"in the worker process:\n{traceback.format_exc()}")
        answer = (False, exc)
    del job
    send(sock, answer)
