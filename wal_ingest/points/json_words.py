"""What is wrong with a JSON body, in our words: those of the decoder are a library's, and change with it."""

from __future__ import annotations

import re
from collections.abc import Callable

_NAMES = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "object": "an object",
    "array": "an array",
    "null": "null",
}

_Words = Callable[[re.Match[str]], str]


def _types(names: str) -> str:
    each = list(dict.fromkeys(_NAMES.get(name.strip(), name.strip()) for name in names.split("|")))
    return each[0] if len(each) == 1 else f"{', '.join(each[:-1])} or {each[-1]}"


_VALUES: tuple[tuple[re.Pattern[str], _Words], ...] = (
    (
        re.compile(r"Expected `(.+?)`, got `(.+?)`"),
        lambda found: f"{_types(found[2])} where {_types(found[1])} is needed",
    ),
    (re.compile(r"Object missing required field `(.+?)`"), lambda found: f"missing: {found[1]}"),
    (
        re.compile(r"Object contains unknown field `(.+?)`", re.DOTALL),
        lambda found: f"the name {found[1]!r} is not known here",
    ),
    (re.compile(r"(?:Integer|Number) (?:value )?out of range"), lambda _: "the number is out of range"),
)

_MALFORMED = (
    ("truncated", "it is cut short"),
    ("trailing characters", "something follows its end"),
    ("trailing comma", "a comma where nothing follows"),
    ("object keys must be strings", "a name that is not a string"),
    ("invalid number", "an invalid number"),
    ("invalid escape", "an invalid escape in a string"),
    ("surrogate", "an invalid surrogate pair in a string"),
    ("control character", "a control character in a string"),
    ("utf-8", "invalid UTF-8"),
    ("out of range", "a number that is out of range"),
)


def value_reason(words: str) -> str:
    """Why a value that is JSON is not a point's."""
    for pattern, ours in _VALUES:
        found = pattern.search(words)
        if found is not None:
            return ours(found)
    return "the value does not belong there"


def malformed_reason(words: str) -> str:
    """Why a body is no JSON."""
    lower = words.lower()
    for theirs, ours in _MALFORMED:
        if theirs in lower:
            return f"the JSON is malformed: {ours}"
    return "the JSON is malformed: an unexpected character"
