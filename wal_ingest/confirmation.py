"""What confirms a write, by protocol. Pure; the one table for everything that writes points over HTTP.

| protocol | what confirms | who answers so |
|---|---|---|
| `INFLUXDB` | 204 | InfluxDB 1, 2 and 3, VictoriaMetrics, and a node's own `/write` and `/api/v2/write` |
| `NATIVE` | 202 with `{"received": true, "points": n, "seq": n}`, n the points that were sent | a node's `/metrics` |

Every other answer with a 2xx comes from something else: a login page, a load balancer's default backend, a wrong port.
It confirms nothing. The caller keeps its points, reports the reason, and tries again slowly, because only a person
can correct an address.

The same holds for refusals. A node and an InfluxDB refuse points with a message in JSON; a 400 in any other form comes
from a proxy or from another server, which has not judged the points.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

# How much of a foreign answer a reason quotes, in characters.
_QUOTE_CHARS_MAX = 120
# A confirmation and an error are short; a longer body is not parsed.
_BODY_BYTES_MAX = 64 << 10

_TITLE = re.compile(rb"<title[^>]*>\s*([^<]+?)\s*</title", re.IGNORECASE)
_HTML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype|html|head|body|title)\b", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_ADDRESS = "is this address a login page or a load balancer's default backend?"


class WriteProtocol(enum.Enum):
    """How a server confirms a write."""

    INFLUXDB = "an InfluxDB's write"
    NATIVE = "a node's POST /metrics"


@dataclass(frozen=True, slots=True)
class Stored:
    """The server confirmed the write. `points` and `seq` are None where the protocol does not report them."""

    points: int | None = None
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class NotConfirmed:
    """The answer has a 2xx and confirms nothing; `reason` says what it was instead."""

    reason: str


def protocol_of(target: str) -> WriteProtocol:
    """The protocol of a request target: paths that end with `/write` are InfluxDB's."""
    path = target.partition("?")[0].rstrip("/")
    return WriteProtocol.INFLUXDB if path.endswith("/write") else WriteProtocol.NATIVE


def confirmation_of(
    protocol: WriteProtocol, status: int, body: bytes, *, content_type: str = "", points: int | None = None
) -> Stored | NotConfirmed:
    """What an answer with a 2xx means for the write. `points` is how many were sent, None where that is unknown."""
    if protocol is WriteProtocol.INFLUXDB:
        # HTTP gives a 204 no body, so there is nothing in it to contradict the status.
        return Stored() if status == 204 else NotConfirmed(_described(protocol, status, content_type, body))
    told = _object_of(body) if status == 202 else None
    if told is None or told.get("received") is not True:
        return NotConfirmed(_described(protocol, status, content_type, body))
    stored, seq = _count(told.get("points")), _count(told.get("seq"))
    if not stored or not seq:
        return NotConfirmed(_described(protocol, status, content_type, body))
    if points is not None and stored != points:
        return NotConfirmed(
            f"HTTP {status} confirms {stored} points, and {points} were sent: what answers there?"
        )
    return Stored(stored, seq)


def refusal_of(body: bytes) -> str | None:
    """The message with which a node or an InfluxDB refuses points; None when the answer is not in their form."""
    told = _object_of(body) or {}
    for name in ("error", "message"):
        if isinstance(told.get(name), str) and told[name]:
            return str(told[name])
    return None


def foreign_answer(status: int, content_type: str, body: bytes) -> str | None:
    """Words for an answer that is not in the form of a node's; None for one that may be a node's (or a proxy's of it).

    A node's errors are JSON with a message, and so are an InfluxDB's.
    """
    if refusal_of(body) is not None or not body.strip():
        return None
    if "html" in content_type.lower() or _HTML.match(body):
        title = _TITLE.search(body)
        page = f"an HTML page titled {quoted(title[1])}" if title else "an HTML page"
        return f"this is not a wal-ingest node: it answered {status} with {page}"
    return f"this is not a wal-ingest node: it answered {status} with {quoted(body)}"


def hint_for(status: int) -> str:
    """What to do about an answer that waiting does not change."""
    return _HINTS.get(status, _HINT_ADDRESS)


_HINT_ADDRESS = (
    "the address must be that of a wal-ingest node: host, port and path prefix, and nothing in between that "
    "answers by itself"
)
_HINT_TOKEN = "give the node's write token with --token, --token-file or WAL_INGEST_TOKEN"
_HINTS = {
    401: _HINT_TOKEN,
    403: _HINT_TOKEN,
    404: "no node answers on this path: check host, port and path of the address",
    405: "no node answers on this path: check host, port and path of the address",
    413: "a proxy before the node limits the size of a body: raise its limit to that of server.body_bytes_max",
    422: "an InfluxDB answers there, and not a wal-ingest node: give the node's address, such as http://HOST:8400",
}


def _object_of(body: bytes) -> Mapping[str, object] | None:
    if len(body) > _BODY_BYTES_MAX:
        return None
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _count(value: object) -> int | None:
    """A number from 1 on; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _described(protocol: WriteProtocol, status: int, content_type: str, body: bytes) -> str:
    """One sentence on an answer that confirms nothing, with its beginning."""
    if not body.strip():
        return f"HTTP {status} with an empty body: {protocol.value} is confirmed with {_CONFIRMED_WITH[protocol]}"
    if "html" in content_type.lower() or _HTML.match(body):
        title = _TITLE.search(body)
        named = f" titled {quoted(title[1])}" if title else ""
        return f"HTTP {status} with an HTML page{named}: {_ADDRESS}"
    message = refusal_of(body)
    if message is not None:
        return f"HTTP {status} with an error: {quoted(message.encode(errors='replace'))}"
    return f"HTTP {status} with {quoted(body)}: {_ADDRESS}"


_CONFIRMED_WITH = {
    WriteProtocol.INFLUXDB: "204",
    WriteProtocol.NATIVE: "202 and the number of points",
}


def quoted(body: bytes) -> str:
    """For people: the beginning of a text on one line, without control characters."""
    text = _UNPRINTABLE.sub(" ", body[: 8 * _QUOTE_CHARS_MAX].decode(errors="replace")).strip()
    return f'"{text}"' if len(text) <= _QUOTE_CHARS_MAX else f'"{text[: _QUOTE_CHARS_MAX - 1]}…"'
