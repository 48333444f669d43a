"""The options that several commands share, and how they become settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from wal_ingest.config import Config, load

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings file (TOML). Also WAL_INGEST_CONFIG.", show_default=False
    ),
]
# Text, not a path: what is printed is what was typed.
DataDirOption = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Directory of the WAL, its state and the archive.  [default: ./data]",
        show_default=False,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load_config(file: Path | None, *, data_dir: str | None = None, **flags: Any) -> Config:
    """The effective settings of a command. `flags` by name, a double underscore for the point."""
    named = {name.replace("__", ".", 1): value for name, value in flags.items()}
    return load(
        file,
        environ=os.environ,
        flags={"server.data_dir": data_dir, **named},
    )
