"""How a file's points are written: told by the command line, the file's ending, or its first byte."""

from __future__ import annotations

import enum
from pathlib import PurePath

import msgspec

from wal_ingest.errors import ConfigError


class Format(enum.Enum):
    """How points are written in a file. Of CSV line protocol is made; the others are sent as they are."""

    LINES = "lines"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"


_ENDINGS = {
    ".lp": Format.LINES,
    ".line": Format.LINES,
    ".json": Format.JSON,
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
}


def named_format(name: str) -> Format:
    """The format that somebody typed. Raises `ConfigError`."""
    try:
        return Format(name)
    except ValueError:
        raise ConfigError(
            f"{name!r} is no format", hint=f"give one of {', '.join(each.value for each in Format)}"
        ) from None


def format_of(name: str, begin: bytes) -> Format:
    """The format of a file by its name, or, where that does not tell, by its first bytes."""
    path = PurePath(name)
    if path.suffix.lower() == ".gz":
        path = path.with_suffix("")
    if known := _ENDINGS.get(path.suffix.lower()):
        return known
    text = begin.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"[":
        return Format.JSON
    if text[:1] == b"{":
        return Format.NDJSON if _is_object(text.partition(b"\n")[0]) else Format.JSON
    return Format.LINES


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except msgspec.DecodeError:
        return False
