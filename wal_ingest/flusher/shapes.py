"""What points have in common: their series, their shape, and what a database named when it refused some. Pure.

A *series* is a measurement with its tags, as the line has it. A *shape* is what decides whether a schema takes a point:
measurement, tag keys, field keys, and the type of each field. Bulk work: call these in a thread.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from typing import NamedTuple

from wal_ingest.flusher.outcome import BeyondRetention, Hint, LinesRefused, Named

# A backslash, or a run of them, escapes the one character that follows it, as both InfluxDBs read it.
_UP_TO_SPACE = re.compile(rb"(?:[^ \\]|\\+[^\\])*", re.DOTALL)
_UP_TO_COMMA = re.compile(rb"(?:[^,\\]|\\+[^\\])*", re.DOTALL)
_PAIR = re.compile(rb'((?:[^=,\\]|\\+[^\\])+)=("(?:[^"\\]|\\.)*"|(?:[^,\\]|\\+[^\\])*)', re.DOTALL)
_ESCAPED = re.compile(rb"\\([,= ])")
_TYPE_OF_LAST = {b"i": "integer", b"u": "unsigned"}
_BOOLEAN_STARTS = b"tTfF"
# Lines of one shape that are read before a pattern of it is made.
_PATTERN_AFTER = 16
# Making a pattern costs as much as reading so many lines.
_PATTERN_LINES_MIN = 20
# How a field's value begins, by its type.
_ESCAPES = frozenset(b",= \\")
_VALUES = {
    "string": rb'"',
    "boolean": rb"[tTfF]",
    "integer": rb"[-+]?\d+i",
    "unsigned": rb"\d+u",
    "float": rb"[-+.\d]",
}

_WHOLE_VALUES = {
    "string": rb'"(?:[^"\\]|\\.)*"',
    "boolean": rb"[tTfF]\w*",
    "integer": rb"[-+]?\d+i",
    "unsigned": rb"\d+u",
    "float": rb"[-+.\deE]+",
}
# … and those for which that is enough to distinguish them from all others.
_EXACT_VALUES = {
    "string": rb'"',
    "boolean": rb"[tTfF]",
    "integer": rb"[-+]?\d+i[, ]",
    "unsigned": rb"\d+u[, ]",
}


class Shape(NamedTuple):
    """What decides whether a schema takes a point: see above. Names are as they stand in the line."""

    measurement: bytes
    tags: tuple[bytes, ...]
    fields: tuple[tuple[bytes, str], ...]


class Shaped(NamedTuple):
    """Means the points of a shape: for points that were refused without a reason."""

    shape: Shape


class Split(NamedTuple):
    """A canonical line in its three parts."""

    series: bytes
    fields: bytes
    time_ns: int


def split_line(line: bytes) -> Split:
    """The parts of a canonical line, with or without its line feed."""
    found = _UP_TO_SPACE.match(line)
    assert found is not None
    fields, _, time = line[found.end() + 1 :].rpartition(b" ")
    return Split(found[0], fields, int(time))


def time_of(line: bytes) -> int:
    """A canonical line's time, Unix time in nanoseconds."""
    return int(line[line.rindex(b" ") + 1 :])


def series_of(line: bytes) -> bytes:
    """A line's measurement and tags, as they stand in it."""
    found = _UP_TO_SPACE.match(line)
    assert found is not None
    return found[0]


def shape_of(line: bytes) -> Shape:
    """A line's measurement, tag keys, and fields with their types."""
    split = split_line(line)
    measurement, tags = _measurement_and_tags(split.series)
    return Shape(
        measurement,
        tuple(key for key, _ in _PAIR.findall(tags)),
        tuple((key, type_of(value)) for key, value in _PAIR.findall(split.fields)),
    )


def shapes_of(lines: Sequence[bytes]) -> Iterator[Shape]:
    """The shape of each line.

    A match against a shape's pattern costs an eighth of reading a line, but making the pattern as much as reading
    twenty: it is made for a shape that came often. What is written in an odd way is read.
    """
    latest: dict[
        bytes, tuple[Shape, int]
    ] = {}  # by how lines begin: the shape that was read last, and how often
    for line in lines:
        start = line.partition(b"=")[0]
        before = latest.get(start)
        if before is not None and before[1] >= _PATTERN_AFTER and _shape_pattern(before[0]).match(line):
            yield before[0]
            continue
        shape = shape_of(line)
        latest[start] = (shape, before[1] + 1 if before is not None and before[0] == shape else 1)
        yield shape


