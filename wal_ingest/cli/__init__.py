"""The command line: `wal-ingest`. Heavy imports live inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import atexit
import errno
import os
import sys
from typing import Annotated, NoReturn

import typer

import wal_ingest
from wal_ingest.cli import agent, config, dead_letters, replay, send, serve, sink, stream, wal
from wal_ingest.cli.output import DONE, FAILED, not_permitted, print_error
from wal_ingest.errors import WalIngestError

app = typer.Typer(
    name="wal-ingest",
    help="A metrics ingest node that makes every point durable before it says yes.",
    epilog="Exit codes: 0 done, 1 failed, 2 usage or settings, 3 the WAL needs an operator.",
    no_args_is_help=True,
    # --install-completion: subcommands and options by the Tab key.
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("serve", epilog=serve.EXAMPLE)(serve.serve)
app.command("agent", epilog=agent.EXAMPLE)(agent.agent)
app.command("send", epilog=send.EXAMPLE)(send.send)
app.command("replay", epilog=replay.EXAMPLE)(replay.replay)
app.add_typer(wal.app, name="wal")
app.add_typer(sink.app, name="sink")
app.add_typer(stream.app, name="stream")
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


def main() -> NoReturn:
    """The console script's entry point: runs a command, turns our own errors into exit codes, and ends the process.

    It does so without taking the interpreter down. Threads that nobody waits for may still read standard input or
    check points; Python would stop them at the next line that it can, and aborts the process (134, a core dump)
    where that is in RE2 or where one holds standard input's lock. What is registered to be done at exit is done: the
    one-file build removes what it unpacked.
    """
    try:
        code = _run()
        _flush()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`), as a reader may.
        code = FAILED
    except OSError as exc:
        # Full, and it is no file that a command has opened: the output.
        if exc.errno != errno.ENOSPC or exc.filename is not None:
            raise
        sys.stderr.write(f"error: the output could not be written: {exc.strerror}\n")
        code = FAILED
    # Not public, but there is no other way to this half of an exit alone.
    atexit._run_exitfuncs()
    os._exit(code)


def _run() -> int:
    """Runs the command that was typed; its exit code."""
    try:
        app()
    except WalIngestError as exc:
        return print_error(exc)
    except PermissionError as exc:
        if exc.filename is None:
            raise
        return print_error(not_permitted(exc.filename, exc.strerror or "permission denied"))
    except SystemExit as exc:
        if not isinstance(exc.code, int):
            raise
        return exc.code
    return DONE


def _flush() -> None:
    for output in (sys.stderr, sys.stdout):
        # None where it was closed before we began.
        if output is not None:
            output.flush()
