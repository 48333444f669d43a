"""`wal-ingest wal import`: line protocol from files into the WAL, checked as a request is."""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from wal_ingest.cli.grouping import join_records, record_ends
from wal_ingest.cli.infile import InFile, whole_lines
from wal_ingest.cli.node_settings import settings_on_disk
from wal_ingest.cli.options import (
    DataDirOption,
    FoundConfigOption,
    JsonOption,
    TokenFileOption,
    TokenOption,
    token_of,
)
from wal_ingest.cli.output import count_text, points_text, print_json
from wal_ingest.cli.sifting import BadRecord, Refused, sift
from wal_ingest.errors import ConfigError, PointError, WalIngestError

if TYPE_CHECKING:
    from wal_ingest.cli.appending import Door
    from wal_ingest.cli.outfile import OutFile
    from wal_ingest.cli.progress import Bar
    from wal_ingest.cli.stopping import Stop
    from wal_ingest.points import Lines, Precision
    from wal_ingest.wal.entry import Destination, NewEntry

EXAMPLE = "Example: zcat old/*.lp.gz | wal-ingest wal import - --precision s"

_SOURCE = "import"


class Imported(msgspec.Struct, kw_only=True):
    """What `wal import --json` prints. `lines` counts every line that was looked at, blank ones and comments too."""

    to: str
    lines: int = 0
    points: int = 0
    rejected: int = 0


