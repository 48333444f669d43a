"""A cheap load generator for streams: prebuilt frames, masked ahead, raw sockets, one thread, epoll.

A frame costs it a few microseconds, so that on a small machine what is measured is the server. Bounded as
`generator` is.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ops.bench.generator import STALL_S_MAX, Result

_ACK = re.compile(rb'"type":"ack","number":(\d+)')
_TROUBLE = re.compile(rb'"type":"error"[^}]*')
# One mask for all: what it is for (caches between browser and server) is not there to be fooled here.
_MASK = b"\x37\xfa\x21\x3d"
_PING = b"\x89\x00"
_PONG = b"\x8a\x80" + _MASK
# The header line has the same length whatever the number, and fills whole masks: so bodies are masked once.
_HEADER = '{"number":%-12d,"encoding":"%s"}\n'


@dataclass(slots=True)
class Shape:
    """What is sent: bodies already masked, their encoding, and how they are spread.

    `per_second` 0 is a closed loop: each stream keeps `window` frames without an answer. Otherwise frames are due at
    fixed times, stream after stream, and a latency counts from when the frame was due.
    """

    bodies: Sequence[bytes]
    encoding: str
    streams: int
    window: int = 1
    per_second: float = 0.0
    client_ids: bool = True
    token: str = ""


def masked(body: bytes) -> bytes:
    """A body as it goes over the wire behind a header of `_HEADER`'s length."""
    key = (_MASK * (len(body) // 4 + 1))[: len(body)]
    return (int.from_bytes(body, "big") ^ int.from_bytes(key, "big")).to_bytes(len(body), "big")


def frame(number: int, encoding: str, body: bytes) -> bytes:
    """A whole masked WebSocket frame around a masked body."""
    header = (_HEADER % (number, encoding)).encode()
    header = header[:-1] + b" " * (-len(header) % 4) + b"\n"
    length = len(header) + len(body)
    if length < 126:
        head = bytes((0x82, 0x80 | length))
    elif length < 65536:
        head = b"\x82\xfe" + length.to_bytes(2, "big")
    else:
        head = b"\x82\xff" + length.to_bytes(8, "big")
    return b"".join((head, _MASK, masked(header), body))


def upgrade_request(query: str, *lines: str) -> bytes:
    """The handshake of a stream, with more header lines if need be."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = (
        f"GET /stream{query} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Protocol: wal-ingest.v1",
        *lines,
    )
    return "\r\n".join((*head, "", "")).encode()


class Stream:
    """One connection: what it has sent, and what of it was answered."""

    def __init__(self, port: int, client_id: str, token: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        named = {"client_id": client_id, "token": token}
        query = "&".join(f"{name}={value}" for name, value in named.items() if value)
        self.socket.sendall(upgrade_request(f"?{query}"))
        self.number = 0
        self.due: deque[tuple[int, float]] = deque()
        self.left: deque[memoryview] = deque()
        self.said = b""

    def wait_welcome(self) -> None:
        """Reads up to the welcome. Raises RuntimeError when there is none."""
        said = b""
        while b'"welcome"' not in said or not said.endswith(b"}"):
            piece = self.socket.recv(65536)
            if not piece:
                raise RuntimeError(f"no welcome but {said[:200]!r}")
            said += piece
        self.socket.setblocking(False)

    def queue(self, encoding: str, body: bytes, due_s: float) -> None:
        """Puts one frame in line and sends what fits."""
        self.number += 1
        self.due.append((self.number, due_s))
        self.left.append(memoryview(frame(self.number, encoding, body)))
        self.send_rest()

    def send_rest(self) -> bool:
        """Sends what is left and fits; true when that was all."""
        # A connection that is gone is noticed where it is read.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.left:
                sent = self.socket.send(self.left[0])
                if sent < len(self.left[0]):
                    self.left[0] = self.left[0][sent:]
                else:
                    self.left.popleft()
        return not self.left

    def heard(self, now: float, latencies: array[float]) -> str:
        """Takes in what the server says; returns what went wrong, or ""."""
        try:
            piece = self.socket.recv(1 << 18)
        except BlockingIOError:
            return ""
        except ConnectionResetError:
            piece = b""
        if not piece:
            return "connection closed"
        if _PING in piece:
            self.left.append(memoryview(_PONG))
            self.send_rest()
        said = self.said + piece
        for match in _ACK.finditer(said):
            number = int(match[1])
            while self.due and self.due[0][0] <= number:
                latencies.append(now - self.due.popleft()[1])
        self.said = said[said.rfind(b"}") + 1 :]
        trouble = _TROUBLE.search(said)
        return trouble[0].decode(errors="replace") if trouble else ""


def run(port: int, shape: Shape, *, seconds: float) -> Result:
    """Opens the streams, sends for so many seconds, waits for what is unanswered, and closes them."""
    loop = Loop(port, shape)
    try:
        return loop.run(seconds)
    finally:
        loop.close()


_held: list[Loop] = []


def hold_open(port: int, shape: Shape) -> float:
    """Opens the streams, for `run_held` in the same process; returns the seconds that it took."""
    began_s = time.perf_counter()
    _held.append(Loop(port, shape))
    return time.perf_counter() - began_s


def run_held(seconds: float) -> tuple[Result, float]:
    """Sends on the streams that are held open; also returns the seconds of CPU that this process took."""
    before_s = time.process_time()
    _held[-1].sent = 0
    return _held[-1].run(seconds), time.process_time() - before_s


def let_go() -> None:
    """Closes the streams that are held open."""
    _held.pop().close()


@dataclass(slots=True)
class Loop:
    """The streams of one run."""

    port: int
    shape: Shape
    streams: list[Stream] = field(default_factory=list)
    by_fd: dict[int, Stream] = field(default_factory=dict)
    sent: int = 0
    epoll: select.epoll = field(default_factory=select.epoll)

    def __post_init__(self) -> None:
        base = f"bench-{os.getpid()}-{time.time_ns()}"
        for begin in range(0, self.shape.streams, 100):
            fresh = [
                Stream(self.port, f"{base}-{index}" if self.shape.client_ids else "", self.shape.token)
                for index in range(begin, min(begin + 100, self.shape.streams))
            ]
            for stream in fresh:
                stream.wait_welcome()
                self.by_fd[stream.socket.fileno()] = stream
                self.epoll.register(stream.socket.fileno(), select.EPOLLIN)
            self.streams += fresh

    def close(self) -> None:
        """Closes every connection."""
        for stream in self.streams:
            stream.socket.close()
        self.epoll.close()

    def run(self, seconds: float) -> Result:
        """See `run`."""
        result = Result()
        begin = heard = time.perf_counter()
        end = begin + seconds
        open_loop = self.shape.per_second > 0
        if not open_loop:
            for stream in self.streams:
                self._fill(stream, begin)
        while True:
            now = time.perf_counter()
            wait_s = 0.05
            if open_loop and now < end:
                wait_s = self._send_due(begin, now)
            elif now >= end and not any(stream.due for stream in self.streams):
                break
            if now - heard > min(STALL_S_MAX, 20.0):
                result.refused["no answer"] += sum(len(stream.due) for stream in self.streams)
                break
            # epoll itself waits whole milliseconds, and a frame that is sent late counts as a late answer.
            select.select([self.epoll], (), (), wait_s)
            for fd, event in self.epoll.poll(0):
                heard = time.perf_counter()
                self._on_event(self.by_fd[fd], event, result, heard, more=not open_loop and heard < end)
        result.seconds = time.perf_counter() - begin
        return result

    def _send_due(self, begin: float, now: float) -> float:
        while True:
            due = begin + self.sent / self.shape.per_second
            if due > now:
                return min(due - now, 0.05)
            stream = self.streams[self.sent % len(self.streams)]
            self._send(stream, due)

    def _send(self, stream: Stream, due: float) -> None:
        body = self.shape.bodies[self.sent % len(self.shape.bodies)]
        self.sent += 1
        stream.queue(self.shape.encoding, body, due)
        if stream.left:
            self.epoll.modify(stream.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _fill(self, stream: Stream, now: float) -> None:
        while len(stream.due) < self.shape.window and not stream.left:
            self._send(stream, now)

    def _on_event(self, stream: Stream, event: int, result: Result, now: float, *, more: bool) -> None:
        if event & select.EPOLLOUT and stream.send_rest():
            self.epoll.modify(stream.socket.fileno(), select.EPOLLIN)
        if event & ~select.EPOLLOUT:
            trouble = stream.heard(now, result.latencies_s)
            if trouble:
                result.refused[trouble] += 1
                if trouble == "connection closed":
                    self.epoll.unregister(stream.socket.fileno())
                    stream.due.clear()
                    return
        if more:
            self._fill(stream, now)
