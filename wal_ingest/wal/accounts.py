"""The account: every point that was accepted is, for each sink, confirmed, waiting, parked, skipped or expired.

    accepted = since + confirmed + parked + skipped + expired + waiting

The cursors count the first five as they move, and what is waiting is the rest, so the sum holds by itself as long as
cursors and log agree. Whether they do is looked at once, at every start: the log counts its points on its own, in
each entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wal_ingest.errors import StorageFailed, WalDamaged
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.segment import Segment, read_entry


def disagreements(cursors: Mapping[str, Cursor], segments: Sequence[Segment]) -> list[str]:
    """What does not add up between the cursors and the log, a sentence each; nothing when all is well."""
    found = []
    for name, cursor in cursors.items():
        if cursor.unaccounted:
            found.append(
                f"{name}: {cursor.unaccounted} of the {cursor.points} points it has passed are unaccounted for"
            )
        last_seq = max((segment.last_seq for segment in segments), default=cursor.seq)
        if cursor.seq > last_seq:
            found.append(f"{name}: its cursor is at seq {cursor.seq}, and the log's last entry is {last_seq}")
        points = _points_up_to(cursor.seq, segments)
        if points is not None and points != cursor.points:
            found.append(
                f"{name}: it counts {cursor.points} points up to seq {cursor.seq}, the log counts {points}"
            )
    return found


def _points_up_to(seq: int, segments: Sequence[Segment]) -> int | None:
    """The log's own count of points up to an entry; None where neither it nor the next one is kept, or readable."""
    for segment in segments:
        for candidate in (seq, seq + 1):
            if segment.first_seq <= candidate <= segment.last_seq:
                try:
                    entry = read_entry(segment.path, candidate)
                except (WalDamaged, StorageFailed):
                    return None  # damage has a report of its own, when it is read
                if entry is not None:
                    return entry.points_before + (entry.points if candidate == seq else 0)
    return None
