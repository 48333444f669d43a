"""The text of a body: a byte order mark at its start, UTF-16, and bytes that are not UTF-8.

A line whose bytes are not UTF-8 comes from a sender that passes on what a device, a file name or a Windows service gave
it (`°C` as one byte, `Büro` in Latin-1). InfluxDB 1 and 2 store such bytes as they are. Canonical lines are UTF-8, so
here each byte that is no part of a UTF-8 character is read as Windows-1252, the superset of Latin-1 that such senders
use. What is UTF-8 in the same line stays as it is, so that a tag of another origin keeps its series.
"""

from __future__ import annotations

import codecs
import io

from wal_ingest.errors import BadRequest
from wal_ingest.points.utf8 import first_invalid_byte

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_MARKS = (BYTE_ORDER_MARK, *UTF_16_MARKS)

# `str.translate` does some 20 MB/s and holds the interpreter's lock: so many bytes at a time take a few milliseconds.
_PIECE_BYTES = 64 * 1024


def without_mark(body: bytes) -> bytes:
    """The body without a UTF-8 byte order mark. Raises BadRequest for a body that is marked as UTF-16."""
    if not body.startswith(_MARKS):
        return body
    if body.startswith(UTF_16_MARKS):
        raise BadRequest("the body is UTF-16: send it as UTF-8")
    return body[len(BYTE_ORDER_MARK) :]


def readable(body: bytes) -> bytes:
    """The body as `as_utf8` gives it; costs microseconds where it is ASCII."""
    return body if first_invalid_byte(body) is None else as_utf8(body)[0]


def as_utf8(body: bytes) -> tuple[bytes, int]:
    """The body with every byte that is not UTF-8 read as Windows-1252, and the number of lines that had such bytes."""
    out = io.BytesIO()
    repaired = 0
    start = 0
    while start < len(body):
        end = body.rfind(b"\n", start, start + _PIECE_BYTES) + 1
        if not end:  # a line that is longer than a piece
            end = body.find(b"\n", start + _PIECE_BYTES) + 1 or len(body)
        piece = body[start:end]
        try:
            piece.decode()
        except UnicodeDecodeError:
            lines = [_line_as_utf8(line) for line in piece.split(b"\n")]
            repaired += sum(is_repaired for _, is_repaired in lines)
            out.write(b"\n".join(line for line, _ in lines))
        else:
            out.write(piece)
        start = end
    return out.getvalue(), repaired


def _line_as_utf8(line: bytes) -> tuple[bytes, bool]:
    """The line in UTF-8, and whether it was not before."""
    try:
        line.decode()
    except UnicodeDecodeError:
        # A piece at a time: a line may have megabytes.
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        pieces = (line[at : at + _PIECE_BYTES] for at in range(0, len(line), _PIECE_BYTES))
        texts = [decoder.decode(piece).translate(_WINDOWS_1252).encode() for piece in pieces]
        texts.append(decoder.decode(b"", final=True).translate(_WINDOWS_1252).encode())
        return b"".join(texts), True
    return line, False


def _windows_1252(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:  # five bytes that it leaves undefined: the control characters of Latin-1
        return chr(byte)


# `surrogateescape` decodes a byte that is no UTF-8 to U+DC00 plus the byte.
_WINDOWS_1252 = {0xDC00 + byte: _windows_1252(byte) for byte in range(0x80, 0x100)}
