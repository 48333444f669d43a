"""What a probe read, and how it is written as a line. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from wal_ingest.points.names import IN_FIELD_KEY, IN_MEASUREMENT, IN_TAG, name_text

Value = int | float | bool

INT_MAX = 2**63 - 1

# Control characters, and a backslash where it would escape what follows.
_NOT_CARRIED = re.compile(r"[\x00-\x1f\x7f]|\\(?=\\*(?:[ ,=]|\Z))")


@dataclass(frozen=True, slots=True)
class Reading:
    """One line's worth of figures. A value of None was not to be had, and is left out."""

    measurement: str
    fields: Mapping[str, Value | None]
    tags: Mapping[str, str] = field(default_factory=dict)


def line_of(reading: Reading, tags: Mapping[str, str], time_ns: int) -> str:
    """The reading as a canonical line, its own tags and `tags` together; empty when none of its fields has a value.

    Left out are tags that are empty, and values that no line can carry: NaN, infinities, integers beyond 64 bits.
    What a tag value cannot carry (a line feed in the path of a mount) becomes an underscore: an odd name is better
    than a file system that nobody watches.
    """
    fields = [
        f"{name_text(key, 'field', IN_FIELD_KEY)}={text}"
        for key, value in reading.fields.items()
        if (text := _value_text(value))
    ]
    if not fields:
        return ""
    pairs = sorted({**tags, **reading.tags}.items())
    head = "".join(
        f",{name_text(key, 'tag', IN_TAG)}={name_text(carried(value), 'tag value', IN_TAG)}"
        for key, value in pairs
        if value
    )
    return f"{name_text(reading.measurement, 'measurement', IN_MEASUREMENT)}{head} {','.join(fields)} {time_ns}\n"


def carried(name: str) -> str:
    """The name with an underscore for everything that a line cannot carry."""
    # What a file system gives and UTF-8 cannot say comes as a lone surrogate.
    return _NOT_CARRIED.sub("_", name.encode(errors="replace").decode())


def _value_text(value: Value | None) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value}i" if abs(value) <= INT_MAX else ""
    return repr(float(value)) if math.isfinite(value) else ""
