"""`wal-ingest wal export`: points as gzip line protocol, made of the stored members as they lie."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from wal_ingest.cli.node_settings import directory_of
from wal_ingest.cli.options import DataDirOption, FoundConfigOption, JsonOption
from wal_ingest.cli.output import FAILED, OPERATOR_NEEDED, bytes_text, entries_text, points_text, print_json
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

if TYPE_CHECKING:
    from wal_ingest.cli.outfile import OutFile
    from wal_ingest.wal.entry import Entry
    from wal_ingest.wal.lost import Lost

EXAMPLE = "Example: wal-ingest wal export --since 1d yesterday.lp.gz"

# Lines that are not compressed yet are gathered into members of about this size.
_MEMBER_BYTES = 256 * 1024


class Exported(msgspec.Struct, kw_only=True):
    """What `wal export --json` prints."""

    file: str
    entries: int = 0
    points: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0
    lost_ranges: int = 0


def export(
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="The file to write, such as points.lp.gz; - for standard output."),
    ],
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    seq: SeqOption = None,
    source: SourceOption = None,
    measurement: MeasurementOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
    json: JsonOption = False,
) -> None:
    """Write points into a gzip file of line protocol, which `zcat`, `wal import` and databases read.

    What cannot be read is told on standard error, the rest is written, and the exit code is 3.
    """
    from wal_ingest.cli.outfile import OutFile
    from wal_ingest.cli.progress import bar
    from wal_ingest.cli.stopping import Stop
    from wal_ingest.wal.reading import WalReader

    wanted = Range.of(since=since, until=until, seq=seq, source=source, measurement=measurement)
    directory = directory_of(config, data_dir=data_dir)
    told = Exported(file=out)
    with (
        Stop() as stop,
        WalReader(directory) as reader,
        OutFile(out, force=force) as file,
    ):
        members = _Members(file, told)
        with bar("exporting", reader.points, unit_bytes=False) as shown:
            for item in wanted.pick(reader) if wanted.measurements else wanted.entries(reader):
                members.add(item)
                shown.advance(item.points or 0)
                if stop.wished:
                    sys.stderr.write(f"interrupted: {out} was not written\n")
                    raise typer.Exit(FAILED)
        members.finish()
    told.bytes = file.bytes
    if json and not file.is_stdout:
        print_json(told)
    else:
        typer.echo(
            f"{points_text(told.points)} of {entries_text(told.entries)}, "
            f"seqs {told.first_seq:,} to {told.last_seq:,}, "
            f"{bytes_text(told.bytes)} in {out}",
            err=file.is_stdout,
        )
    if told.lost_ranges:
        raise typer.Exit(OPERATOR_NEEDED)


class _Members:
    """The gzip members of the file, in order."""

    def __init__(self, file: OutFile, told: Exported) -> None:
        self._file = file
        self._told = told
        self._lines: list[bytes] = []
        self._lines_bytes = 0

    def add(self, item: Entry | Picked | Lost) -> None:
        """Writes what was taken of an entry, or tells what is lost."""
        from wal_ingest.wal.entry import CODEC_GZIP
        from wal_ingest.wal.lost import Lost

        if isinstance(item, Lost):
            self._told.lost_ranges += 1
            tell_lost(item)
            return
        entry = item.entry if isinstance(item, Picked) else item
        told = self._told
        told.first_seq = told.first_seq or entry.seq
        told.last_seq = entry.seq
        told.entries += 1
        told.points += item.points
        if isinstance(item, Picked):
            self._gather(item.lines)
        elif entry.codec == CODEC_GZIP:
            self.flush()
            self._file.write(entry.payload)
        else:
            self._gather(entry.payload)

    def _gather(self, lines: bytes) -> None:
        self._lines.append(lines)
        self._lines_bytes += len(lines)
        if self._lines_bytes >= _MEMBER_BYTES:
            self.flush()

    def finish(self) -> None:
        """Writes what is left; no points at all are an empty member, since an empty file is no gzip file."""
        if not self._file.bytes and not self._lines:
            self._lines = [b""]
        self.flush()

    def flush(self) -> None:
        """Writes the lines that were gathered as a member of their own."""
        from wal_ingest.wal.gzip_codec import compress

        if self._lines:
            self._file.write(compress(b"".join(self._lines)))
            self._lines, self._lines_bytes = [], 0
