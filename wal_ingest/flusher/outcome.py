"""What a sink says of a write: a closed set of values, never an exception, a bool or a count.

| outcome | the points are | the delivery loop |
|---|---|---|
| `Confirmed` | in the sink, durably as far as it promises | settles the batch |
| `Rejected` | refused for good, some or all of them | finds the refused ones, by what the sink named; parks those |
| `TooLarge` | too many at once for this sink | halves and writes again |
| `Unavailable` | perhaps there, perhaps not | waits and writes the same batch again, without end |
| `Misconfigured` | not there, and will not be until an operator acts | holds: keeps everything, retries slowly |

Writing a batch again is harmless: every line carries its own time, and the same series at the same time
overwrites itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Longest reason that is kept of an answer, in characters; servers quote whole batches in theirs.
REASON_CHARS_MAX = 500

# Control characters of ASCII and Latin-1, and the line ends of Unicode.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The sink has every point of the batch.

    `position` is what the sink wants to be remembered with its cursor, in the same transaction (the
    archive: file and length), or None when it needs nothing.
    """

    position: bytes | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """A refusal that names what it is about: a measurement, and in it a field (with the type given), or a tag key."""

    measurement: str
    field: str = ""
    given: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class BeyondRetention:
    """Points are too old; those before `before_ns` (Unix time in nanoseconds) where the sink names that time."""

    before_ns: int | None = None


@dataclass(frozen=True, slots=True)
class LineRefused:
    """One line that the sink listed, with its own reason: by its number from 1, by its text (or its start), or both."""

    reason: str
    number: int | None = None
    line: str = ""


@dataclass(frozen=True, slots=True)
class LinesRefused:
    """A refusal that lists the lines it is about."""

    refused: tuple[LineRefused, ...]


Hint = Named | BeyondRetention | LinesRefused


@dataclass(frozen=True, slots=True)
class Rejected:
    """At least one point of the batch will never be taken.

    `reason` is the sink's own sentence, `status` its code (0 when it has none). `dropped` is how many points
    it says it refused, None when it does not say; when that is the whole batch there is nothing to bisect.
    `about_points` is false when the reason names nothing that a point has: whoever answers so may not be the
    database at all. `hint` is what can be understood of the reason: which points it may mean.
    """

    reason: str
    status: int = 0
    dropped: int | None = None
    about_points: bool = True
    hint: Hint | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The batch is larger than the sink takes in one write (HTTP 413)."""

    reason: str
    status: int = 413


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Come back later; what became of the write is unknown.

    `retry_after_s` is the least wait in seconds that the sink asked for, None when it did not ask.
    `suspect` says that the answer may be about this very batch rather than about the sink as a whole
    (HTTP 500): such a batch is bisected when it fails again and again while its neighbours pass.
    """

    reason: str
    status: int = 0
    retry_after_s: float | None = None
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """Token, permission, organisation, bucket or address is wrong (HTTP 401, 403, 404): an operator's error.

    `suspect` says that the answer may be about this very batch (a firewall that reads what passes it): it is, when a
    batch that passed before still passes.
    """

    reason: str
    status: int = 0
    suspect: bool = False


Outcome = Confirmed | Rejected | TooLarge | Unavailable | Misconfigured


# What differs between two refusals for one cause: what is quoted, and numbers.
_DIFFERENT = re.compile(r"""(["'`]).*?\1|\d+""", re.DOTALL)


def words_of(reason: str, status: int) -> tuple[int, str]:
    """What two refusals for the same cause have in common."""
    return status, _DIFFERENT.sub("", plain(reason))


def plain(reason: str) -> str:
    """A sink's words as they can be stored and shown: encodable, on one line, of bounded length.

    JSON can carry half of a surrogate pair, which no UTF-8 can.
    """
    # What is cut anyway need not be cleaned: a reason may quote megabytes.
    text = reason[: 4 * REASON_CHARS_MAX].encode(errors="replace").decode()
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= REASON_CHARS_MAX else text[: REASON_CHARS_MAX - 1] + "…"
