"""Makes the PNG of a screenshot smaller without changing a pixel. Pure.

A picture of a page is mostly flat: its raw rows, without PNG's filters, deflate to fewer bytes than the
filtered ones that browsers write for speed. Chunks and filters are those of the PNG specification, §5 and §9.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 6: 4}  # by colour type: RGB, RGBA


def repacked(png: bytes) -> bytes:
    """The same picture with every row unfiltered and deflated anew. Raises ValueError unless it is 8-bit RGB(A)."""
    chunks = list(_chunks(png))
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", dict(chunks)[b"IHDR"])
    if depth != 8 or colour not in _CHANNELS or interlaced:
        raise ValueError(f"colour type {colour} with {depth} bits, interlaced: {interlaced}")
    filtered = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    rows = _unfiltered(filtered, width * _CHANNELS[colour], height, _CHANNELS[colour])
    packed = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    kept = [(b"IHDR", dict(chunks)[b"IHDR"]), (b"IDAT", packed), (b"IEND", b"")]
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in kept)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not png.startswith(_SIGNATURE):
        raise ValueError("not a PNG")
    at = len(_SIGNATURE)
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        yield kind, png[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _unfiltered(filtered: bytes, row_bytes: int, height: int, pixel_bytes: int) -> Iterator[bytes]:
    above = bytearray(row_bytes)
    for number in range(height):
        start = number * (row_bytes + 1)
        row = bytearray(filtered[start + 1 : start + 1 + row_bytes])
        _unfilter(filtered[start], row, above, pixel_bytes)
        yield bytes(row)
        above = row


def _unfilter(kind: int, row: bytearray, above: bytearray, pixel_bytes: int) -> None:
    """Undoes one row's filter in place: 0 none, 1 left, 2 above, 3 their mean, 4 Paeth's guess."""
    for at in range(len(row) if kind else 0):
        left = row[at - pixel_bytes] if at >= pixel_bytes else 0
        corner = above[at - pixel_bytes] if at >= pixel_bytes else 0
        up = above[at]
        guess = (0, left, up, (left + up) // 2, _paeth(left, up, corner))[kind]
        row[at] = (row[at] + guess) & 0xFF


def _paeth(left: int, up: int, corner: int) -> int:
    """The neighbour that is nearest to left + up - corner."""
    straight = left + up - corner
    return min((left, up, corner), key=lambda one: abs(straight - one))
