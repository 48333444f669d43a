"""`wal-ingest stream`: the streams that a node remembers, and a command that makes it forget one."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wal_ingest.cli.options import ConfigOption, DataDirOption, JsonOption, YesOption, load_config
from wal_ingest.cli.output import age_text, confirm, print_json, wide_console
from wal_ingest.cli.times import time_text

if TYPE_CHECKING:
    from wal_ingest.settings import Settings
    from wal_ingest.wal.streams import Position

app = typer.Typer(
    help="List the streams that the node remembers, or make it forget one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_LISTED = 100


@app.callback()
def _group() -> None:
    """List the streams that the node remembers, or make it forget one."""


@app.command(
    "list", epilog="Example: wal-ingest stream list --json | jq '.[] | select(.silent_s > 3600) | .client_id'"
)
def list_(
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, help="How many, those heard last first.")
    ] = _LISTED,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """How far each stream has come: its last frame, and when that was taken; those heard last first.

    A stream is known by the client_id that its client connects with. Points are those of its last frames, which are
    remembered, at most 64.
    """
    settings = load_config(config, data_dir=data_dir).settings
    found = _known(settings)
    connected = _connected(settings)
    now_ns = time.time_ns()
    rows = [_row(position, connected, now_ns) for position in found[-limit:][::-1]]
    if json:
        print_json(rows)
        return
    _print(rows)
    if len(found) > len(rows):
        typer.echo(f"{len(found) - len(rows):,} more; --limit {len(found)} shows all", err=True)


@app.command(epilog="Example: wal-ingest stream forget web-17-4f9c")
def forget(
    client_id: Annotated[str, typer.Argument(metavar="CLIENT_ID", help="As `stream list` shows it.")],
    yes: YesOption = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make the node forget how far a stream has come, so that its client begins again at 1. Asks first.

    No point is lost by that, and none is removed. A connection of the stream is closed when what it sent is stored; its
    client comes back by itself. Frames that it sends once more are stored once more.
    """
    from wal_ingest.cli.node import operate
    from wal_ingest.wal.store import unknown_stream

    settings = load_config(config, data_dir=data_dir).settings
    position = next((each for each in _known(settings) if each.client_id == client_id), None)
    if position is None:
        raise unknown_stream(client_id)
    age_s = max(0.0, (time.time_ns() - position.last_ns) / 1e9)
    typer.echo(
        f"{client_id}: its last frame is {position.durable}, in seq {position.last_seq:,}, {age_text(age_s)} ago.\n"
        "The node will forget all of its frames: a frame that its client sends again is stored again."
    )
    confirm("Forget it?", yes=yes)
    told = operate(settings, "stream.forget", client_id=client_id)
    closed = "; its connection was closed, and its client begins anew" if told["was_connected"] else ""
    typer.echo(f"{client_id}: forgotten{closed}")


def _known(settings: Settings) -> list[Position]:
    from wal_ingest.wal.stream_list import read_streams

    return read_streams(Path(settings.server.data_dir), clients_max=settings.wal.streams_max)


def _connected(settings: Settings) -> frozenset[str] | None:
    """The ids under which streams are open; None where a node that runs does not say."""
    from wal_ingest.cli.node import is_running
    from wal_ingest.control import NoControl, ask

    if not is_running(settings):
        return frozenset()
    try:
        return frozenset(ask(Path(settings.server.data_dir), "streams")["connected"])
    except NoControl as exc:
        typer.echo(f"only what is on disk: {exc}", err=True)
        return None


def _row(position: Position, connected: frozenset[str] | None, now_ns: int) -> dict[str, Any]:
    from wal_ingest.stream_numbers import leaves_room

    stored = position.stored
    return {
        "client_id": position.client_id,
        "connected": None if connected is None else position.client_id in connected,
        "last_number": position.durable,
        "last_seq": position.last_seq,
        "last_at": time_text(position.last_ns),
        "silent_s": round(max(0.0, (now_ns - position.last_ns) / 1e9), 3),
        "frames_remembered": len(stored),
        "points_remembered": sum(frame.points for frame in stored),
        "has_numbers_left": leaves_room(position.durable),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("stream", "connected"):
        table.add_column(heading)
    for heading in ("last frame", "last seq", "heard", "frames", "points"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            Text(row["client_id"]),
            {True: "yes", False: "no", None: "-"}[row["connected"]],
            str(row["last_number"]),
            f"{row['last_seq']:,}",
            f"{age_text(row['silent_s'])} ago",
            f"{row['frames_remembered']:,}",
            f"{row['points_remembered']:,}",
        )
    console = wide_console()
    if rows:
        console.print(table)
    else:
        typer.echo("no stream is remembered")
    for row in rows:
        if not row["has_numbers_left"]:
            typer.echo(
                f"{row['client_id']}: few numbers are left above its last frame; its client must take another "
                f"client_id, or: wal-ingest stream forget {shlex.quote(row['client_id'])}"
            )
