"""Finds the settings of the node that a command is about, so that it never checks or writes to another database.

`settings_of_node` is for commands that write to a sink, or look at one:

1. `--config FILE`, when it is given: to try a file before the node is restarted with it.
2. The settings of the node that has the directory open, as it has them itself, over the control socket.
3. Where no node runs: `$WAL_INGEST_CONFIG`, `./wal-ingest.toml`, `/etc/wal-ingest/wal-ingest.toml`, the first that
   is there, else the defaults.

The environment's variables go over each of these, and `--data-dir` over them. Which it was is said on standard error;
standard output is for the result. A node that runs and does not report its settings is an error: the defaults would
look right and be another node's.

`settings_on_disk` is for all other commands, which need the directory, and while no node runs its limits: 1 and 3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wal_ingest.cli.output import not_permitted
from wal_ingest.config import (
    ENV_CONFIG,
    FIELDS,
    FROM_DEFAULT,
    Config,
    Value,
    env_name,
    load,
    search,
)
from wal_ingest.errors import WalIngestError
from wal_ingest.settings import Settings
from wal_ingest.wal.directory import holder_of

_DATA_DIR = FIELDS["server.data_dir"]


def settings_of_node(file: Path | None, *, data_dir: str | None) -> Settings:
    """The settings of the node that a data directory belongs to. Prints to standard error where they come from.

    Raises `ConfigError`; `WalIngestError` when a node runs and does not report its settings.
    """
    if file is None:
        # Where the directory is known, no file needs to be read (nor to be right) to ask the node in it.
        directory = (
            data_dir or os.environ.get(env_name(_DATA_DIR)) or _found(data_dir).settings.server.data_dir
        )
        if holder_of(Path(directory)) is not None:
            return _of_running(directory)
    config = _found(data_dir) if file is None else _loaded(file, data_dir)
    running = holder_of(Path(config.settings.server.data_dir)) is not None
    _say(_words(config, file or search(os.environ), running=running))
    return config.settings


def settings_on_disk(file: Path | None, *, data_dir: str | None) -> Settings:
    """The settings for a command that needs no sink. Names a file that was searched for on standard error.

    Raises `ConfigError`.
    """
    found = search(os.environ) if file is None else None
    config = _loaded(file or found, data_dir)
    if found is not None and not os.environ.get(ENV_CONFIG):
        _say(f"{found}{_other_directory(found, config)}")
    return config.settings


def directory_of(file: Path | None, *, data_dir: str | None) -> Path:
    """The data directory for a command that only looks; where it is given, no file is searched for.

    Raises `ConfigError`.
    """
    if file is None and (data_dir or os.environ.get(env_name(_DATA_DIR))):
        return Path(data_dir or os.environ[env_name(_DATA_DIR)])
    return Path(settings_on_disk(file, data_dir=data_dir).server.data_dir)


def _found(data_dir: str | None) -> Config:
    return _loaded(search(os.environ), data_dir)


def _loaded(file: Path | None, data_dir: str | None, base: Mapping[str, Value] | None = None) -> Config:
    return load(file, environ=os.environ, flags={_DATA_DIR.name: data_dir}, base=base)


def _of_running(directory: str) -> Settings:
    origin = f"those of the node that runs on {directory}"
    told = _ask(Path(directory))
    # A node of another version may have settings that this one does not know, or lack some.
    base = {name: Value(told[name], origin, typed=True) for name in FIELDS if name in told}
    # The directory by the name that it was reached by: the node's may be relative to another working directory.
    config = _loaded(None, directory, base)
    over = [
        config.origins[name]
        for name, value in base.items()
        if name != _DATA_DIR.name and _value(config.settings, name) != value.value
    ]
    _say(origin + (f", with {', '.join(over)} of this environment" if over else ""))
    return config.settings


def _ask(directory: Path) -> dict[str, Any]:
    # Here, because it brings Trio with it, which takes as long to import as all else that a command needs.
    from wal_ingest.control import NoControl, ask

    try:
        told: dict[str, Any] = ask(directory, "settings")
    except NoControl as exc:
        if isinstance(exc.__cause__, PermissionError):
            raise not_permitted(directory, exc.__cause__.strerror or "permission denied") from exc
        exc.hint += "; or name the node's settings with --config FILE"
        raise
    except WalIngestError as exc:
        error = WalIngestError(f"the node that has {directory} open does not report its settings: {exc}")
        error.hint = "it is of an older version: restart it, or name its settings with --config FILE"
        raise error from exc
    return told


def _value(settings: Settings, name: str) -> object:
    section, _, key = name.partition(".")
    return getattr(getattr(settings, section), key)


def _words(config: Config, file: Path | None, *, running: bool) -> str:
    directory = config.settings.server.data_dir
    over = sorted(
        {
            origin
            for origin in config.origins.values()
            if origin not in (FROM_DEFAULT, str(file), "command line")
        }
    )
    variables = f", with {', '.join(over)} of this environment" if over else ""
    if file is not None and running:
        return f"{file}{variables}, not those of the node that runs on {directory}"
    if file is not None:
        return f"{file}{_other_directory(file, config)}{variables}; no node runs on {directory}"
    return f"the defaults{variables}; no node runs on {directory}, and there is no settings file"


def _other_directory(file: Path, config: Config) -> str:
    """A note when the settings file that was found names another data directory."""
    if config.origins[_DATA_DIR.name] == str(file):
        return ""
    named = load(file, environ={}).settings.server.data_dir
    if Path(named).absolute() == Path(config.settings.server.data_dir).absolute():
        return ""
    return f" (whose data directory is {named})"


def _say(words: str) -> None:
    sys.stderr.write(f"settings: {words}\n")
    sys.stderr.flush()
