"""`wal-ingest dead-letters`: the points that a sink refused for good, why, and what becomes of them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from wal_ingest.cli.node_settings import settings_of_node, settings_on_disk
from wal_ingest.cli.options import DataDirOption, FoundConfigOption, JsonOption, NodeConfigOption, YesOption
from wal_ingest.cli.output import FAILED, OPERATOR_NEEDED, confirm, points_text, print_json
from wal_ingest.cli.times import time_text
from wal_ingest.errors import ConfigError

if TYPE_CHECKING:
    from wal_ingest.settings import Settings
    from wal_ingest.wal.cursor import DeadLetter
    from wal_ingest.wal.letters import LetterGroup, LetterId

app = typer.Typer(
    help="List, show, export, retry and drop the points that a sink refused for good.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SinkOption = Annotated[
    str | None,
    typer.Option(
        "--sink", metavar="SINK", help="Only this sink's; needed where several have some.", show_default=False
    ),
]
ReasonOption = Annotated[
    str | None,
    typer.Option(
        "--reason", metavar="TEXT", help="Only those whose reason contains this.", show_default=False
    ),
]

FromOption = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="LETTERS",
        show_default=False,
        help="Read a file of dead letters alone, such as one in wal/damaged/: all that it ever held.",
    ),
]

# Points in one gzip member of an export.
_EXPORT_POINTS = 1_000

# How many letters one removal takes: each is one transaction, and stops delivery to the sink for a moment.
_REMOVE_MAX = 20_000


@app.callback()
def _group() -> None:
    """List, show, export, retry and drop the points that a sink refused for good."""


@app.command("list", epilog="Example: wal-ingest dead-letters list --sink influxdb")
def list_letters(
    sink: SinkOption = None,
    reason: ReasonOption = None,
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """How many there are, by sink and reason. What differs from point to point is left out of a reason."""
    from wal_ingest.wal.letters import LetterGroups
    from wal_ingest.wal.state import STATE_NAME, read_letter_groups

    settings = settings_on_disk(config, data_dir=data_dir)
    names = _sinks(settings, sink)
    if reason is None:
        groups = read_letter_groups(Path(settings.server.data_dir) / STATE_NAME, names)
    else:
        groups = LetterGroups()
        for name in names:
            groups.add(_letters(settings, name, reason))
    if json:
        print_json(
            [
                {
                    "sink": each.sink,
                    "reason": each.reason,
                    "points": each.points,
                    "last_at": time_text(each.last_ns),
                }
                for each in groups.listed()
            ]
        )
        return
    if not groups.listed():
        typer.echo("there are no dead letters")
        return
    width = max(len(each.sink) for each in groups.listed())
    typer.echo(f"{'points':>12}  {'last':20}  {'sink':{width}}  reason")
    for each in groups.listed():
        typer.echo(f"{each.points:>12,}  {time_text(each.last_ns)}  {each.sink:{width}}  {each.reason}")


@app.command(epilog="Example: wal-ingest dead-letters show --reason type --limit 5")
def show(
    sink: SinkOption = None,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many.")] = 20,
    from_file: FromOption = None,
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """The points themselves, oldest first, each with when, why and where it should have gone."""
    found = _Letters(from_file, config, data_dir=data_dir, sink=sink, reason=reason)
    letters = itertools.islice(found.letters(), limit)
    if json:
        print_json([_as_json(letter) for letter in letters])
    else:
        for letter in letters:
            typer.echo(f"# {letter.sink}, seq {letter.seq}, {time_text(letter.parked_ns)}: {letter.reason}")
            sys.stdout.write(letter.line.decode())
    found.end()


@app.command(epilog="Example: wal-ingest dead-letters export refused.lp.gz")
def export(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Gzip line protocol; - for standard output, plain.")
    ],
    sink: SinkOption = None,
    reason: ReasonOption = None,
    from_file: FromOption = None,
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="JSON lines with the reasons, not line protocol.")
    ] = False,
) -> None:
    """Write the points to a file, which must not exist yet. They stay where they are, too."""
    import msgspec

    from wal_ingest.cli.outfile import OutFile
    from wal_ingest.wal.gzip_codec import compress

    found = _Letters(from_file, config, data_dir=data_dir, sink=sink, reason=reason)
    rows = (
        msgspec.json.encode(_as_json(letter)) + b"\n" if json else letter.line for letter in found.letters()
    )
    count = 0
    with OutFile(file) as out:
        while chunk := list(itertools.islice(rows, _EXPORT_POINTS)):
            count += len(chunk)
            lines = b"".join(chunk)
            out.write(lines if out.is_stdout else compress(lines))
    typer.echo(f"{points_text(count)} exported", err=True)
    found.end()


@app.command(epilog="Example: wal-ingest dead-letters retry --reason type")
def retry(
    sink: SinkOption = None,
    reason: ReasonOption = None,
    config: NodeConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write them to the sink again, after the bucket was mended. What it takes is a dead letter no more.

    Exit code 1 when some were refused again: those stay.
    """
    import trio

    from wal_ingest.cli.dead_letters.writing import write_letters

    settings = settings_of_node(config, data_dir=data_dir)
    name = _the_sink(settings, sink)
    found = _found(settings, name, reason)
    if not found.points:
        typer.echo("there are no such dead letters")
        return
    letters = _letters(settings, name, reason, through=found.last_number)
    written = trio.run(write_letters, settings, name, letters, found.points, _remove)
    typer.echo(
        f"{name}: {written.confirmed:,} of {points_text(found.points)} written, {written.refused:,} refused again"
    )
    for letter in written.examples:
        typer.echo(f"  {letter.line.decode().strip()}: {letter.reason}")
    if written.refused:
        raise typer.Exit(FAILED)


