"""`wal-ingest config`: what the settings are, where each came from, and whether a file is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wal_ingest.cli.options import ConfigOption, DataDirOption, JsonOption, load_config
from wal_ingest.cli.output import print_json, wide_console
from wal_ingest.config import load, sample

app = typer.Typer(
    help="Show the effective settings, check a file, print a sample.",
    epilog="Example: wal-ingest config --json | jq -r '.\"server.bind\".value'",
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    json: JsonOption = False,
) -> None:
    """Show every effective setting and where it came from. Secrets are masked."""
    if context.invoked_subcommand is not None:
        return
    rows = list(load_config(config, data_dir=data_dir).rows())
    if json:
        print_json({field.name: {"value": value, "from": origin} for field, value, origin in rows})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for field, value, origin in rows:
        table.add_row(field.name, str(value) if value != "" else '""', origin)
    wide_console().print(table)


@app.command(epilog="Example: wal-ingest config check /etc/wal-ingest/wal-ingest.toml")
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The settings file to check.", show_default=False)
    ],
) -> None:
    """Check a settings file by itself; exit code 2 and the reason when it is wrong."""
    load(file, environ={})
    typer.echo(f"{file}: fine")


@app.command("sample", epilog="Example: wal-ingest config sample > wal-ingest.toml")
def print_sample() -> None:
    """Print a settings file with every setting, its default and its reason."""
    typer.echo(sample(), nl=False)
