"""A process beside the server for what would take the interpreter's lock for long: large bodies.

A thread that works through 32 MiB of JSON takes the lock from the event loop again and again, and everybody's requests
take ten times as long. A process has a lock of its own; it is nice, so that where cores are few the event loop has its
core; and the memory that a large body takes is the system's again when it ends.

It is started for the first job and ended when there were none for a while. That is its whole life: it opens nothing,
and points are as safe as before, since they are appended here, after it answered.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar, cast

import structlog
import trio

from wal_ingest.errors import ComeBackLater
from wal_ingest.http import jobs

T = TypeVar("T")

# It costs 0.15 s to start and 20 MiB to keep.
_IDLE_S_MAX = 30.0

# Pieces of at least so many bytes go back to the system as soon as they are free.
_MALLOC_MMAP_THRESHOLD_BYTES = 1024 * 1024

_log = structlog.get_logger("wal_ingest.http")


class WorkerLost(ComeBackLater):
    """The worker process ended in the middle of a job, as when the system runs out of memory."""


class Worker:
    """Runs one function at a time in a process of its own. `run` ends it when it is idle, and at the end.

    Functions and what they take and give must be picklable: functions of a module, `functools.partial` of them.
    """

    def __init__(self, *, idle_s_max: float = _IDLE_S_MAX) -> None:
        self._idle_s_max = idle_s_max
        self._one_job = trio.CapacityLimiter(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._used_s = 0.0

    async def __call__(self, work: Callable[[], T], /) -> T:
        """What `work` returns or raises over there. Raises WorkerLost.

        Cancellation: the process finishes what it has and its answer is dropped; the next job waits for that.
        """
        try:
            return await trio.to_thread.run_sync(
                self._do, work, abandon_on_cancel=True, limiter=self._one_job
            )
        finally:
            self._used_s = trio.current_time()

    @property
    def pid(self) -> int | None:
        """The process's number, while there is one."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Ends the process when it was idle for a while; and ends it when cancelled, whatever it does."""
        try:
            while True:
                await trio.sleep(self._idle_s_max / 2)
                is_busy = self._one_job.borrowed_tokens > 0
                if not is_busy and trio.current_time() - self._used_s >= self._idle_s_max:
                    self._end()
        finally:
            self._end()

    def _do(self, work: Callable[[], T]) -> T:
        """In a thread."""
        if self._process is not None and self._process.poll() is not None:
            self._end()  # somebody ended it between two jobs
        if self._socket is None:
            self._start()
        sock = self._socket
        assert sock is not None
        try:
            jobs.send(sock, work)
            is_result, value = jobs.receive(sock)
        except (EOFError, OSError) as exc:
            self._end()
            raise WorkerLost("the process that reads large bodies ended in the middle of this one") from exc
        if not is_result:
            raise value
        return cast("T", value)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # With the modules from where this process has them: it may be the one-file program.
            search = os.pathsep.join(path for path in sys.path if path)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {jobs.__name__} import main; main({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    "PYTHONPATH": search,
                    "MALLOC_MMAP_THRESHOLD_": str(_MALLOC_MMAP_THRESHOLD_BYTES),
                },
                # What a terminal sends to the server's group is not for it.
                start_new_session=True,
            )
        self._socket = ours
        _log.debug("the worker process started", pid=self._process.pid)

    def _end(self) -> None:
        sock, self._socket = self._socket, None
        process, self._process = self._process, None
        if sock is not None:
            sock.close()
        if process is not None:
            process.kill()
            status = process.wait()
            _log.debug("the worker process ended", pid=process.pid, status=status)
