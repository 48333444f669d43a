"""The times of canonical lines: guessing their unit, and finding those that cannot be meant.

Both work on lines that are canonical already, so they need no grammar: a line's time is what follows its last space.
"""

from __future__ import annotations

import enum
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from wal_ingest.errors import PointError
from wal_ingest.points.lines import Lines, Precision, iter_pieces, split_points

S_NS = 1_000_000_000
DAY_NS = 86_400 * S_NS

PLAUSIBLE_FROM_NS = 631_152_000 * S_NS
"""1990-01-01: older points are taken, but a sender that means them is rare."""


class TimeGuess(enum.Enum):
    """A precision that is decided by each time: the value lists units with the magnitude up to which they apply.

    `AUTO` is InfluxDB 3's `precision=auto`. `US_OR_NS` is for `precision=us` on InfluxDB 1's route: its Go client
    sends `us` and writes nanoseconds, others write microseconds. A number that would be later than the year 2262 in
    microseconds is in nanoseconds.
    """

    AUTO = (
        (5 * 10**9 - 1, Precision.S),
        (5 * 10**12 - 1, Precision.MS),
        (5 * 10**15 - 1, Precision.US),
    )
    US_OR_NS = ((9_223_372_036_854_775, Precision.US),)

    def unit_ns(self, time: int) -> int:
        """The length in nanoseconds of the unit that this time is in."""
        magnitude = abs(time)
        for largest, precision in self.value:
            if magnitude <= largest:
                return int(precision.value)
        return Precision.NS.value


# So many points at a time become objects: all of a large body at once would take twenty times its memory.
_PIECE_POINTS = 1_000

# Times of up to 16 digits: only these can be in another unit than nanoseconds.
_SHORT_TIME = re.compile(rb" -?[0-9]{1,16}\n")


def with_guessed_times(lines: Lines, guess: TimeGuess) -> Lines:
    """The lines, whose times were taken as they stand, with every time in nanoseconds."""
    if _SHORT_TIME.search(lines.data) is None:
        return lines
    out = io.BytesIO()
    for piece in iter_pieces(lines, _PIECE_POINTS):
        for point in split_points(piece.data, piece.points):
            space = point.rfind(b" ") + 1
            time = int(point[space:])
            out.write(b"%b%d\n" % (point[:space], time * guess.unit_ns(time)))
    return Lines(out.getvalue(), lines.points)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """The times that are taken, in Unix nanoseconds; None is no limit."""

    first_ns: int | None
    last_ns: int | None

    @classmethod
    def around(cls, now_ns: int, *, past_s: float, future_s: float) -> TimeWindow | None:
        """The window from so many seconds before now to so many after; 0 is no limit. None without any limit."""
        if not past_s and not future_s:
            return None
        return cls(
            now_ns - int(past_s * S_NS) if past_s else None,
            now_ns + int(future_s * S_NS) if future_s else None,
        )

    def has(self, time_ns: int) -> bool:
        """Whether a time is inside."""
        return (self.first_ns is None or time_ns >= self.first_ns) and (
            self.last_ns is None or time_ns <= self.last_ns
        )


class TimeOutsideWindow(PointError):
    """A point's time is outside `server.time_window_past_s` and `server.time_window_future_s`."""


def outside(lines: Lines, window: TimeWindow) -> dict[int, int]:
    """The points whose time is outside the window: index to time in nanoseconds, in order."""
    return {index: time for index, time in enumerate(times_of(lines)) if not window.has(time)}


def times_of(lines: Lines) -> list[int]:
    """The time of every point, in nanoseconds."""
    found = _TIME.findall(lines.data)
    if len(found) != lines.points:  # a quoted string has what looks like the end of a line
        found = [point[point.rfind(b" ") + 1 :] for point in split_points(lines.data, lines.points)]
    return list(map(int, found))


_TIME = re.compile(rb" (-?[0-9]++)\n")


class OddTimes(NamedTuple):
    """How many points have an implausible time, and the first of these times in nanoseconds."""

    points: int
    first_ns: int

    def with_all(self, times: list[int]) -> OddTimes:
        """The same and these."""
        if not times:
            return self
        return OddTimes(self.points + len(times), self.first_ns if self.points else times[0])


class Implausible(NamedTuple):
    """The points that are older than 1990, and those that are more than a day ahead."""

    past: OddTimes
    future: OddTimes


def implausible_points(lines: Lines, now_ns: int) -> Implausible | None:
    """The points that are older than 1990, or more than a day ahead of `now_ns`; None when none is found.

    Three points speak for all: the first, the last, and one between that `now_ns` chooses. A sender with the wrong unit
    has it everywhere, and one of many senders behind a relay is found within a few requests. Only when one of the three
    is implausible is every time read. This costs some microseconds; reading every time costs more than all else that is
    done to check a usual body.
    """
    data, last_plausible_ns = lines.data, now_ns + DAY_NS
    for end in _sampled_ends(data, now_ns):
        time = _time_before(data, end)
        if time is not None and not PLAUSIBLE_FROM_NS <= time <= last_plausible_ns:
            past, future = OddTimes(0, 0), OddTimes(0, 0)
            for piece in iter_pieces(lines, _PIECE_POINTS):
                times = times_of(piece)
                past = past.with_all([time for time in times if time < PLAUSIBLE_FROM_NS])
                future = future.with_all([time for time in times if time > last_plausible_ns])
            return Implausible(past, future)
    return None


def _sampled_ends(data: bytes, chance: int) -> Iterator[int]:
    """The offsets of the line feeds after the sampled points; some may be inside a quoted string."""
    if not data:
        return
    yield len(data) - 1
    yield data.index(b"\n")
    yield data.index(b"\n", chance % len(data))


def _time_before(data: bytes, end: int) -> int | None:
    """The time that ends at `end`; None where the line feed there is one of a quoted string."""
    # No time has more than 20 characters.
    text = data[max(0, end - 21) : end]
    text = text[text.rfind(b" ") + 1 :]
    return int(text) if text.lstrip(b"-").isdigit() else None


_NAMES = {
    Precision.S: "seconds",
    Precision.MS: "milliseconds",
    Precision.US: "microseconds",
    Precision.NS: "nanoseconds",
}


def window_reason(time_ns: int, unit_ns: int, window: TimeWindow, now_ns: int) -> str:
    """Why a time is outside the window, and which precision would bring it inside."""
    early = window.first_ns is not None and time_ns < window.first_ns
    which, setting = ("before", "past") if early else ("after", "future")
    reason = f"the time {_iso(time_ns)} is {which} what this node takes (server.time_window_{setting}_s)"
    looks = looks_like(time_ns, unit_ns, now_ns)
    return (
        f"{reason}: this looks like {_NAMES[looks]}; send precision={looks.name.lower()}" if looks else reason
    )


def looks_like(time_ns: int, unit_ns: int, now_ns: int) -> Precision | None:
    """The unit in which a time that was read in `unit_ns` would be plausible; None when there is none."""
    sent = time_ns // unit_ns
    for precision in _NAMES:
        if precision.value != unit_ns and PLAUSIBLE_FROM_NS <= sent * precision.value <= now_ns + DAY_NS:
            return precision
    return None


def unit_name(unit: Precision | None) -> str:
    """For people: seconds; empty for none."""
    return "" if unit is None else _NAMES[unit]


def _iso(time_ns: int) -> str:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return (epoch + timedelta(seconds=time_ns // S_NS)).isoformat().replace("+00:00", "Z")
