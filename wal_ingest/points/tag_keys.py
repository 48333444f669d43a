"""Which lists of tag keys are free of duplicates: learned from what comes in.

InfluxDB refuses a point that has a tag key twice. A fleet's lines have few different lists of keys, so those
that have been checked once become part of the fast pattern (see `Grammar`), and in the steady state one match
over the body checks everything. A list is learned when a second request shows it, so a sender with random keys
teaches nothing and pays for the check with its own requests only.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence

from wal_ingest.points.engine import Engine
from wal_ingest.points.grammar import Grammar, KeyList

KEY_LISTS_BYTES_MAX = 16 * 1024
SIGHTINGS_MAX = 4_096
MISSES_BEFORE_FORGETTING = 1_000

# Over lines that the grammar has taken already, so nothing here needs to be checked again.
_MEASUREMENT = re.compile(rb"(?:[^\\ ,]|\\.)++")
_TAG = re.compile(rb",((?:[^\\=]|\\.)++)=(?:[^\\ ,]|\\.)++")


def key_lists_of(body: bytes) -> set[KeyList]:
    """The different lists of two or more tag keys among the lines of a body whose syntax is right."""
    if b"\\" in body:
        lists = {_escaped_key_list(line) for line in body.split(b"\n")}
    else:
        lists = {
            tuple(tag.partition(b"=")[0] for tag in head.split(b",")[1:])
            for head in {line.partition(b" ")[0] for line in body.split(b"\n")}
        }
    return {keys for keys in lists if len(keys) > 1}


def lines_with_a_key_twice(text: bytes) -> Iterator[int]:
    """Where those lines begin that have a tag key twice. The syntax of all of them is right; some may have no point."""
    start = 0
    for line in text.split(b"\n"):
        if line[:1] != b"#" and _has_a_key_twice(line):
            yield start
        start += len(line) + 1


def _has_a_key_twice(line: bytes) -> bool:
    if b"\\" in line:
        keys: Sequence[bytes] = _escaped_key_list(line)
    else:
        keys = [tag.partition(b"=")[0] for tag in line.partition(b" ")[0].split(b",")[1:]]
    return len(set(keys)) < len(keys)


def _escaped_key_list(line: bytes) -> KeyList:
    measurement = _MEASUREMENT.match(line)
    if measurement is None:
        return ()  # what follows the last line feed
    keys = []
    tag = _TAG.match(line, measurement.end())
    while tag is not None:
        keys.append(tag[1])
        tag = _TAG.match(line, tag.end())
    return tuple(keys)


class TagKeys:
    """The learned lists and the grammar made from them; shared by all threads.

    Invariants: `grammar` is replaced whole, never changed; every list in it is free of duplicates; what is kept
    is bounded by `Engine.key_lists_max`, `KEY_LISTS_BYTES_MAX` and `SIGHTINGS_MAX`. When it is full nothing more
    is learned until a thousand requests have missed; then all is forgotten and learned anew, so lists of the past
    do not stay for ever and a stream of new ones cannot make every request compile a pattern.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._learned: frozenset[KeyList] = frozenset()
        self._sighted: set[KeyList] = set()
        self._misses_when_full = 0
        self.grammar = Grammar(engine, ())

    def learn(self, lists: set[KeyList]) -> None:
        """Takes note of lists without duplicates that one request held and the grammar did not know."""
        with self._lock:
            fresh = lists - self._learned
            again = fresh & self._sighted
            self._sighted |= fresh
            if len(self._sighted) > SIGHTINGS_MAX:
                self._sighted = set()
            if not again:
                return
            learned = self._learned | again
            if not self._fits(learned):
                self._misses_when_full += 1
                if self._misses_when_full < MISSES_BEFORE_FORGETTING or not self._fits(again):
                    return
                learned = frozenset(again)
            self._misses_when_full = 0
            self._learned = learned
            self._sighted -= again
            self.grammar = Grammar(self._engine, learned)

    def _fits(self, lists: frozenset[KeyList] | set[KeyList]) -> bool:
        held_bytes = sum(len(key) + 2 for keys in lists for key in keys)
        return len(lists) <= self._engine.key_lists_max and held_bytes <= KEY_LISTS_BYTES_MAX
