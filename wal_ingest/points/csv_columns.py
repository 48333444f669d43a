"""A column of CSV cells as the texts that stand in lines: numbers, strings, booleans, tag values, times. Pure.

Every function takes a whole column, and looks at single cells only where one expression over all of them says no.
An empty cell is a value that is not there and gives an empty text. `Bad` has the rows that a line cannot carry, with
the reason; their texts mean nothing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from wal_ingest.points.lines import Precision
from wal_ingest.points.names import IN_TAG, name_text, string_text

Cells = Sequence[str]
Bad = dict[int, str]


class FieldType(enum.Enum):
    """What a column's values become."""

    FLOAT = "float"
    INT = "int"
    STRING = "string"
    BOOL = "bool"


_FLOAT = r"-?(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?+"
_INT = r"-?[0-9]++"
_FLOATS = re.compile(rf"(?:(?:{_FLOAT})?+\n)*+(?:{_FLOAT})?+")
_INTS = re.compile(rf"(?:(?:{_INT})?+\n)*+(?:{_INT})?+")
_ONE_FLOAT = re.compile(_FLOAT)
_ONE_INT = re.compile(_INT)
_ONE_DECIMAL = re.compile(r"-?[0-9]++\.[0-9]++")
_FRACTION = re.compile(r"(.+:[0-9]{2})[.,]([0-9]{1,9})[0-9]*+(.*)")
_BOOLS = {
    **dict.fromkeys(("true", "t", "yes", "1"), "true"),
    **dict.fromkeys(("false", "f", "no", "0"), "false"),
    "": "",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def guess_type(cells: Cells) -> FieldType:
    """What a column seems to hold: text only where no cell is a number, so that one odd cell changes no type.

    Numbers are floats, whole ones too: the 1.5 behind a 1 would conflict with it in the database.
    """
    values = {cell.strip() for cell in cells} - {""}
    if not values or any(_ONE_FLOAT.fullmatch(value.removeprefix("+")) for value in values):
        return FieldType.FLOAT
    if {value.lower() for value in values} <= {"true", "false"}:
        return FieldType.BOOL
    return FieldType.STRING


def field_texts(cells: Cells, kind: FieldType) -> tuple[Cells, Bad]:
    """Values as they stand behind a field's `=`."""
    return _WRITERS[kind](cells)


def tag_texts(cells: Cells, key: str) -> tuple[Cells, Bad]:
    """Tags with the comma in front of them; `key` as it stands in a line. Every different value is looked at once."""
    return _mapped(cells, lambda cell: f",{key}={name_text(cell, 'tag value', IN_TAG)}" if cell else "")


def measurement_texts(cells: Cells, write: Callable[[str], str]) -> tuple[Cells, Bad]:
    """Measurements; `write` gives one as it stands in a line, or raises ValueError."""
    return _mapped(cells, write)


def time_texts(cells: Cells, unit: Precision | None) -> tuple[Cells, Bad]:
    """Times in nanoseconds: numbers of that unit, or ISO 8601 (RFC 3339); without an offset they are UTC."""
    if unit is not None and "" not in cells and _all(_INTS, cells):
        zeros = str(unit.value)[1:]
        return [cell + zeros for cell in cells] if zeros else cells, {}
    return _mapped(cells, lambda cell: str(_time_ns(cell.strip(), unit)))


def _floats(cells: Cells) -> tuple[Cells, Bad]:
    if _all(_FLOATS, cells):
        return cells, {}
    return _mapped(cells, lambda cell: _number(cell, _ONE_FLOAT, "number"))


def _ints(cells: Cells) -> tuple[Cells, Bad]:
    if _all(_INTS, cells):
        return [cell and cell + "i" for cell in cells], {}
    return _mapped(cells, lambda cell: cell and _number(cell, _ONE_INT, "whole number") + "i")


def _strings(cells: Cells) -> tuple[Cells, Bad]:
    return _mapped(cells, lambda cell: cell and string_text(cell))


def _bools(cells: Cells) -> tuple[Cells, Bad]:
    return _mapped(cells, _bool)


_WRITERS = {
    FieldType.FLOAT: _floats,
    FieldType.INT: _ints,
    FieldType.STRING: _strings,
    FieldType.BOOL: _bools,
}


def _all(pattern: re.Pattern[str], cells: Cells) -> bool:
    joined = "\n".join(cells)
    return pattern.fullmatch(joined) is not None and joined.count("\n") == len(cells) - 1


def _mapped(cells: Cells, write: Callable[[str], str]) -> tuple[Cells, Bad]:
    """Each different cell written once."""
    texts: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for cell in set(cells):
        try:
            texts[cell] = write(cell)
        except ValueError as exc:
            texts[cell], reasons[cell] = "", str(exc)
    bad = {row: reasons[cell] for row, cell in enumerate(cells) if cell in reasons} if reasons else {}
    return list(map(texts.__getitem__, cells)), bad


def _number(cell: str, pattern: re.Pattern[str], what: str) -> str:
    text = cell.strip().removeprefix("+")
    if text and not pattern.fullmatch(text):
        raise ValueError(f"{cell[:40]!r} is no {what}")
    return text


def _bool(cell: str) -> str:
    try:
        return _BOOLS[cell.strip().lower()]
    except KeyError:
        raise ValueError(f"{cell[:40]!r} is neither true nor false") from None


def _time_ns(text: str, unit: Precision | None) -> int:
    if not text:
        raise ValueError("no time")
    if _ONE_INT.fullmatch(text) or _ONE_DECIMAL.fullmatch(text):
        if unit is None:
            raise ValueError(f"{text[:40]!r} is a number, and nobody said of what unit")
        if len(text) > 40:
            raise ValueError(f"{text[:40]!r}… is no time")
        return int(Decimal(text) * unit.value)
    fraction_ns = 0
    if found := _FRACTION.fullmatch(text):
        text, fraction_ns = found[1] + found[3], int(found[2].ljust(9, "0"))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no time") from None
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH
    return since // _MICROSECOND * 1_000 + fraction_ns
