"""Dead letters as records of the state file (see `letter_store`), and in groups by their reason. Pure.

A letter's key is `letter/<sink>/<number, 20 digits>`. Numbers rise; after letters were removed a later life of the
process may give the highest ones out again, so a letter is identified by its seq and time as well (`LetterId`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.entry import Destination

LETTER = b"letter/"

# Groups that are told apart; what comes beyond them is counted together.
GROUPS_MAX = 200
OTHER_REASONS = "(other reasons)"
UNREADABLE = "(the dead letter itself is damaged)"
NOT_COUNTED = "(not counted by reason: the disk has no room to compress these)"

# What makes two answers to the same mistake differ: a line that is quoted, a time, a number of more than three digits.
_QUOTED = re.compile(r"""(["'`])([^"'`]*)\1""")
# How many of its piece of a batch InfluxDB refused.
_DROPPED = re.compile(r" dropped=\d+\b")
_NUMBER = re.compile(r"-?\b\d{4,}(?:\.\d+)?\b")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z\b| ?[+-]\d\d:?\d\d\b)?(?: UTC\b)?")
# InfluxDB from 1.11 and 2.7 on: how many points, then the oldest and the newest by series and time, each with the bound
# that it violates. A series may hold anything, and a long answer is cut short anywhere, so all of that goes.
_RETENTION = re.compile(
    r"\bdropped \d+ points (outside retention policy of duration \w+) - (?:oldest|newest) point (.*)",
    re.DOTALL,
)
_BOUND = re.compile(r"\bdropped because it violates an? ([A-Z][A-Za-z ]* Bound)\b")
# The value that was one too many for its tag; it may hold quotes.
_TAG_VALUE = re.compile(r'(\blimit exceeded \([^)]*\): measurement=".*" tag=".*" value=)".*', re.DOTALL)


class StoredLetter(msgspec.Struct, frozen=True):
    """A letter's value, as JSON."""

    seq: int
    line: str
    reason: str
    status: int
    parked_ns: int
    org: str
    bucket: str


class LetterId(NamedTuple):
    """Which letter of a sink is meant: its number, and what else must be so for it to be that one."""

    number: int
    seq: int
    parked_ns: int


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Dead letters of one sink that were refused for the same reason: how many, and the time of the latest.

    `reason` is the sink's, with what differs from point to point left out. `last_ns` is Unix time in nanoseconds.
    """

    sink: str
    reason: str
    points: int
    last_ns: int


def letters_prefix(sink: str) -> bytes:
    """What the keys of a sink's letters begin with."""
    return LETTER + sink.encode() + b"/"


def letter_key(sink: str, number: int) -> bytes:
    """The key of a sink's letter."""
    return letters_prefix(sink) + b"%020d" % number


def letter_number(key: bytes) -> int:
    """The number in a letter's key."""
    return int(key.rpartition(b"/")[2])


def encode_letter(letter: DeadLetter) -> bytes:
    """The value that is stored for a letter."""
    return msgspec.json.encode(
        StoredLetter(
            letter.seq,
            letter.line.decode(),
            letter.reason,
            letter.status,
            letter.parked_ns,
            letter.destination.org,
            letter.destination.bucket,
        )
    )


def decode_letter(sink: str, key: bytes, value: bytes) -> DeadLetter:
    """The letter under a key. Raises `msgspec.DecodeError`."""
    stored = msgspec.json.decode(value, type=StoredLetter)
    return DeadLetter(
        sink,
        stored.seq,
        stored.line.encode(),
        stored.reason,
        stored.status,
        stored.parked_ns,
        Destination(stored.org, stored.bucket),
        letter_number(key),
    )


def counted_letter(sink: str, key: bytes, value: bytes) -> DeadLetter:
    """The letter under a key, for whoever counts reasons: one that cannot be read has that for a reason."""
    try:
        return decode_letter(sink, key, value)
    except msgspec.DecodeError:
        return DeadLetter(sink, 0, b"", UNREADABLE, 0, 0, Destination())


def id_of(letter: DeadLetter) -> LetterId:
    """What names a letter."""
    return LetterId(letter.number, letter.seq, letter.parked_ns)


# Letters of one batch share their reason, and a state may hold very many of them.
@functools.lru_cache(maxsize=1_024)
def reason_group(reason: str) -> str:
    """A reason without what differs from point to point: a series, a quoted line, a time, a long number."""
    reason = _RETENTION.sub(_without_points, _DROPPED.sub("", reason))
    reason = _TAG_VALUE.sub(r'\1"…"', reason)
    return _NUMBER.sub("N", _TIME.sub("TIME", _QUOTED.sub(_without_line, reason)))


def _without_points(refused: re.Match[str]) -> str:
    """Too old and too new are two causes, so the bounds stay."""
    bounds = ", ".join(dict.fromkeys(_BOUND.findall(refused[2])))
    return f"dropped N points {refused[1]}" + (f" ({bounds})" if bounds else "")


def _without_line(quoted: re.Match[str]) -> str:
    """A field's or a measurement's name stays; what has a space, a comma or an equals sign is (part of) a line."""
    return f"{quoted[1]}…{quoted[1]}" if set(quoted[2]) & set(" =,") else quoted[0]


class LetterGroups:
    """Counts letters by sink and reason, a bounded number of reasons."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, letters: Iterable[DeadLetter]) -> None:
        """Counts letters in."""
        for letter in letters:
            self.add_counted(letter.sink, reason_group(letter.reason), 1, letter.parked_ns)

    def add_counted(self, sink: str, group: str, points: int, last_ns: int) -> None:
        """Counts letters in that were counted already: so many of a sink and a group, the latest of that time."""
        key = sink, group
        if key not in self._groups and len(self._groups) >= GROUPS_MAX:
            key = sink, OTHER_REASONS
        counted, latest_ns = self._groups.get(key, (0, 0))
        self._groups[key] = counted + points, max(latest_ns, last_ns)

    def listed(self) -> list[LetterGroup]:
        """The groups, the largest first."""
        groups = [LetterGroup(*key, *counted) for key, counted in self._groups.items()]
        return sorted(groups, key=lambda group: (-group.points, group.sink, group.reason))
