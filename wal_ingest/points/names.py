"""Names, tag values and strings as they stand in a line. Pure.

What a line cannot carry is refused by name rather than changed: empty names and tag values, control characters in
them, a backslash where it would escape what follows.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"[\x00-\x20\x7f,=\\#]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BACKSLASH_ESCAPES = re.compile(r"\\(?:[ ,=]|\Z)")
_IN_STRING = re.compile(r'(["\\])')

IN_MEASUREMENT = re.compile(r"([ ,])")
IN_KEY = re.compile(r"([ ,=])")
"""What has a backslash in front of it, in a measurement; in a key or tag value."""


def name_text(name: str, what: str, escaped: re.Pattern[str]) -> str:
    """A name or tag value as it stands in a line. Raises ValueError, with `what` it is, when a line cannot carry it."""
    if not _SPECIAL.search(name) and name:
        return name
    if not name:
        raise ValueError(f"an empty {what}")
    if _CONTROL.search(name):
        raise ValueError(f"a line feed or another control character in the {what}")
    if _BACKSLASH_ESCAPES.search(name):
        raise ValueError(
            f"a backslash before a space, comma or '=', or at the end, of the {what}: line protocol cannot carry it"
        )
    if escaped is IN_MEASUREMENT and name.startswith("#"):
        raise ValueError("a measurement that begins with '#': line protocol takes it for a comment")
    return escaped.sub(r"\\\1", name)


def string_text(value: str) -> str:
    """A string field as it stands in a line, in quotes; a line feed stands in it as it is."""
    return '"' + _IN_STRING.sub(r"\\\1", value) + '"'
