"""A cheap load generator: prebuilt requests, raw sockets, one thread, epoll. Runs in a process of its own.

It costs a few microseconds a request, so that on a small machine what is measured is the server. Everything
is bounded: by seconds, by a count of requests, and by `STALL_S_MAX` without any answer.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

STALL_S_MAX = 60.0
_TIME_OUT = "no answer"


@dataclass(slots=True)
class Result:
    """What one run was answered. `latencies_s` holds one figure per request answered 2xx, in seconds."""

    seconds: float = 0.0
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def acked(self) -> int:
        return len(self.latencies_s)

    def percentile_ms(self, percent: float) -> float:
        """The latency in milliseconds that so many percent of the requests were within."""
        if not self.latencies_s:
            return float("nan")
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000


class _Connection:
    """One keep-alive connection with at most one request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due_s = 0.0
        self.left = memoryview(b"")
        self.answer = b""

    def send(self, request: bytes, *, due_s: float) -> bool:
        """Sends as much as fits; true when that was all. `due_s` is when the latency begins."""
        self.due_s = due_s
        self.left = memoryview(request)
        self.answer = b""
        return self.send_rest()

    def send_rest(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while self.left:
                self.left = self.left[self.socket.send(self.left) :]
        return not self.left

    def read(self) -> str | None:
        """The status of a whole answer, "" while it is not whole, None when the connection is gone."""
        try:
            piece = self.socket.recv(65536)
        except BlockingIOError:
            return ""
        except OSError:
            return None
        if not piece:
            return None
        self.answer += piece
        head, found, body = self.answer.partition(b"\r\n\r\n")
        if not found:
            return ""
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        return head[9:12].decode() if len(body) >= length else ""


def run(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    per_second: float = 0.0,
    count_max: int = 0,
) -> Result:
    """Sends `requests` round and round until `seconds` have passed, or `count_max` were answered (0: no limit).

    With `per_second` 0 the loop is closed: each connection sends again when it was answered. Otherwise it is
    open: requests are due at fixed times, whatever became of the earlier ones, and a latency counts from
    when the request was *due*. So a server that falls behind shows it, instead of slowing the measure down.
    """
    loop = _Loop(port, requests, connections)
    try:
        return loop.run(seconds, per_second, count_max)
    finally:
        loop.close()


class _Loop:
    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        self._port = port
        self._requests = requests
        self._next = 0
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque()
        for _ in range(connections):
            self._connect()

    def close(self) -> None:
        for connection in self._open.values():
            connection.socket.close()
        self._epoll.close()

    def _connect(self) -> None:
        connection = _Connection(self._port)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket.fileno(), select.EPOLLIN)
        self._idle.append(connection)

    def run(self, seconds: float, per_second: float, count_max: int) -> Result:
        result = Result()
        clock = time.perf_counter
        begin = clock()
        end = begin + seconds
        sent = 0
        heard = begin
        while True:
            now = clock()
            sending = now < end and not (count_max and sent >= count_max)
            if not sending and len(self._idle) == len(self._open):
                break
            if now - heard > STALL_S_MAX:
                result.refused[_TIME_OUT] += len(self._open) - len(self._idle)
                break
            wait_s = 0.1
            while sending and self._idle:
                due = begin + sent / per_second if per_second else now
                if due > now:
                    wait_s = min(wait_s, due - now)
                    break
                self._send(self._idle.popleft(), due)
                sent += 1
                sending = not (count_max and sent >= count_max)
            for number, event in self._epoll.poll(wait_s):
                heard = clock()
                self._on_event(self._open[number], event, result, heard)
        result.seconds = clock() - begin
        return result

    def _send(self, connection: _Connection, due_s: float) -> None:
        request = self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        if not connection.send(request, due_s=due_s):
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _on_event(self, connection: _Connection, event: int, result: Result, now: float) -> None:
        if event & select.EPOLLOUT and connection.send_rest():
            self._epoll.modify(connection.socket.fileno(), select.EPOLLIN)
        if not event & ~select.EPOLLOUT:
            return
        status = connection.read()
        if status == "":
            return
        if status is None:
            result.refused["connection closed"] += 1
            number = connection.socket.fileno()
            self._epoll.unregister(number)
            del self._open[number]
            connection.socket.close()
            self._connect()
            return
        if status.startswith("2"):
            result.latencies_s.append(now - connection.due_s)
        else:
            result.refused[status] += 1
        self._idle.append(connection)
