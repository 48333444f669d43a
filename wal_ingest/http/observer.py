"""What the front door reports of its work, and the words that it counts by."""

from __future__ import annotations

import enum
from typing import Protocol


class Reason(enum.Enum):
    """Why a request, or some of its lines, was refused: the values of the metrics' label `reason`."""

    MALFORMED = "malformed"
    TOO_LONG = "too_long"
    TIME = "time"
    REQUEST = "request"
    UNAUTHORIZED = "unauthorized"
    MEDIA_TYPE = "media_type"
    METHOD = "method"
    NUMBER = "number"
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"


class Oddity(enum.Enum):
    """What is odd about points that were accepted: the values of the metrics' label `oddity`."""

    TIME_PAST = "time_past"
    TIME_FUTURE = "time_future"
    NOT_UTF8 = "not_utf8"


class Observer(Protocol):
    """Counts what comes in."""

    def answered(self, route: str, result: str, points: int, body_bytes: int) -> None:
        """A write request was answered, once each.

        `result` is `answers.result_of`; the counts are 0 unless points were stored.
        """
        ...

    def appended(self, seconds: float) -> None:
        """An append became durable after so many seconds."""
        ...

    def refused(self, route: str, reason: str, source: str, lines: int) -> None:
        """Something of `source` was refused for a `Reason`: a whole request (`lines` is 0), or so many lines."""
        ...

    def noticed(self, route: str, oddity: str, source: str, points: int, looks_like: str) -> None:
        """So many points of `source` were accepted although they are odd, in the word of `Oddity`.

        `looks_like` is the unit that their times would be plausible in, such as "seconds"; empty for none.
        """
        ...


class Nobody:
    """The observer where there is none."""

    def answered(self, route: str, result: str, points: int, body_bytes: int) -> None:
        """Does nothing."""

    def appended(self, seconds: float) -> None:
        """Does nothing."""

    def refused(self, route: str, reason: str, source: str, lines: int) -> None:
        """Does nothing."""

    def noticed(self, route: str, oddity: str, source: str, points: int, looks_like: str) -> None:
        """Does nothing."""
