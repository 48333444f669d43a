"""Is everything whole? Every page and every entry of a data directory, looked at from outside, also beside a server.

Nothing is written. Each file's pages are walked as LMDB's own verifier does it, so that what the engine would trust is
known to deserve it; each entry is read, checked by its CRC, decompressed, and its lines counted. For dead letters see
`letter_verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from wal_ingest.errors import StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.extent import (
    LostRange,
    derived,
    is_older,
    is_there,
    missing_ends,
    set_aside_starts,
)
from wal_ingest.wal.letter_verify import (
    SET_ASIDE,
    LettersReport,
    letter_bytes,
    set_aside_files,
    verify_letters,
    without_state,
)
from wal_ingest.wal.lmdb_file import verify as verify_pages
from wal_ingest.wal.lmdb_pages import PageReader
from wal_ingest.wal.lost import Lost
from wal_ingest.wal.pinned import SegmentReader
from wal_ingest.wal.reading import WAL_DIR, WalReader
from wal_ingest.wal.recovery import DAMAGED_DIR
from wal_ingest.wal.salvage import checked, damaged_files
from wal_ingest.wal.state import STATE_NAME, StateView, check_state, read_state

# A server may write to the file while it is walked, which is no damage: then it is walked again.
_TRIES_MAX = 20


class SegmentReport(msgspec.Struct, frozen=True, kw_only=True):
    """One segment: what can be read of it, what is wrong with its pages (empty: nothing), and what is lost."""

    file: str
    first_seq: int
    last_seq: int
    entries: int
    points: int
    bytes: int
    pages: str
    lost: list[Lost]


class DamagedReport(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was set aside: why, and whether what can be read of it was salvaged since."""

    file: str
    bytes: int
    reason: str
    salvaged: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A data directory. `gaps` are the seqs that no file holds; `state` says what is wrong with the state file.

    `entries` and `points` are those that can be read, `lost_points` those that cannot, None where nobody can tell.
    `whole` says that nothing is wrong with what is left: no page, no entry, no gap, no dead letter, and nothing set
    aside that was not salvaged. `gone` is lost for good: what a salvage could not get, by its notes, and what a start
    found in no file.
    """

    data_dir: str
    whole: bool
    entries: int
    points: int
    lost_points: int | None
    segments: list[SegmentReport]
    gaps: list[Lost]
    gone: list[Lost]
    state: str
    dead_letters: LettersReport
    damaged: list[DamagedReport]


def verify(data_dir: Path, *, total: Callable[[int], None], done: Callable[[int], None]) -> Report:
    """Looks at everything. `total` is told once how many bytes there are to read, `done` how many more were read.

    Raises `NoWal`, `UnknownFormatVersion`, `StorageFailed`.
    """
    before = _view(data_dir / STATE_NAME)
    with WalReader(data_dir) as reader:
        after = _view(data_dir / STATE_NAME)
        total(sum(segment.ends.bytes for segment in reader.segments) + letter_bytes(data_dir))
        segments = []
        for segment in reader.segments:
            segments.append(_segment(segment))
            done(segment.ends.bytes)
        gaps = reader.gaps()
        if before is not None and after is not None:
            gaps += _missing_ends(before, after, reader)
    letters = _letters(data_dir, done)
    damaged = damaged_files(data_dir / WAL_DIR)
    old_letters = set_aside_files(data_dir / WAL_DIR / DAMAGED_DIR)
    state = _state(data_dir / STATE_NAME)
    lost = gaps + [lost for segment in segments for lost in segment.lost]
    unsalvaged = [file for file in damaged if file.note is None]
    counts = [each.points for each in lost]
    return Report(
        data_dir=str(data_dir),
        whole=letters.whole
        and not (lost or state or unsalvaged or old_letters or any(segment.pages for segment in segments)),
        entries=sum(segment.entries for segment in segments),
        points=sum(segment.points for segment in segments),
        lost_points=None if None in counts else sum(count or 0 for count in counts),
        segments=segments,
        gaps=gaps,
        gone=[
            *(lost for file in damaged if file.note is not None for lost in file.note.lost),
            *(
                _as_lost(each)
                for each in (after.lost if after is not None else [])
                if not any(gap.first_seq <= each.first_seq <= gap.last_seq for gap in gaps)
            ),
        ],
        state=state,
        dead_letters=letters,
        damaged=[
            DamagedReport(
                file=file.path.name,
                bytes=file.path.stat().st_size,
                reason=file.reason,
                salvaged=file.note is not None,
            )
            for file in damaged
        ]
        + [
            DamagedReport(file=path.name, bytes=path.stat().st_size, reason=SET_ASIDE, salvaged=False)
            for path in old_letters
        ],
    )


def _letters(data_dir: Path, done: Callable[[int], None]) -> LettersReport:
    path = data_dir / STATE_NAME
    try:
        return verify_letters(path, done=done) if path.exists() else without_state(data_dir)
    except UnknownFormatVersion:
        raise
    except WalDamaged:
        return without_state(data_dir)


def _view(path: Path) -> StateView | None:
    """The state, None where it cannot be read: that is reported on its own."""
    try:
        return read_state(path) if path.exists() else None
    except UnknownFormatVersion:
        raise
    except (WalDamaged, StorageFailed):
        return None


def _missing_ends(before: StateView, after: StateView, reader: WalReader) -> list[Lost]:
    """What should be in front of the first segment, or behind the last one, and is in no file.

    A server may begin and drop segments meanwhile. So where the log ends at least is read before the segments are
    opened, and where it begins at the latest after that.
    """
    pieces = [segment.ends for segment in reader.segments]
    cursors = list(after.cursors.values())
    extent = before.extent or derived(list(before.cursors.values()), before.streams_seq)
    open_is_there = True
    if before.extent is not None and after.extent is not None:
        if is_older(after.extent, pieces):
            return []
        extent = msgspec.structs.replace(
            before.extent, first_seq=after.extent.first_seq, points_before=after.extent.points_before
        )
        if extent.open_seq is not None:
            open_is_there = is_there(reader.directory, extent.open_seq)
    with_entries = [ends for ends in pieces if ends.last_seq >= ends.header.first_seq]
    found = missing_ends(
        extent,
        cursors,
        with_entries,
        open_is_there=open_is_there,
        set_aside=[*set_aside_starts(reader.directory), *(lost.first_seq for lost in reader.unreadable)],
    )
    return [_as_lost(each) for each in found]


def _as_lost(lost: LostRange) -> Lost:
    return Lost(
        "no file", lost.first_seq, lost.last_seq, lost.points, "the segment was taken away, or never copied"
    )


def _segment(segment: SegmentReader) -> SegmentReport:
    ends = segment.ends
    entries, points = 0, 0
    lost: list[Lost] = []
    seq = ends.header.first_seq
    while chunk := segment.read(seq, ends.last_seq):
        for found in chunk:
            item = found if isinstance(found, Lost) else checked(found, segment.path.name)
            if isinstance(item, Lost):
                lost.append(item)
                seq = item.last_seq + 1
            else:
                entries, points = entries + 1, points + item.points
                seq = item.seq + 1
    return SegmentReport(
        file=segment.path.name,
        first_seq=ends.header.first_seq,
        last_seq=ends.last_seq,
        entries=entries,
        points=points,
        bytes=ends.bytes,
        pages=_trouble(segment.path, verify_pages),
        lost=lost,
    )


def _state(path: Path) -> str:
    return _trouble(path, check_state) if path.exists() else "it is missing"


def _trouble(path: Path, check: Callable[[Path], object]) -> str:
    """What a check finds in a file at rest; empty when it finds nothing, or the file was dropped meanwhile."""
    for _try in range(_TRIES_MAX):
        before = _transaction(path)
        try:
            check(path)
            return ""
        except UnknownFormatVersion:
            raise
        except WalDamaged as exc:
            if _transaction(path) == before:
                return exc.reason
        except StorageFailed:
            if path.exists():
                raise
            return ""
    # It is written to faster than it is walked. Its entries were read one by one all the same.
    return ""


def _transaction(path: Path) -> int | None:
    try:
        reader = PageReader(path)
    except (WalDamaged, StorageFailed):
        return None
    reader.close()
    return reader.transaction
