"""`wal-ingest wal salvage`: what can be read of damaged segments, back into the WAL or out to a file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from wal_ingest.cli.node_settings import settings_on_disk
from wal_ingest.cli.options import (
    DataDirOption,
    FoundConfigOption,
    JsonOption,
    TokenFileOption,
    TokenOption,
    token_of,
)
from wal_ingest.cli.output import entries_text, points_text, print_json
from wal_ingest.cli.ranges import lost_text
from wal_ingest.errors import ConfigError
from wal_ingest.wal.lost import Lost

if TYPE_CHECKING:
    from wal_ingest.cli.progress import Bar
    from wal_ingest.cli.stopping import Stop
    from wal_ingest.settings import Settings
    from wal_ingest.wal.entry import Entry
    from wal_ingest.wal.pinned import ScannedSegment
    from wal_ingest.wal.salvage import Salvage
    from wal_ingest.wal.segment import Ends

EXAMPLE = "Example: wal-ingest wal salvage --all --dry-run"


class Rescued(msgspec.Struct, kw_only=True):
    """What `wal salvage --json` prints for each file. `already` counts entries that an earlier file gave too."""

    file: str
    entries: int = 0
    points: int = 0
    already: int = 0
    lost: list[Lost] = msgspec.field(default_factory=list)


class Rescue(msgspec.Struct, kw_only=True):
    """What `wal salvage --json` prints. `to` is empty for a dry run; `passed_over` were salvaged before."""

    to: str
    entries: int
    points: int
    files: list[Rescued]
    passed_over: list[str]


def salvage(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help="Damaged segments, of any place.", show_default=False),
    ] = None,
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every segment that was set aside as damaged.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", metavar="FILE.lp.gz", help="Write the points to this file.", show_default=False
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Send them to the server at URL.", show_default=False),
    ] = None,
    token: TokenOption = "",
    token_file: TokenFileOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what can be read.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what was salvaged before.")] = False,
    json: JsonOption = False,
) -> None:
    """Read what can be read of damaged segments, and append it to the WAL again.

    Directly, when no server has the data directory open; with --url through a running server; with --out to a file
    instead. The damaged files stay as they are; a note beside each says what was taken. The server delivers by itself
    what can be read of a file that it set aside; a point that is delivered twice is one point.
    """
    from wal_ingest.cli.progress import bar
    from wal_ingest.cli.stopping import Stop
    from wal_ingest.wal.salvage import Salvage

    if out is not None and url is not None:
        raise ConfigError("--out and --url exclude each other", hint="choose one place for the points")
    write_token = token_of(token, token_file)
    settings = settings_on_disk(config, data_dir=data_dir)
    paths, passed_over = _which(settings, files or [], every, again or dry_run)
    with Stop() as stop, bar("salvaging", sum(path.stat().st_size for path in paths)) as shown:
        rescue = Salvage(paths, _neighbours(settings))
        try:
            work = _Work(rescue, stop, shown)
            if dry_run:
                told = work.look()
            elif out is not None:
                told = work.write(out)
            else:
                told = work.append(settings, url, token=write_token)
        finally:
            rescue.close()
    told.passed_over = [str(path) for path in passed_over]
    if json:
        print_json(told)
    else:
        _print(told)


def _which(
    settings: Settings, files: Sequence[Path], every: bool, again: bool
) -> tuple[list[Path], list[Path]]:
    """The files to salvage, and those of --all that were salvaged before."""
    from wal_ingest.wal.reading import WAL_DIR
    from wal_ingest.wal.salvage import damaged_files, read_note

    if every == bool(files):
        raise ConfigError(
            "name the damaged files, or say --all", hint="wal-ingest wal ls names those set aside"
        )
    if every:
        found = damaged_files(Path(settings.server.data_dir) / WAL_DIR)
        segments = [file for file in found if file.is_segment]
        before = [file.path for file in segments if file.note is not None and not again]
        return [file.path for file in segments if file.path not in before], before
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{path} is no file")
        if not again and read_note(path) is not None:
            raise ConfigError(
                f"{path} was salvaged before: {path.name}.salvaged.json says when, and where to",
                hint="salvage it once more with --again; points that are written twice are the same points",
            )
    return list(dict.fromkeys(files)), []


def _neighbours(settings: Settings) -> list[Ends]:
    """The ends of the segments that are whole: they tell where damaged ones between them began and ended."""
    from wal_ingest.errors import StorageFailed, WalDamaged
    from wal_ingest.wal.reading import WAL_DIR
    from wal_ingest.wal.segment import read_ends, segment_paths

    found = []
    for path in segment_paths(Path(settings.server.data_dir) / WAL_DIR):
        try:
            found.append(read_ends(path))
        except (WalDamaged, StorageFailed):
            continue
    return found


class _Work:
    """One salvage, to whichever place."""

    def __init__(self, rescue: Salvage, stop: Stop, shown: Bar) -> None:
        self._rescue = rescue
        self._stop = stop
        self._shown = shown
        self._seen: set[int] = set()
        self._told = Rescue(
            to="",
            entries=0,
            points=0,
            files=[Rescued(file=lost.file, lost=[lost]) for lost in rescue.hopeless],
            passed_over=[],
        )

    def look(self) -> Rescue:
        """Only counts."""
        for segment in self._rescue.segments:
            for _entry in self._entries(segment):
                pass
        return self._told

    def write(self, out: str) -> Rescue:
        """Writes the points to a file, whole and synced, and then the notes."""
        from wal_ingest.cli.outfile import OutFile

        with OutFile(out) as file:
            for segment in self._rescue.segments:
                for entry in self._entries(segment):
                    file.write(entry.gzip_member())
        return self._noted(out)

    def append(self, settings: Settings, url: str | None, *, token: str = "") -> Rescue:
        """Appends the entries, directly or through a server, and then leaves the notes."""
        from wal_ingest.cli.appending import open_door
        from wal_ingest.wal.entry import NewEntry

        door = open_door(settings, url, self._stop, token=token)
        try:
            group: list[NewEntry] = []
            size = 0
            for segment in self._rescue.segments:
                for entry in self._entries(segment):
                    group.append(
                        NewEntry(
                            entry.lines(), entry.points, entry.accepted_ns, entry.source, entry.destination
                        )
                    )
                    size += entry.raw_bytes
                    if size >= settings.wal.commit_bytes_max:
                        door.append(group)
                        group, size = [], 0
            if group:
                door.append(group)
        finally:
            door.close()
        return self._noted(door.to)

    def _entries(self, segment: ScannedSegment) -> Iterator[Entry]:
        """A segment's entries that were not in one before; what is lost is kept for the report."""
        from wal_ingest.cli.stopping import Interrupted

        told = Rescued(file=segment.path.name)
        self._told.files.append(told)
        for item in self._rescue.read(segment):
            if self._stop.wished:
                raise Interrupted("interrupted: no note was left, so the same can be salvaged again")
            if isinstance(item, Lost):
                told.lost.append(item)
            elif item.seq in self._seen:
                told.already += 1
            else:
                self._seen.add(item.seq)
                told.entries += 1
                told.points += item.points
                yield item
        self._told.entries += told.entries
        self._told.points += told.points
        self._shown.advance(segment.ends.bytes)

    def _noted(self, to: str) -> Rescue:
        from wal_ingest.wal.salvage import Note, write_note

        self._told.to = to
        told = {each.file: each for each in self._told.files}
        for segment in self._rescue.segments:
            each = told[segment.path.name]
            note = Note(
                salvaged_ns=time.time_ns(), entries=each.entries, points=each.points, to=to, lost=each.lost
            )
            write_note(_where_now(segment.path), note)
        return self._told


def _where_now(path: Path) -> Path:
    """A file of the WAL itself may have been set aside when the WAL was opened to append to it."""
    from wal_ingest.wal.recovery import DAMAGED_DIR

    moved = path.parent / DAMAGED_DIR / path.name
    return path if path.exists() or not moved.exists() else moved


def _print(told: Rescue) -> None:
    for path in told.passed_over:
        typer.echo(f"{Path(path).name}: was salvaged before (--again takes it once more)")
    for file in told.files:
        already = f", {file.already:,} more were in another file too" if file.already else ""
        typer.echo(
            f"{file.file}: {entries_text(file.entries)}, {points_text(file.points)} can be read{already}"
        )
        for lost in file.lost:
            typer.echo(f"lost: {lost_text(lost)}")
    where = f"are in {told.to}" if told.to else "can be salvaged"
    typer.echo(f"{points_text(told.points)} of {entries_text(told.entries)} {where}")
    if told.to:
        typer.echo("What was delivered already is delivered once more; twice the same point is one point.")
