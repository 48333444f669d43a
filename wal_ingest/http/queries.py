"""`/query`, as far as clients of InfluxDB 1 need it in order to write: creating a database, and finding it there.

Many create their database before they write, and give up when that fails. Here there are no databases to create:
such statements succeed and change nothing. Everything else is refused, in words.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qsl

import trio

from wal_ingest.http.answers import Answer
from wal_ingest.http.body import Receive

_BODY_BYTES_MAX = 64 * 1024
_BODY_S_MAX = 10.0
_STATEMENTS_MAX = 16

# Any text in which a semicolon ends a statement unless it is quoted.
_STATEMENT = re.compile(r"""(?:[^;"']++|"(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+')++""", re.DOTALL)
_UNDERSTOOD = re.compile(
    r"(?:CREATE\s+DATABASE\s+\S|SHOW\s+DATABASES\s*\Z|CREATE\s+RETENTION\s+POLICY\s+\S)", re.IGNORECASE
)
_REFUSAL = (
    "this node stores points and passes them on, it does not answer queries: CREATE DATABASE, SHOW DATABASES and "
    "CREATE RETENTION POLICY are accepted and change nothing; send other statements to the database"
)


async def answer(scope: dict[str, Any], receive: Receive) -> Answer:
    """The answer to one request for `/query`. Cancellation: nothing is left behind."""
    if scope["method"] not in ("GET", "HEAD", "POST"):
        return _refusal(405, "statements are sent with GET or POST", [(b"allow", b"GET, HEAD, POST")])
    statements = _statement_text(scope["query_string"])
    if not statements and scope["method"] == "POST":
        body = await _body(receive)
        if body is None:
            return _refusal(
                413, f"the form is larger than {_BODY_BYTES_MAX} bytes, or did not arrive in time"
            )
        statements = _statement_text(body)
    return answer_statements(statements)


def answer_statements(text: str) -> Answer:
    """The answer to statements that are separated by semicolons."""
    statements = [each.strip() for each in _STATEMENT.findall(text) if each.strip()]
    if not statements:
        return _refusal(400, 'missing required parameter "q"')
    if len(statements) > _STATEMENTS_MAX or not all(map(_UNDERSTOOD.match, statements)):
        return _refusal(400, _REFUSAL)
    return _json(200, {"results": [{"statement_id": number} for number in range(len(statements))]})


def _statement_text(form: bytes) -> str:
    try:
        return dict(reversed(parse_qsl(form.decode(), max_num_fields=32))).get("q", "")
    except ValueError:
        return ""


async def _body(receive: Receive) -> bytes | None:
    """A small form; None when it is too large or too slow."""
    body = b""
    with trio.move_on_after(_BODY_S_MAX):
        while True:
            message = await receive()
            piece: bytes = message.get("body", b"")
            body += piece
            if len(body) > _BODY_BYTES_MAX:
                return None
            if not message.get("more_body", False):
                return body
    return None


def _refusal(status: int, words: str, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
    return _json(status, {"error": words}, [(b"x-influxdb-error", words.encode()), *(headers or [])])


def _json(status: int, content: object, headers: list[tuple[bytes, bytes]] | None = None) -> Answer:
    body = json.dumps(content, separators=(",", ":")).encode() + b"\n"
    told = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
    return Answer(status, told, body)
