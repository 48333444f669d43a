"""What is said on a stream, both ways: the header of a frame, and the server's messages as JSON text. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from wal_ingest.errors import BadRequest, RequestError, UnsupportedMedia
from wal_ingest.http.answers import Problem
from wal_ingest.http.requests import ENCODINGS, Format
from wal_ingest.points import Precision
from wal_ingest.points.encoding import SPOKEN
from wal_ingest.points.json_words import json_reason
from wal_ingest.points.text import BYTE_ORDER_MARK
from wal_ingest.points.times import TimeGuess
from wal_ingest.stream_numbers import NUMBER_MAX, highest_after
from wal_ingest.wal.streams import Position

SUBPROTOCOL = "wal-ingest.v1"

HEADER_BYTES_MAX = 1_024
CLIENT_ID_CHARS_MAX = 128

# Close codes: RFC 6455 §7.4.1, and the registry of IANA for 1012 and 1013; from 4000 on they are for applications.
NORMAL = 1000
POLICY = 1008
TOO_BIG = 1009
INTERNAL_ERROR = 1011
STOPPING = 1012
TRY_AGAIN_LATER = 1013
REPLACED = 4001

# A close frame has room for 125 bytes, two of which are the code.
CLOSE_REASON_BYTES_MAX = 123

_CLIENT_ID = re.compile(rf"[!-~]{{1,{CLIENT_ID_CHARS_MAX}}}")
_FORMATS = {"lines": Format.LINE_PROTOCOL, "json": Format.JSON, "ndjson": Format.NDJSON}
_PRECISIONS = {"ns": Precision.NS, "us": Precision.US, "ms": Precision.MS, "s": Precision.S}


class NumberUsed(RequestError):
    """The frame's number cannot be used: go on above the highest one. Nothing of the frame was stored."""

    status = 409


class NumberTooHigh(RequestError):
    """The frame's number is so high that few would be left for the stream. Nothing of the frame was stored."""

    status = 409


def check_number(number: int, last: int) -> None:
    """Raises NumberTooHigh; `last` is the highest number that was used in the stream, 0 when none is known."""
    highest = highest_after(last)
    if number <= highest:
        return
    above = (
        f"too far above {last}, the last one of this stream" if last else "too high to begin a stream with"
    )
    raise NumberTooHigh(
        f"number {number} is {above}: send the frame again with one from {last + 1} to {highest}"
    )


class _Header(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    number: int
    format: str = "lines"
    encoding: str = ""
    precision: Literal["", "ns", "us", "ms", "s"] = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it was sent; `written` and `precision` are None where it does not say."""

    number: int
    body: bytes
    encoding: str = ""
    written: Format | None = Format.LINE_PROTOCOL
    precision: Precision | TimeGuess | None = None


class BadHeader(BadRequest):
    """The header line of a frame cannot be read; `number` is the frame's where that much could be."""

    def __init__(self, reason: str, number: int | None = None, *, status: int = 400) -> None:
        super().__init__(f"the frame's header line: {reason}")
        self.number = number
        self.status = status


_decode = msgspec.json.Decoder(_Header).decode

# A line of nothing but brackets is short enough to be a header, and deep enough for the interpreter's limit.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Number(msgspec.Struct):
    number: int | None = None


def read_frame(message: bytes) -> Frame:
    """The frame in a message: a header line of JSON, and the body behind it.

    Raises BadHeader.
    """
    message = message.removeprefix(BYTE_ORDER_MARK)
    end = message.find(b"\n", 0, HEADER_BYTES_MAX + 1)
    if end < 0:
        raise BadHeader(f"it does not end within {HEADER_BYTES_MAX} bytes by a line feed")
    line = message[:end]
    try:
        header = _decode(line)
    except _UNREADABLE as exc:
        raise BadHeader(json_reason(exc), _number_in(line)) from None
    if not 1 <= header.number <= NUMBER_MAX:
        # The answer's JSON has room for 64 bits.
        number = header.number if abs(header.number) < 1 << 63 else None
        raise BadHeader(f"number {header.number} is not from 1 to 2^53-1", number)
    written, encoding = _FORMATS.get(header.format), header.encoding
    if written is None:
        reason = f"format {header.format[:40]!r} is not known here: use {', '.join(_FORMATS)}"
        raise BadHeader(reason, header.number, status=415)
    if encoding not in ENCODINGS:
        reason = f"encoding {encoding[:40]!r} is not known here: use {', '.join(SPOKEN)}"
        raise BadHeader(reason, header.number, status=415)
    return Frame(
        header.number,
        message[end + 1 :],
        "" if encoding == "identity" else encoding,
        written,
        _PRECISIONS.get(header.precision),
    )


def _number_in(line: bytes) -> int | None:
    """The number of a header that is refused for something else, so that the sender knows which frame it was."""
    try:
        number = msgspec.json.decode(line, type=_Number).number
    except _UNREADABLE:
        return None
    return number if number is not None and 1 <= number <= NUMBER_MAX else None


def check_client_id(client_id: str) -> str:
    """The same id. Raises BadRequest when it is none."""
    if not _CLIENT_ID.fullmatch(client_id):
        raise BadRequest(
            f"client_id: 1 to {CLIENT_ID_CHARS_MAX} characters of printable ASCII without spaces are needed"
        )
    return client_id


def check_subprotocols(offered: Sequence[str]) -> str | None:
    """The sub-protocol to agree on; None is the plain mode, for whoever offers none.

    Raises UnsupportedMedia when only unknown ones are offered.
    """
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    if offered:
        raise UnsupportedMedia(f"sub-protocol {offered[0][:40]!r} is not known here: use {SUBPROTOCOL}")
    return None


# -- what the server says ---------------------------------------------------------------------------------


def welcome(position: Position | None, *, window_frames: int, frame_bytes_max: int) -> str:
    """The first message: how far the stream has come."""
    stored = [] if position is None else [list(each) for each in position.stored]
    said = {
        "type": "welcome",
        "durable": stored[-1][0] if stored else 0,
        "seq": stored[-1][1] if stored else 0,
        "stored": stored,
        "window_frames": window_frames,
        "frame_bytes_max": frame_bytes_max,
    }
    return msgspec.json.encode(said).decode()


def ack(number: int, *, points: int, seq: int) -> str:
    """Everything up to a frame is durable."""
    return f'{{"type":"ack","number":{number},"points":{points},"seq":{seq}}}'


def error(number: int | None, problem: Problem) -> str:
    """A frame was not stored, and why."""
    said: dict[str, object] = {
        "type": "error",
        "number": number,
        "status": problem.status,
        "error": problem.message,
    }
    for name in ("line", "column", "index", "retry_after_s"):
        value = getattr(problem, name)
        if value is not None:
            said[name] = value
    return msgspec.json.encode(said).decode()


def close_reason(text: str) -> str:
    """A reason as it fits into a close frame."""
    return text.encode()[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore")
