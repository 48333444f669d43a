"""A decoder of canonical lines for the tests alone: a character at a time, and sharing nothing with the package."""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One point as it is meant: nothing escaped. Fields are (key, type, value); floats compare by their bits."""

    name: str
    tags: tuple[tuple[str, str], ...]
    fields: tuple[tuple[str, str, Any], ...]
    time: int


def field(key: str, kind: str, value: Any) -> tuple[str, str, Any]:
    """A field of a `Point`. Zero has one sign here: the corpus does not tell -0 from 0."""
    if kind == "float":
        value = 0.0 if value == 0 else float(value)
        assert math.isfinite(value)
        return key, kind, struct.pack(">d", value)
    return key, kind, value


def decode(data: bytes) -> list[Point]:
    """The points of canonical lines, tags sorted by key; AssertionError for anything else."""
    assert not data or data.endswith(b"\n")
    text, at, points = data.decode(), 0, []
    while at < len(text):
        point, at = _point(text, at)
        points.append(point)
    return points


def _point(line: str, at: int) -> tuple[Point, int]:
    name, at = _token(line, at, ", ", ", ")
    tags = []
    while line[at] == ",":
        key, at = _token(line, at + 1, "=", ", =")
        value, at = _token(line, at + 1, ", ", ", =")
        tags.append((key, value))
    fields: list[tuple[str, str, Any]] = []
    assert line[at] == " "
    while line[at] == "," or not fields:
        key, at = _token(line, at + 1, "=", ", =")
        kind, value, at = _value(line, at + 1)
        fields.append(field(key, kind, value))
    assert line[at] == " "
    end = line.index("\n", at)
    time = line[at + 1 : end]
    assert str(int(time)) == time
    assert len({key for key, _ in tags}) == len(tags)
    return Point(
        name, tuple(sorted(tags, key=lambda tag: tag[0].encode())), tuple(fields), int(time)
    ), end + 1


def _token(line: str, at: int, ends: str, escapable: str) -> tuple[str, int]:
    token = ""
    while line[at] not in ends:
        if line[at] == "\\" and line[at + 1] in escapable:
            at += 1
        assert line[at] != "\n"
        token += line[at]
        at += 1
    assert token
    return token, at


def _value(line: str, at: int) -> tuple[str, Any, int]:
    if line[at] == '"':
        text = ""
        at += 1
        while line[at] != '"':
            if line[at] == "\\" and line[at + 1] in '"\\nrt':
                at += 1
                text += {"n": "\n", "r": "\r", "t": "\t"}.get(line[at], line[at])
            else:
                text += line[at]
            at += 1
        return "string", text, at + 1
    end = min(i for i in (line.find(",", at), line.find(" ", at)) if i >= 0)
    word = line[at:end]
    if word[0] in "tTfF":
        assert word.lower() in ("t", "true", "f", "false")
        return "bool", word[0] in "tT", end
    if word[-1] in "iu":
        return {"i": "int", "u": "uint"}[word[-1]], int(word[:-1]), end
    return "float", float(word), end
