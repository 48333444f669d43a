"""The options that several commands share, and how they become settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from wal_ingest.config import ENV_TOKEN, Config, load
from wal_ingest.errors import ConfigError
from wal_ingest.units import parse_seconds

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings file (TOML). Also WAL_INGEST_CONFIG.", show_default=False
    ),
]
NodeConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default=False,
        help="Settings file (TOML).  [default: the running node's settings, else WAL_INGEST_CONFIG, "
        "./wal-ingest.toml, /etc/wal-ingest/wal-ingest.toml]",
    ),
]
FoundConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default=False,
        help="Settings file (TOML).  [default: WAL_INGEST_CONFIG, ./wal-ingest.toml, "
        "/etc/wal-ingest/wal-ingest.toml]",
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


def _token(help_text: str) -> Any:
    return typer.Option("--token", metavar="TOKEN", envvar=ENV_TOKEN, show_default=False, help=help_text)


def _token_file(help_text: str) -> Any:
    return typer.Option("--token-file", metavar="FILE", show_default=False, help=help_text)


# For commands that have `--url` too, and for those that always send to a node.
TokenOption = Annotated[
    str, _token("With --url: the server's write token. Better in a file or the environment.")
]
TokenFileOption = Annotated[Path | None, _token_file("With --url: a file with the server's write token.")]
SendersTokenOption = Annotated[
    str,
    _token("The node's write token. Better in a file or the environment, where other users do not see it."),
]
SendersTokenFileOption = Annotated[Path | None, _token_file("A file with the node's write token.")]
GiveUpOption = Annotated[
    str | None,
    typer.Option(
        "--give-up-after",
        metavar="DURATION",
        show_default=False,
        help="End with exit code 1 when the node takes nothing for so long, such as 90s or 10m.  [default: never]",
    ),
]


def give_up_s_of(text: str | None) -> float | None:
    """The seconds of `--give-up-after`; a bare number is seconds. Raises `ConfigError`."""
    if text is None:
        return None
    seconds = float(text) if text.isascii() and text.isdigit() else parse_seconds(text)
    if not seconds:
        raise ConfigError(f"--give-up-after {text!r} is no duration", hint="give one like 90s, 10m or 1h")
    return seconds


def token_of(token: str, file: Path | None) -> str:
    """The write token of the options; a file that was named goes before the environment.

    Raises `ConfigError` for a file that has none, and where the command line names both.
    """
    if file is None:
        return token
    if token and token != os.environ.get(ENV_TOKEN):
        raise ConfigError("--token and --token-file exclude each other", hint="give one of them")
    return token_in(file)


def token_in(file: Path) -> str:
    """The token that a file holds. Raises `ConfigError` where it holds none."""
    try:
        found = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigError(f"{file}: the token cannot be read: {reason}") from exc
    if not found:
        raise ConfigError(f"{file}: there is no token in it", hint="write the token into it")
    return found


def load_config(file: Path | None, *, data_dir: str | None = None, **flags: Any) -> Config:
    """The settings as `serve` takes them: no file is searched for. `flags` by name, a double underscore for the point.

    Commands that work on a node's directory have those of `wal_ingest.cli.node_settings`.
    """
    named = {name.replace("__", ".", 1): value for name, value in flags.items()}
    return load(
        file,
        environ=os.environ,
        flags={"server.data_dir": data_dir, **named},
    )
