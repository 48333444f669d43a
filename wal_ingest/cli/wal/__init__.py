"""`wal-ingest wal`: look into the log, take points out of it, put points into it.

What only looks works while the server runs and never changes a byte. What adds points opens the data directory as the
server does, or goes through the server over HTTP.
"""

from __future__ import annotations

import typer

from wal_ingest.cli.wal import cat, export, importing, ls, salvage, status, verify

app = typer.Typer(
    help="Look into the write-ahead log, also while the server runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Look into the write-ahead log, also while the server runs."""


app.command("status", epilog="Example: wal-ingest wal status --json | jq .sinks")(status.status)
app.command("ls", epilog=ls.EXAMPLE)(ls.ls)
app.command("cat", epilog=cat.EXAMPLE)(cat.cat)
app.command("verify", epilog=verify.EXAMPLE)(verify.verify)
app.command("salvage", epilog=salvage.EXAMPLE)(salvage.salvage)
app.command("export", epilog=export.EXAMPLE)(export.export)
app.command("import", epilog=importing.EXAMPLE)(importing.import_points)