def common_shape(lines: Sequence[bytes]) -> Shape | None:
    """The shape that all lines have; None where they have several."""
    first = shape_of(lines[0])
    if len(lines) < _PATTERN_LINES_MIN:
        return first if all(shape_of(line) == first for line in lines[1:]) else None
    match = _shape_pattern(first).match
    return first if all(match(line) or shape_of(line) == first for line in lines) else None


def type_of(value: bytes) -> str:
    """The type of a field's value, in InfluxDB's words."""
    if value[:1] == b'"':
        return "string"
    if value[:1] in _BOOLEAN_STARTS:
        return "boolean"
    return _TYPE_OF_LAST.get(value[-1:], "float")


def _measurement_and_tags(series: bytes) -> tuple[bytes, bytes]:
    found = _UP_TO_COMMA.match(series)
    assert found is not None
    return found[0], series[found.end() + 1 :]


def _plain(name: bytes) -> bytes:
    return _ESCAPED.sub(rb"\1", name)


# -- what a hint selects --------------------------------------------------------------------------------


def selected(lines: Sequence[bytes], hint: Hint | Shaped) -> list[int]:
    """The places of the lines that a hint may mean, rising; none where it cannot tell them from the others."""
    return _SELECTORS[type(hint)](lines, hint)


def _named(lines: Sequence[bytes], hint: Named) -> list[int]:
    measurement = hint.measurement.encode(errors="replace")
    needle = (hint.field or hint.tag).encode(errors="replace")
    # A name that needs no escaping stands in the line as it is: most lines are passed over without being read.
    plain_name = needle if not set(needle) & _ESCAPES else b""
    value = _VALUES.get(hint.given, b"") if plain_name else b""
    places = _containing(lines, re.escape(plain_name) + (b"=" + value if plain_name else b""))
    exact = _exact(measurement, needle, hint)
    if exact is not None:
        return [place for place in places if exact(lines[place])]
    return [place for place in places if _is_named(lines[place], measurement, needle, hint)]


def _containing(lines: Sequence[bytes], pattern: bytes) -> list[int]:
    """The places of the lines in which a pattern is found; one search over all of them, for it is most of the work."""
    if not pattern:
        return list(range(len(lines)))
    ends = list(accumulate(map(len, lines)))
    search, body = re.compile(pattern).search, b"".join(lines)
    places: list[int] = []
    found = search(body)
    while found is not None:
        place = bisect_right(ends, found.start())
        places.append(place)
        found = search(body, ends[place])
    return places


@lru_cache(maxsize=256)
def _exact_pattern(measurement: bytes, field: bytes, value: bytes) -> re.Pattern[bytes]:
    return re.compile(
        re.escape(measurement)
        + rb"(?:,(?:[^ \\]|\\+[^\\])*)? (?:"
        + _PAIR.pattern
        + rb",)*?"
        + re.escape(field)
        + b"="
        + value,
        re.DOTALL,
    )


def _exact(measurement: bytes, needle: bytes, hint: Named) -> Callable[[bytes], object] | None:
    """A match equal to `_is_named`, for names that need no escaping and values whose start shows their type."""
    value = _EXACT_VALUES.get(hint.given)
    if value is None or not hint.field or (set(measurement) | set(needle)) & _ESCAPES:
        return None
    return _exact_pattern(measurement, needle, value).match


def _is_named(line: bytes, measurement: bytes, needle: bytes, hint: Named) -> bool:
    split = split_line(line)
    name, tags = _measurement_and_tags(split.series)
    if measurement not in (name, _plain(name)):
        return False
    if not needle:
        return True
    return any(
        needle in (key, _plain(key)) and (not hint.given or type_of(value) == hint.given)
        for key, value in _PAIR.findall(split.fields if hint.field else tags)
    )


