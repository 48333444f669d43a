"""Patterns for whole bodies of line protocol, transcribed from its published grammar and tightened.

A pattern here matches a *canonical* body only (see the package's docstring), or one that becomes canonical by
bulk replacements. Legal lines that it leaves out are rare, and `exact` takes them: several spaces in a row,
spaces at an end of the line, numbers and times near the ends of their range or with leading zeros. What a
pattern takes must be right without another look, so the digit counts are tight enough that no integer,
float or time it takes can be out of range.

A pattern takes records of one line each: a quoted string with a line feed in it is left to `exact`. So is an *even*
run of backslashes before a space, a comma or an equals sign outside a quoted string. What becomes of runs of
backslashes was measured with InfluxDB 1.6.7, for 1 to 7 of them (tests/points/test_read_back_from_influxdb.py):

| where | an odd run | an even run |
|---|---|---|
| tag key, tag value | reads back as the reference decoder says | the same; but see below |
| field key | reads back | 400: the key ends there. Refused |
| measurement, 1 | reads back | |
| measurement, 2 and more, before `=` and `"` also | answered 204, and no query finds the point | the same. Refused |

Odd runs in measurements have always been taken, so the InfluxDB sink parks them (`flusher.sinks.influxdb_names`).
A single backslash before a quote in a field key, or before `=` or a quote in a measurement, is no part of the name to
InfluxDB; the line stays as it is.

When InfluxDB cuts a body into records it takes an even run for escaped backslashes and a space, after which quotes
count. `records` finds out whether that would harm the lines that follow.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

from wal_ingest.points.engine import Engine, Pattern
from wal_ingest.points.lines import Precision

KeyList = tuple[bytes, ...]
"""The tag keys of one line in order, as they stand in the text. With the rule above a key has one spelling."""

ZEROS = {Precision.NS: 0, Precision.US: 3, Precision.MS: 6, Precision.S: 9}
"""How many zeros turn a time of that precision into nanoseconds; minutes and hours are not among them."""

_BLANK = r"\t\x00"
"""What counts as a space before a measurement and before the fields; anywhere else in a name it is part of it."""


class Shape(enum.Enum):
    """Which lines of a body have a time of their own."""

    TIMED = "every line"
    UNTIMED = "no line"
    MIXED = "some lines"
    LOOSE = "some lines, among lines without a point"


class Grammar:
    """The patterns over bodies whose tag keys are known, or over any body when `key_lists` is None.

    A regular expression without back-references cannot see that two tag keys of a line are the same. It can see
    that a line's keys are *these*, in this order: `key_lists` are lists of two or more keys known to be free
    of duplicates, and a line with fewer than two tags needs none. With None the pattern says only that the
    syntax is right.

    Immutable but for a cache of compiled patterns, hence safe to share between threads: two that compile the
    same pattern at once do it twice, and one of the results stays.
    """

    def __init__(self, engine: Engine, key_lists: Iterable[KeyList] | None) -> None:
        self._engine = engine
        self._key_lists = None if key_lists is None else sorted(key_lists)
        self._compiled: dict[tuple[Shape, Precision], Pattern] = {}

    def matches(self, body: bytes, shape: Shape, precision: Precision) -> bool:
        """Whether every line of `body` is canonical but for the unit of its time, and has a time as `shape` says."""
        return self._compile(shape, precision).fullmatch(body) is not None

    def end_of_good_lines(self, body: bytes, start: int, until: int, precision: Precision) -> int:
        """The offset after the last of the lines from `start` to `until` that are all fine, with or without a time.

        Blank lines, comments and carriage returns at the ends of lines are among them.
        """
        match = self._compile(Shape.LOOSE, precision).match(body, start, until)
        return start if match is None else match.end()

    def _compile(self, shape: Shape, precision: Precision) -> Pattern:
        pattern = self._compiled.get((shape, precision))
        if pattern is None:
            pattern = self._engine.compile(self._pattern(shape, ZEROS[precision]))
            self._compiled[shape, precision] = pattern
        return pattern

    def _pattern(self, shape: Shape, zeros: int) -> bytes:
        p = self._engine.possessive
        time = " " + _time(zeros, p)
        end = {Shape.TIMED: time, Shape.UNTIMED: ""}.get(shape, f"(?:{time})?{p}")
        field = f"{_key(p)}={_field_value(p)}"
        first = f"{_first_key(p)}={_field_value(p)}"
        line = rf"{_measurement(p)}{self._tags(p)} {first}(?:,{field})*{p}{end}"
        if shape is Shape.LOOSE:
            skipped = rf"[ {_BLANK}]*{p}(?:#[^\n]*{p})?{p}"
            return rf"(?:(?:{line}|{skipped})\r?{p}\n)+{p}".encode("latin-1")
        line += r"\n"
        return f"(?:{line})+{p}".encode("latin-1")

    def _tags(self, p: str) -> str:
        key = _key(p)
        if self._key_lists is None:
            return f"(?:,{key}={key})*{p}"
        # The open list comes last: `re` takes the first alternative that fits, and this one fits the beginnings
        # of all others. The group itself is not possessive, so that a mismatch further on tries the next.
        known = ["".join(f",{_literal(k)}={key}" for k in keys) for keys in self._key_lists]
        return "(?:" + "|".join([*known, f"(?:,{key}={key})?"]) + ")"


def _literal(key: bytes) -> str:
    return re.escape(key).decode("latin-1")


def _run(p: str) -> str:
    """One run of backslashes with the character behind it: an odd run before anything, an even one not before
    a special character."""
    return rf"\\(?:\\\\)*{p}[^\\\n]|(?:\\\\)+{p}[^\\ ,=\n]"


def _measurement(p: str) -> str:
    first = rf"(?:[^#\\ ,\n{_BLANK}]|{_run(p)})"
    return rf"{first}(?:[^\\ ,\n]+{p}|{_run(p)})*{p}"


def _key(p: str) -> str:
    """A tag key, a tag value or a field key: all three have the same form."""
    return rf"(?:[^\\ ,=\n]+{p}|{_run(p)})+{p}"


def _first_key(p: str) -> str:
    """A field key at the beginning of the fields."""
    return rf"(?:[^\\ ,=\n{_BLANK}]|{_run(p)})(?:[^\\ ,=\n]+{p}|{_run(p)})*{p}"


def quoted_string(p: str) -> str:
    """A string on one line; `p` is how the engine marks a possessive loop."""
    return rf'"(?:[^"\\\n]+{p}|\\[^\n])*{p}"'


def _field_value(p: str) -> str:
    # At most 18 digits before the point and two in the exponent: every integer is below 2**63, every float
    # below 1e118. The alternatives differ in their first character, so a possessive loop over them loses none.
    digits = f"[0-9]{{1,18}}{p}"
    exponent = f"(?:[eE][+-]?{p}[0-9]{{1,2}}{p})?{p}"
    fraction = rf"(?:\.[0-9]*{p})?{p}{exponent}"
    point_first = rf"\.[0-9]+{p}{exponent}"
    string = quoted_string(p)
    truth = f"t(?:rue)?{p}|T(?:rue|RUE)?{p}|f(?:alse)?{p}|F(?:alse|ALSE)?{p}"
    return f"(?:{digits}(?:[iu]|{fraction})|-(?:{digits}(?:i|{fraction})|{point_first})|{point_first}|{truth}|{string})"


def _time(zeros: int, p: str) -> str:
    """A time that stays within int64 with so many zeros behind it, without leading zeros.

    A plain 0 is taken only where no zeros follow: anywhere else it would come out as `000`.
    """
    rest = 18 - zeros
    number = (
        f"(?:[1-8][0-9]{{0,{rest}}}{p}|9(?:[01][0-9]{{0,{rest - 1}}}{p}|[2-9][0-9]{{0,{rest - 2}}}{p})?{p})"
    )
    return f"(?:-?{number}|0)" if zeros == 0 else f"-?{number}"
