"""What is remembered of each stream: which of its most recent frames are durable, and where. Pure.

Invariants:

* A frame is in the table only once its entries are on disk: whoever applies one has committed or read it.
* Frames of a position rise by number. Which ones are remembered depends only on what was applied, in which order, so
  a table that is built again from the log is the table that was lost.
* A frame that is missing here costs a double at the most: its sender sends it again. One that is here and not in the
  log would be a lie that loses points. So whatever is in doubt is forgotten.

A position is a value that never changes; its frames are packed, 24 bytes each, because a node may know a hundred
thousand streams: 5,000 of them with 64 frames each take 9 MB, as tuples they would take 60.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wal_ingest.wal.entry import Mark
from wal_ingest.wal.gzip_codec import crc32

# How many frames of a stream are remembered: several times what a sender may have under way.
STORED_MAX = 64

_FRAME = struct.Struct(">QQII")
_HEAD = struct.Struct(">QQ")
_CRC_BYTES = 4
_PACKED_BYTES_MAX = STORED_MAX * _FRAME.size
_POINTS_MAX = 2**32 - 1


class Stored(NamedTuple):
    """A durable frame: its number, the seq of its last entry, its points, and its body's CRC-32."""

    number: int
    seq: int
    points: int
    crc: int


class Position(NamedTuple):
    """How far a stream has come: its most recent frames, at least one, at most `STORED_MAX`, rising by number.

    `last_ns` is when the latest of them was accepted, in Unix nanoseconds, and `last_seq` the seq that it got.
    """

    client_id: str
    last_ns: int
    last_seq: int
    packed: bytes

    @property
    def durable(self) -> int:
        """The highest number that is known to be durable."""
        return int.from_bytes(self.packed[-_FRAME.size : -_FRAME.size + 8], "big")

    @property
    def stored(self) -> tuple[Stored, ...]:
        """The frames, unpacked anew each time."""
        return tuple(map(Stored._make, _FRAME.iter_unpack(self.packed)))

    def encode(self) -> bytes:
        """The bytes that are kept of it; the table is in FORMAT.md. The CRC covers the client's id too."""
        body = _HEAD.pack(self.last_ns, self.last_seq) + self.packed
        return body + crc32(body, crc32(self.client_id.encode())).to_bytes(_CRC_BYTES, "big")

    @classmethod
    def decode(cls, client_id: str, value: bytes) -> Position | None:
        """The position that `encode` made; None for anything else: then the stream is forgotten."""
        body, crc = value[:-_CRC_BYTES], value[-_CRC_BYTES:]
        frames_bytes = len(body) - _HEAD.size
        if not 0 < frames_bytes <= _PACKED_BYTES_MAX or frames_bytes % _FRAME.size:
            return None
        if crc32(body, crc32(client_id.encode())) != int.from_bytes(crc, "big"):
            return None
        last_ns, last_seq = _HEAD.unpack_from(body)
        return cls(client_id, last_ns, last_seq, body[_HEAD.size :])


def _with_entry(packed: bytes, number: int, seq: int, points: int, crc: int) -> bytes:
    """The frames with one more entry in them."""
    if not packed or int.from_bytes(packed[-_FRAME.size : -_FRAME.size + 8], "big") < number:
        return packed[-_PACKED_BYTES_MAX + _FRAME.size :] + _FRAME.pack(number, seq, points, crc)
    # The next entry of a frame; or, rarely, a number that does not rise: two connections of one client.
    frame = Stored(number, seq, points, crc)
    frames = [Stored._make(each) for each in _FRAME.iter_unpack(packed)]
    index = bisect_left(frames, frame.number, key=lambda each: each.number)
    known = frames[index] if frames[index].number == frame.number else None
    if known is None:
        frames.insert(index, frame)
    elif known.crc == frame.crc and known.seq + 1 == frame.seq:
        frames[index] = frame._replace(points=min(known.points + frame.points, _POINTS_MAX))
    else:
        frames[index] = frame
    return _packed(frames[-STORED_MAX:])


