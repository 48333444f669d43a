"""One named stream for a chaos client: a frame is sent under one number until it is clear what became of it.

So, unlike a request over HTTP, it may be sent again whatever it holds: however often that happens, the server stores it
once. The client here is another's (`websockets`), for ours is not to be its own judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.rigs.fleet import Request

_FORMATS = {"lines": "lines", "fleet": "json", "general": "json", "ndjson": "ndjson"}
FORMS = tuple(_FORMATS)
"""The forms of a request that a frame can have."""


class StreamLine:
    """A connection to `/stream` that is made again when it has broken. `port` is asked for each time."""

    def __init__(self, port: Callable[[], int], client_id: str, *, answer_s_max: float) -> None:
        self._port = port
        self._client_id = client_id
        self._answer_s_max = answer_s_max
        self._connection: ClientConnection | None = None
        self._welcome: dict[str, Any] = {}

    def send(self, number: int, request: Request) -> tuple[int, bytes]:
        """What became of a frame: 202 with its ack, the status of its refusal, or 0 while that is not known."""
        try:
            if self._connection is None:
                self._connect()
                if number <= self._welcome["durable"]:
                    return 202, self._stored(number)
            return self._exchange(number, request)
        except (OSError, WebSocketException):
            self.drop()
            return 0, b""

    def _connect(self) -> None:
        url = f"ws://127.0.0.1:{self._port()}/stream?client_id={self._client_id}"
        self._connection = connect(
            url,
            subprotocols=[Subprotocol("wal-ingest.v1")],
            compression=None,
            proxy=None,
            ping_interval=None,
            open_timeout=self._answer_s_max,
            close_timeout=1,
        )
        self._welcome = json.loads(self._connection.recv(self._answer_s_max))

    def _stored(self, number: int) -> bytes:
        """What the welcome says of a frame: the ack for it was lost on the way."""
        for known, seq, points, _crc in self._welcome["stored"]:
            if known == number:
                return json.dumps({"seq": seq, "points": points}).encode()
        return b"{}"

    def _exchange(self, number: int, request: Request) -> tuple[int, bytes]:
        assert self._connection is not None
        header = {
            "number": number,
            "format": _FORMATS[request.shape.form],
            "encoding": request.headers.get("Content-Encoding", ""),
        }
        self._connection.send(json.dumps(header).encode() + b"\n" + request.body)
        while True:
            answer = json.loads(self._connection.recv(self._answer_s_max))
            if answer["number"] is not None and answer["number"] < number:
                continue  # of a frame that was given up
            if answer["type"] == "ack":
                return 202, json.dumps(answer).encode()
            return answer["status"], json.dumps(answer).encode()

    def drop(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
