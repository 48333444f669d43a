"""Entries become batches: of one group each, bounded in points and in bytes. Pure.

A batch is gzip members one after the other, as they lie in the WAL: RFC 1952 makes that one valid stream, and
points that were compressed once at the front door are never decompressed on the way out. Only entries too
small to be compressed alone are joined here, a run of them into one member, because a member for each would
be larger than the lines in it.

Batches of several groups fill side by side, so a batch need not hold consecutive entries: its `runs` are the stretches
that do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from wal_ingest.points import split_points
from wal_ingest.wal.entry import CODEC_GZIP, Destination, Entry
from wal_ingest.wal.gzip_codec import compress, decompress

# Bytes of lines, decompressed, in one batch: what a write holds in memory, here and in the sink. An entry that is
# larger is a batch of its own.
BATCH_BYTES_MAX = 8 * 1024 * 1024
# What may fill side by side. Beyond it the batch that was begun first goes as it is.
OPEN_GROUPS_MAX = 64
OPEN_BYTES_MAX = 16 * 1024 * 1024


class Part(NamedTuple):
    """An entry's share of a batch: `points` of its lines, from the one with the number `first`, for `destination`."""

    seq: int
    points: int
    destination: Destination
    first: int = 0


class Run(NamedTuple):
    """Consecutive entries that were read together: `points` in them, `points_after` up to the last of all times.

    `settled` of them were settled in an earlier life of the process. `stored_bytes` is what they take in a batch.
    """

    first_seq: int
    last_seq: int
    points: int
    points_after: int
    stored_bytes: int = 0
    settled: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Points on their way to a sink, of entries from `first_seq` to `last_seq`, both included.

    `body` is their canonical lines as concatenated gzip members, `raw_bytes` the length when decompressed.
    `accepted_ns` is the oldest entry's time of acceptance. `points_after` counts all points up to and
    including `last_seq` since the WAL was born. `destination` is the first entry's; a sink whose group is not the
    destination mixes several, and `parts` tells them apart, in the order of the lines. `group` is what the sink made of
    them. `runs` are the stretches of consecutive entries; none stands for one from `first_seq` to `last_seq`.
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
    runs: tuple[Run, ...] = ()

    def lines(self) -> bytes:
        """The canonical lines, decompressed."""
        return decompress(self.body, bytes_max=self.raw_bytes)

    def split(self) -> list[bytes]:
        """The lines, each with its line feed. Raises ValueError when the body is not what the batch says."""
        try:
            return split_points(self.lines(), self.points)
        except ValueError as exc:
            raise ValueError(f"batch of seq {self.first_seq}: {exc}") from exc


@dataclass(slots=True)
class _Open:
    """A batch that fills. `run` is the stretch that still grows: first seq, last seq, points, points after, bytes."""

    opened_ns: int
    entries: list[Entry] = field(default_factory=list)
    points: int = 0
    raw_bytes: int = 0
    runs: list[Run] = field(default_factory=list)


