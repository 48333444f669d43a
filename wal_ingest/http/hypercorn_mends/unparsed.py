"""Requests that the HTTP parser refuses: the status and the reason for each. Pure.

The parser's own messages are never passed on: they quote header lines, and a header line may hold a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import h11

# Blank lines that are skipped before a request line; a client that sends more is refused.
BLANK_BYTES_MAX = 64


@dataclass(frozen=True, slots=True)
class Unparsed:
    """A request that was refused before it became one. `source` is the address of the peer."""

    request_id: bytes
    status: int
    reason: str
    source: str


OnUnparsed = Callable[[Unparsed], None]

# How other protocols open a connection: their first bytes, the status, and what to do.
_OPENINGS: dict[bytes, tuple[int, str]] = {
    b"\x16\x03": (
        400,
        "TLS was sent to a plain-HTTP port: use http:// or ws://, or a proxy that terminates TLS",
    ),
    b"PRI * HTTP/2": (505, "HTTP/2 is not available here: use HTTP/1.1"),
    b"PROXY TCP": (400, "the PROXY protocol is not supported: turn it off in the proxy that sends it"),
    b"PROXY UNKNOWN": (400, "the PROXY protocol is not supported: turn it off in the proxy that sends it"),
    # Version 2 opens with CR LF CR LF, which are skipped as blank lines.
    b"\x00\r\nQUIT\n": (400, "the PROXY protocol is not supported: turn it off in the proxy that sends it"),
}
_OPENING_BYTES = tuple(_OPENINGS)
OPENING_BYTES_MAX = max(map(len, _OPENINGS))

# What h11 reports, by the beginning of its message, and the sentence for the client.
_REASONS = {
    "illegal request line": "the request line is not METHOD TARGET HTTP/1.1: write a blank in the target as %20",
    "illegal header line": "a header line is not NAME: VALUE, without a blank before the colon",
    "Illegal header name": "the name of a header has characters that are not allowed",
    "Illegal header value": "the value of a header has characters that are not allowed",
    "Missing mandatory Host": "the Host header is missing",
    "Found multiple Host": "there is more than one Host header",
    "bad Content-Length": "Content-Length is not a number",
    "conflicting Content-Length": "there are several Content-Length headers, and they differ",
    "multiple Transfer-Encoding": "there is more than one Transfer-Encoding header",
    "Only Transfer-Encoding: chunked": "only Transfer-Encoding: chunked is supported: compress with Content-Encoding",
    "illegal chunk header": "a chunk of the body does not begin with its length in hexadecimal digits",
    "peer unexpectedly closed": "the connection ended before the request was complete",
    "peer closed connection": "the connection ended before the body was complete",
    "Receive buffer too long": "the request line and headers are larger than server.header_bytes_max",
}
_OTHER = "the request is not valid HTTP/1.1 (RFC 9112)"


class Refused(h11.RemoteProtocolError):
    """A request that is refused with a sentence of ours."""


def check_opening(opening: bytes) -> None:
    """Raises Refused when a connection's or a request's first bytes are those of another protocol."""
    if opening.startswith(_OPENING_BYTES):
        status, reason = next(row for begin, row in _OPENINGS.items() if opening.startswith(begin))
        raise Refused(reason, error_status_hint=status)


def reason_of(error: h11.RemoteProtocolError) -> str:
    """The sentence for the client and the log."""
    message = str(error)
    if isinstance(error, Refused):
        return message
    return next((reason for begin, reason in _REASONS.items() if message.startswith(begin)), _OTHER)


def body_of(reason: str) -> bytes:
    """The answer's body."""
    return json.dumps({"error": reason}).encode() + b"\n"