@app.command(epilog="Example: wal-ingest dead-letters drop --reason retention")
def drop(
    sink: SinkOption = None,
    reason: ReasonOption = None,
    yes: YesOption = False,
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Remove them for good. Says which and asks first; they are counted as expired."""
    from wal_ingest.wal.letters import id_of

    settings = settings_on_disk(config, data_dir=data_dir)
    name = _the_sink(settings, sink)
    found = _found(settings, name, reason)
    if not found.points:
        typer.echo("there are no such dead letters")
        return
    typer.echo(f"{points_text(found.points)} that {name} refused, kept nowhere else once the log has let go:")
    for each in found.groups:
        typer.echo(f"  {each.points:,}: {each.reason}")
    typer.echo("To keep them: wal-ingest dead-letters export FILE.lp.gz")
    confirm("Drop them?", yes=yes)
    ids = (id_of(letter) for letter in _letters(settings, name, reason, through=found.last_number))
    removed = 0
    while part := list(itertools.islice(ids, _REMOVE_MAX)):
        removed += _remove(settings, name, part, written=False)
    typer.echo(f"{name}: dropped {points_text(removed)}")


class _Found(NamedTuple):
    """The letters that a command is about: how many, for which reasons, and the number of the newest.

    Those that are parked from now on are not among them: the operator has not seen them.
    """

    points: int
    groups: list[LetterGroup]
    last_number: int


def _found(settings: Settings, sink: str, reason: str | None) -> _Found:
    from wal_ingest.wal.letters import LetterGroups

    points = last_number = 0
    groups = LetterGroups()
    for letter in _letters(settings, sink, reason):
        groups.add([letter])
        points += 1
        last_number = letter.number
    return _Found(points, groups.listed(), last_number)


def _remove(settings: Settings, sink: str, ids: list[LetterId], *, written: bool) -> int:
    from wal_ingest.cli.node import operate

    removed: int = operate(settings, "letters.remove", sink=sink, ids=ids, written=written)["removed"]
    return removed


def _sinks(settings: Settings, sink: str | None) -> list[str]:
    from wal_ingest.cli.node import cursor_of, read_node_state

    state = read_node_state(settings)
    if sink is None:
        return list(state.cursors)
    cursor_of(state, sink)
    return [sink]


def _the_sink(settings: Settings, sink: str | None) -> str:
    """The one sink that is meant. Raises `ConfigError` where that is not clear."""
    from wal_ingest.cli.node import read_node_state

    names = _sinks(settings, sink)
    if len(names) > 1:
        cursors = read_node_state(settings).cursors
        names = [name for name in names if cursors[name].parked] or names[:1]
    if len(names) != 1:
        raise ConfigError(f"dead letters of several sinks: {', '.join(names)}", hint="say which with --sink")
    return names[0]


def _letters(
    settings: Settings, sink: str, reason: str | None, *, through: int | None = None
) -> Iterator[DeadLetter]:
    from wal_ingest.wal.state import STATE_NAME, read_dead_letters

    for letter in read_dead_letters(Path(settings.server.data_dir) / STATE_NAME, sink):
        if through is not None and letter.number > through:
            return
        if reason is None or reason in letter.reason:
            yield letter


class _Letters:
    """The letters that options are about: of a node's directory, or of one file."""

    def __init__(
        self,
        file: Path | None,
        config: Path | None,
        *,
        data_dir: str | None,
        sink: str | None,
        reason: str | None,
    ) -> None:
        self._file = file
        self._settings = settings_on_disk(config, data_dir=data_dir) if file is None else None
        self._sink = sink
        self._reason = reason
        self._is_damaged = False

    def letters(self) -> Iterator[DeadLetter]:
        """All of them; what cannot be read of a file is named on standard error."""
        if self._settings is not None:
            for name in _sinks(self._settings, self._sink):
                yield from _letters(self._settings, name, self._reason)
        elif self._file is not None:
            yield from self._of_file(self._file)

    def _of_file(self, file: Path) -> Iterator[DeadLetter]:
        from wal_ingest.wal.letter_salvage import BadBytes, letters_in_file

        for each in letters_in_file(file):
            if isinstance(each, BadBytes):
                self._is_damaged = True
                typer.echo(f"lost: {file} at byte {each.offset}: {each.reason}", err=True)
            elif self._sink in (None, each.sink) and (self._reason or "") in each.reason:
                yield each

    def end(self) -> None:
        """Ends with exit code 3 where something could not be read."""
        if self._is_damaged:
            raise typer.Exit(OPERATOR_NEEDED)


def _as_json(letter: DeadLetter) -> dict[str, object]:
    return {
        "sink": letter.sink,
        "seq": letter.seq,
        "parked_at": time_text(letter.parked_ns),
        "status": letter.status,
        "reason": letter.reason,
        "org": letter.destination.org,
        "bucket": letter.destination.bucket,
        "line": letter.line.decode().rstrip("\n"),
    }
