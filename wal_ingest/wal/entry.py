"""The entry codec: one accepted request, or up to 1,000 points of one, as bytes. Pure.

The byte tables and a worked example are in FORMAT.md beside this file; a test decodes that example. The
CRC covers the seq, everything in the header behind the CRC itself, and the stored payload, so that an entry
that sits under another's key is found out as surely as a flipped bit.

An entry that came in a frame of a stream carries the frame's mark and is of version 2; any other is of version 1,
byte for byte as it always was.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from wal_ingest.errors import BadRequest
from wal_ingest.wal.gzip_codec import compress, crc32, decompress

VERSION = 1
VERSION_MARKED = 2
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

CLIENT_ID_BYTES_MAX = 128
# What every JSON library can tell from its neighbour.
FRAME_NUMBER_MAX = 2**53 - 1
_MARK = struct.Struct(">QI")


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
class Mark:
    """Which frame of which stream an entry came in: the stream's `client_id`, the frame's number, its body's CRC-32.

    All entries of a frame have the same mark and are appended together. Raises `BadRequest` when the id is not 1 to
    128 characters of printable ASCII without spaces, or the number not from 1 to 2^53 - 1.
    """

    client_id: str
    number: int
    crc: int

    def __post_init__(self) -> None:
        name = self.client_id
        if not (
            0 < len(name) <= CLIENT_ID_BYTES_MAX and name.isascii() and name.isprintable() and " " not in name
        ):
            raise BadRequest(
                f"a client_id is 1 to {CLIENT_ID_BYTES_MAX} characters of printable ASCII without spaces"
            )
        if not 0 < self.number <= FRAME_NUMBER_MAX:
            raise BadRequest(f"a frame's number is from 1 to {FRAME_NUMBER_MAX}")


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is handed to the WAL: canonical lines (`points` of them), who sent them, and when they were accepted.

    `accepted_ns` is Unix time in nanoseconds. `mark` is the frame of a stream that they came in, if they did.
    """

    lines: bytes
    points: int
    accepted_ns: int
    source: str = ""
    destination: Destination = Destination()
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What is read from the WAL.

    `points_before` counts the points of all entries with a lower seq since the WAL was born, so the points
    between any two seqs are a subtraction. `payload` is as stored: a gzip member when `codec` is
    `CODEC_GZIP`, else the lines themselves. `raw_bytes` is the length of the lines. `mark` is the frame of a
    stream that they came in, if they did.
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
    mark: Mark | None = None

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
    version, client_bytes = VERSION, 0
    mark = entry.mark
    if mark is not None:
        client_id = mark.client_id.encode()
        version, client_bytes = VERSION_MARKED, len(client_id)
        names += client_id + _MARK.pack(mark.number, mark.crc)
    header = _HEADER.pack(
        version,
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
        client_bytes,
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
        client_bytes,
    ) = _HEADER.unpack_from(value)
    # The checksum first: it stands at the same place in every version, and a flipped bit in the version is
    # damage, no message from the future.
    if crc32(memoryview(value)[_AFTER_CRC:], crc32(_crc_prefix(value, seq))) != crc:
        raise EntryDamaged(f"entry {seq}: the checksum does not match")
    if version not in (VERSION, VERSION_MARKED):
        raise EntryVersionUnknown(
            f"entry {seq}: version {version} is not known to this program "
            f"({VERSION} and {VERSION_MARKED} are)"
        )
    if payload_offset + stored_bytes != len(value):
        raise EntryDamaged(f"entry {seq}: its lengths do not add up to its {len(value)} bytes")
    mark_bytes = client_bytes + _MARK.size if version == VERSION_MARKED else 0
    names_end = HEADER_BYTES + source_bytes + org_bytes + bucket_bytes
    if names_end + mark_bytes != payload_offset:
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
        destination=Destination(value[source_end:org_end].decode(), value[org_end:names_end].decode()),
        codec=codec,
        raw_bytes=raw_bytes,
        payload=value[payload_offset:],
        mark=_decode_mark(value[names_end:payload_offset], seq=seq) if mark_bytes else None,
    )


def _decode_mark(data: bytes, *, seq: int) -> Mark:
    number, crc = _MARK.unpack_from(data, len(data) - _MARK.size)
    try:
        return Mark(data[: -_MARK.size].decode("ascii"), number, crc)
    except (BadRequest, UnicodeDecodeError) as exc:
        raise EntryDamaged(f"entry {seq}: its mark cannot be: {exc}") from exc


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