def _shaped(lines: Sequence[bytes], hint: Shaped) -> list[int]:
    shape, match = hint.shape, _shape_pattern(hint.shape).match
    # Most lines of a batch are of other measurements: a beginning is compared in a third of the time of a match.
    start = shape.measurement + (b"," if shape.tags else b" ")
    return [place for place, line in enumerate(lines) if line.startswith(start) and match(line)]


@lru_cache(maxsize=256)
def _shape_pattern(shape: Shape) -> re.Pattern[bytes]:
    """Matches lines of a shape; none of another one, and all of it but those that are written in odd ways."""
    tags = b"".join(b"," + re.escape(key) + rb"=(?:[^, \\]|\\+[^\\])*" for key in shape.tags)
    fields = b",".join(re.escape(key) + b"=" + _WHOLE_VALUES[kind] for key, kind in shape.fields)
    return re.compile(re.escape(shape.measurement) + tags + b" " + fields + b" ", re.DOTALL)


def _before(lines: Sequence[bytes], hint: BeyondRetention) -> list[int]:
    before_ns = hint.before_ns
    if before_ns is None:
        return []
    return [place for place, line in enumerate(lines) if time_of(line) < before_ns]


def _listed(lines: Sequence[bytes], hint: LinesRefused) -> list[int]:
    return sorted(reasons_by_place(lines, hint))


def reasons_by_place(lines: Sequence[bytes], hint: LinesRefused) -> dict[int, str]:
    """The database's words for each line that it listed, by the line's place; what is no line here is left out."""
    places: dict[bytes, list[int]] = {}
    if any(each.number is None for each in hint.refused):
        for place, line in enumerate(lines):
            places.setdefault(line.rstrip(b"\n"), []).append(place)
    found: dict[int, str] = {}
    for each in hint.refused:
        if each.number is None:
            found.update((place, each.reason) for place in places.get(each.line.encode(errors="replace"), ()))
        elif 0 < each.number <= len(lines):
            text = lines[each.number - 1].rstrip(b"\n").decode(errors="replace")
            # The start of the line is often quoted as well: another one means that lines are counted differently.
            if text.startswith(each.line) or each.line.startswith(text):
                found[each.number - 1] = each.reason
    return found


_SELECTORS: dict[type, Callable[[Sequence[bytes], object], list[int]]] = {
    Named: _named,  # type: ignore[dict-item]
    BeyondRetention: _before,  # type: ignore[dict-item]
    LinesRefused: _listed,  # type: ignore[dict-item]
    Shaped: _shaped,  # type: ignore[dict-item]
}


# -- dividing without a hint ----------------------------------------------------------------------------


def divided(lines: Sequence[bytes]) -> list[int]:
    """The places of about half of the lines, chosen so that what may be refused together stays together.

    By shape where there are several, else by series, else the first half. Points of one series and time keep their
    order: where that cannot be kept, it is the first half.
    """
    half = len(lines) // 2 + len(lines) % 2
    for by_shape in (True, False):
        groups: dict[Hashable, list[int]] = {}
        for place, common in enumerate(shapes_of(lines) if by_shape else map(series_of, lines)):
            groups.setdefault(common, []).append(place)
        if len(groups) > 1:
            # The first groups that are no more than half together; the first one in any case.
            count = max(1, bisect_right(list(accumulate(map(len, groups.values()))), half))
            chosen = [place for places in islice(groups.values(), count) for place in places]
            return list(range(half)) if by_shape and repeats(lines) else sorted(chosen)
    return list(range(half))


def repeats(lines: Sequence[bytes]) -> bool:
    """Whether a series has two points of one time here: a database keeps what was written last."""
    return len({(split.series, split.time_ns) for split in map(split_line, lines)}) < len(lines)


def by_time(lines: Sequence[bytes]) -> list[int]:
    """The places of the lines, the oldest point's first."""
    return sorted(range(len(lines)), key=lambda place: time_of(lines[place]))


def spread(count: int, samples: int) -> list[int]:
    """So many of `count` places, evenly spread, the first and the last among them."""
    if samples >= count:
        return list(range(count))
    return sorted({place * (count - 1) // (samples - 1) for place in range(samples)})
