"""Names, tag values and strings as they stand in a line. Pure.

What a line cannot carry is refused by name rather than changed: empty names and tag values, line feeds in them, a
backslash at the end, and one where InfluxDB would read another name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wal_ingest.points.records import ends_as_one_record

_SPECIAL = re.compile(r"[\x00-\x20\x7f,=\\#]")
_IN_STRING = re.compile(r'(["\\])')


@dataclass(frozen=True, slots=True)
class Place:
    """Where a name stands: what gets a backslash before it there, and what it cannot hold, with the reasons."""

    escaped: re.Pattern[str]
    refused: tuple[tuple[re.Pattern[str], str], ...]


_LINE_FEED = (re.compile(r"\n"), "a line feed in the {}: line protocol cannot carry it")
_LAST_BACKSLASH = (re.compile(r"\\\Z"), "a backslash at the end of the {}: line protocol cannot carry it")
_INNER_BACKSLASH = (
    re.compile(r"\\[ ,=]"),
    "a backslash before a space, comma or '=' in the {}: InfluxDB would read another name",
)
_FIRST_BLANK = (
    re.compile(r"\A[\t\x00]"),
    "a tab or NUL at the beginning of the {}: line protocol skips it there",
)
_COMMENT = (re.compile(r"\A#"), "a {} that begins with '#': line protocol takes it for a comment")

IN_MEASUREMENT = Place(
    re.compile(r"([ ,])"), (_LINE_FEED, _LAST_BACKSLASH, _INNER_BACKSLASH, _FIRST_BLANK, _COMMENT)
)
IN_FIELD_KEY = Place(re.compile(r"([ ,=])"), (_LINE_FEED, _LAST_BACKSLASH, _INNER_BACKSLASH, _FIRST_BLANK))
IN_TAG = Place(re.compile(r"([ ,=])"), (_LINE_FEED, _LAST_BACKSLASH))
"""A tag key or a tag value. In these InfluxDB reads two backslashes and a space as a backslash and a space."""


def name_text(name: str, what: str, place: Place) -> str:
    """A name or tag value as it stands in a line. Raises ValueError, with `what` it is, when a line cannot carry it."""
    if not _SPECIAL.search(name) and name:
        return name
    if not name:
        raise ValueError(f"an empty {what}")
    for pattern, why in place.refused:
        if pattern.search(name):
            raise ValueError(why.format(what))
    return place.escaped.sub(r"\\\1", name)


def check_runs(head: str, fields: str) -> None:
    """Raises ValueError when InfluxDB would not end a point's line where it ends: see `records`."""
    if "\\\\" in head and not ends_as_one_record(f"{head} {fields} 0\n".encode()):
        raise ValueError(
            "a backslash before a space, comma or '=' in a tag, and a quote after it: InfluxDB would take the lines "
            "that follow for a part of this one"
        )


def string_text(value: str) -> str:
    """A string field as it stands in a line, in quotes; a line feed stands in it as it is."""
    return '"' + _IN_STRING.sub(r"\\\1", value) + '"'
