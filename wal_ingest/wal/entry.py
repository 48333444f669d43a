"""The entry codec: one accepted request, or up to 1,000 points of one, as bytes. Pure.

The byte tables and a worked example are in FORMAT.md beside this file; a test decodes that example. The
CRC covers the seq, everything in the header behind the CRC itself, and the stored payload, so that an entry
that sits under another's key is found out as surely as a flipped bit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from wal_ingest.errors import BadRequest
from wal_ingest.wal.gzip_codec import compress, crc32, decompress

VERSION = 1
CODEC_RAW = 0
CODEC_GZIP = 1

# An entry of this many points is the unit that is stored, read and delivered all-or-nothing.
ENTRY_POINTS_MAX = 1_000

# Compressing fewer bytes than this gains nothing: a gzip member has 18 bytes of frame of its own.
COMPRESS_BYTES_MIN = 96

_HEADER = struct.Struct(">BBHIIIIQQHHHH")
HEADER_BYTES = _HEADER.size
_CRC_OFFSET = 4
_AFTER_CRC = 8
# Room for an address, or "database/retention policy"; it bounds what a sender can put into a header.
NAME_BYTES_MAX = 1_024


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the sender wanted its points: organisation and bucket, each empty when it did not say.

    Raises `BadRequest` when one of them has more than 1,024 bytes.
    """

    org: str = ""
    bucket: str = ""

    def __post_init__(self) -> None:
        for what, name in (("organisation", self.org), ("bucket", self.bucket)):
            if len(name) > NAME_BYTES_MAX // 4 and len(name.encode()) > NAME_BYTES_MAX:
                raise BadRequest(f"the name of the {what} is longer than {NAME_BYTES_MAX} bytes")


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is handed to the WAL: canonical lines (`points` of them), who sent them, and when they were accepted.

    `accepted_ns` is Unix time in nanoseconds.
    """

    lines: bytes
    points: int
    accepted_ns: int
    source: str = ""
    destination: Destination = Destination()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is read from the WAL.

    `points_before` counts the points of all entries with a lower seq since the WAL was born, so the points
    between any two seqs are a subtraction. `payload` is as stored: a gzip member when `codec` is
    `CODEC_GZIP`, else the lines themselves. `raw_bytes` is the length of the lines.
    """

    seq: int
    points: int
    points_before: int
    accepted_ns: int
    source: str
    destination: Destination
    codec: int
    raw_bytes: int
    payload: bytes

    def lines(self) -> bytes:
        """The canonical lines. Raises EntryDamaged when the payload does not give `raw_bytes` bytes."""
        if self.codec == CODEC_RAW:
            return self.payload
        try:
            lines = decompress(self.payload, bytes_max=self.raw_bytes)
        except ValueError as exc:
            raise EntryDamaged(f"entry {self.seq}: its payload does not decompress: {exc}") from exc
        if len(lines) != self.raw_bytes:
            raise EntryDamaged(
                f"entry {self.seq}: {len(lines)} bytes decompressed, {self.raw_bytes} expected"
            )
        return lines

    def gzip_member(self) -> bytes:
        """The lines as one gzip member: the stored one as it lies, or the raw lines compressed now."""
        return self.payload if self.codec == CODEC_GZIP else compress(self.payload)


class EntryDamaged(ValueError):
    """The bytes are not the entry that was appended; the segment's reader turns this into `WalDamaged`."""


class EntryVersionUnknown(EntryDamaged):
    """The entry says a version that this program does not know: it is refused by name, never guessed at."""


def encode(entry: NewEntry, *, seq: int, points_before: int) -> bytes:
    """The value that is stored under `seq`. Compresses; releases the GIL while it does."""
    codec, payload = CODEC_RAW, entry.lines
    if len(payload) >= COMPRESS_BYTES_MIN:
        member = compress(payload)
        if len(member) < len(payload):
            codec, payload = CODEC_GZIP, member
    source = entry.source.encode()
    org = entry.destination.org.encode()
    bucket = entry.destination.bucket.encode()
    names = source + org + bucket
    header = _HEADER.pack(
        VERSION,
        codec,
        HEADER_BYTES + len(names),
        0,
        entry.points,
        len(entry.lines),
        len(payload),
        entry.accepted_ns,
        points_before,
        len(source),
        len(org),
        len(bucket),
        0,
    )
    crc = crc32(payload, crc32(names, crc32(header[_AFTER_CRC:], crc32(_crc_prefix(header, seq)))))
    return b"".join((header[:_CRC_OFFSET], crc.to_bytes(4, "big"), header[_AFTER_CRC:], names, payload))


def decode(value: bytes, *, seq: int) -> Entry:
    """The entry that `encode` made. Raises EntryDamaged, or EntryVersionUnknown for a version from the future."""
    if len(value) < HEADER_BYTES:
        raise EntryDamaged(f"entry {seq}: {len(value)} bytes are shorter than a header")
    (
        version,
        codec,
        payload_offset,
        crc,
        points,
        raw_bytes,
        stored_bytes,
        accepted_ns,
        points_before,
        source_bytes,
        org_bytes,
        bucket_bytes,
        _reserved,
    ) = _HEADER.unpack_from(value)
    # The checksum first: it stands at the same place in every version, and a flipped bit in the version is
    # damage, no message from the future.
    if crc32(memoryview(value)[_AFTER_CRC:], crc32(_crc_prefix(value, seq))) != crc:
        raise EntryDamaged(f"entry {seq}: the checksum does not match")
    if version != VERSION:
        raise EntryVersionUnknown(
            f"entry {seq}: version {version} is not known to this program ({VERSION} is)"
        )
    if payload_offset + stored_bytes != len(value):
        raise EntryDamaged(f"entry {seq}: its lengths do not add up to its {len(value)} bytes")
    if HEADER_BYTES + source_bytes + org_bytes + bucket_bytes != payload_offset:
        raise EntryDamaged(f"entry {seq}: its names do not fill its header")
    if codec not in (CODEC_RAW, CODEC_GZIP):
        raise EntryVersionUnknown(f"entry {seq}: codec {codec} is not known to this program")
    source_end = HEADER_BYTES + source_bytes
    org_end = source_end + org_bytes
    return Entry(
        seq=seq,
        points=points,
        points_before=points_before,
        accepted_ns=accepted_ns,
        source=value[HEADER_BYTES:source_end].decode(),
        destination=Destination(value[source_end:org_end].decode(), value[org_end:payload_offset].decode()),
        codec=codec,
        raw_bytes=raw_bytes,
        payload=value[payload_offset:],
    )


def extent(header: bytes) -> int:
    """How many bytes an entry says that it has, by the first `HEADER_BYTES` of them; 0 when there are fewer.

    Nothing is proved by that: it is for looking where an entry may be.
    """
    if len(header) < HEADER_BYTES:
        return 0
    fields = _HEADER.unpack_from(header)
    length: int = fields[2] + fields[6]
    return length


def _crc_prefix(header: bytes, seq: int) -> bytes:
    """What the CRC covers before the fields behind it: the key, and the four bytes in front of the CRC."""
    return seq.to_bytes(8, "big") + header[:_CRC_OFFSET]
