"""The command line: `wal-ingest`. Heavy imports live inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import wal_ingest
from wal_ingest.cli import agent, config, dead_letters, replay, send, serve, sink, wal
from wal_ingest.cli.output import FAILED, print_error
from wal_ingest.errors import WalIngestError

app = typer.Typer(
    name="wal-ingest",
    help="A metrics ingest node that makes every point durable before it says yes.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or settings, 3 the WAL needs an operator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve")(serve.serve)
app.command("agent")(agent.agent)
app.command("send", epilog=send.EXAMPLE)(send.send)
app.command("replay")(replay.replay)
app.add_typer(wal.app, name="wal")
app.add_typer(sink.app, name="sink")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(config.app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wal-ingest {wal_ingest.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """A metrics ingest node that makes every point durable before it says yes."""


def main() -> None:
    """The console script's entry point: runs a command and turns our own errors into exit codes."""
    try:
        app()
    except WalIngestError as exc:
        sys.exit(print_error(exc))
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). Python would complain once more while it flushes
        # at exit, so standard output is pointed away first.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