def _packed(frames: Iterable[Stored]) -> bytes:
    return b"".join(_FRAME.pack(*frame) for frame in frames)


class Positions:
    """The positions of all streams, at most `clients_max`: beyond that the one is forgotten that was silent longest.

    That is the one whose latest entry has the lowest seq, not the lowest time, so that a clock which was set changes
    nothing, and a table that is built again forgets the same ones.

    `mutex` is the lock of the log. Everything but `of` and `changed` is called with it held: entries and positions
    move on together.
    """

    def __init__(self, *, clients_max: int, mutex: threading.Lock) -> None:
        self._clients_max = clients_max
        self._mutex = mutex
        # In the order of their latest entries, so that the one to go is always the first.
        self._table: OrderedDict[str, Position] = OrderedDict()
        # What is to be written down, by client's id; None where a stream was forgotten.
        self._changed: dict[str, Position | None] = {}

    def __len__(self) -> int:
        return len(self._table)

    def of(self, client_id: str) -> Position | None:
        """How far a stream has come, durably; None when nothing is known of it. On any thread."""
        with self._mutex:
            return self._table.get(client_id)

    @property
    def changed(self) -> bool:
        """Whether there is something to write down."""
        return bool(self._changed)

    def apply(self, mark: Mark, seq: int, points: int, accepted_ns: int) -> None:
        """Takes in one durable entry of a frame. Entries come in the order of their seqs.

        Consecutive entries with the same mark are one frame: their points add up, and it has the seq of the last.
        """
        client_id = mark.client_id
        known = self._table.get(client_id)
        packed = _with_entry(known.packed if known is not None else b"", mark.number, seq, points, mark.crc)
        self._table[client_id] = self._changed[client_id] = Position(client_id, accepted_ns, seq, packed)
        self._table.move_to_end(client_id)
        if len(self._table) > self._clients_max:
            self._drop_first()

    def _drop_first(self) -> None:
        client_id, _position = self._table.popitem(last=False)
        self._changed[client_id] = None

    def restore(self, positions: Iterable[Position]) -> None:
        """Takes in positions as they were written down; what is too many of them goes, the oldest first."""
        for position in sorted(positions, key=lambda position: position.last_seq):
            self._table[position.client_id] = position
        while len(self._table) > self._clients_max:
            self._drop_first()

    def forget(self, client_id: str) -> Position | None:
        """Forgets one stream, by a decision of an operator; gives what was known of it."""
        position = self._table.pop(client_id, None)
        if position is not None:
            self._changed[client_id] = None
        return position

    def listed(self) -> list[Position]:
        """Every position, in the order of their latest entries."""
        return list(self._table.values())

    def forget_silent(self, *, now_ns: int, keep_s: float) -> None:
        """Forgets streams of which nothing came for longer than `keep_s` seconds.

        A time as far ahead says that the clock was wrong, and is no reason to keep those behind it for ever.
        """
        while self._table:
            first = next(iter(self._table.values()))
            if abs(now_ns - first.last_ns) <= keep_s * 1e9:
                return
            self._drop_first()

    def forget_entries(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Forgets the frames whose entries are in no file any more: seqs, both ends of each range included."""
        lowest = min((first for first, _last in ranges), default=None)
        if lowest is None:
            return
        for position in list(self._table.values()):
            if position.last_seq < lowest:
                continue
            left = [
                frame
                for frame in position.stored
                if not any(first <= frame.seq <= last for first, last in ranges)
            ]
            if len(left) * _FRAME.size == len(position.packed):
                continue
            client_id = position.client_id
            if left:
                self._table[client_id] = self._changed[client_id] = position._replace(packed=_packed(left))
            else:
                del self._table[client_id]
                self._changed[client_id] = None

    def take_changes(self) -> dict[str, Position | None]:
        """What changed since it was last taken, by client's id, None where a stream is forgotten.

        `put_back` what could not be written down.
        """
        changed, self._changed = self._changed, {}
        return changed

    def put_back(self, changes: dict[str, Position | None]) -> None:
        """Changes that were taken are to be taken once more, unless there are newer ones."""
        self._changed = changes | self._changed
