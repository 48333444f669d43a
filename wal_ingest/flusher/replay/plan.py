"""Which sources a replay reads, and what it must say beforehand. Blocking.

`auto` takes the WAL, which has exact times; only where that does not reach back to the beginning of the range the
archive comes first, up to the hour in which the WAL begins. What both hold is then written twice: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wal_ingest.errors import ConfigError
from wal_ingest.flusher.replay.archive import HOUR_NS, ArchiveSource
from wal_ingest.flusher.replay.places import Passed, Place, Range, Select, Source
from wal_ingest.flusher.replay.wal import WalSource
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.reading import WalReader

ARCHIVE_DIR = "archive"


@dataclass(frozen=True, slots=True)
class Hole:
    """The beginning of the range is nowhere: there is data from the moment `from_ns`, or from `from_seq` on only.

    Each is None when it cannot be told; both, when there is none at all.
    """

    from_ns: int | None
    from_seq: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The sources in their order. `hole` says that the beginning of the range is not held any more."""

    sources: Sequence[Source]
    hole: Hole | None

    @property
    def whole_hours(self) -> bool:
        """Whether more may be replayed than was asked for: the archive has no times within its hours."""
        return any(source.name == "archive" for source in self.sources)


@dataclass(frozen=True, slots=True)
class Counted:
    """What one source would give: all that was read, and how many points of it are chosen."""

    source: str
    words: str
    passed: Passed
    points: int
    lost: tuple[Lost, ...]


def make_plan(
    data_dir: Path,
    reader: WalReader | None,
    span: Range,
    *,
    source: str,
    now_ns: int,
    points_max: int,
    select: Select | None = None,
    after: Place | None = None,
) -> Plan:
    """The sources of a range, from `after` on. `reader` is None when there is no WAL.

    `source` is "wal", "archive" or "auto"; `now_ns` is the end of a range that has none. Raises ConfigError when the
    range is one of seqs and the archive is wanted, StorageFailed, UnknownFormatVersion.
    """
    if source == "archive" and span.since_ns is None:
        raise ConfigError(
            "the archive keeps no seqs", hint="name a range of time with --since, or leave --from archive out"
        )
    if source == "archive":
        reader = None
    since_ns = span.since_ns
    if after is not None and after.source == "wal":
        span = replace(span, first_seq=max(span.first_seq, after.seq + 1))
        since_ns = None if since_ns is None else max(since_ns, after.accepted_ns)
        after = None
    wal = None if reader is None else WalSource(reader, span, select=select)
    first = None if reader is None else _first_entry(reader)
    hole = Hole(first.accepted_ns if first else None, first.seq if first else None)
    if wal is not None and reader is not None:
        reaches_back = reader.first_seq <= span.first_seq
        if since_ns is not None and first is not None:
            # A salvaged entry keeps its time: it does not tell since when there is everything.
            reaches_back |= max(first.accepted_ns, reader.segments[0].ends.header.created_ns) <= since_ns
        if reaches_back or source == "wal" or since_ns is None:
            return Plan([wal], None if reaches_back else hole)
    assert since_ns is not None, "without a WAL the range is one of time"
    last_hour = ((now_ns if span.until_ns is None else span.until_ns) - 1) // HOUR_NS
    if first is not None:
        last_hour = min(last_hour, first.accepted_ns // HOUR_NS)
    archive = ArchiveSource(
        data_dir / ARCHIVE_DIR,
        since_ns // HOUR_NS,
        last_hour,
        points_max=points_max,
        select=select,
        after=after,
    )
    if archive.first_hour is None:
        return Plan([archive] if wal is None else [wal], hole)
    begins = Hole(archive.first_hour * HOUR_NS, None) if archive.begins_later else None
    return Plan([archive] if wal is None else [archive, wal], begins)


def count(source: Source) -> Counted:
    """Reads a source to its end and counts what it would give. Raises as reading does."""
    points, lost = 0, []
    for item in source.items():
        if isinstance(item, Lost):
            lost.append(item)
        else:
            points += item.entry.points
    return Counted(source.name, source.describe(), source.passed, points, tuple(lost))


def _first_entry(reader: WalReader) -> Entry | None:
    """The first entry that is kept and can be read."""
    for segment in reader.segments:
        for item in segment.read(1, segment.ends.last_seq, bytes_max=1):
            if isinstance(item, Entry):
                return item
    return None
