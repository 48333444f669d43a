"""What is answered to bytes that never became a request. Pure.

The parser has words of its own, and none for what is not HTTP at all. Here each case has the words that help the
sender, and a short name under which it is counted. Rows are tried in order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class ParserRefusal:
    """An answer to something that is no request: `kind` is the label of its count, one of `KINDS`."""

    status: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class _Row:
    """`begins` matches the first bytes of the request, `words` the parser's own message."""

    kind: str
    message: str
    begins: re.Pattern[bytes] | None = None
    words: re.Pattern[str] | None = None


_ROWS = (
    _Row(
        "tls",
        "this is the start of a TLS connection, and this port speaks plain HTTP: use http:// or ws://, or put a proxy "
        "with TLS in front",
        begins=re.compile(rb"\x16\x03"),
    ),
    _Row(
        "http2",
        "HTTP/2 is not spoken here: use HTTP/1.1",
        begins=re.compile(rb"PRI \* HTTP/2"),
    ),
    _Row(
        "proxy_protocol",
        "the PROXY protocol is not spoken here: have the proxy send plain HTTP, with X-Forwarded-For",
        begins=re.compile(rb"PROXY |\x00\r\nQUIT\n"),
    ),
    _Row(
        "headers_too_large",
        "the request line and the headers are too large (server.header_bytes_max)",
        words=re.compile("too (long|large)"),
    ),
    _Row(
        "transfer_encoding",
        "the only Transfer-Encoding that is understood is chunked; for compression use Content-Encoding",
        words=re.compile("Transfer-Encoding"),
    ),
    _Row(
        "http_version", "only HTTP/1.0 and HTTP/1.1 are spoken here", words=re.compile("HTTP/1.1 is spoken")
    ),
    _Row("no_host", "the Host header is missing, or there are several", words=re.compile("Host: header")),
    _Row(
        MALFORMED,
        "the Content-Length header is not one number",
        words=re.compile("Content-Length", re.IGNORECASE),
    ),
    _Row(
        MALFORMED,
        "a header line is malformed: write `Name: value`, without a space before the colon",
        words=re.compile("header line|header name|header value"),
    ),
    _Row(MALFORMED, "a chunk of the body is malformed", words=re.compile("chunk")),
    _Row(
        MALFORMED,
        "the request line is malformed: write `METHOD /path HTTP/1.1`, and spaces in the path as %20",
        words=re.compile("request line|status line|blank lines"),
    ),
)
_OTHER = "this is no HTTP/1.1 request"

KINDS = tuple(dict.fromkeys((*(row.kind for row in _ROWS), MALFORMED)))
"""Every name under which such a refusal is counted."""


def parser_refusal(begin: bytes, status: int, words: str) -> ParserRefusal:
    """What is answered when the parser gave up with a status and its own words; `begin` are the first bytes sent."""
    for row in _ROWS:
        if (row.begins is not None and row.begins.match(begin)) or (
            row.words is not None and row.words.search(words)
        ):
            return ParserRefusal(505 if row.kind == "http2" else status, row.kind, row.message)
    return ParserRefusal(status, MALFORMED, _OTHER)
