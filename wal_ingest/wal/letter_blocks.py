"""Blocks of dead letters: letters of one sink and one group of reasons, compressed together. Pure.

A block is self-describing: it names the WAL, the sink and the numbers of its letters, and ends where it says. Its bytes
never change. Letters that were removed since are named by the state file's record of the block (`Block.gone`).

Content, before it is compressed: a table in JSON on one line (each distinct reason once; numbers, seqs and times as
differences to the letter before), then the lines as they are. 1,000 letters take some 20 KB, where records of their own
take 400.
"""

from __future__ import annotations

import itertools
import struct
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.gzip_codec import compress, crc32, decompress
from wal_ingest.wal.letters import OTHER_REASONS, reason_group

MAGIC = b"wdeadlet"
VERSION = 1

# At most so many letters and bytes in one block: what reading one letter costs. A single letter may be larger.
BLOCK_LETTERS = 2_000
BLOCK_BYTES = 512 << 10
# Letters that are grouped together: blocks of other groups lie within so many numbers, and reading in the order of
# numbers has no more than these in memory.
RUN_LETTERS = 10_000
# Groups of a run that get blocks of their own, the largest ones.
RUN_GROUPS = 32

_HEADER = struct.Struct(">8sHHI16sQQQQIIII")
_CRC_AT = 12
_CRC_END = 16

BLOCK = b"letter_block/"


class Reason(msgspec.Struct, frozen=True, array_like=True):
    """What letters of a block have in common: why and by which code, and where they should have gone."""

    status: int
    reason: str
    org: str
    bucket: str


class Table(msgspec.Struct, frozen=True):
    """A block's letters but for their lines; lists are by letter, `reason` is a place in `reasons`.

    `numbers`, `seqs` and `parked_ns` hold the first value, then differences.
    """

    reasons: list[Reason]
    numbers: list[int]
    seqs: list[int]
    parked_ns: list[int]
    reason: list[int]
    bytes: list[int]


class BlockRecord(msgspec.Struct, frozen=True):
    """The state file's record of a block, as JSON: where it is, what is in it, and which of it is gone.

    `gone` has ranges of letters that were removed since, by their place in the block: first and count.
    """

    file: int
    offset: int
    bytes: int
    letters: int
    last_number: int
    group: str
    last_ns: int
    gone: tuple[tuple[int, int], ...] = ()


class Block(msgspec.Struct, frozen=True):
    """A block that is on disk: its sink and first number, which are its key, and its record."""

    sink: str
    first_number: int
    record: BlockRecord

    @property
    def key(self) -> bytes:
        """Its key in the state file."""
        return block_key(self.sink, self.first_number)

    @property
    def value(self) -> bytes:
        """Its value there."""
        return msgspec.json.encode(self.record)

    @property
    def left(self) -> int:
        """Letters that were not removed."""
        return self.record.letters - sum(count for _, count in self.record.gone)

    @property
    def places_left(self) -> Iterator[int]:
        """Places of the letters that were not removed."""
        gone = {place for first, count in self.record.gone for place in range(first, first + count)}
        return (place for place in range(self.record.letters) if place not in gone)

    def without(self, places: Iterable[int]) -> Block:
        """The same with more letters gone."""
        gone = set(places)
        gone.update(place for first, count in self.record.gone for place in range(first, first + count))
        return msgspec.structs.replace(
            self, record=msgspec.structs.replace(self.record, gone=tuple(_ranges(sorted(gone))))
        )


def blocks_prefix(sink: str) -> bytes:
    """What the keys of a sink's blocks begin with."""
    return BLOCK + sink.encode() + b"/"


def block_key(sink: str, first_number: int) -> bytes:
    """The key of the block whose first letter has that number."""
    return blocks_prefix(sink) + b"%020d" % first_number


def decode_record(key: bytes, value: bytes) -> Block:
    """The block under a key of the state file. Raises `msgspec.DecodeError`, UnicodeDecodeError."""
    sink, _, number = key.removeprefix(BLOCK).rpartition(b"/")
    return Block(sink.decode(), int(number), msgspec.json.decode(value, type=BlockRecord))


class NewBlock(msgspec.Struct, frozen=True):
    """A block that is not on disk yet."""

    data: bytes
    first_number: int
    last_number: int
    letters: int
    group: str
    last_ns: int

    def at(self, sink: str, file: int, offset: int) -> Block:
        """The same at its place."""
        record = BlockRecord(
            file, offset, len(self.data), self.letters, self.last_number, self.group, self.last_ns
        )
        return Block(sink, self.first_number, record)


def make_blocks(wal_id: uuid.UUID, sink: str, letters: Sequence[DeadLetter]) -> list[NewBlock]:
    """Blocks of a sink's letters, whose numbers rise."""
    made = []
    for start in range(0, len(letters), RUN_LETTERS):
        for group, members in _grouped(letters[start : start + RUN_LETTERS]).items():
            for piece in _pieces(members):
                data = encode_block(wal_id, sink, piece)
                last_ns = max(letter.parked_ns for letter in piece)
                made.append(NewBlock(data, piece[0].number, piece[-1].number, len(piece), group, last_ns))
    return made


