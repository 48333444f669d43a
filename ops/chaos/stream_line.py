"""One named stream for a chaos client: a frame is sent under one number until it is clear what became of it.

So, unlike a request over HTTP, it may be sent again whatever it holds: however often that happens, the server stores it
once. The client here is another's (`websockets`), for ours is not to be its own judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.rigs.fleet import Request

_FORMATS = {"lines": "lines", "fleet": "json", "general": "json", "ndjson": "ndjson"}
FORMS = tuple(_FORMATS)
"""The forms of a request that a frame can have."""


class StreamLine:
    """A connection to `/stream` that is made again when it has broken. `port` is asked for each time.

    `complaints` are what no client should ever be told by this server.
    """

    def __init__(self, port: Callable[[], int], client_id: str, *, answer_s_max: float) -> None:
        self.complaints: list[str] = []
        self._port = port
        self._client_id = client_id
        self._answer_s_max = answer_s_max
        self._connection: ClientConnection | None = None
        self._acked = 0

    def send(self, number: int, request: Request) -> tuple[int, bytes]:
        """What became of a frame: 202 with its ack, the status of its refusal, or 0 while that is not known."""
        try:
            if self._connection is None and (stored := self._connect(number)):
                return 202, stored
            status, reply = self._exchange(number, request)
        except (OSError, WebSocketException):
            self.drop()
            return 0, b""
        if status == 202:
            self._acked = number
        return status, reply

    def _connect(self, number: int) -> bytes:
        """Opens the stream; returns what it says of the frame if that is stored already, and only its ack was lost."""
        url = f"ws://127.0.0.1:{self._port()}/stream?client_id={self._client_id}"
        self._connection = connect(
            url,
            subprotocols=[Subprotocol("wal-ingest.v1")],
            compression=None,
            proxy=None,
            ping_interval=None,
            open_timeout=self._answer_s_max,
            close_timeout=1,
        ).__enter__()
        welcome = json.loads(self._connection.recv(self._answer_s_max))
        durable = welcome["durable"]
        if not self._acked <= durable <= number:
            self._complain(
                f"frame {number} is sent, {self._acked} was acked, and {durable} is said to be durable"
            )
        if durable != number:
            return b""
        self._acked = number
        for known, seq, points, _crc in welcome["stored"]:
            if known == number:
                return json.dumps({"seq": seq, "points": points}).encode()
        self._complain(f"frame {number} is durable, but not among those that are stored: {welcome['stored']}")
        return b"{}"

    def _exchange(self, number: int, request: Request) -> tuple[int, bytes]:
        assert self._connection is not None
        header = {
            "number": number,
            "format": _FORMATS[request.shape.form],
            "encoding": request.headers.get("Content-Encoding", ""),
        }
        self._connection.send(json.dumps(header).encode() + b"\n" + request.body)
        answer = json.loads(self._connection.recv(self._answer_s_max))
        if answer["number"] != number:
            self._complain(f"frame {number} is the only one without an answer, and it is {answer}")
        status = 202 if answer["type"] == "ack" else answer["status"]
        return status, json.dumps(answer).encode()

    def _complain(self, what: str) -> None:
        self.complaints.append(f"stream {self._client_id}: {what}")

    def drop(self) -> None:
        """Ends the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
