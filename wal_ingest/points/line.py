"""One point as a line, for whoever instruments a program. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from wal_ingest.errors import PointError
from wal_ingest.points.exact import TIME_NS_MAX, TIME_NS_MIN
from wal_ingest.points.names import (
    IN_FIELD_KEY,
    IN_MEASUREMENT,
    IN_TAG,
    check_runs,
    name_text,
    string_text,
)

FieldValue = float | int | str | bool


def line(
    measurement: str,
    tags: Mapping[str, str],
    fields: Mapping[str, FieldValue],
    time_ns: int | None = None,
) -> str:
    """A point in line protocol, escaped, without a line feed behind it.

    An `int` becomes an integer field, which a database keeps apart from a float one: write `1.0` where a value may have
    a fraction later. `time_ns` is Unix time in nanoseconds; without it the point is stamped when it is handed over.

    Raises PointError for what a line cannot carry: no fields, an empty name or tag value, a line feed in one, a
    backslash where it would escape what follows, a number that is infinite, none, or out of range.
    """
    try:
        head = [name_text(measurement, "measurement", IN_MEASUREMENT)]
        for key, value in tags.items():
            head.append(f"{name_text(key, 'tag key', IN_TAG)}={name_text(value, 'tag value', IN_TAG)}")
        if not fields:
            raise ValueError("no fields")
        written = [
            f"{name_text(key, 'field key', IN_FIELD_KEY)}={_value(value)}" for key, value in fields.items()
        ]
        text = f"{','.join(head)} {','.join(written)}"
        check_runs(",".join(head), ",".join(written))
    except ValueError as exc:
        raise PointError(str(exc)) from None
    if time_ns is None:
        return text
    if not TIME_NS_MIN <= time_ns <= TIME_NS_MAX:
        raise PointError("the time is out of range")
    return f"{text} {int(time_ns)}"


def _value(value: FieldValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return string_text(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a field value that is {value}: line protocol has finite numbers only")
        return float.__repr__(value)
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return f"{value}i"
        if 0 <= value < 2**64:
            return f"{value}u"
        raise ValueError("an integer that is out of range")
    raise ValueError(f"a field value of the type {type(value).__name__}: numbers, strings and booleans only")