def _grouped(letters: Sequence[DeadLetter]) -> dict[str, list[DeadLetter]]:
    groups: dict[str, list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault(reason_group(letter.reason), []).append(letter)
    if len(groups) <= RUN_GROUPS:
        return groups
    largest = sorted(groups, key=lambda group: -len(groups[group]))[: RUN_GROUPS - 1]
    few = [letter for group, members in groups.items() if group not in largest for letter in members]
    few.sort(key=lambda letter: letter.number)
    return {group: groups[group] for group in largest} | {OTHER_REASONS: few}


def _pieces(letters: Sequence[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """The letters, at least one, in pieces of a block each."""
    piece: list[DeadLetter] = []
    size = 0
    reason = ""
    for letter in letters:
        more = len(letter.line) + (len(letter.reason) if letter.reason != reason else 0)
        if piece and (len(piece) == BLOCK_LETTERS or size + more > BLOCK_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(letter)
        size += more
        reason = letter.reason
    yield piece


def encode_block(wal_id: uuid.UUID, sink: str, letters: Sequence[DeadLetter]) -> bytes:
    """The bytes of a block; at least one letter, their numbers rise."""
    reasons: dict[tuple[int, str, Destination], int] = {}
    places, place = list[int](), 0
    before: DeadLetter | None = None
    for letter in letters:
        # Neighbours often share these very objects; hashing them is most of the work here.
        if (
            before is None
            or letter.reason is not before.reason
            or letter.destination is not before.destination
            or letter.status != before.status
        ):
            key = (letter.status, letter.reason, letter.destination)
            place = reasons.setdefault(key, len(reasons))
        places.append(place)
        before = letter
    table = Table(
        [Reason(status, reason, to.org, to.bucket) for status, reason, to in reasons],
        _differences([letter.number for letter in letters]),
        _differences([letter.seq for letter in letters]),
        _differences([letter.parked_ns for letter in letters]),
        places,
        [len(letter.line) for letter in letters],
    )
    content = b"".join([msgspec.json.encode(table), b"\n", *(letter.line for letter in letters)])
    payload = compress(content)
    name = sink.encode()
    seqs = [letter.seq for letter in letters]
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        len(name),
        0,
        wal_id.bytes,
        letters[0].number,
        letters[-1].number,
        min(seqs),
        max(seqs),
        len(letters),
        len(content),
        len(payload),
        0,
    )
    crc = crc32(payload, crc32(name, crc32(header[_CRC_END:], crc32(header[:_CRC_AT]))))
    return header[:_CRC_AT] + crc.to_bytes(4, "big") + header[_CRC_END:] + name + payload


class Header(NamedTuple):
    """What a block says of itself; `bytes` is the length of all of it."""

    sink: str
    wal_id: uuid.UUID
    first_number: int
    last_number: int
    letters: int
    bytes: int

    def block(self, offset: int) -> Block:
        """The block as a state file would name it that knows of no letter gone."""
        return Block(
            self.sink,
            self.first_number,
            BlockRecord(0, offset, self.bytes, self.letters, self.last_number, "", 0),
        )


def header_at(data: bytes, offset: int) -> Header:
    """The header of the block that begins there. ValueError when it is not whole; its checksum is not looked at."""
    if len(data) < offset + _HEADER.size:
        raise ValueError("the file ends within a block")
    _magic, _version, name_bytes, _crc, identity, first, last, _low, _high, count, _content, size, _ = (
        _HEADER.unpack_from(data, offset)
    )
    name_at = offset + _HEADER.size
    sink = data[name_at : name_at + name_bytes].decode()
    return Header(sink, uuid.UUID(bytes=identity), first, last, count, _HEADER.size + name_bytes + size)


def decode_block(data: bytes, wal_id: uuid.UUID, block: Block) -> list[DeadLetter]:
    """The letters of a block, those that are gone left out. ValueError says what is wrong with its bytes."""
    if len(data) < _HEADER.size:
        raise ValueError("the file ends within a block")
    magic, version, name_bytes, crc, identity, first, last, _low, _high, count, content_bytes, size, _ = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC:
        raise ValueError("there is no block of dead letters")
    found = crc32(data[_CRC_END:], crc32(data[:_CRC_AT]))
    if len(data) != _HEADER.size + name_bytes + size or found != crc:
        raise ValueError("the checksum of a block does not match")
    if version != VERSION:
        raise ValueError(f"a block has version {version}, this program knows {VERSION}")
    name = data[_HEADER.size : _HEADER.size + name_bytes].decode()
    record = block.record
    if (identity, name, first, last, count) != (
        wal_id.bytes,
        block.sink,
        block.first_number,
        record.last_number,
        record.letters,
    ):
        raise ValueError(f"another block is in the place of {block.sink}'s from number {block.first_number}")
    content = decompress(data[_HEADER.size + name_bytes :], bytes_max=content_bytes)
    return _letters(content, block)


def _letters(content: bytes, block: Block) -> list[DeadLetter]:
    head, _, lines = content.partition(b"\n")
    try:
        table = msgspec.json.decode(head, type=Table)
    except msgspec.DecodeError as exc:
        raise ValueError(f"the table of a block cannot be read: {exc}") from exc
    ends = list(itertools.accumulate(table.bytes))
    numbers = list(itertools.accumulate(table.numbers))
    seqs = list(itertools.accumulate(table.seqs))
    times = list(itertools.accumulate(table.parked_ns))
    destinations = [Destination(reason.org, reason.bucket) for reason in table.reasons]
    found = []
    for place in block.places_left:
        reason = table.reasons[table.reason[place]]
        found.append(
            DeadLetter(
                block.sink,
                seqs[place],
                lines[ends[place] - table.bytes[place] : ends[place]],
                reason.reason,
                reason.status,
                times[place],
                destinations[table.reason[place]],
                numbers[place],
            )
        )
    return found


def _differences(values: Sequence[int]) -> list[int]:
    return [values[0], *(after - before for before, after in itertools.pairwise(values))]


def _ranges(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Rising places as (first, count)."""
    for _, run in itertools.groupby(enumerate(places), key=lambda each: each[1] - each[0]):
        members = [place for _, place in run]
        yield members[0], len(members)
