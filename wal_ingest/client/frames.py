"""Writes, and the frames that they travel in. Pure.

A frame holds points of one write or several; of a large write it holds a part. Its body is kept as it is sent,
compressed, until the frame is settled: who is cut off from the node for a while needs the room. Which lines belong to
which write is known by their number alone, and a body is decompressed only when a frame must be cut up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from wal_ingest.client.errors import PointsRefused
from wal_ingest.points import Lines, split_at, split_lines, split_points
from wal_ingest.wal.gzip_codec import compress, crc32, decompress


@dataclass(slots=True, eq=False)
class Write:
    """What one call handed over. It is settled when none of its points is unsettled.

    `seq` is the highest that an acknowledgement named; `waiter` belongs to whoever handed the write over.
    """

    number: int
    points: int
    waiter: object = None
    unsettled: int = 0
    seq: int | None = None
    refused: list[PointsRefused] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Frame:
    """One message to the node. `number` is 0 until it is sent for the first time, or when it needs another one.

    `parts` says which writes its lines belong to, in order. `crc32` is that of the lines.
    """

    parts: list[tuple[Write, int]]
    body: bytes
    encoding: str
    lines_bytes: int
    crc32: int
    points: int
    number: int = 0

    def lines(self) -> bytes:
        """The body as it was before it was compressed."""
        if self.encoding == "identity":
            return self.body
        return decompress(self.body, bytes_max=self.lines_bytes)


def seal(parts: Iterable[tuple[Write, Lines]]) -> Frame:
    """A frame of these lines; compressed if that makes it smaller."""
    parts = list(parts)
    data = b"".join(lines.data for _, lines in parts)
    packed = compress(data)
    smaller = len(packed) < len(data)
    return Frame(
        [(write, lines.points) for write, lines in parts],
        packed if smaller else data,
        "gzip" if smaller else "identity",
        len(data),
        crc32(data),
        sum(lines.points for _, lines in parts),
    )


def cut(lines: Lines, *, points_max: int, bytes_max: int) -> list[Lines]:
    """Lines in pieces within both limits, in order; a line that is longer than `bytes_max` is a piece by itself."""
    out = []
    left = split_lines(lines, points_max)
    left.reverse()
    while left:
        piece = left.pop()
        if piece.points > 1 and len(piece.data) > bytes_max:
            left += reversed(_halves(piece))
        else:
            out.append(piece)
    return out


def cut_by_write(frame: Frame) -> list[Frame]:
    """A frame for each of the writes that share this one, so that a bad one costs only itself."""
    return [seal([part]) for part in _parts_of(frame)]


def halve(frame: Frame) -> list[Frame]:
    """Two frames in the place of one that is too large; the same one when it holds a single point."""
    if frame.points == 1:
        return [frame]
    parts = _parts_of(frame)
    if len(parts) > 1:
        return [seal(parts[: len(parts) // 2]), seal(parts[len(parts) // 2 :])]
    write, lines = parts[0]
    return [seal([(write, half)]) for half in _halves(lines)]


def _parts_of(frame: Frame) -> list[tuple[Write, Lines]]:
    data = frame.lines()
    if len(frame.parts) == 1:
        return [(frame.parts[0][0], Lines(data, frame.points))]
    every = split_points(data, frame.points)
    out, start = [], 0
    for write, points in frame.parts:
        out.append((write, Lines(b"".join(every[start : start + points]), points)))
        start += points
    return out


def _halves(lines: Lines) -> list[Lines]:
    """Two pieces of about the same number of points."""
    return list(split_at(lines, lines.points // 2))
