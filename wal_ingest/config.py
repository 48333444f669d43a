"""Fills the settings table: file < environment < command line, and remembers where each value came from.

* The file is TOML with one table per section.
* The environment: `WAL_INGEST_<SECTION>__<KEY>`, and, weaker than those, the names that InfluxDB's own tools use
  (`INFLUXDB_URL`, `INFLUXDB_TOKEN`, `INFLUXDB_ORG`, `INFLUXDB_BUCKET`).
* An unknown key is an error that names the nearest known one: a typo must not turn a limit off silently.
* Sizes and durations may have units, `"50GiB"` and `"1h"`; a bare number is in the unit at the end of the name.
* All mistakes are reported at once, those in a file with their lines.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from msgspec.structs import fields

from wal_ingest.addresses import check_database_url, parse_bind, without_password
from wal_ingest.errors import ConfigError
from wal_ingest.points.json_words import value_reason
from wal_ingest.settings import Settings
from wal_ingest.units import parse_bytes, parse_seconds

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
# Where commands look for the settings of a node that does not run; see `search`.
SEARCHED = (Path("wal-ingest.toml"), Path("/etc/wal-ingest/wal-ingest.toml"))
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

    `typed` says that the value had a type of its own where it was written (a file), as text has not. `line` is its
    line in the file, 0 where it has none.
    """

    value: Any
    origin: str
    typed: bool = False
    line: int = 0

    @property
    def place(self) -> str:
        """The origin, and the line where there is one."""
        return f"{self.origin}, line {self.line}" if self.line else self.origin


@dataclass(frozen=True, slots=True)
class Config:
    """The effective settings, and the origin of each by its name (`section.key`)."""

    settings: Settings
    origins: Mapping[str, str]

    def rows(self) -> Iterator[tuple[Field, Any, str]]:
        """Each field with its effective value (a secret masked) and its origin."""
        for field in FIELDS.values():
            value = getattr(getattr(self.settings, field.section), field.key)
            if isinstance(value, str):
                value = without_password(value)
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
    base: Mapping[str, Value] | None = None,
) -> Config:
    """The effective settings. `flags` are by name (`section.key`); a None among them was not given.

    `base` stands in the place of a file: values that are known already, by name.

    Everything that `serve` would refuse is refused here, but for what only the machine can tell (an address in use).
    Raises `ConfigError` naming each value that is wrong, where it came from, and what is wrong with it.
    """
    mistakes = _Mistakes()
    values: dict[str, Value] = {}
    if base is not None:
        values.update(base)
    elif file := file or named_file(environ):
        values.update(_from_file(file, mistakes))
    values.update(_from_environment(environ, mistakes))
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = Value(value, "command line")
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for name, given in values.items():
        field = FIELDS[name]
        with mistakes:
            sections[field.section][field.key] = _converted(field, given)
    settings = Settings(
        **{section.name: section.type(**sections[section.name]) for section in fields(Settings)}
    )
    for rule in _RULES:
        with mistakes:
            rule(settings)
    mistakes.raise_any()
    origins = {name: values[name].origin if name in values else FROM_DEFAULT for name in FIELDS}
    return Config(settings, origins)


def named_file(environ: Mapping[str, str]) -> Path | None:
    """The file that `WAL_INGEST_CONFIG` names; None when it names none."""
    return Path(environ[ENV_CONFIG]) if environ.get(ENV_CONFIG) else None


def search(environ: Mapping[str, str]) -> Path | None:
    """The settings file of a node: the one that `WAL_INGEST_CONFIG` names, else the first of `SEARCHED` that is there.

    Raises `ConfigError` for one that this user may not look at: to pass over it would be to take other settings.
    """
    if named := named_file(environ):
        return named
    for path in SEARCHED:
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            raise ConfigError(
                f"{path}: {exc.strerror}", hint="run the command as the node's user, or give --config FILE"
            ) from exc
        return path
    return None


