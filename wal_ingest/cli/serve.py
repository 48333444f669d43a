"""`wal-ingest serve`: run the node."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import wal_ingest
from wal_ingest.cli.options import ConfigOption, DataDirOption, load_config

EXAMPLE = "Example: wal-ingest serve --config /etc/wal-ingest/wal-ingest.toml --data-dir /var/lib/wal-ingest"


def serve(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    bind: Annotated[
        str | None,
        typer.Option(
            "--bind",
            metavar="HOST:PORT",
            help="Address to listen on.  [default: 127.0.0.1:8400]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the node: take points over HTTP and streams, make them durable, deliver them.

    Prints one line when it is ready. SIGTERM or Ctrl-C stops it: requests under way are answered first.
    SIGHUP and SIGUSR1 change nothing: settings are read only at start.
    """
    from wal_ingest.listeners import open_sockets
    from wal_ingest.signals import ignore_reload_signals

    # Before anything that takes time: until then the default action of these signals ends the process.
    ignore_reload_signals()
    settings = load_config(config, data_dir=data_dir, server__bind=bind).settings

    # The address first: a second server on the same port must not touch a data directory, and senders that come from
    # here on wait instead of being refused.
    sockets = open_sockets(settings.server.bind)

    import trio

    from wal_ingest.service import Service
    from wal_ingest.telemetry import configure_logging, secrets_in

    configure_logging(settings.log, secrets=secrets_in(settings), in_background=True)

    def ready(address: str) -> None:
        print(
            f"wal-ingest {wal_ingest.__version__} ready on {address}, data in {settings.server.data_dir}",
            flush=True,
        )

    sys.exit(trio.run(Service(settings, sockets=sockets, ready=ready).run))
