"""`wal-ingest sink`: how each sink is doing, whether its settings are right, and an operator's decisions about it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wal_ingest.cli.node_settings import directory_of, settings_of_node, settings_on_disk
from wal_ingest.cli.options import DataDirOption, FoundConfigOption, JsonOption, NodeConfigOption, YesOption
from wal_ingest.cli.output import FAILED, age_text, confirm, points_text, print_json, wide_console
from wal_ingest.cli.times import TIME_HELP, parse_time_ns, time_text
from wal_ingest.errors import ConfigError

if TYPE_CHECKING:
    from wal_ingest.flusher.check import Check
    from wal_ingest.settings import Settings
    from wal_ingest.wal.cursor import Cursor

app = typer.Typer(
    help="Look at the sinks, check their settings, pause, resume or move them on.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="SINK", help="Such as influxdb or archive.")]


@app.callback()
def _group() -> None:
    """Look at the sinks, check their settings, pause, resume or move them on."""


@app.command(epilog="Example: wal-ingest sink status --json | jq .influxdb.state")
def status(
    config: FoundConfigOption = None, data_dir: DataDirOption = None, json: JsonOption = False
) -> None:
    """How far each sink is, what it is doing, and its last error. Absent: required, and not in the settings."""
    from wal_ingest.control import NoControl, ask
    from wal_ingest.wal.directory import holder_of
    from wal_ingest.wal.inspect import status as read_status

    directory = directory_of(config, data_dir=data_dir)
    live: dict[str, dict[str, Any]] = {}
    found = read_status(directory, now_ns=time.time_ns())
    if holder_of(directory) is not None:
        try:
            live = ask(directory, "sinks")
        except NoControl as exc:
            typer.echo(f"only what is on disk: {exc}", err=True)
    rows = {
        name: {
            "running": name in live,
            "state": live[name]["state"] if name in live else sink.state,
            "required": live[name]["required"] if name in live else None,
            "cursor_seq": sink.cursor_seq,
            "waiting_points": sink.waiting_points,
            "oldest_waiting_s": sink.oldest_waiting_s,
            "confirmed_points": sink.confirmed_points,
            "parked": sink.parked,
            "skipped_points": sink.skipped_points,
            "expired_points": sink.expired_points,
            "retried_writes": live[name]["retried_writes"] if name in live else None,
            "in_flight": live[name]["in_flight"] if name in live else None,
            "last_error": live[name]["last_error"] if name in live else sink.reason,
            "last_error_at": live[name]["last_error_at"] if name in live else None,
        }
        for name, sink in found.sinks.items()
    }
    if json:
        print_json(rows)
    else:
        _print_status(rows)


def _print_status(rows: dict[str, dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("sink")
    table.add_column("state")
    for heading in ("waiting", "oldest", "confirmed", "parked", "skipped", "expired", "in flight", "retried"):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(
            name,
            _state_text(row),
            "-" if row["state"] == "forgotten" else f"{row['waiting_points']:,}",
            "-" if row["state"] == "forgotten" else age_text(row["oldest_waiting_s"]),
            f"{row['confirmed_points']:,}",
            f"{row['parked']:,}",
            f"{row['skipped_points']:,}",
            f"{row['expired_points']:,}",
            *("-" if row[key] is None else f"{row[key]:,}" for key in ("in_flight", "retried_writes")),
        )
    console = wide_console()
    console.print(table)
    for name, row in rows.items():
        if row["last_error"]:
            when = f" at {row['last_error_at']}" if row["last_error_at"] else ""
            console.print(f"{name}: last error{when}: {row['last_error']}", markup=False)


def _state_text(row: dict[str, Any]) -> str:
    state: str = row["state"]
    return state if row["running"] or state in ("absent", "forgotten") else f"{state} (not running)"


@app.command(epilog="Example: wal-ingest sink check")
def check(
    sink: Annotated[
        str | None, typer.Argument(metavar="[SINK]", help="Only this one.", show_default=False)
    ] = None,
    config: NodeConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Tell whether address, token and bucket are right. Writes nothing; exit code 1 when something is wrong."""
    import trio

    from wal_ingest.service.commands import unknown_sink
    from wal_ingest.service.sinks import sink_makers

    settings = settings_of_node(config, data_dir=data_dir)
    makers = sink_makers(settings, Path(settings.server.data_dir))
    if sink is not None and sink not in makers:
        raise unknown_sink(sink, makers)
    found = trio.run(_checks, settings, [sink] if sink is not None else list(makers))
    if json:
        print_json(
            {
                name: [{"what": each.what, "right": each.right, "found": each.found} for each in checks]
                for name, checks in found.items()
            }
        )
    else:
        for name, checks in found.items():
            for each in checks:
                typer.echo(f"{name}: {each.what}: {'right' if each.right else 'WRONG'}: {each.found}")
    if not all(each.right for checks in found.values() for each in checks):
        raise typer.Exit(FAILED)


async def _checks(settings: Settings, names: list[str]) -> dict[str, list[Check]]:
    from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
    from wal_ingest.service.sinks import sink_makers

    makers = sink_makers(settings, Path(settings.server.data_dir))
    found = {}
    for name in names:
        sink = makers[name]()
        # Opening an archive sets aside what a crash left: a look must not. The other one connects to nobody.
        if isinstance(sink, InfluxDBSink):
            await sink.open(None)
        try:
            found[name] = await sink.check()
        finally:
            await sink.aclose()
    return found