class Batcher:
    """Collects entries into batches of one group each, of at most `points_max` points and `bytes_max` bytes of lines.

    At most `groups_max` of them fill side by side; with 1 batches hold consecutive entries, and end with the group.
    An entry with more than fits is a batch of its own; `halve` cuts it. Not for two threads at once.
    """

    def __init__(
        self,
        group: Callable[[Entry], Hashable],
        *,
        points_max: int,
        bytes_max: int = BATCH_BYTES_MAX,
        groups_max: int = OPEN_GROUPS_MAX,
    ) -> None:
        self._group = group
        self._points_max = points_max
        self._bytes_max = bytes_max
        self._groups_max = groups_max
        self._open: OrderedDict[Hashable, _Open] = OrderedDict()
        self._open_bytes = 0
        self._read: list[Run] = []
        self._last: _Open | None = (
            None  # the batch that the entry before went to, while nothing ended its run
        )

    @property
    def open_points(self) -> int:
        """The points that wait for their batch to fill."""
        return sum(each.points for each in self._open.values())

    @property
    def oldest_accepted_ns(self) -> int | None:
        """When the oldest waiting entry was accepted, in Unix nanoseconds; None when nothing waits."""
        return min(
            (entry.accepted_ns for each in self._open.values() for entry in each.entries), default=None
        )

    def add(self, entries: Iterable[Entry], *, now_ns: int = 0) -> list[Batch]:
        """Takes entries in the order of their seqs; gives the batches that are full with them.

        `now_ns` is when that is, for `flush`.
        """
        full: list[Batch] = []
        for entry in entries:
            group = self._group(entry)
            filling = self._open.get(group)
            if filling is not None and (
                filling.points + entry.points > self._points_max
                or filling.raw_bytes + entry.raw_bytes > self._bytes_max
            ):
                full.append(self._close(group))
                filling = None
            if filling is None:
                if len(self._open) >= self._groups_max or self._open_bytes > OPEN_BYTES_MAX:
                    full.append(self._close(next(iter(self._open))))
                filling = self._open[group] = _Open(now_ns)
            self._take(filling, entry)
            if filling.points >= self._points_max or filling.raw_bytes >= self._bytes_max:
                full.append(self._close(group))
        self._last = None  # what is read later is a run of its own: those so far are in others' hands
        return full

    def flush(self, *, opened_before_ns: int | None = None) -> list[Batch]:
        """The batches that are still filling, as they are; only those begun before a time, where one is given."""
        due = [
            group
            for group, each in self._open.items()
            if opened_before_ns is None or each.opened_ns < opened_before_ns
        ]
        return [self._close(group) for group in due]

    def take_runs(self) -> list[Run]:
        """The stretches that were read since the last call, in order; each belongs to one batch, closed or not."""
        runs, self._read = self._read, []
        return runs

    def _take(self, filling: _Open, entry: Entry) -> None:
        filling.entries.append(entry)
        filling.points += entry.points
        filling.raw_bytes += entry.raw_bytes
        self._open_bytes += entry.raw_bytes
        after, size = entry.points_before + entry.points, len(entry.payload)
        if filling is self._last:
            run = filling.runs.pop()
            self._read.pop()
            run = Run(run.first_seq, entry.seq, run.points + entry.points, after, run.stored_bytes + size)
        else:
            run = Run(entry.seq, entry.seq, entry.points, after, size)
        filling.runs.append(run)
        self._read.append(run)
        self._last = filling

    def _close(self, group: Hashable) -> Batch:
        closed = self._open.pop(group)
        if closed is self._last:
            self._last = None
        self._open_bytes -= closed.raw_bytes
        entries = closed.entries
        last = entries[-1]
        return Batch(
            first_seq=entries[0].seq,
            last_seq=last.seq,
            points=closed.points,
            points_after=last.points_before + last.points,
            accepted_ns=min(entry.accepted_ns for entry in entries),
            destination=entries[0].destination,
            body=join_members(entries),
            raw_bytes=closed.raw_bytes,
            parts=tuple(Part(entry.seq, entry.points, entry.destination) for entry in entries),
            group=group,
            runs=tuple(closed.runs),
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

    Raises ValueError when there is only one line, or when the body is not what the batch says.
    """
    if batch.points < 2:
        raise ValueError("one line cannot be halved")
    middle = (batch.points + 1) // 2
    lines = batch.split()
    return pick(batch, lines, range(middle)), pick(batch, lines, range(middle, batch.points))


def pick(batch: Batch, lines: Sequence[bytes], places: Iterable[int]) -> Batch:
    """A batch of some of a batch's lines, in their order: `lines` are all of them, `places` rise.

    It keeps the whole batch's `first_seq`, `last_seq` and `points_after`: it finishes none of those alone.
    """
    chosen = list(places)
    return _batch_of(batch, [lines[place] for place in chosen], _parts_at(batch.parts, chosen))


def others(count: int, places: Iterable[int]) -> list[int]:
    """The places of `count` that are not among some, rising."""
    chosen = set(places)
    return [place for place in range(count) if place not in chosen]


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of the lines of several pieces of the same group, in their order."""
    if len(batches) == 1:
        return batches[0]
    lines = b"".join(batch.lines() for batch in batches)
    parts = tuple(part for batch in batches for part in batch.parts)
    return _batch_of(batches[0], [lines], parts)


def part_of_entry(entry: Entry, ranges: Sequence[tuple[int, int]], group: Hashable) -> Batch:
    """A batch of some of an entry's lines, given as (first, count)."""
    points = sum(count for _, count in ranges)
    whole = Batch(
        first_seq=entry.seq,
        last_seq=entry.seq,
        points=entry.points,
        points_after=entry.points_before + entry.points,
        accepted_ns=entry.accepted_ns,
        destination=entry.destination,
        body=b"",
        raw_bytes=0,
        parts=(Part(entry.seq, entry.points, entry.destination),),
        group=group,
    )
    lines = split_points(entry.lines(), entry.points)
    piece = pick(whole, lines, (place for first, count in ranges for place in range(first, first + count)))
    run = Run(entry.seq, entry.seq, entry.points, whole.points_after, len(piece.body), entry.points - points)
    return replace(piece, runs=(run,))


def _batch_of(batch: Batch, lines: Sequence[bytes], parts: tuple[Part, ...]) -> Batch:
    data = b"".join(lines)
    return Batch(
        first_seq=batch.first_seq,
        last_seq=batch.last_seq,
        points=sum(part.points for part in parts),
        points_after=batch.points_after,
        accepted_ns=batch.accepted_ns,
        destination=parts[0].destination,
        body=compress(data),
        raw_bytes=len(data),
        parts=parts,
        group=batch.group,
    )


def _spans(places: Sequence[int]) -> list[tuple[int, int]]:
    """Rising places, at least one, as (first, count) of those that follow each other."""
    spans: list[tuple[int, int]] = []
    first = end = places[0]
    for place in places:
        if place != end:
            spans.append((first, end - first))
            first = end = place
        end += 1
    spans.append((first, end - first))
    return spans


def _parts_at(parts: Sequence[Part], places: Sequence[int]) -> tuple[Part, ...]:
    """The parts that cover the lines at some rising places, neighbours in one.

    Goes by spans, not by places: of a large batch with a few bad points nearly all are in a few spans.
    """
    found: list[Part] = []
    index, passed = 0, 0  # the part that a span begins in, and the lines before it
    for first, count in _spans(places):
        at, left = first, count
        while left:
            while at >= passed + parts[index].points:
                passed += parts[index].points
                index += 1
            part = parts[index]
            line = part.first + at - passed
            taken = min(left, passed + part.points - at)
            before = found[-1] if found else None
            if before is not None and before.seq == part.seq and before.first + before.points == line:
                found[-1] = Part(part.seq, before.points + taken, part.destination, before.first)
            else:
                found.append(Part(part.seq, taken, part.destination, line))
            at += taken
            left -= taken
    return tuple(found)
