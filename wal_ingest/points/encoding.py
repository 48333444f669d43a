"""A request's body as it was before its Content-Encoding: identity, gzip, deflate and zstd.

A few kilobytes can unpack to gigabytes. Every decoder here is asked for a bounded piece at a time, and stops as
soon as the pieces together pass the limit: a bomb costs at most the limit, one piece, and the decoder's own window
(32 KiB for gzip and deflate, 8 MiB for zstd). A zstd body that keeps to the limit may cost twice its size for a
moment, where it is decoded a second time to see that it is whole. Decoders are made per call: sharing one between
threads crashes zstandard.
"""

from __future__ import annotations

import io
from typing import Any

from wal_ingest.errors import BadRequest, BodyTooLarge, UnsupportedMedia

try:
    from isal import isal_zlib as _zlib
except ImportError:  # pragma: no cover - no wheel: zlib does the same, slower
    import zlib as _zlib  # type: ignore[no-redef]

try:
    import zstandard
except ImportError:  # pragma: no cover - no wheel: then this node does not speak zstd
    _SPEAKS_ZSTD = False
else:
    _SPEAKS_ZSTD = True

_ZLIB_ERROR: Any = _zlib.error

SPOKEN = ("identity", "gzip", "x-gzip", "deflate", *(("zstd",) if _SPEAKS_ZSTD else ()))

_PIECE_BYTES = 256 * 1024
# What is fed at a time. A decoder copies what it leaves over, so a body of tiny gzip members fed whole would
# cost the square of its length.
_FED_BYTES = 16 * 1024
_MEMBERS_MAX = 10_000
"""Members of one gzip body or frames of one zstd body; beyond this a body is a way to burn time."""
_ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024
"""What RFC 8878 tells every decoder to support."""

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_END = b"\x2a\x4d\x18"
_ZSTD_SKIPPABLE = tuple(bytes([low]) + _ZSTD_SKIPPABLE_END for low in range(0x50, 0x60))

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's names for the three framings


class TooManyMembers(BadRequest):
    """The body has more gzip members or zstd frames than the caller takes."""


def decode_body(body: bytes, encoding: str, *, bytes_max: int, members_max: int = _MEMBERS_MAX) -> bytes:
    """The body without its encoding, at most `bytes_max` bytes of it.

    `encoding` is the header's value; empty means identity. Several gzip members or zstd frames in a row are one
    body, as their specifications have it. Raises BadRequest when the body is broken, cut short, or followed by
    something else; TooManyMembers; BodyTooLarge when it would take more than `bytes_max`; UnsupportedMedia for an
    encoding that is not spoken here.
    """
    match encoding.strip().lower():
        case "" | "identity":
            if len(body) > bytes_max:
                raise _too_large(bytes_max)
            return body
        case "gzip" | "x-gzip":
            return _inflate(body, _GZIP, "gzip", bytes_max, members_max)
        case "deflate":
            return _deflate(body, bytes_max)
        case "zstd" if _SPEAKS_ZSTD:
            return _unzstd(body, bytes_max, members_max)
    raise UnsupportedMedia(
        f"Content-Encoding {encoding!r} is not spoken here; these are: {', '.join(SPOKEN)}"
    )


def frames_at_most(body: bytes, encoding: str) -> int:
    """No fewer than the frames of a zstd body, without looking into them; 1 for other encodings.

    To be known before decoding: the decoder goes over all frames in one call.
    """
    if encoding.strip().lower() != "zstd":
        return 1
    return body.count(_ZSTD_MAGIC) + body.count(_ZSTD_SKIPPABLE_END)


class _Gathered:
    """Decoded pieces under a limit. One growing buffer: joining a list would take the room twice."""

    def __init__(self, bytes_max: int) -> None:
        self._buffer = io.BytesIO()
        self._bytes_max = bytes_max

    def add(self, piece: bytes) -> None:
        if self._buffer.tell() + len(piece) > self._bytes_max:
            raise _too_large(self._bytes_max)
        self._buffer.write(piece)

    def value(self) -> bytes:
        return self._buffer.getvalue()


