"""Fills the settings table: file < environment < command line, and remembers where each value came from.

* The file is TOML with one table per section.
* The environment: `WAL_INGEST_<SECTION>__<KEY>`, and, weaker than those, the names that InfluxDB's own tools use
  (`INFLUXDB_URL`, `INFLUXDB_TOKEN`, `INFLUXDB_ORG`, `INFLUXDB_BUCKET`).
* An unknown key is an error that names the nearest known one: a typo must not turn a limit off silently.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from msgspec.structs import fields

from wal_ingest.errors import ConfigError
from wal_ingest.settings import Settings

ENV_PREFIX = "WAL_INGEST_"
ENV_CONFIG = "WAL_INGEST_CONFIG"
# The token of those who send to a node: their own, and no setting.
ENV_TOKEN = "WAL_INGEST_TOKEN"
ENV_ALIASES = {
    "INFLUXDB_URL": "influxdb.url",
    "INFLUXDB_TOKEN": "influxdb.token",
    "INFLUXDB_ORG": "influxdb.org",
    "INFLUXDB_BUCKET": "influxdb.bucket",
}
FROM_DEFAULT = "default"
MASK = "********"


@dataclass(frozen=True, slots=True)
class Field:
    """One line of the settings table."""

    section: str
    key: str
    type: Any
    default: Any
    why: str
    secret: bool

    @property
    def name(self) -> str:
        """`section.key`, as it is written everywhere."""
        return f"{self.section}.{self.key}"


@dataclass(frozen=True, slots=True)
class Value:
    """A value and where it came from: a file's path, a variable's name, or the command line.

    `typed` says that the value had a type of its own where it was written (a file), as text has not.
    """

    value: Any
    origin: str
    typed: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings, and the origin of each by its name (`section.key`)."""

    settings: Settings
    origins: Mapping[str, str]

    def rows(self) -> Iterator[tuple[Field, Any, str]]:
        """Each field with its effective value (a secret masked) and its origin."""
        for field in FIELDS.values():
            value = getattr(getattr(self.settings, field.section), field.key)
            yield field, MASK if field.secret and value else value, self.origins[field.name]


def _table() -> dict[str, Field]:
    table = {}
    for section in fields(Settings):
        hints = get_type_hints(section.type, include_extras=True)
        for field in fields(section.type):
            meta = hints[field.name].__metadata__[0]
            entry = Field(
                section.name,
                field.name,
                hints[field.name],
                field.default,
                meta.description,
                bool((meta.extra or {}).get("secret")),
            )
            table[entry.name] = entry
    return table


FIELDS: dict[str, Field] = _table()
SECTIONS: dict[str, str] = {
    section.name: (section.type.__doc__ or "").partition(": ")[2] for section in fields(Settings)
}


def load(
    file: Path | None = None,
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """The effective settings. `flags` are by name (`section.key`); a None among them was not given.

    Raises `ConfigError` naming the value, where it came from, and what is wrong with it.
    """
    values: dict[str, Value] = {}
    if file is None and environ.get(ENV_CONFIG):
        file = Path(environ[ENV_CONFIG])
    if file is not None:
        values.update(_from_file(file))
    values.update(_from_environment(environ))
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = Value(value, "command line")
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for name, given in values.items():
        field = FIELDS[name]
        sections[field.section][field.key] = _converted(field, given)
    settings = Settings(
        **{section.name: section.type(**sections[section.name]) for section in fields(Settings)}
    )
    _check_together(settings)
    origins = {name: values[name].origin if name in values else FROM_DEFAULT for name in FIELDS}
    return Config(settings, origins)


def sample() -> str:
    """A configuration file that says every default, each with its reason."""
    lines = ["# wal-ingest: every setting with its default. Delete what you do not change.", ""]
    section = ""
    for field in FIELDS.values():
        if field.section != section:
            section = field.section
            lines += [f"[{section}]", f"# {_sentence(SECTIONS[section])}", ""]
        lines += [f"# {field.why}", f"{field.key} = {_toml(field.default)}", ""]
    return "\n".join(lines)


def _from_file(path: Path) -> Iterator[tuple[str, Value]]:
    try:
        tables = tomllib.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", hint="name a readable file with --config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}", hint="`wal-ingest config sample` prints a correct file") from exc
    for section, table in tables.items():
        if section not in SECTIONS:
            raise ConfigError(f"{path}: unknown section [{section}]", hint=_nearest(section, SECTIONS))
        if not isinstance(table, dict):
            raise ConfigError(
                f"{path}: [{section}] must be a table", hint=f"write [{section}] on a line of its own"
            )
        for key, value in table.items():
            name = f"{section}.{key}"
            if name not in FIELDS:
                raise ConfigError(f"{path}: unknown setting {name}", hint=_nearest(name, FIELDS))
            yield name, Value(value, str(path), typed=True)


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Value]]:
    for variable, name in ENV_ALIASES.items():
        if environ.get(variable):
            yield name, Value(environ[variable], variable)
    names = {env_name(field): field.name for field in FIELDS.values()}
    for variable in sorted(environ):
        if variable in (ENV_CONFIG, ENV_TOKEN) or not variable.startswith(ENV_PREFIX):
            continue
        if variable not in names:
            raise ConfigError(
                f"unknown setting {variable} in the environment", hint=_nearest(variable, names)
            )
        yield names[variable], Value(environ[variable], variable)


def env_name(field: Field) -> str:
    """The variable that sets a field."""
    return f"{ENV_PREFIX}{field.section}__{field.key}".upper()


def _converted(field: Field, given: Value) -> Any:
    try:
        # A variable and a flag are text; in a file, "8" for 8 is a mistake to be told of.
        return msgspec.convert(given.value, field.type, strict=given.typed)
    except msgspec.ValidationError as exc:
        shown = MASK if field.secret else repr(given.value)
        raise ConfigError(f"{field.name} = {shown} ({given.origin}): {exc}", hint=field.why) from exc


def _check_together(settings: Settings) -> None:
    """What no single value can tell."""
    influxdb = settings.influxdb
    if influxdb.url and not influxdb.url.startswith(("http://", "https://")):
        raise ConfigError(
            f"influxdb.url = {influxdb.url!r}: it must begin with http:// or https://",
            hint="for instance http://localhost:8086",
        )
    if influxdb.url and not influxdb.bucket and influxdb.destination == "settings":
        raise ConfigError(
            "influxdb.url is set but influxdb.bucket is not",
            hint="set influxdb.bucket (INFLUXDB_BUCKET), the bucket that points are written to",
        )
    if settings.flusher.retry_s_min > settings.flusher.retry_s_max:
        raise ConfigError(
            "flusher.retry_s_min is larger than flusher.retry_s_max", hint="the first wait is the shortest"
        )
    if not influxdb.url and settings.archive.enabled == "off":
        raise ConfigError(
            "no sink is on: influxdb.url is empty and archive.enabled is off",
            hint="set influxdb.url, or leave the archive on",
        )


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "`wal-ingest config` lists them all"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
