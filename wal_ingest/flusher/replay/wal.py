"""The WAL as the source of a replay: live and kept segments, read from outside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from wal_ingest.flusher.replay.places import Passed, Place, Range, Select, Unit
from wal_ingest.wal.entry import CODEC_RAW, Entry, EntryDamaged
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.reading import WalReader


def last_seq_of(reader: WalReader) -> int:
    """The last seq that is known of, be it only from the name of a file that cannot be read."""
    return max([reader.last_seq, *(lost.first_seq for lost in reader.unreadable)])


class WalSource:
    """The entries of a range; those behind its `last_seq`, or the WAL's as it is now, are never read."""

    name = "wal"

    def __init__(self, reader: WalReader, span: Range, *, select: Select | None = None) -> None:
        self._reader = reader
        self._select = select
        end_seq = last_seq_of(reader)
        last_seq = end_seq if span.last_seq is None else min(span.last_seq, end_seq)
        self._range = replace(span, first_seq=max(span.first_seq, 1), last_seq=last_seq)
        self._last_seq = last_seq
        self._first_kept = max(self._range.first_seq, reader.first_seq)
        self._begins = self._search(span.since_ns)
        self._ends = last_seq if span.until_ns is None else self._search(span.until_ns) - 1
        self._expected = self._count_roughly()
        self.passed = Passed()

    def expected_points(self) -> int:
        return self._expected

    def describe(self) -> str:
        if self._begins > self._ends:
            return "nothing of the WAL"
        return f"seqs {self._begins:,} to {self._ends:,} of the WAL"

    def items(self) -> Iterator[Unit | Lost]:
        span = self._range
        for item in self._reader.entries(
            first_seq=span.first_seq,
            last_seq=span.last_seq,
            since_ns=span.since_ns,
            until_ns=span.until_ns,
        ):
            if isinstance(item, Lost):
                yield item
                continue
            self.passed.note(
                points=item.points,
                stored_bytes=len(item.payload),
                raw_bytes=item.raw_bytes,
                accepted_ns=item.accepted_ns,
            )
            # What the server drops meanwhile keeps its disk space only until it was read.
            self._reader.release_before(item.seq)
            yield self._unit(item)

    def _unit(self, entry: Entry) -> Unit | Lost:
        place = Place(source="wal", seq=entry.seq, accepted_ns=entry.accepted_ns)
        if self._select is None:
            return Unit(entry, place)
        try:
            lines, points = self._select(entry.lines())
        except EntryDamaged as exc:
            return Lost("", entry.seq, entry.seq, entry.points, str(exc))
        chosen = replace(entry, codec=CODEC_RAW, payload=lines, raw_bytes=len(lines), points=points)
        return Unit(chosen, place)

    def _count_roughly(self) -> int:
        """The points of the range by what the entries at its ends say; times rise with the seqs, nearly."""
        first = self._entry_from(self._begins)
        if first is None or self._begins > self._ends:
            return 0
        behind = self._entry_from(self._ends + 1)
        end = self._reader.segments[-1].ends.points_after if behind is None else behind.points_before
        return max(0, end - first.points_before)

    def _search(self, time_ns: int | None) -> int:
        """The first seq of the range, of those that were accepted at or after a time if there is one."""
        low, high = self._first_kept, self._last_seq + 1
        while time_ns is not None and low < high:
            middle = (low + high) // 2
            entry = self._entry_from(middle)
            if entry is None or entry.accepted_ns >= time_ns:
                high = middle
            else:
                low = entry.seq + 1
        return low

    def _entry_from(self, seq: int) -> Entry | None:
        """The first readable entry at or behind a seq."""
        behind = (segment for segment in self._reader.segments if segment.ends.last_seq >= seq)
        items = (item for segment in behind for item in segment.read(seq, segment.ends.last_seq, bytes_max=1))
        return next((item for item in items if isinstance(item, Entry)), None)
