"""What is lost: entries that should be there and cannot be read, told exactly. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from wal_ingest.wal.entry import Entry


@dataclass(frozen=True, slots=True)
class Lost:
    """Entries that should be there and cannot be read: in which file, their seqs (both included), how many points
    (None where that cannot be told), why, and at which byte of the file the trouble begins (None likewise)."""

    file: str
    first_seq: int
    last_seq: int
    points: int | None
    reason: str
    offset: int | None = None


def with_points(
    found: Sequence[Entry | Lost], *, points_before: int | None, points_after: int | None
) -> list[Entry | Lost]:
    """The same, and each `Lost` says its points where what stands around it tells them.

    `points_before` and `points_after` count the points of the WAL in front of the first item and up to the end of
    the last one, where they are known. No two `Lost` follow each other.
    """
    told: list[Entry | Lost] = []
    for index, item in enumerate(found):
        behind = found[index + 1] if index + 1 < len(found) else None
        if isinstance(item, Lost):
            after = behind.points_before if isinstance(behind, Entry) else points_after
            if points_before is not None and after is not None and after >= points_before:
                item = replace(item, points=after - points_before)
            told.append(item)
        else:
            points_before = item.points_before + item.points
            told.append(item)
    return told