class _Mistakes:
    """Collects the `ConfigError`s of its `with` blocks, so that all of them are reported at once."""

    def __init__(self) -> None:
        self._found: list[ConfigError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, exc: BaseException | None, _trace: object) -> bool:
        if isinstance(exc, ConfigError):
            self._found.append(exc)
            return True
        return False

    def raise_any(self) -> None:
        """Raises the one mistake as it is, and several as one error with a line for each."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            lines = [f"{exc} (try: {exc.hint})" if exc.hint else str(exc) for exc in self._found]
            raise ConfigError(
                f"{len(lines)} mistakes in the settings:" + "".join(f"\n  {line}" for line in lines),
                hint="`wal-ingest config sample` prints a correct file",
            )


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


def _from_file(path: Path, mistakes: _Mistakes) -> Iterator[tuple[str, Value]]:
    try:
        # Some editors begin a file with a byte order mark, which is no TOML.
        text = path.read_text("utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}", hint="name a readable file with --config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: {exc}", hint="`wal-ingest config sample` prints a correct file") from exc
    lines = _lines_of(text)
    for section, table in tables.items():
        place = _place(path, lines.get(section, 0))
        if section not in SECTIONS:
            with mistakes:
                raise ConfigError(f"{place}: unknown section [{section}]", hint=_nearest(section, SECTIONS))
            continue
        if not isinstance(table, dict):
            with mistakes:
                raise ConfigError(
                    f"{place}: [{section}] must be a table", hint=f"write [{section}] on a line of its own"
                )
            continue
        for key, value in table.items():
            name = f"{section}.{key}"
            line = lines.get(name, 0)
            if name in FIELDS:
                yield name, Value(value, str(path), typed=True, line=line)
                continue
            with mistakes:
                raise ConfigError(
                    f"{_place(path, line)}: unknown setting {name}", hint=_nearest(name, FIELDS)
                )


_TABLE_LINE = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]")
_KEY_LINE = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=")


def _lines_of(text: str) -> dict[str, int]:
    """The lines, from 1, of the sections and settings in a file as people write it; the parser does not tell them."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if table := _TABLE_LINE.match(line):
            section = table[1]
            lines.setdefault(section, number)
        elif key := _KEY_LINE.match(line):
            lines.setdefault(f"{section}.{key[1]}" if section else key[1], number)
    return lines


def _place(path: Path, line: int) -> str:
    return f"{path}, line {line}" if line else str(path)


def _from_environment(environ: Mapping[str, str], mistakes: _Mistakes) -> Iterator[tuple[str, Value]]:
    for variable, name in ENV_ALIASES.items():
        if environ.get(variable):
            yield name, Value(environ[variable], variable)
    names = {env_name(field): field.name for field in FIELDS.values()}
    for variable in sorted(environ):
        if variable in (ENV_CONFIG, ENV_TOKEN) or not variable.startswith(ENV_PREFIX):
            continue
        if variable not in names:
            with mistakes:
                raise ConfigError(
                    f"unknown setting {variable} in the environment", hint=_nearest(variable, names)
                )
            continue
        yield names[variable], Value(environ[variable], variable)


def env_name(field: Field) -> str:
    """The variable that sets a field."""
    return f"{ENV_PREFIX}{field.section}__{field.key}".upper()


def _converted(field: Field, given: Value) -> Any:
    value = given.value
    if isinstance(value, str):
        value = _with_unit(field, value)
    try:
        # A variable and a flag are text; in a file, "8" for 8 is a mistake to be told of.
        return msgspec.convert(value, field.type, strict=given.typed)
    except msgspec.ValidationError as exc:
        shown = MASK if field.secret else repr(given.value)
        raise ConfigError(
            f"{field.name} = {shown} ({given.place}): {value_reason(str(exc))}", hint=field.why
        ) from exc


def _with_unit(field: Field, text: str) -> Any:
    """The number that a text with a unit stands for, where the setting is a size or a duration; else the text."""
    words = field.key.split("_")
    number: float | None = None
    if "bytes" in words:
        number = parse_bytes(text)
    elif "s" in words:
        number = parse_seconds(text)
    return text if number is None else number


def _check_bind(settings: Settings) -> None:
    parse_bind(settings.server.bind)


def _check_influxdb_url(settings: Settings) -> None:
    influxdb = settings.influxdb
    if influxdb.url:
        check_database_url("influxdb.url", influxdb.url)
    if influxdb.url and not influxdb.bucket and influxdb.destination == "settings":
        raise ConfigError(
            "influxdb.url is set but influxdb.bucket is not",
            hint="set influxdb.bucket (INFLUXDB_BUCKET), the bucket that points are written to",
        )


def _check_influxdb_token(settings: Settings) -> None:
    token = settings.influxdb.token
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("influxdb.token holds characters that no HTTP header may carry")


def _check_waits(settings: Settings) -> None:
    if settings.flusher.retry_s_min > settings.flusher.retry_s_max:
        raise ConfigError(
            "flusher.retry_s_min is larger than flusher.retry_s_max", hint="the first wait is the shortest"
        )


def _check_sinks(settings: Settings) -> None:
    if not settings.influxdb.url and settings.archive.enabled == "off":
        raise ConfigError(
            "no sink is on: influxdb.url is empty and archive.enabled is off",
            hint="set influxdb.url, or leave the archive on",
        )


# What no single value's type can tell.
_RULES: tuple[Callable[[Settings], None], ...] = (
    _check_bind,
    _check_influxdb_url,
    _check_influxdb_token,
    _check_waits,
    _check_sinks,
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
