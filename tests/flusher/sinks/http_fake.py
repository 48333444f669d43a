"""An InfluxDB-like server in this process, for its faults: it answers what it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from wal_ingest.wal.gzip_codec import decompress


@dataclass
class Answer:
    """What a request is answered; `body` None closes the connection without a word, `cut` within the head."""

    status: int = 204
    body: bytes | None = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    lines: bytes


class FakeInfluxDB:
    """`answer` decides; every request is kept. `url` is where it listens."""

    def __init__(self) -> None:
        self.answer: Callable[[Request], Answer] = lambda _request: Answer()
        self.requests: list[Request] = []
        self.connections = 0
        self.url = ""


@contextmanager
def fake_influxdb() -> Iterator[FakeInfluxDB]:
    """Serves until the end of the block."""
    fake = FakeInfluxDB()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            fake.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = Request(
                self.path,
                {name.lower(): value for name, value in self.headers.items()},
                decompress(body, bytes_max=1 << 24) if "Content-Encoding" in self.headers else body,
            )
            fake.requests.append(request)
            answer = fake.answer(request)
            if answer.body is None:
                self.close_connection = True
                return
            if answer.cut:
                self.wfile.write(b"HTTP/1.1 %d Said\r\nContent-Type: appli" % answer.status)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204 and "Transfer-Encoding" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_args: object) -> None:
            """Says nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_args: object) -> None:
            """Says nothing: clients that go away are part of the tests."""

    with Server(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
