"""The messages of the protocol `wal-ingest.v1` as typed values, and the frames that are sent. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from wal_ingest.points.json_words import json_reason

SUBPROTOCOL = "wal-ingest.v1"


class StoredFrame(Struct, frozen=True, array_like=True):
    """A frame that the node holds: `seq` is that of its last entry, `crc32` that of its body after decompression."""

    number: int
    seq: int
    points: int
    crc32: int


class Welcome(Struct, frozen=True, tag="welcome"):
    """The node's first message: where this client_id stands.

    `durable` is the highest number that is durable (0: none is known) and `seq` its seq; `stored` are the most recent
    durable frames, oldest first. At most `window_frames` frames may be unanswered at once; none may be larger than
    `frame_bytes_max`, its header line included.
    """

    durable: int
    seq: int
    stored: list[StoredFrame]
    window_frames: int
    frame_bytes_max: int


class Ack(Struct, frozen=True, tag="ack"):
    """Every frame sent on this connection up to `number`, in sending order, is durable unless an error answered it.

    `points` counts those of the frames that this message is the first to answer; `seq` is that of frame `number` (over
    InfluxDB's endpoints both are 0: they do not say).
    """

    number: int
    points: int
    seq: int


class Refusal(Struct, frozen=True, tag="error"):
    """One frame was not stored; the stream goes on. `number` is None when the node could not read the frame's header.

    `status` is HTTP's, `error` a sentence. `line` and `column` count from 1, `index` from 0.
    """

    number: int | None
    status: int
    error: str
    line: int | None = None
    column: int | None = None
    index: int | None = None
    retry_after_s: float | None = None


Answer = Ack | Refusal

_decoder = msgspec.json.Decoder(Welcome | Ack | Refusal)
_encode = msgspec.json.Encoder().encode


def read_message(text: str | bytes) -> Welcome | Ack | Refusal:
    """The value of a message of the node. Raises ValueError when it is none. Keys that are not known are skipped."""
    try:
        message: Welcome | Ack | Refusal = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ValueError(f"not a message of {SUBPROTOCOL}: {json_reason(exc)}") from exc
    return message


def frame_of(
    number: int,
    body: bytes,
    *,
    encoding: str = "identity",
    format: str = "lines",  # noqa: A002 - the header's word
    precision: str = "",
) -> bytes:
    """A frame as it is sent: the header line, then the body, which is already in its encoding.

    `precision` is left out when it is empty; the node then takes nanoseconds for lines and milliseconds for JSON.
    """
    header: dict[str, object] = {"number": number}
    if format != "lines":
        header["format"] = format
    if encoding != "identity":
        header["encoding"] = encoding
    if precision:
        header["precision"] = precision
    return _encode(header) + b"\n" + body
