"""Entries become batches: consecutive, of one group, at most so many points. Pure.

A batch is gzip members behind each other, as they lie in the WAL: RFC 1952 makes that one valid stream, and
points that were compressed once at the front door are never decompressed on the way out. Only entries too
small to be compressed alone are joined here, a run of them into one member, because a member for each would
be larger than the lines in it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from wal_ingest.wal.entry import CODEC_GZIP, Destination, Entry
from wal_ingest.wal.gzip_codec import compress, decompress


class Part(NamedTuple):
    """An entry's share of a batch: `points` lines that came with entry `seq`, meant for `destination`."""

    seq: int
    points: int
    destination: Destination


@dataclass(frozen=True, slots=True)
class Batch:
    """Points on their way to a sink: those of the entries `first_seq` … `last_seq`, both included.

    `body` is their canonical lines as concatenated gzip members, `raw_bytes` the length when decompressed.
    `accepted_ns` is the oldest entry's time of acceptance. `points_after` counts all points up to and
    including `last_seq` since the WAL was born: what the cursor will say once this batch is settled.
    `destination` is the first entry's; a sink whose group is not the destination mixes several, and `parts`
    tells them apart: one for each entry, in the order of the lines. `group` is what the sink made of them.
    """

    first_seq: int
    last_seq: int
    points: int
    points_after: int
    accepted_ns: int
    destination: Destination
    body: bytes
    raw_bytes: int
    parts: tuple[Part, ...] = ()
    group: Hashable = None

    def lines(self) -> bytes:
        """The canonical lines, decompressed."""
        return decompress(self.body, bytes_max=self.raw_bytes)


class Batcher:
    """Collects consecutive entries into batches of at most `points_max` points and one group each.

    An entry with more points than that is a batch of its own; `halve` cuts it. Not for two threads at once.
    """

    def __init__(self, group: Callable[[Entry], Hashable], *, points_max: int) -> None:
        self._group = group
        self._points_max = points_max
        self._open: list[Entry] = []
        self._open_group: Hashable = None
        self._open_points = 0

    @property
    def open_points(self) -> int:
        """The points that wait for their batch to fill."""
        return self._open_points

    @property
    def oldest_accepted_ns(self) -> int | None:
        """When the oldest waiting entry was accepted, in Unix nanoseconds; None when nothing waits."""
        return min(entry.accepted_ns for entry in self._open) if self._open else None

    def add(self, entries: Iterable[Entry]) -> list[Batch]:
        """Takes entries in the order of their seqs; gives the batches that are full with them."""
        full = []
        for entry in entries:
            group = self._group(entry)
            if self._open and (
                group != self._open_group or self._open_points + entry.points > self._points_max
            ):
                full.append(self._close())
            self._open.append(entry)
            self._open_group = group
            self._open_points += entry.points
            if self._open_points >= self._points_max:
                full.append(self._close())
        return full

    def flush(self) -> list[Batch]:
        """The batch that is still filling, if there is one, as it is."""
        return [self._close()] if self._open else []

    def _close(self) -> Batch:
        entries, self._open, self._open_points = self._open, [], 0
        last = entries[-1]
        return Batch(
            first_seq=entries[0].seq,
            last_seq=last.seq,
            points=sum(entry.points for entry in entries),
            points_after=last.points_before + last.points,
            accepted_ns=min(entry.accepted_ns for entry in entries),
            destination=entries[0].destination,
            body=join_members(entries),
            raw_bytes=sum(entry.raw_bytes for entry in entries),
            parts=tuple(Part(entry.seq, entry.points, entry.destination) for entry in entries),
            group=self._open_group,
        )


def join_members(entries: Iterable[Entry]) -> bytes:
    """The entries' lines, in order, as gzip members: stored ones as they lie, runs of raw ones joined into one."""
    members: list[bytes] = []
    raw: list[bytes] = []
    for entry in entries:
        if entry.codec == CODEC_GZIP:
            if raw:
                members.append(compress(b"".join(raw)))
                raw = []
            members.append(entry.payload)
        else:
            raw.append(entry.payload)
    if raw:
        members.append(compress(b"".join(raw)))
    return members[0] if len(members) == 1 else b"".join(members)


def halve(batch: Batch) -> tuple[Batch, Batch]:
    """Two batches with the first and the second half of the lines, each compressed anew.

    Both keep the whole batch's `first_seq`, `last_seq` and `points_after`: neither finishes those seqs alone.
    Raises ValueError when there is only one line, or when the body is not what the batch says.
    """
    if batch.points < 2:
        raise ValueError("one line cannot be halved")
    lines = batch.lines().split(b"\n")
    lines.pop()  # what follows the last line feed: nothing
    if len(lines) != batch.points:
        raise ValueError(f"batch of seq {batch.first_seq}: {len(lines)} lines, {batch.points} expected")
    middle = (batch.points + 1) // 2
    first_parts, second_parts = _split_parts(batch.parts, middle)
    return _piece(batch, lines[:middle], first_parts), _piece(batch, lines[middle:], second_parts)


def _piece(batch: Batch, lines: list[bytes], parts: tuple[Part, ...]) -> Batch:
    data = b"".join(line + b"\n" for line in lines)
    return Batch(
        first_seq=batch.first_seq,
        last_seq=batch.last_seq,
        points=len(lines),
        points_after=batch.points_after,
        accepted_ns=batch.accepted_ns,
        destination=batch.destination,
        body=compress(data),
        raw_bytes=len(data),
        parts=parts,
        group=batch.group,
    )


def _split_parts(parts: tuple[Part, ...], points: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The parts that cover the first `points` lines, and those that cover the rest."""
    first: list[Part] = []
    second: list[Part] = []
    for part in parts:
        take = min(part.points, points)
        points -= take
        if take:
            first.append(part._replace(points=take))
        if take < part.points:
            second.append(part._replace(points=part.points - take))
    return tuple(first), tuple(second)
