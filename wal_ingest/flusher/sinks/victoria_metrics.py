r"""Canonical lines as VictoriaMetrics reads them: rewritten where it would read another point, or refused. Pure.

It answers 204 to every line, also to those that it skips or reads as something else. Measured with VictoriaMetrics
1.79.5 and InfluxDB 1.6.7:

| in a canonical line | VictoriaMetrics reads | here |
|---|---|---|
| a line feed in a string | no point; each part is a line of its own, hence perhaps a point of any series | a space |
| two backslashes in a row in a name | one; before a space or comma the name ends | each is doubled |
| `\"` in a measurement or a field's key, a quote to InfluxDB | `\"` | `"` |
| `1.`, `.5`, `1.e3` | 0 | `1.0`, `0.5`, `1.0e3` |
| the time 0 | the present | 1 ns, which is the same millisecond |
| an odd number of quotes in a field's key | a part of the fields, at the present time | refused |
| a tag `__name__` | no such tag: points of two series become one's | refused |
| a time before 1970 | nothing | refused |
| more than 256 KiB (`-influx.maxLineSize`) | 400, and no line of the request | its strings are replaced, else refused |

The text of a string does not matter: VictoriaMetrics keeps a number for it, 0 where it is none. Read the same are tab,
NUL, other control characters, carriage returns, quotes in measurements and tags, and strings without a line feed.

What depends on the server's own flags cannot be known here: points outside its retention, labels beyond the number
that it keeps for a series, and the ends of very long values are left out by it without a word.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from wal_ingest.points import split_points
from wal_ingest.points.engine import ENGINES, Engine, Pattern
from wal_ingest.points.grammar import quoted_string
from wal_ingest.points.reading import start_of_long_line

_NAME = rb"((?:[^\\,= ]|\\[,= ]?)++)"
_MEASUREMENT = re.compile(rb"((?:[^\\, ]|\\[, ]?)++)")
_TAG = re.compile(b"," + _NAME + b"=" + _NAME)
_FIELD = re.compile(b"[, ]" + _NAME + rb'=("(?:[^"\\]|\\.)*+"|[^", ][^, ]*+)', re.DOTALL)
_TIME = re.compile(rb" (-?[0-9]++)\n\Z")
# What InfluxDB takes for an escaped character; it takes any other backslash for itself.
_ESCAPED = re.compile(rb'\\([,= "])')
_ESCAPED_IN_TAG = re.compile(rb"\\([,= ])")
_SPECIAL = re.compile(rb"[\\,= ]")
_MILLISECOND_NS = 1_000_000


# A kilobyte below what VictoriaMetrics takes by default.
_LINE_BYTES_MAX = 255 * 1024
_LONG_STRING = b'"(a long string)"'


class Unreadable(Exception):
    """A point that cannot be written so that VictoriaMetrics reads it; the message says why."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """Lines for VictoriaMetrics. `special` are the places (from 0) of points whose line InfluxDB would read otherwise,
    `unreadable` the reasons, by place, against points that have no line; those are not among the `lines`."""

    lines: bytes
    special: tuple[int, ...]
    unreadable: dict[int, str]


def reads_alike(lines: bytes) -> bool:
    """Whether InfluxDB and VictoriaMetrics surely read these canonical lines alike; False is a maybe.

    One match over all of them: every batch is looked at, and delivery must keep up with what comes in.
    """
    return (
        start_of_long_line(lines, _LINE_BYTES_MAX) is None and alike(ENGINES[0]).fullmatch(lines) is not None
    )


def rewrite(lines: bytes, points: int) -> Rewritten:
    """Canonical lines, each as it must be written for VictoriaMetrics to read the point that InfluxDB reads.

    Raises ValueError when there are not so many points.
    """
    written: list[bytes] = []
    special: list[int] = []
    unreadable: dict[int, str] = {}
    # A single point needs no cutting.
    for place, line in enumerate(split_points(lines, points) if points > 1 else [lines]):
        if reads_alike(line):
            written.append(line)
            continue
        try:
            common, own = _rewrite_line(line)
        except Unreadable as exc:
            unreadable[place] = str(exc)
            continue
        written.append(own)
        if own != common:
            special.append(place)
    return Rewritten(b"".join(written), tuple(special), unreadable)


@functools.cache
def alike(engine: Engine) -> Pattern:
    """Lines that both read alike: no two backslashes in a row, no quote but around strings, no odd number or time.

    Quotes in a measurement and in tags are fine. What is left out without need is rare, and costs time only.
    """
    p = engine.possessive
    escaped = r'\\[^\\"\n]'
    measurement = rf"(?:[^\\, \n]+{p}|{escaped})+{p}"
    tag_key = rf"(?:[^_\\,= \n]|_[^_\\,= \n]|{escaped})(?:[^\\,= \n]+{p}|{escaped})*{p}"
    tag_value = rf"(?:[^\\,= \n]+{p}|{escaped})+{p}"
    field_key = rf'(?:[^"\\,= \n]+{p}|{escaped})+{p}'
    exponent = rf"(?:[eE][+-]?{p}[0-9]+{p})?{p}"
    number = rf"-?{p}[0-9]+{p}(?:[iu]|(?:\.[0-9]+{p})?{p}{exponent})"
    field = rf"{field_key}=(?:{number}|[tTfF][a-zA-Z]*{p}|{quoted_string(p)})"
    line = rf"{measurement}(?:,{tag_key}={tag_value})*{p} {field}(?:,{field})*{p} [1-9][0-9]*{p}\n"
    return engine.compile(f"(?:{line})*{p}".encode("latin-1"))


def _rewrite_line(line: bytes) -> tuple[bytes, bytes]:
    """A canonical point with only its numbers rewritten, which InfluxDB reads the same, and with everything rewritten.

    Raises Unreadable, also for a line that is not canonical.
    """
    (name,), at = _take(_MEASUREMENT, line, 0)
    common, own = [name], [_escape(_ESCAPED, name)]
    while line[at : at + 1] == b",":
        (key, value), at = _take(_TAG, line, at)
        if key == b"__name__":
            raise Unreadable("a tag with the key __name__")
        common += (b",", key, b"=", value)
        own += (b",", _escape(_ESCAPED_IN_TAG, key), b"=", _escape(_ESCAPED_IN_TAG, value))
    separator = b" "
    while separator == b" " or line[at : at + 1] == b",":
        (key, value), at = _take(_FIELD, line, at)
        if key.count(b'"') % 2:
            raise Unreadable("a field key with an odd number of quotes")
        text = value.startswith(b'"')
        value = value if text else _number(value)
        common += (separator, key, b"=", value)
        own += (separator, _escape(_ESCAPED, key), b"=", _text(line, value) if text else value)
        separator = b","
    (time,), _ = _take(_TIME, line, at)
    time_ns = int(time)
    if time_ns <= -_MILLISECOND_NS:
        raise Unreadable("a time before 1970")
    if sum(map(len, own)) > _LINE_BYTES_MAX:
        raise Unreadable("a line of more than 256 KiB")
    return b"%b %d\n" % (b"".join(common), time_ns), b"%b %d\n" % (b"".join(own), time_ns or 1)


def _text(line: bytes, string: bytes) -> bytes:
    """A string as VictoriaMetrics is given it, which does not keep its text."""
    if len(line) > _LINE_BYTES_MAX and len(string) > len(_LONG_STRING):
        return _LONG_STRING
    return string.replace(b"\n", b" ")


def _take(pattern: re.Pattern[bytes], line: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    found = pattern.match(line, at)
    if found is None:
        raise Unreadable(f"what stands at byte {at} of the line, which no stored line should hold,")
    return found.groups(), found.end()


def _escape(escaped: re.Pattern[bytes], name: bytes) -> bytes:
    """A name as VictoriaMetrics must be given it: there a backslash escapes backslashes, too."""
    return _SPECIAL.sub(rb"\\\g<0>", escaped.sub(rb"\1", name)) if b"\\" in name else name


def _number(value: bytes) -> bytes:
    """A value that is no string, with a digit on either side of its point."""
    whole, point, rest = value.partition(b".")
    if not point:
        return value
    return (
        (whole if whole[-1:].isdigit() else whole + b"0")
        + b"."
        + (rest if rest[:1].isdigit() else b"0" + rest)
    )
