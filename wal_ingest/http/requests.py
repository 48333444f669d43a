"""What a request asks for, read from its query and headers. Pure.

Everything here is remembered for the few values that a fleet repeats, so a request costs a dictionary
look-up or two; what is refused is not remembered.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

from wal_ingest.errors import BadRequest, BodyTooLarge, UnsupportedMedia
from wal_ingest.points import Precision
from wal_ingest.points.encoding import SPOKEN
from wal_ingest.points.times import TimeGuess
from wal_ingest.wal.entry import NAME_BYTES_MAX, Destination


class Format(enum.Enum):
    """How the points of a body are written."""

    LINE_PROTOCOL = "line protocol"
    JSON = "JSON"
    NDJSON = "NDJSON"


class Dialect(enum.Enum):
    """Whose manners an endpoint has: names of precisions, destination, answers."""

    NATIVE = "native"
    INFLUXDB_V1 = "InfluxDB 1"
    INFLUXDB_V2 = "InfluxDB 2"
    INFLUXDB_V3 = "InfluxDB 3"


@dataclass(frozen=True, slots=True)
class Query:
    """What the query says: `precision` and `accept_partial` are None where it does not name them."""

    precision: Precision | TimeGuess | None
    destination: Destination
    accept_partial: bool | None = None


@dataclass(frozen=True, slots=True)
class BodyHeaders:
    """What the headers say about the body: type (None: not said), encoding, and length (None: chunked)."""

    content_type: bytes | None
    encoding: str
    length: int | None


_SHORT = {"ns": Precision.NS, "us": Precision.US, "ms": Precision.MS, "s": Precision.S}
_PRECISIONS: Mapping[Dialect, Mapping[str, Precision | TimeGuess]] = {
    Dialect.NATIVE: _SHORT,
    Dialect.INFLUXDB_V2: _SHORT,
    Dialect.INFLUXDB_V1: {
        **_SHORT,
        "us": TimeGuess.US_OR_NS,
        "n": Precision.NS,
        "u": Precision.US,
        "µ": Precision.US,  # the micro sign, U+00B5
        "μ": Precision.US,  # the Greek letter, U+03BC
        "m": Precision.M,
        "h": Precision.H,
    },
    Dialect.INFLUXDB_V3: {
        **_SHORT,
        "nanosecond": Precision.NS,
        "microsecond": Precision.US,
        "millisecond": Precision.MS,
        "second": Precision.S,
        "n": Precision.NS,
        "u": Precision.US,
        "auto": TimeGuess.AUTO,
    },
}
_PRECISION_WITHOUT_NAME: Mapping[Dialect, TimeGuess] = {Dialect.INFLUXDB_V3: TimeGuess.AUTO}

# Where the words of `server.partial_writes` are decided: the dialects that store the good lines of a request.
_PARTIAL_DIALECTS: Mapping[str, frozenset[Dialect]] = {
    "dialect": frozenset({Dialect.INFLUXDB_V1, Dialect.INFLUXDB_V3}),
    "always": frozenset({Dialect.INFLUXDB_V1, Dialect.INFLUXDB_V2, Dialect.INFLUXDB_V3}),
    "never": frozenset(),
}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}

_FORMATS = {
    "application/json": Format.JSON,
    "text/plain": Format.LINE_PROTOCOL,
    "application/x-ndjson": Format.NDJSON,
    "application/ndjson": Format.NDJSON,
    "application/jsonl": Format.NDJSON,
}

# A body in an encoding that `points.encoding` does not speak is refused before it is read.
ENCODINGS = frozenset({"", *SPOKEN})

_QUERY_FIELDS_MAX = 32


@lru_cache(maxsize=256)
def read_query(dialect: Dialect, query: bytes) -> Query:
    """What a query string says. Raises BadRequest for an unknown precision, a broken or too long value."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS_MAX
        )
    except ValueError as exc:
        raise BadRequest(
            f"the query is not readable: at most {_QUERY_FIELDS_MAX} fields, percent-encoded UTF-8"
        ) from exc
    # The first of several counts, as in InfluxDB.
    said = dict(reversed(pairs))
    return Query(
        _precision(dialect, said.get("precision", "")),
        _destination(dialect, said),
        None if dialect is Dialect.NATIVE else _accept_partial(said.get("accept_partial", "")),
    )