@app.command(epilog="Example: wal-ingest sink pause influxdb")
def pause(sink: NameArgument, config: FoundConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Deliver nothing to a sink until `resume`, also across restarts. Points go on being taken; the log grows."""
    from wal_ingest.cli.node import operate

    operate(settings_on_disk(config, data_dir=data_dir), "sink.pause", sink=sink)
    typer.echo(f"{sink}: paused; `wal-ingest sink resume {sink}` ends it")


@app.command(epilog="Example: wal-ingest sink resume influxdb")
def resume(sink: NameArgument, config: FoundConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Deliver to a sink again: after `pause`, or after an optional sink broke down."""
    from wal_ingest.cli.node import operate

    operate(settings_on_disk(config, data_dir=data_dir), "sink.resume", sink=sink)
    typer.echo(f"{sink}: resumed")


@app.command(epilog="Example: wal-ingest sink skip influxdb --through-seq 4711")
def skip(
    sink: NameArgument,
    through_seq: Annotated[
        int | None,
        typer.Option("--through-seq", metavar="SEQ", min=1, help="Up to this seq.", show_default=False),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until", metavar="TIME", help=f"What was accepted before {TIME_HELP}.", show_default=False
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that waits now.")] = False,
    yes: YesOption = False,
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give up the oldest points that wait for a sink: it will never get them. Says which and asks first.

    They are counted as expired, and stay in the log as long as other sinks need them.
    """
    from wal_ingest.cli.node import cursor_of, operate, read_node_state

    if (through_seq is not None) + (until is not None) + everything != 1:
        raise ConfigError("how far?", hint="give exactly one of --through-seq SEQ, --until TIME and --all")
    settings = settings_on_disk(config, data_dir=data_dir)
    cursor = cursor_of(read_node_state(settings), sink)
    until_ns = None if until is None else parse_time_ns(until, now_ns=time.time_ns())
    last_seq, points, span = _given_up(settings, cursor, through_seq, until_ns)
    if not points:
        typer.echo(f"{sink}: nothing to give up: no such points wait for it")
        return
    typer.echo(
        f"{sink} will never get {points_text(points)} in seqs {cursor.seq + 1:,} to {last_seq:,}, {span}.\n"
        f"To keep them: wal-ingest wal export FILE.lp.gz --seq {cursor.seq + 1}..{last_seq}"
    )
    confirm("Give them up?", yes=yes)
    told = operate(settings, "sink.skip", sink=sink, through_seq=last_seq)
    typer.echo(
        f"{sink}: gave up {points_text(told['expired_points'])}; its cursor is at seq {told['cursor_seq']:,}"
    )


@app.command(epilog="Example: wal-ingest sink forget influxdb")
def forget(
    sink: NameArgument,
    yes: YesOption = False,
    config: FoundConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give up a sink that is no longer in the settings: nothing is kept for it any more. Asks first.

    What waits for it is counted as expired. Its dead letters stay until they are dropped.
    """
    from wal_ingest.cli.node import cursor_of, is_running, operate, read_node_state
    from wal_ingest.service.commands import check_forgettable
    from wal_ingest.service.sinks import sink_makers
    from wal_ingest.wal.inspect import status as read_status

    settings = settings_on_disk(config, data_dir=data_dir)
    directory = Path(settings.server.data_dir)
    state = read_node_state(settings)
    # A node that runs knows its own settings best; it refuses by itself.
    present = {} if is_running(settings) else sink_makers(settings, directory)
    check_forgettable(sink, present, state.cursors)
    letters = cursor_of(state, sink).parked
    waiting = read_status(directory, now_ns=time.time_ns()).sinks[sink].waiting_points
    typer.echo(
        f"{sink} will never get {points_text(waiting)} that wait for it; the log keeps nothing for it any more."
    )
    if letters:
        typer.echo(
            f"Its dead letters stay: {points_text(letters)}. "
            f"To drop them: wal-ingest dead-letters drop --sink {sink}"
        )
    confirm("Forget it?", yes=yes)
    done = operate(settings, "sink.forget", sink=sink)
    typer.echo(f"{sink}: forgotten; gave up {points_text(done['expired_points'])}")


def _given_up(
    settings: Settings, cursor: Cursor, through_seq: int | None, until_ns: int | None
) -> tuple[int, int, str]:
    """The last seq that is given up, how many points that makes, and when they were accepted, in words."""
    from wal_ingest.wal.reading import Lost, WalReader

    with WalReader(Path(settings.server.data_dir)) as reader:
        first_seq, last_seq = cursor.seq + 1, reader.last_seq
        if through_seq is not None:
            last_seq = min(through_seq, last_seq)
        if until_ns is not None:
            later = (
                entry.seq
                for entry in reader.entries(first_seq=first_seq, since_ns=until_ns)
                if not isinstance(entry, Lost)
            )
            last_seq = next(later, last_seq + 1) - 1
        if last_seq < first_seq:
            return last_seq, 0, ""
        points = reader.segments[-1].ends.points_after - cursor.settled
        for item in reader.entries(first_seq=last_seq + 1):
            if not isinstance(item, Lost):
                # What is lost right in front of it goes as well: nobody can have it.
                last_seq, points = item.seq - 1, max(0, item.points_before - cursor.settled)
                break
        times = [
            time_text(entry.accepted_ns)
            for seq in (first_seq, last_seq)
            for entry in reader.entries(first_seq=seq, last_seq=seq)
            if not isinstance(entry, Lost)
        ]
    return (
        last_seq,
        points,
        "accepted " + " to ".join(dict.fromkeys(times)) if times else "which cannot be read",
    )
