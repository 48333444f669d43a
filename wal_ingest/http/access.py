"""Who may write: whoever shows the node's write token, where it has one. Pure.

A token is shown as `Authorization: Bearer …` or `Token …` (InfluxDB 2), as the password of `Basic …`, as `p` in the
query (both InfluxDB 1), or as `token` in the query (a browser's WebSocket can send no header). The comparison takes
the same time wherever two tokens differ.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable
from urllib.parse import parse_qsl

from wal_ingest.errors import RequestError


class Unauthorized(RequestError):
    """The token is missing or another one: nothing was read. Show the node's `server.write_token`."""

    status = 401


class Access:
    """The door's lock; an empty token means that there is none."""

    def __init__(self, write_token: str) -> None:
        self._token = write_token.encode()

    def check(self, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> None:
        """Raises Unauthorized unless the request (header names in lower case) may write."""
        if not self._token:
            return
        shown = _in_headers(headers) or _in_query(query)
        if not shown:
            raise Unauthorized("a token is needed to write here: send it as Authorization: Bearer TOKEN")
        if not hmac.compare_digest(shown, self._token):
            raise Unauthorized("the token is not the one that may write here")


def _in_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, shown = value.strip().partition(b" ")
            if scheme.lower() in (b"bearer", b"token"):
                return shown.strip()
            if scheme.lower() == b"basic":
                try:
                    return base64.b64decode(shown.strip(), validate=True).partition(b":")[2]
                except binascii.Error:
                    return b""
    return b""


def _in_query(query: bytes) -> bytes:
    said = dict(parse_qsl(query.decode("latin-1"), max_num_fields=None))
    return said.get("token", said.get("p", "")).encode()
