"""A database that refuses some points, in a process of its own: it knows each good point and when it was sent.

A good line is `m,host=h7 v=1.5,entry=12i,n=7i TIME` with the time at which it was due to be sent. What a good line has
waited is known when it is stored for the first time. What is bad, and how a write with such a line is answered, is a
row of `WAYS`.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from threading import Lock, Thread

_GOOD = re.compile(rb"^m,host=h\d+ v=1\.5,entry=(\d+)i,n=(\d+)i (\d+)$", re.MULTILINE)
_TYPE_CONFLICT = (
    'partial write: field type conflict: input field "v" on measurement "m" is type string, '
    "already exists as type float dropped={bad}"
)
_OTHER_TYPE = 'm,host=h{n} v="x",entry={entry}i,n={n}i {time_ns}\n'
_TOO_OLD = "old,kind=old,host=h{n} v=1,entry={entry}i,n={n}i {old_ns}\n"
_ATTACK = 'log,host=h{n} message="GET /etc/passwd",entry={entry}i,n={n}i {time_ns}\n'


@dataclass(frozen=True, slots=True)
class Way:
    """How bad points are refused: `line` is one of them, `stores` whether the good ones of such a write are stored.

    `status` 0 closes the connection without an answer. `message` is put in an InfluxDB's JSON, `text` goes as it is.
    """

    line: str
    status: int
    message: str = ""
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    stores: bool = False

    def body(self, bad: int) -> bytes:
        if not self.message:
            return self.text.encode()
        return json.dumps({"code": "invalid", "message": self.message.format(bad=bad)}).encode()


WAYS = {
    "400 naming the field": Way(_OTHER_TYPE, 400, _TYPE_CONFLICT, stores=True),
    "422 with dropped=N": Way(_OTHER_TYPE, 422, f"failure writing points: {_TYPE_CONFLICT}", stores=True),
    "403 for some lines": Way(_ATTACK, 403, text="<html><title>Forbidden</title></html>"),
    "500 without words": Way(_TOO_OLD, 500),
    "500 with words": Way(
        _TOO_OLD,
        500,
        "unexpected error writing points to database: partial write: points beyond retention policy dropped=1",
        stores=True,
    ),
    "closed without an answer": Way(_TOO_OLD, 0),
    "plain 400": Way(
        _TOO_OLD, 400, text="cannot read the body", headers=(("X-Influxdb-Version", "1.8.0"),), stores=False
    ),
}


@dataclass(slots=True)
class Seen:
    """What reached the database: `waits` are (time of arrival, wait, points), in seconds, of good points."""

    writes: int = 0
    points: int = 0
    waits: list[tuple[float, float, int]] = field(default_factory=list)


class Database:
    """The door to the process: `begin` chooses a way and forgets what was, `seen` asks what came since."""

    def __init__(self, port: int, pipe: Connection) -> None:
        self.port = port
        self._pipe = pipe

    def begin(self, way: str) -> None:
        self._pipe.send(way)
        self._pipe.recv()

    def seen(self) -> Seen:
        self._pipe.send(None)
        seen: Seen = self._pipe.recv()
        return seen


@contextmanager
def running_database(write_s: float) -> Iterator[Database]:
    """Starts the process; each write takes `write_s`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, write_s), daemon=True)
    process.start()
    try:
        yield Database(ours.recv(), ours)
    finally:
        process.terminate()
        process.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    write: Callable[[bytes], tuple[int, bytes, tuple[tuple[str, str], ...]]]

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        packed = self.headers.get("Content-Encoding") == "gzip"
        status, body, headers = type(self).write(gzip.decompress(sent) if packed else sent)
        if not status:
            self.close_connection = True
            return
        lines = [f"HTTP/1.1 {status} Answered", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines += ["Content-Type: application/json"] if body.startswith(b"{") else []
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _serve(pipe: Connection, write_s: float) -> None:
    way, seen, stored, lock = WAYS["500 without words"], Seen(), set[int](), Lock()

    def write(lines: bytes) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
        time.sleep(write_s)
        total, good = lines.count(b"\n"), _GOOD.findall(lines)
        bad = total - len(good)
        with lock:
            seen.writes += 1
            if not bad or way.stores:
                _store(good, stored, seen)
        return (way.status, way.body(bad), way.headers) if bad else (204, b"", ())

    handler = type("_Bound", (_Handler,), {"write": staticmethod(write)})
    server = _Server(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_address[1])
    while True:
        asked = pipe.recv()
        with lock:
            if asked is None:
                pipe.send(seen)
                continue
            way, seen = WAYS[asked], Seen()
            stored.clear()
            pipe.send(None)


def _store(good: list[tuple[bytes, bytes, bytes]], stored: set[int], seen: Seen) -> None:
    """Notes the points that were not stored before; those of one entry were sent at one time."""
    fresh: dict[bytes, list[int]] = {}
    for entry, number, time_ns in good:
        key = int(entry) * 100_000 + int(number)
        if key not in stored:
            stored.add(key)
            fresh.setdefault(entry, []).append(int(time_ns))
    now_ns = time.time_ns()
    for times in fresh.values():
        seen.points += len(times)
        seen.waits.append((now_ns / 1e9, (now_ns - times[0]) / 1e9, len(times)))
