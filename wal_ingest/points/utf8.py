"""Where a body stops being UTF-8."""

from __future__ import annotations

import codecs

_PIECE_BYTES = 1024 * 1024


def first_invalid_byte(body: bytes) -> int | None:
    """The offset of the first byte that is not valid UTF-8, or None when all of it is.

    ASCII, the usual case, costs microseconds. Other text is decoded a piece at a time: Python's strings take up
    to four times the room of the bytes, so decoding 32 MiB in one go would cost 128 MiB.
    """
    if body.isascii():
        return None
    decoder = codecs.getincrementaldecoder("utf-8")()
    start = 0
    try:
        for start in range(0, len(body), _PIECE_BYTES):
            carried = len(decoder.getstate()[0])
            decoder.decode(body[start : start + _PIECE_BYTES], final=start + _PIECE_BYTES >= len(body))
    except UnicodeDecodeError as exc:
        return start - carried + exc.start
    return None