def _too_large(bytes_max: int) -> BodyTooLarge:
    return BodyTooLarge("the body", limit_bytes=bytes_max, setting="server.body_bytes_max")


def _deflate(body: bytes, bytes_max: int) -> bytes:
    """HTTP's `deflate` is a zlib stream, but many send the bare one. The first two bytes usually tell."""
    looks_like_zlib = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    if looks_like_zlib:
        try:
            return _inflate(body, _ZLIB, "deflate", bytes_max, 1)
        except BadRequest as exc:
            try:
                return _inflate(body, _RAW, "deflate", bytes_max, 1)
            except BadRequest:
                raise exc from None
    return _inflate(body, _RAW, "deflate", bytes_max, 1)


def _inflate(body: bytes, wbits: int, name: str, bytes_max: int, members_max: int) -> bytes:
    """All members when `wbits` says gzip, else the one stream."""
    if wbits == _GZIP and not body.startswith(_GZIP_MAGIC[: len(body)]):
        raise BadRequest("the body is not gzip, although its Content-Encoding says so")
    out = _Gathered(bytes_max)
    rest = b""
    fed = 0
    for _ in range(members_max):
        inflater = _zlib.decompressobj(wbits)
        while not inflater.eof:
            if not rest:
                rest = body[fed : fed + _FED_BYTES]
                fed += len(rest)
                if not rest:
                    raise BadRequest(f"the {name} body is cut short")
            try:
                out.add(inflater.decompress(rest, _PIECE_BYTES))
            except _ZLIB_ERROR as exc:
                raise BadRequest(f"the {name} body is broken: its data or its checksum is wrong") from exc
            rest = inflater.unconsumed_tail
        rest = inflater.unused_data
        if not rest and fed == len(body):
            return out.value()
    if wbits == _GZIP:
        raise TooManyMembers(f"the {name} body has more than {members_max} members")
    raise BadRequest(f"the {name} body has something after its end")


def _unzstd(body: bytes, bytes_max: int, members_max: int) -> bytes:
    try:
        declared = zstandard.frame_content_size(body)
        if declared > bytes_max:
            # Before anything is decoded: the decoder makes room for what the frame declares.
            raise _too_large(bytes_max)
        if declared > 0:
            try:  # one frame that says how large it is: what every client sends that compresses in one go
                return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
            except zstandard.ZstdError:
                pass  # broken, or followed by another frame: the stream reader tells
        return _unzstd_stream(body, bytes_max, members_max)
    except zstandard.ZstdError as exc:
        if not body.startswith((_ZSTD_MAGIC[: len(body)], *_ZSTD_SKIPPABLE)):
            raise BadRequest("the body is not zstd, although its Content-Encoding says so") from exc
        raise BadRequest("the zstd body is broken: its data or its checksum is wrong") from exc


def _unzstd_stream(body: bytes, bytes_max: int, members_max: int) -> bytes:
    """All frames, whatever they declare."""
    out = _Gathered(bytes_max)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    with decompressor.stream_reader(body, read_across_frames=True) as reader:
        while piece := reader.read(_PIECE_BYTES):
            out.add(piece)
    _check_zstd_is_whole(body, members_max)
    return out.value()


def _check_zstd_is_whole(body: bytes, members_max: int) -> None:
    """Raises BadRequest when the last frame is cut short, which the stream reader does not tell.

    Decodes once more and drops the output, of which the caller has found out that it keeps to the limit.
    """
    rest = b""
    fed = 0
    for _ in range(members_max):
        decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX).decompressobj()
        while not decoder.eof:
            if not rest:
                rest = body[fed : fed + _FED_BYTES]
                fed += len(rest)
                if not rest:
                    raise BadRequest("the zstd body is cut short")
            decoder.decompress(rest)
            rest = b""
        rest = decoder.unused_data
        if not rest and fed == len(body):
            return
    raise TooManyMembers(f"the zstd body has more than {members_max} frames")
