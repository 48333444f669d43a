"""Which signals end a process, which do not, and what happens when an orderly stop hangs.

Invariants:

* SIGTERM and SIGINT start an orderly stop. A second one ends the process at once.
* From the first one on, a watchdog thread ends the process after `stop_s_max` seconds. It is started in the
  signal handler itself, so it works even while the event loop is blocked.
* Signals that other servers use for "reload" or "dump" never end the process. They are logged and ignored,
  because settings are read only at start.

Ending at once is safe at any point: to the data it is the same as `kill -9`.

Trio and structlog are imported only where they are used: the signals are ignored as early as possible, and each of the
two takes 0.2 s to import.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio import TaskStatus

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Their default action ends the process. Operators and log rotation send them to servers that reload.
IGNORED_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)

# How long the last log lines may take when the process is ended at once.
_FLUSH_S_MAX = 0.5


def _log() -> Any:
    import structlog

    return structlog.get_logger("wal_ingest.signals")


def ignore_reload_signals() -> None:
    """Ignores the signals that would end the process by default. Main thread only; call it first at start."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


async def report_ignored_signals(task_status: TaskStatus[None]) -> None:
    """Logs each ignored signal. Runs until it is cancelled; then the signals are ignored silently again.

    For `nursery.start`: signals that come after it are logged.
    """
    import trio

    with trio.open_signal_receiver(*IGNORED_SIGNALS) as signals:
        task_status.started()
        async for number in signals:
            _log().warning(
                "signal ignored: settings are read only at start",
                signal=signal.Signals(number).name,
                remedy="restart to change settings",
            )


class Watchdog:
    """Ends the process `stop_s_max` seconds after the first `start`, whatever the other threads do."""

    def __init__(self, stop_s_max: float, *, message: str) -> None:
        self._message = message
        self._timer = threading.Timer(stop_s_max, self._end)
        self._timer.daemon = True
        self._is_started = False

    def start(self) -> None:
        """Starts the countdown; more calls change nothing. May be called from a signal handler."""
        if not self._is_started:
            self._is_started = True
            self._timer.start()

    def cancel(self) -> None:
        """The stop was orderly and the process goes on, as in a test."""
        self._timer.cancel()

    def _end(self) -> None:
        _log().error(self._message)
        end_at_once()


def end_at_once() -> None:
    """Ends the process with exit code 1 after a short wait for the last log lines."""
    from wal_ingest.telemetry import flush_logs

    flush_logs(_FLUSH_S_MAX)
    os._exit(1)


@contextmanager
def stop_on_signals(stop: Callable[[str], None], watchdog: Watchdog) -> Iterator[None]:
    """Calls `stop` with the signal's name in the event loop at the first SIGTERM or SIGINT. Main thread, inside Trio.

    The handlers are plain ones and not Trio's receiver: Trio handles a signal in its event loop, and a loop that is
    blocked could then never be stopped.
    """
    import trio

    token = trio.lowlevel.current_trio_token()
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            _log().warning("second signal: ending at once", signal=signal.Signals(number).name)
            end_at_once()
        watchdog.start()
        token.run_sync_soon(stop, signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
