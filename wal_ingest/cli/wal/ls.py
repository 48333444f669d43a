"""`wal-ingest wal ls`: the segments, by their ends alone, and what was set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from wal_ingest.cli.node_settings import directory_of
from wal_ingest.cli.options import DataDirOption, FoundConfigOption, JsonOption
from wal_ingest.cli.output import bytes_text, print_json, wide_console
from wal_ingest.cli.times import exact_time_text

if TYPE_CHECKING:
    from wal_ingest.wal.segment import Ends

EXAMPLE = "Example: wal-ingest wal ls --json | jq '.segments[] | select(.confirmed | not) | .file'"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One segment; `error` is empty unless its ends cannot be read, and then the numbers are 0."""

    file: str
    first_seq: int = 0
    last_seq: int = 0
    entries: int = 0
    points: int = 0
    bytes: int = 0
    created_at: str = ""
    last_accepted_at: str = ""
    sealed: bool = False
    confirmed: bool = False
    error: str = ""


class DamagedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file that was set aside: why, and whether it was salvaged since."""

    file: str
    bytes: int
    reason: str
    salvaged: bool


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What `wal ls --json` prints."""

    data_dir: str
    segments: list[Row]
    damaged: list[DamagedRow]


def ls(config: FoundConfigOption = None, data_dir: DataDirOption = None, json: JsonOption = False) -> None:
    """One row for each segment: seqs, entries, points, size, times, state; and the files set aside as damaged."""
    directory = directory_of(config, data_dir=data_dir)
    found = listing(directory)
    if json:
        print_json(found)
    else:
        _print(found)


def listing(data_dir: Path) -> Listing:
    """Reads the ends of every segment. Raises `NoWal`, `StorageFailed`."""
    from wal_ingest.errors import StorageFailed, WalDamaged
    from wal_ingest.wal.reading import wal_directory
    from wal_ingest.wal.salvage import damaged_files
    from wal_ingest.wal.segment import read_ends, segment_paths
    from wal_ingest.wal.state import STATE_NAME, read_state

    wal_dir = wal_directory(data_dir)
    try:
        cursors = [cursor.seq for cursor in read_state(data_dir / STATE_NAME).cursors.values()]
    except (WalDamaged, StorageFailed):
        cursors = []  # nobody can say what is confirmed; the segments are there all the same
    confirmed_seq = min(cursors, default=0)
    paths = segment_paths(wal_dir)
    rows = []
    for path in paths:
        try:
            rows.append(_row(path.name, read_ends(path), path != paths[-1], confirmed_seq))
        except (WalDamaged, StorageFailed) as exc:
            if path.exists():  # else it was truncated while we looked
                rows.append(Row(file=path.name, bytes=path.stat().st_size, error=exc.reason))
    damaged = [
        DamagedRow(
            file=file.path.name,
            bytes=file.path.stat().st_size,
            reason=file.reason,
            salvaged=file.note is not None,
        )
        for file in damaged_files(wal_dir)
    ]
    return Listing(data_dir=str(data_dir), segments=rows, damaged=damaged)


def _row(name: str, ends: Ends, sealed: bool, confirmed_seq: int) -> Row:
    entries = ends.last_seq - ends.header.first_seq + 1
    return Row(
        file=name,
        first_seq=ends.header.first_seq,
        last_seq=ends.last_seq,
        entries=entries,
        points=ends.points_after - ends.header.points_before,
        bytes=ends.bytes,
        created_at=exact_time_text(ends.header.created_ns),
        last_accepted_at=exact_time_text(ends.last_accepted_ns) if entries else "",
        sealed=sealed,
        confirmed=entries > 0 and ends.last_seq <= confirmed_seq,
    )


def _print(found: Listing) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("segment")
    for heading in ("first seq", "last seq", "entries", "points", "size"):
        table.add_column(heading, justify="right")
    for heading in ("created", "last accepted", ""):
        table.add_column(heading)
    for row in found.segments:
        if row.error:
            table.add_row(
                row.file, "-", "-", "-", "-", bytes_text(row.bytes), "-", "-", f"damaged: {row.error}"
            )
            continue
        table.add_row(
            row.file,
            f"{row.first_seq:,}",
            f"{row.last_seq:,}" if row.entries else "-",
            f"{row.entries:,}",
            f"{row.points:,}",
            bytes_text(row.bytes),
            _seconds(row.created_at),
            _seconds(row.last_accepted_at),
            ("sealed" if row.sealed else "written to") + (", confirmed by all" if row.confirmed else ""),
        )
    # As wide as it is: a terminal wraps by itself, and names must stay whole.
    console = wide_console()
    console.print(table)
    for file in found.damaged:
        salvaged = ", salvaged" if file.salvaged else ""
        console.print(
            f"set aside{salvaged}: damaged/{file.file}, {bytes_text(file.bytes)}: {file.reason}", markup=False
        )


def _seconds(exact: str) -> str:
    return f"{exact[:19]}Z" if exact else "-"
