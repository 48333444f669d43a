"""`wal-ingest wal cat`: points as line protocol, or entries as JSON, as a stream."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from wal_ingest.cli.node_settings import directory_of
from wal_ingest.cli.options import DataDirOption, FoundConfigOption
from wal_ingest.cli.output import OPERATOR_NEEDED
from wal_ingest.cli.ranges import (
    MeasurementOption,
    Picked,
    Range,
    SeqOption,
    SinceOption,
    SourceOption,
    UntilOption,
    tell_lost,
)
from wal_ingest.cli.times import exact_time_text

if TYPE_CHECKING:
    from wal_ingest.cli.stopping import Stop
    from wal_ingest.wal.reading import WalReader

EXAMPLE = "Example: wal-ingest wal cat --since 15m --measurement cpu | head"

_POLL_S = 0.25


class EntryRow(msgspec.Struct, frozen=True, kw_only=True):
    """What `wal cat --json` prints for each entry, one object a line. `points` counts the lines given."""

    seq: int
    accepted_at: str
    source: str
    org: str
    bucket: str
    points: int
    lines: str


def cat(
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    seq: SeqOption = None,
    source: SourceOption = None,
    measurement: MeasurementOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=0, help="Stop after so many points.", show_default=False),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is appended, until Ctrl-C.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print an object for each entry, one a line (NDJSON).")
    ] = False,
) -> None:
    """Print points as line protocol, oldest first.

    What cannot be read is told on standard error, the rest is printed, and the exit code is 3.
    """
    from wal_ingest.cli.stopping import Stop
    from wal_ingest.wal.reading import WalReader

    wanted = Range.of(since=since, until=until, seq=seq, source=source, measurement=measurement)
    directory = directory_of(config, data_dir=data_dir)
    printer = _Printer(limit, json)
    with Stop() as stop, WalReader(directory) as reader:
        printer.print(wanted, reader, stop)
        while follow and not printer.full and not stop.wished:
            stop.wait(_POLL_S, for_reader=True)
            reader.release_before(wanted.next_seq)
            reader.refresh()
            printer.print(wanted, reader, stop)
    if printer.lost:
        raise typer.Exit(OPERATOR_NEEDED)


class _Printer:
    """Standard output, as far as the limit goes."""

    def __init__(self, limit: int | None, json: bool) -> None:
        self.lost = False
        self._left = limit
        self._json = json
        self._out = sys.stdout.buffer

    @property
    def full(self) -> bool:
        return self._left == 0

    def print(self, wanted: Range, reader: WalReader, stop: Stop) -> None:
        from wal_ingest.wal.lost import Lost

        if not self.full:
            for item in wanted.pick(reader):
                if isinstance(item, Lost):
                    self.lost = True
                    self._out.flush()
                    tell_lost(item)
                else:
                    self._print(item)
                if stop.wished or self._left == 0:
                    break
        self._out.flush()

    def _print(self, picked: Picked) -> None:
        from wal_ingest.points import split_points

        lines, points = picked.lines, picked.points
        if self._left is not None:
            if points > self._left:
                lines, points = b"".join(split_points(lines, points)[: self._left]), self._left
            self._left -= points
        self._out.write(_row(picked, lines, points) if self._json else lines)


def _row(picked: Picked, lines: bytes, points: int) -> bytes:
    entry = picked.entry
    row = EntryRow(
        seq=entry.seq,
        accepted_at=exact_time_text(entry.accepted_ns),
        source=entry.source,
        org=entry.destination.org,
        bucket=entry.destination.bucket,
        points=points,
        lines=lines.decode(),
    )
    return msgspec.json.encode(row) + b"\n"