def takes_partial(dialect: Dialect, query: Query, setting: str) -> bool:
    """Whether the good lines of a request are stored when others are bad; `setting` is `server.partial_writes`."""
    if dialect is Dialect.NATIVE:
        return False
    return dialect in _PARTIAL_DIALECTS[setting] if query.accept_partial is None else query.accept_partial


def _accept_partial(word: str) -> bool | None:
    if not word:
        return None
    if word.lower() not in _TRUTH:
        raise BadRequest(f"accept_partial is {word[:20]!r}: use true or false")
    return _TRUTH[word.lower()]


def _precision(dialect: Dialect, name: str) -> Precision | TimeGuess | None:
    if not name:
        return _PRECISION_WITHOUT_NAME.get(dialect)
    known = _PRECISIONS[dialect]
    if name not in known:
        raise BadRequest(f"precision {name[:20]!r} is not known here: use one of {', '.join(known)}")
    return known[name]


def _destination(dialect: Dialect, said: Mapping[str, str]) -> Destination:
    if dialect is Dialect.INFLUXDB_V1:
        database, policy = said.get("db", ""), said.get("rp", "")
        named = Destination("", f"{database}/{policy}" if policy else database)
    elif dialect is Dialect.INFLUXDB_V3:
        named = Destination(said.get("org", ""), said.get("db", ""))
    elif dialect is Dialect.INFLUXDB_V2:
        named = Destination(said.get("org") or said.get("orgID", ""), said.get("bucket", ""))
    else:
        named = Destination(said.get("org", ""), said.get("bucket", ""))
    for name in (named.org, named.bucket):
        if len(name.encode()) > NAME_BYTES_MAX:
            raise BadRequest(f"the name of an organisation or bucket may have {NAME_BYTES_MAX} bytes")
    return named


def read_headers(headers: Iterable[tuple[bytes, bytes]], *, bytes_max: int) -> BodyHeaders:
    """What the headers say about the body (names in lower case, as ASGI has them).

    Raises UnsupportedMedia for an encoding that is not known, BodyTooLarge when the length is over the limit.
    """
    content_type: bytes | None = None
    encoding = ""
    length: int | None = None
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
            if length > bytes_max:
                raise BodyTooLarge("the body", limit_bytes=bytes_max, setting="server.body_bytes_max")
        elif name == b"content-type":
            content_type = value
        elif name == b"content-encoding":
            encoding = _encoding(value)
    return BodyHeaders(content_type, encoding, length)


@lru_cache(maxsize=64)
def _encoding(value: bytes) -> str:
    encoding = value.decode("latin-1").strip().lower()
    if encoding not in ENCODINGS:
        raise UnsupportedMedia(
            f"content encoding {encoding[:40]!r} is not known here: use {', '.join(SPOKEN)}"
        )
    return "" if encoding == "identity" else encoding


@lru_cache(maxsize=64)
def read_content_type(value: bytes) -> Format:
    """The format that a native `Content-Type` names. Raises UnsupportedMedia, and says which types there are."""
    name, _, parameters = value.decode("latin-1").lower().partition(";")
    found = _FORMATS.get(name.strip())
    if found is None:
        raise UnsupportedMedia(
            f"content type {name.strip()[:80]!r} is not known here: send Content-Type: application/json for "
            "JSON, application/x-ndjson for a JSON object a line, or text/plain for line protocol"
        )
    for parameter in parameters.split(";"):
        key, _, charset = parameter.partition("=")
        if key.strip() == "charset" and charset.strip(' "') not in ("utf-8", "utf8", "us-ascii"):
            raise UnsupportedMedia("points are UTF-8: send the body with charset=utf-8, or without a charset")
    return found


def sniff(body: bytes) -> Format:
    """The format of a body without a content type: JSON when it begins with `{` or `[`, else line protocol."""
    return Format.JSON if body[:64].lstrip()[:1] in (b"{", b"[") else Format.LINE_PROTOCOL
