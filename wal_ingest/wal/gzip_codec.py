"""gzip members for the WAL and the sinks: igzip where a wheel exists, zlib elsewhere.

Level 1 of igzip takes 0.12 ms for 1,000 points where zlib takes 0.44 ms, at nearly the same size; both
release the GIL. Members made here are plain RFC 1952 without name or time, so equal lines give equal bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

_GZIP_WBITS = 31  # RFC 1952 framing

Buffer = bytes | bytearray | memoryview


def _igzip() -> Any:
    try:
        from isal import isal_zlib
    except ImportError:  # a platform without a wheel
        return None
    return isal_zlib


_isal = _igzip()
_zlib: Any = _isal or zlib
# igzip's own error is no ValueError and no zlib.error.
_ERRORS = (zlib.error, ValueError, OSError, _zlib.error)

crc32: Callable[..., int] = _zlib.crc32


def compress(data: Buffer) -> bytes:
    """The data as one gzip member, at level 1."""
    member: bytes = _zlib.compress(data, 1, wbits=_GZIP_WBITS)
    return member


def decompress(data: Buffer, *, bytes_max: int) -> bytes:
    """The content of one or several concatenated gzip members.

    Raises ValueError for anything that is not whole gzip members, or that gives more than `bytes_max` bytes;
    memory never exceeds that limit by more than zlib's window.
    """
    out = []
    left = bytes_max
    rest = bytes(data)
    while rest:
        member = _zlib.decompressobj(wbits=_GZIP_WBITS)
        try:
            piece = member.decompress(rest, left + 1)
        except _ERRORS as exc:
            raise ValueError(str(exc)) from exc
        if len(piece) > left:
            raise ValueError(f"more than {bytes_max} bytes")
        if not member.eof:
            raise ValueError("the gzip member is cut short")
        out.append(piece)
        left -= len(piece)
        rest = member.unused_data
    return b"".join(out)
