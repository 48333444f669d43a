"""A JSON array or NDJSON in slices of whole elements, so that a large body is decoded a little at a time.

Why: the decoder holds the interpreter's lock while it works, and everything that it makes of a body is there at once.
32 MiB of `{},{},…`, which compress to 32 KB, took 1.2 GiB and held up everybody for six seconds. Slices of 64 KiB
take a few milliseconds each, and what a slice made is gone before the next.

The pattern below only finds where elements end. It accepts every object of up to three levels, well-formed or not; the
decoder then says what is wrong with a slice. What it does not match cannot be a good element, or is the last one, and
goes to the decoder as it is, which stops at the first thing that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from wal_ingest.errors import BadRequest

SLICE_BYTES = 64 * 1024

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+"
_INNER = rb"\{" + _FLAT + rb"\}"
_OBJECT = rb'\{(?:[^"{}\[\]]++|' + _STRING + rb"|" + _INNER + rb")*+\}"
_ELEMENT = rb"[ \t\r\n]*+" + _OBJECT + rb"[ \t\r\n]*+,"
_ELEMENTS = re.compile(rb"(?:" + _ELEMENT + rb")++", re.DOTALL)
_ONE_ELEMENT = re.compile(_ELEMENT, re.DOTALL)
_NAMES_AT_ONCE = 1_000
_NAMES = re.compile(rb'(?:(?:[^":]++|' + _STRING + rb")*+:){%d}+" % _NAMES_AT_ONCE, re.DOTALL)
_BLANKS = b" \t\r\n"


def array_slices(body: bytes, start: int, end: int, *, is_closed: bool = True) -> Iterator[bytes]:
    """The array whose elements are in `body[start:end]`, as arrays of some of its elements each.

    Where the array `is_closed` not, it is not closed here either if it is all one slice.

    Raises BadRequest for a comma after the last element.
    """
    first = start
    window = SLICE_BYTES
    while start < end:
        if end - start <= SLICE_BYTES:
            break
        pattern = _ELEMENTS if window == SLICE_BYTES else _ONE_ELEMENT
        found = pattern.match(body, start, min(end, start + window))
        if found is not None:
            yield b"[%b]" % body[start : found.end() - 1]
            start, window = found.end(), SLICE_BYTES
        elif start + window >= end:
            break
        else:
            window *= 2  # an element that is larger than a window
    if start > first and first_character_at(body, start) >= end:
        raise BadRequest("the JSON is malformed: a comma after the last element of the array")
    # One copy, not two: it may be the whole body.
    yield b"".join((b"[", memoryview(body)[start:end], b"]" if is_closed or start > first else b""))


def first_character_at(body: bytes, start: int = 0) -> int:
    """Where the first character stands that is no white space; the body's length when there is none."""
    while start < len(body):
        left = body[start : start + SLICE_BYTES]
        kept = left.lstrip(_BLANKS)
        start += len(left) - len(kept)
        if kept:
            break
    return start


def line_slices(body: bytes) -> Iterator[bytes]:
    """The lines of a body, some at a time."""
    start = 0
    while start < len(body):
        if len(body) - start <= SLICE_BYTES:
            yield body[start:]
            return
        end = body.rfind(b"\n", start, start + SLICE_BYTES) + 1
        if not end:
            end = body.find(b"\n", start + SLICE_BYTES) + 1 or len(body)
        yield body[start:end]
        start = end


def has_too_many_names(element: bytes, line_bytes_max: int) -> bool:
    """Whether a large object has more names than a line could hold, which are too many to decode.

    A name and its value take four bytes of a line at least.
    """
    names_max = line_bytes_max // 4 + 16
    # With the brackets of an array. Most large elements have few colons, in strings or not.
    if len(element) <= SLICE_BYTES + 2 or element.count(b":") <= names_max:
        return False
    names, at = 0, 0
    # Some at a time, as everywhere here, and nothing is built of them.
    while names <= names_max and (found := _NAMES.match(element, at)) is not None:
        names, at = names + _NAMES_AT_ONCE, found.end()
    return names > names_max
