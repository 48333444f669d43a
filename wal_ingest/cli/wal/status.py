"""`wal-ingest wal status`: what is in the log, and how far each sink has come."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from wal_ingest.cli.node_settings import directory_of
from wal_ingest.cli.options import DataDirOption, FoundConfigOption, JsonOption
from wal_ingest.cli.output import age_text, bytes_text, points_text, print_json, wide_console
from wal_ingest.errors import WalIngestError

if TYPE_CHECKING:
    from wal_ingest.wal.inspect import OddTimes, WalStatus

# A node that hangs must not hold up a look at its disk.
_ANSWER_S_MAX = 5.0


def status(
    config: FoundConfigOption = None, data_dir: DataDirOption = None, json: JsonOption = False
) -> None:
    """Segments, seqs, points and bytes; what each sink confirmed, what waits for it, and what troubles it."""
    from wal_ingest.wal.inspect import status as read_status

    directory = directory_of(config, data_dir=data_dir)
    found = read_status(directory, now_ns=time.time_ns())
    if found.server_pid is not None:
        found = msgspec.structs.replace(found, odd_times=_odd_times(directory))
    if json:
        print_json(found)
    else:
        _print_status(found)


def _odd_times(directory: Path) -> list[OddTimes]:
    """The running node's counts of implausible times; empty if it does not answer, or this user may not ask it."""
    from wal_ingest.control import ask
    from wal_ingest.wal.inspect import OddTimes

    try:
        return msgspec.convert(ask(directory, "odd_times", answer_s_max=_ANSWER_S_MAX), list[OddTimes])
    except (WalIngestError, msgspec.ValidationError):
        return []


def _print_status(found: WalStatus) -> None:
    from rich.table import Table

    console = wide_console()
    server = "not running"
    if found.server_pid is not None:
        server = f"running, process {found.server_pid}" if found.server_pid else "running"
    console.print(f"WAL in {found.data_dir} (server {server})")
    console.print(
        f"{found.points_accepted:,} points accepted, {found.points_kept:,} kept in seqs "
        f"{found.first_seq:,} to {found.last_seq:,}, {bytes_text(found.bytes)}"
    )
    sinks = Table(box=None, pad_edge=False, header_style="bold")
    sinks.add_column("sink")
    for heading in ("cursor", "confirmed", "waiting", "oldest", "parked", "skipped"):
        sinks.add_column(heading, justify="right")
    sinks.add_column("state")
    for name, sink in found.sinks.items():
        sinks.add_row(
            name,
            f"{sink.cursor_seq:,}",
            f"{sink.confirmed_points:,}",
            f"{sink.waiting_points:,}",
            age_text(sink.oldest_waiting_s),
            f"{sink.parked:,}",
            f"{sink.skipped_points:,}",
            sink.state,
        )
    console.print()
    console.print(sinks)
    console.print()
    for name, account in found.account.items():
        console.print(
            f"{name}: {account.accepted:,} accepted = {account.delivered:,} delivered + {account.waiting:,} waiting"
            f" + {account.parked:,} parked + {account.given_up:,} given up"
            + (f" + {account.unaccounted:,} unaccounted" if account.unaccounted else ""),
            markup=False,
        )
    for name, sink in found.sinks.items():
        if sink.state != "ok":
            console.print(f"{name}: {sink.state} for {age_text(sink.state_s)}: {sink.reason}")
        if sink.unaccounted_points:
            console.print(f"{name}: {sink.unaccounted_points:,} points are unaccounted for: report this")
    segments = Table(box=None, pad_edge=False, header_style="bold")
    segments.add_column("segment")
    for heading in ("first seq", "last seq", "points", "size"):
        segments.add_column(heading, justify="right")
    segments.add_column("")
    for segment in found.segments:
        empty = segment.last_seq < segment.first_seq
        segments.add_row(
            segment.file,
            f"{segment.first_seq:,}",
            "-" if empty else f"{segment.last_seq:,}",
            f"{segment.points:,}",
            bytes_text(segment.bytes),
            segment.error or ("sealed" if segment.sealed else "written to"),
        )
    console.print()
    console.print(segments)
    for odd in found.odd_times:
        console.print(f"{points_text(odd.points)} of the last minutes {odd.says}", markup=False)
    for lost in found.lost:
        points = "an unknown number of points" if lost.points is None else points_text(lost.points)
        console.print(
            f"lost: seqs {lost.first_seq:,} to {lost.last_seq:,} ({points}): no file held them at a start"
        )
    for name in found.damaged:
        console.print(f"set aside as damaged: {name}")
    for gap in found.gaps:
        console.print(f"missing: {gap.points:,} points between seq {gap.first_seq:,} and {gap.last_seq:,}")
