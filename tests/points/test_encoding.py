"""Content encodings: what comes out, what is refused, and what a bomb costs."""

from __future__ import annotations

import gzip
import random
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard

from wal_ingest.errors import BadRequest, BodyTooLarge, UnsupportedMedia
from wal_ingest.points.encoding import decode_body

MIB = 1024 * 1024
LIMIT = 4 * MIB
BODY = b"cpu,host=web-17 u=0.5 1763800000000000000\n" * 3_000


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def zstd_of_unknown_size(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(data) + compressor.flush()


Encode = Callable[[bytes], bytes]

ENCODED: dict[str, tuple[str, Encode]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "GZIP with spaces": (" GZip ", gzip.compress),
    "gzip of two members": ("gzip", lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:])),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", raw_deflate),
    "zstd": ("zstd", zstandard.compress),
    "zstd of unknown size": ("zstd", zstd_of_unknown_size),
    "zstd of two frames": (
        "zstd",
        lambda data: zstandard.compress(data[:1000]) + zstandard.compress(data[1000:]),
    ),
    "zstd with a frame to skip": (
        "zstd",
        lambda data: b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstandard.compress(data),
    ),
}
COMPRESSED = pytest.mark.parametrize(("encoding", "encode"), ENCODED.values(), ids=ENCODED.keys())


@COMPRESSED
def test_a_body_comes_out_as_it_was(encoding: str, encode: Encode) -> None:
    for data in (BODY, b"", b"x", random.Random(1).randbytes(100_000)):
        assert decode_body(encode(data), encoding, bytes_max=LIMIT) == data


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_identity_is_the_body_itself_under_the_same_limit(encoding: str) -> None:
    assert decode_body(BODY, encoding, bytes_max=len(BODY)) is BODY
    with pytest.raises(BodyTooLarge):
        decode_body(BODY, encoding, bytes_max=len(BODY) - 1)


@COMPRESSED
def test_a_body_as_large_as_the_limit_is_taken_and_one_byte_more_refused(
    encoding: str, encode: Encode
) -> None:
    assert decode_body(encode(BODY), encoding, bytes_max=len(BODY)) == BODY
    with pytest.raises(BodyTooLarge) as caught:
        decode_body(encode(BODY), encoding, bytes_max=len(BODY) - 1)
    assert caught.value.limit_bytes == len(BODY) - 1
    assert caught.value.setting == "server.body_bytes_max"
    assert caught.value.status == 413


@COMPRESSED
def test_a_body_cut_short_anywhere_is_refused(encoding: str, encode: Encode) -> None:
    whole = encode(BODY)
    for kept in {0, 1, 3, 10, len(whole) // 2, len(whole) - 9, len(whole) - 5, len(whole) - 1}:
        with pytest.raises(BadRequest):
            decode_body(whole[:kept], encoding, bytes_max=LIMIT)


@COMPRESSED
def test_something_behind_the_end_is_refused(encoding: str, encode: Encode) -> None:
    with pytest.raises(BadRequest):
        decode_body(encode(BODY) + b"garbage!", encoding, bytes_max=LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_flipped_bit_is_found_out(encoding: str) -> None:
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    whole = bytearray(gzip.compress(BODY) if encoding == "gzip" else compressor.compress(BODY))
    whole[-2] ^= 1  # within the length of gzip, within the checksum of zstd
    with pytest.raises(BadRequest, match="broken"):
        decode_body(bytes(whole), encoding, bytes_max=LIMIT)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_what_was_never_compressed_is_refused(encoding: str) -> None:
    with pytest.raises(BadRequest, match=encoding):
        decode_body(BODY, encoding, bytes_max=LIMIT)


@pytest.mark.parametrize("encoding", ["br", "snappy", "gzip, gzip", "compress"])
def test_an_unknown_encoding_is_refused_with_those_that_are_spoken(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia, match="identity, gzip, x-gzip, deflate, zstd"):
        decode_body(BODY, encoding, bytes_max=LIMIT)


def zstd_window_bomb() -> bytes:
    """A frame that asks for a window of 1 GiB."""
    params = zstandard.ZstdCompressionParameters(window_log=30, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=params).compressobj()
    return compressor.compress(b"x") + compressor.flush()


def zstd_of_false_size() -> bytes:
    """A frame that declares 2 GiB and holds a few bytes."""
    return (
        bytes.fromhex("28b52ffd")
        + b"\xa0"
        + (2 * 1024 * MIB).to_bytes(4, "little")
        + bytes.fromhex("0900004d")
    )


ZEROS = bytes(64 * MIB)
BOMBS = {
    "gzip": ("gzip", gzip.compress(ZEROS)),
    "gzip of many members": ("gzip", gzip.compress(bytes(MIB)) * 64),
    "deflate": ("deflate", zlib.compress(ZEROS)),
    "bare deflate": ("deflate", raw_deflate(ZEROS)),
    "zstd": ("zstd", zstandard.compress(ZEROS)),
    "zstd of unknown size": ("zstd", zstd_of_unknown_size(ZEROS)),
    "zstd of many frames": ("zstd", zstandard.compress(bytes(MIB)) * 64),
    "zstd of false size": ("zstd", zstd_of_false_size()),
}


@pytest.mark.parametrize(("encoding", "bomb"), BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_and_costs_no_more_than_the_limit(encoding: str, bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decode_body(bomb, encoding, bytes_max=LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT + 2 * MIB


def test_a_zstd_frame_that_asks_for_a_huge_window_is_refused() -> None:
    with pytest.raises(BadRequest, match="zstd"):
        decode_body(zstd_window_bomb(), "zstd", bytes_max=LIMIT)


@pytest.mark.parametrize(
    ("encoding", "empty"),
    [("gzip", gzip.compress(b"", mtime=0)), ("zstd", zstandard.compress(b""))],
    ids=["gzip", "zstd"],
)
def test_a_body_of_countless_empty_members_is_refused_soon(encoding: str, empty: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(BadRequest, match="more than 10000"):
        decode_body(empty * (4 * MIB // len(empty)), encoding, bytes_max=LIMIT)
    assert time.perf_counter() - start < 5


def test_threads_decode_at_once() -> None:
    failures: list[object] = []

    def work() -> None:
        for encoding, encode in ENCODED.values():
            data = encode(BODY)
            for _ in range(5):
                if decode_body(data, encoding, bytes_max=LIMIT) != BODY:
                    failures.append(encoding)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
