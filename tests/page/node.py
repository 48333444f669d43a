"""A stand-in for a node: the page's own files, and a status and a history that a test decides."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from wal_ingest.http.page import ASSETS, HEADERS


class FakeNode:
    """Serves on a loopback port of its own, which outlives `go_away` and `come_back`.

    `status` and `history` are what is answered from now on; `broken` answers 500 instead. `asked` counts
    requests by path.
    """

    def __init__(self, status: Mapping[str, Any], history: Mapping[str, Any]) -> None:
        self.status = status
        self.history = history
        self.broken = False
        self.asked: Counter[str] = Counter()
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FakeNode:
        self.come_back()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_away()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def come_back(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def go_away(self) -> None:
        """Nobody listens at the port any more."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(timeout=10)
            self._server = None

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path."""
        self.asked[path] += 1
        if path in ASSETS:
            return (200, *ASSETS[path])
        said = {"/status.json": self.status, "/history.json": self.history}.get(path)
        if said is None:
            return 404, "text/plain", b""
        if self.broken:
            return 500, "application/json", b'{"error": "a bug"}'
        return 200, "application/json", json.dumps(said).encode()


def _handler(node: FakeNode) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content_type, body = node.answer(self.path)
            self.send_response(status)
            for name, value in {**HEADERS, "Content-Type": content_type}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- as it is called there
            """Nothing: what matters is counted."""

    return Handler
