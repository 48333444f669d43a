"""What peers that mean harm, or were cut off, send: by name, and at random from a seed."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from random import Random

import zstandard

from tests.http.rig import LINE
from tests.http.stream.rig import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_MASK,
    PING,
    PONG,
    TEXT,
    frame,
    message,
    upgrade,
    ws,
)
from wal_ingest.settings import MIB


def pieces(data: bytes, size: int, *, control: bytes = b"", ends: bool = True) -> bytes:
    """A message in pieces, with a control frame behind each of them."""
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(
        ws(CONTINUATION if at else BINARY, part, fin=ends and at == len(parts) - 1) + control
        for at, part in enumerate(parts)
    )


NOTHING = b"\0" * (64 * MIB)

# Each unpacks to twice the limit of a body.
BOMBS = {
    "gzip": gzip.compress(NOTHING, 9, mtime=0),
    "deflate": zlib.compress(NOTHING, 9),
    "zstd": zstandard.ZstdCompressor(level=3).compress(NOTHING),
    # A frame that does not say how much it is.
    "zstd without a size": zstandard.ZstdCompressor(level=3, write_content_size=False).compress(NOTHING),
}
# The window of this one is larger than any decoder need have; its frame declares nothing.
WIDE_WINDOW = b"\x28\xb5\x2f\xfd\x00\xff" + b"\x01\x00\x00"

HEADERS = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"7",
    b'"7"',
    b'{"number":-1}',
    b'{"number":1e999}',
    b'{"number":' + b"9" * 900 + b"}",
    b'{"number":1,"number":2}',
    b'{"number":1,"\\u0000":1}',
    b'{"number":1,"encoding":"\\ud800"}',
    b'{"number":1,"format":"\\u0000"}',
    b'{"number":1,"encoding":"' + b"x" * 900 + b'"}',
    b'{"a":' + b"[" * 1_018,
    b'{"a":' * 200,
    b"\xff" * 1_000,
    b"\xef\xbb\xbf" + b'{"number":1}',
    b"{" + b" " * 1_022 + b"}",
    b"x" * 1_025,
    b"x" * 100_000,
]

ATTACKS: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\x82",
    "noise": Random(1).randbytes(10_000),
    "zeros": bytes(100_000),
    "ones": b"\xff" * 100_000,
    "bad UTF-8": ws(TEXT, b"\xff\xfe\xfd"),
    "bad UTF-8 late": ws(TEXT, message(1), fin=False) + ws(CONTINUATION, b"\xc3\x28"),
    "longer than it says": ws(BINARY, message(1) * 3, length=len(message(1))),
    "shorter than it says": ws(BINARY, message(1), length=1_000_000, mask=NO_MASK),
    "as long as can be": ws(BINARY, message(1), length=2**63 - 1, mask=NO_MASK),
    "a length with the highest bit": ws(BINARY, b"", length=2**63),
    "unmasked": ws(BINARY, message(1), mask=None),
    "reserved bits": b"".join(ws(BINARY, message(1), reserved=bits) for bits in range(1, 8)),
    "unknown opcodes": b"".join(ws(code) for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    "a close, then more": ws(CLOSE, b"\x03\xe8") + frame(1) * 100 + ws(CLOSE) * 100,
    "closes": ws(CLOSE, b"\x03\xe8") * 1_000,
    "a close of one byte": ws(CLOSE, b"\x03"),
    "a ping too long": ws(PING, b"x" * 126),
    "a ping in pieces": ws(PING, b"x", fin=False) + ws(CONTINUATION, b"x"),
    "a message between pings": pieces(message(1), 3, control=ws(PING, b"x" * 125) + ws(PONG, b"y")),
    "endless pieces": pieces(message(1, LINE * 500), 10, ends=False),
    "endless empty pieces": ws(TEXT, fin=False) + ws(CONTINUATION, fin=False) * 5_000,
    "a message within a message": ws(TEXT, b"{", fin=False) * 2,
    "a continuation of nothing": ws(CONTINUATION, message(1)),
    "empty frames by the thousand": ws(TEXT) * 1_500,
    "pings by the thousand": ws(PING, b"?") * 1_000,
    "pongs by the thousand": ws(PONG, b"!") * 3_000,
    "frames, none of them right": b"".join(ws(BINARY, header + b"\n" + LINE) for header in HEADERS),
    "headers without an end": b"".join(ws(BINARY, header) for header in HEADERS),
    "a number used again and again": frame(1) * 1_000,
    "deep JSON": frame(1, b"[" * 100_000, format="json") + frame(2, b'{"a":' * 50_000, format="ndjson"),
    "too large": ws(BINARY, b"\0" * 40_000, length=2**40, mask=NO_MASK),
    "bombs": b"".join(
        frame(number, bomb, encoding=name.split()[0]) for number, (name, bomb) in enumerate(BOMBS.items(), 1)
    ),
    "a decoder's window": frame(1, WIDE_WINDOW, encoding="zstd"),
    "HTTP": b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nm v=1",
    "another handshake": upgrade(),
}

# What a client that means well might send: the seed of the mutations.
WELL_MEANT_FRAMES = [
    frame(1),
    ws(PING, b"?"),
    ws(TEXT, message(2, LINE * 3)[:20], fin=False),
    ws(PONG),
    ws(CONTINUATION, message(2, LINE * 3)[20:]),
    frame(3, gzip.compress(LINE * 20, mtime=0), encoding="gzip"),
    ws(TEXT, message(4, b'[{"measurement":"m","fields":{"v":1}}]', format="json", precision="s")),
    frame(4),
    frame(9, LINE[:-9]),
    ws(CLOSE, b"\x03\xe8"),
]
# How many of the messages are stored when it is cut behind so many of these frames.
STORED_BEHIND = [0, 1, 1, 1, 1, 2, 3, 4, 4, 5, 5]
WELL_MEANT = b"".join(WELL_MEANT_FRAMES)


def mutations(seed: int, count: int) -> Iterator[bytes]:
    """Well-meant traffic with bytes changed, left out, doubled, moved and cut."""
    random = Random(seed)
    for _ in range(count):
        data = bytearray(WELL_MEANT)
        for _ in range(random.randint(1, 6)):
            at, to = sorted(random.randrange(len(data) + 1) for _ in range(2))
            match random.randrange(6):
                case 0 if data:
                    data[at % len(data)] ^= 1 << random.randrange(8)
                case 1:
                    data[at:at] = random.randbytes(random.randint(1, 12))
                case 2:
                    del data[at : at + random.randint(1, 12)]
                case 3:
                    data[to:to] = data[at:to]
                case 4:
                    data = data[to:] + data[:to]
                case _:
                    data[at : at + 2] = random.choice((b"\x80\x80", b"\x01\x80", b"\x88\x80", b"\x82\xfe"))
        yield bytes(data)
