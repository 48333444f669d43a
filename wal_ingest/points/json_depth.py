"""How deep a JSON document is nested, in bulk and without recursion."""

from __future__ import annotations

import re

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
_LOOKED_AT_BYTES = 1024 * 1024
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def deeper_than(body: bytes, depth_max: int) -> bool:
    """Whether arrays and objects are nested in more than `depth_max` levels.

    Each replacement takes away the innermost level everywhere at once, so the cost is that many passes over
    the brackets alone. Only the first MiB is looked at, because a refused body should not cost seconds: what is
    nested too deep further back is refused as well, as the value of a wrong type that it is. Levels left open
    at the end count.
    """
    brackets = _STRING.sub(b"", body[:_LOOKED_AT_BYTES]).translate(_SQUARE, _NOT_BRACKETS)
    for _ in range(depth_max):
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets or brackets.count(b"[") > depth_max
