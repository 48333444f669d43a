"""Log lines are written by a thread of their own, so that nobody waits for whoever reads standard error.

A pipe that is not read takes 64 KiB and then blocks its writer. With the event loop as that writer, the whole node
would stop answering. Here the loop only puts a line into a queue. When the queue is full, new lines are dropped and
counted, and the count is written as soon as there is room.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from queue import SimpleQueue

LINES_MAX = 10_000
"""Lines that may wait to be written; some 5 MB."""


class LogStream(io.TextIOBase):
    """A text stream for log handlers: `write` never blocks.

    `write_bytes` writes all of a line and may block; what it raises as OSError is ignored, since there is nowhere
    left to report it. `dropped_line` makes the line that reports how many were dropped.

    `SimpleQueue.put` is reentrant, so a signal handler may log while the thread that it interrupts does.
    """

    def __init__(
        self,
        write_bytes: Callable[[bytes], object],
        *,
        dropped_line: Callable[[int], str],
        lines_max: int = LINES_MAX,
    ) -> None:
        super().__init__()
        self._write_bytes = write_bytes
        self._dropped_line = dropped_line
        self._lines_max = lines_max
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        self.dropped = 0
        threading.Thread(target=self._run, name="log writer", daemon=True).start()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Queues a line, or counts it as dropped when too many wait."""
        if self._queue.qsize() >= self._lines_max:
            self.dropped += 1
        else:
            self._queue.put(text)
        return len(text)

    def drain(self, s_max: float) -> bool:
        """Waits until all lines queued so far are written, at most `s_max` seconds; false when they are not."""
        written = threading.Event()
        self._queue.put(written)
        return written.wait(s_max)

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            dropped, self.dropped = self.dropped, 0
            if dropped:
                self._put_out(self._dropped_line(dropped))
            self._put_out(item)

    def _put_out(self, text: str) -> None:
        try:
            self._write_bytes(text.encode(errors="backslashreplace"))
        except OSError:
            self.dropped += 1
