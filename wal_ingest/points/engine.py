"""The two regular-expression engines: google-re2, and the standard library's `re` where it has no wheel.

Both get patterns made from one template. RE2 is linear by construction. `re` backtracks, so every repetition
in its patterns is possessive: once taken, nothing is given back, and a hostile body costs one pass as well.
The templates are written so that giving back could never turn a mismatch into a match; hence both engines
accept the same bytes, and the tests run the same cases over both.

Patterns are bytes and are matched as Latin-1, byte by byte; UTF-8 is checked apart (see `utf8`), which is
both faster for ASCII bodies and the same for both engines.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

try:
    import re2 as _re2
except ImportError:  # pragma: no cover - musl and new Pythons; the tests run the other engine everywhere
    _re2 = None


class Match(Protocol):
    """What a pattern found."""

    def end(self) -> int:
        """The offset behind it."""


class Pattern(Protocol):
    """A compiled pattern; threads may share it."""

    def fullmatch(self, body: bytes, /) -> Match | None:
        """Matches all of the body."""

    def match(self, body: bytes, pos: int, endpos: int, /) -> Match | None:
        """Matches from `pos` on, as far as it goes, and no further than `endpos`."""


# RE2 forgets its DFA states and, when that happens too often, falls back to a slow automaton once a pattern
# and its states outgrow this. It is a limit, not a reservation: a pattern of 128 tag-key lists takes a few MiB.
_RE2_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: how it compiles, what it writes behind a quantifier, and how many tag-key lists it learns.

    `possessive` is the text that makes a quantifier possessive, empty where the engine needs none.
    `key_lists_max` bounds the alternatives in one pattern: RE2 tries them all at once, `re` one by one.
    """

    name: str
    possessive: str
    key_lists_max: int
    compile: Callable[[bytes], Pattern]


def _compile_with_re(pattern: bytes) -> Pattern:
    return re.compile(pattern)


def _compile_with_re2(pattern: bytes) -> Pattern:
    options = _re2.Options()
    options.encoding = _re2.Options.Encoding.LATIN1
    options.max_mem = _RE2_BYTES_MAX
    options.never_capture = True
    options.log_errors = False
    return cast(Pattern, _re2.compile(pattern, options))


STDLIB = Engine("re", "+", 16, _compile_with_re)
RE2 = Engine("re2", "", 128, _compile_with_re2) if _re2 is not None else None

ENGINES: tuple[Engine, ...] = (STDLIB,) if RE2 is None else (RE2, STDLIB)
"""The engines of this platform, the best one first."""
