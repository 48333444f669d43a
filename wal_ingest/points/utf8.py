"""Where a body stops being UTF-8."""

from __future__ import annotations

import codecs
import re

_PIECE_BYTES = 1024 * 1024
_VALID = re.compile(
    rb"(?:[\x00-\x7f]++|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2})*+"
)


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


def end_of_valid(body: bytes, start: int) -> int:
    """The offset of the first byte from `start` on that is not part of valid UTF-8, or the length of the body.

    Looks at no byte after that, so many calls for one body cost one pass together.
    """
    match = _VALID.match(body, start)
    return match.end() if match else start
