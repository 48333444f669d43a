"""What is wrong with a JSON body, in our words: those of the decoder are a library's, and change with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

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


_BOUNDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def _types(names: str) -> str:
    return _either(list(dict.fromkeys(_NAMES.get(name.strip(), name.strip()) for name in names.split("|"))))


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


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
    (re.compile(r"Invalid enum value '(.*?)'", re.DOTALL), lambda found: f"{found[1]!r} is not known here"),
    (re.compile(r"Expected `\w+` of length >= 1\b"), lambda _: "it must not be empty"),
    (
        re.compile(r"Expected `\w+` (>=|<=|>|<) (\S+)"),
        lambda found: f"it must be {_BOUNDS[found[1]]} {found[2].removesuffix('.0')}",
    ),
    (
        re.compile(r"matching regex '\^\(([\w|]+)\)\$'"),
        lambda found: f"it must be {_either(found[1].split('|'))}",
    ),
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


_FIELD = re.compile(r" - at `\$\.(\w+)`$")


def json_reason(exc: Exception) -> str:
    """What is wrong with JSON that msgspec did not decode, and in which field of the outermost object."""
    if isinstance(exc, RecursionError):
        return "the JSON is nested too deep"
    if isinstance(exc, UnicodeDecodeError):
        return "the JSON holds invalid UTF-8"
    words = str(exc)
    if not isinstance(exc, msgspec.ValidationError):
        return malformed_reason(words)
    field = _FIELD.search(words)
    return f"{field[1]}: {value_reason(words)}" if field is not None else value_reason(words)


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