def import_points(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Line protocol, plain or gzip; - for standard input."),
    ],
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="UNIT", help="Unit of the times: ns, us, ms, s, m or h.")
    ] = "ns",
    org: Annotated[str, typer.Option("--org", help="Organisation to store with the points.")] = "",
    bucket: Annotated[str, typer.Option("--bucket", help="Bucket to store with the points.")] = "",
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Send them to the server at URL.", show_default=False),
    ] = None,
    token: TokenOption = "",
    token_file: TokenFileOption = None,
    skip_invalid: Annotated[
        str | None,
        typer.Option(
            "--skip-invalid",
            metavar="REJECTED",
            help="Write lines that are no points to this file, with the reason, and go on.",
            show_default=False,
        ),
    ] = None,
    skip_lines: Annotated[
        int,
        typer.Option(
            "--skip-lines", metavar="N", min=0, help="Go on behind the first N lines of the first file."
        ),
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Append line protocol from files: directly, or with --url through a running server.

    A line without a time gets the present one. A line that is no point ends the import with its place and the reason.
    """
    from wal_ingest.cli.appending import open_door
    from wal_ingest.cli.outfile import OutFile
    from wal_ingest.cli.progress import bar
    from wal_ingest.cli.stopping import Stop
    from wal_ingest.wal.entry import Destination

    unit = _unit(precision)
    write_token = token_of(token, token_file)
    settings = settings_on_disk(config, data_dir=data_dir)
    total = sum(Path(name).stat().st_size for name in files if Path(name).is_file())
    failed: WalIngestError | None = None
    with Stop() as stop, bar("importing", total or None) as shown, contextlib.ExitStack() as held:
        rejected = held.enter_context(OutFile(skip_invalid)) if skip_invalid else None
        door = open_door(settings, url, stop, token=write_token)
        held.callback(door.close)
        told = Imported(to=door.to)
        entries = _Entries(unit, Destination(org, bucket), settings.server.line_bytes_max, rejected, told)
        try:
            for index, name in enumerate(files):
                _import(name, skip_lines if index == 0 else 0, door, entries, stop, shown)
        except WalIngestError as exc:
            # Raised behind the block: what was rejected so far must get its file.
            failed = exc
    if failed is not None:
        raise failed
    if json:
        print_json(told)
    else:
        more = (
            f"; rejected: {count_text(told.rejected, 'line', 'lines')}, in {skip_invalid}"
            if told.rejected
            else ""
        )
        typer.echo(
            f"{points_text(told.points)} in {count_text(told.lines, 'line', 'lines')} taken into {told.to}{more}"
        )


def _unit(name: str) -> Precision:
    from wal_ingest.points import Precision

    try:
        return Precision[name.upper()]
    except KeyError as exc:
        raise ConfigError(f"{name!r} is no unit of times", hint="give ns, us, ms, s, m or h") from exc


def _import(name: str, skip: int, door: Door, entries: _Entries, stop: Stop, shown: Bar) -> None:
    """Takes one file. Whatever ends it early says how many of its lines were taken."""
    from wal_ingest.cli.stopping import Interrupted

    line = 0
    try:
        for chunk in _chunks(name, shown, entries.line_bytes_max):
            lines = chunk.count(b"\n")
            if line + lines > skip:
                passed = max(0, skip - line)
                rest = b"\n".join(chunk.split(b"\n", passed)[passed:]) if passed else chunk
                line += passed
                for made in entries.of(rest, name, line):
                    door.append(made)
                    entries.told.points += sum(entry.points for entry in made)
                entries.told.lines += lines - passed
                line += lines - passed
            else:
                line += lines
            if stop.wished:
                raise Interrupted("interrupted")
    except WalIngestError as exc:
        if isinstance(exc, Refused):
            line = exc.number - 1
        if line:
            taken = f"taken: {count_text(line, 'line', 'lines')} of {name}; go on behind that with --skip-lines {line}"
            exc.hint = f"{exc.hint}; {taken}" if exc.hint else taken
        raise


class _Entries:
    """Entries made of chunks of whole lines."""

    def __init__(
        self,
        unit: Precision,
        destination: Destination,
        line_bytes_max: int,
        rejected: OutFile | None,
        told: Imported,
    ) -> None:
        self.told = told
        self._unit = unit
        self._destination = destination
        self.line_bytes_max = line_bytes_max
        self._rejected = rejected

    def of(self, chunk: bytes, name: str, before: int) -> Iterator[list[NewEntry]]:
        """A chunk's entries, in one list or several; `before` lines of the file are in front of it.

        Raises `Refused` for the first line that is no point, when rejected lines are not written to a file.
        """
        now_ns = time.time_ns()
        try:
            yield from self._made(self._accept(chunk, now_ns), now_ns)
            return
        except PointError as exc:
            place = exc
        if self._rejected is None:
            records, begins = self._records(chunk)
            bad = bisect.bisect_right(begins, (place.line or 1) - 1) - 1
            yield from self._made(self._accept(b"".join(records[:bad]), now_ns), now_ns)
            column = place.column if (place.line or 1) == begins[bad] + 1 else None
            raise Refused(name, before + begins[bad] + 1, place.reason, column=column)
        yield from self._sift(chunk, name, before, now_ns)

    def _accept(self, chunk: bytes, now_ns: int) -> Lines:
        from wal_ingest.points.line_protocol import accept_line_protocol
        from wal_ingest.points.text import readable

        return accept_line_protocol(
            readable(chunk), precision=self._unit, now_ns=now_ns, line_bytes_max=self.line_bytes_max
        )

    def _sift(self, chunk: bytes, name: str, before: int, now_ns: int) -> Iterator[list[NewEntry]]:
        """The entries of the good lines of a chunk; the others go to the file for them."""

        def accept(lines: Sequence[bytes]) -> Lines:
            return self._accept(b"".join(lines), now_ns)

        assert self._rejected is not None
        records, begins = self._records(chunk)
        for found in sift(records, accept):
            if not isinstance(found, BadRecord):
                yield from self._made(found, now_ns)
                continue
            why = Refused(name, before + begins[found.at] + 1, found.reason, column=found.column)
            self._rejected.write(b"# %b\n%b\n" % (str(why).encode(), records[found.at].removesuffix(b"\n")))
            self.told.rejected += 1

    def _records(self, chunk: bytes) -> tuple[list[bytes], list[int]]:
        """The records of a chunk, and how many lines stand before each."""
        lines = _lines_of(chunk)
        return join_records(lines, record_ends(lines, bytes_max=self.line_bytes_max, is_last=True))

    def _made(self, lines: Lines, now_ns: int) -> Iterator[list[NewEntry]]:
        from wal_ingest.points import split_lines
        from wal_ingest.wal.entry import ENTRY_POINTS_MAX, NewEntry

        if lines.points:
            yield [
                NewEntry(piece.data, piece.points, now_ns, _SOURCE, self._destination)
                for piece in split_lines(lines, ENTRY_POINTS_MAX)
            ]


def _chunks(name: str, shown: Bar, bytes_max: int) -> Iterator[bytes]:
    """Whole records of a file, about a mebibyte at a time."""
    held: list[bytes] = []
    with InFile(name) as file:
        for chunk in whole_lines(file):
            shown.advance(file.advanced())
            if not held and b'"' not in chunk:
                yield chunk
                continue
            held += _lines_of(chunk)
            ends = record_ends(held, bytes_max=bytes_max, is_last=False)
            if ends:
                yield b"".join(held[: ends[-1]])
                del held[: ends[-1]]
    if held:
        yield b"".join(held)


def _lines_of(chunk: bytes) -> list[bytes]:
    return [line + b"\n" for line in chunk.split(b"\n")[:-1]]
