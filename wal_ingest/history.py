"""What the last hour was like, and what follows from it: rates, quantiles, and when the WAL will be full. Pure.

Once a second somebody takes a `Sample` of numbers that only rise (points, requests, appends by duration) and of a few
that go up and down. Rates are differences between two samples, so nothing is counted a second time, and a
sample that comes late makes a longer interval, not a wrong rate.

Invariants:

* Memory is bounded: a minute of samples and an hour of steps of ten seconds, whatever happens.
* Every step has a value for every series, or says that it is not known (None).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

# A step of the hour, how many there are, and how far back quantiles and forecasts look.
STEP_S = 10.0
STEPS_MAX = 360
_RECENT_S = 60.0
# What "now" means for a rate.
_RATE_S = 10.0

# Growth that would fill the WAL only after so long is no growth: it is the noise of a node that keeps pace.
FORECAST_S_MAX = 7 * 86_400.0

# A shorter trend is no trend: of growth, of a sink that catches up.
_GROWTH_S_MIN = 30.0
_CATCH_UP_S_MIN = 5.0

# Fewer samples than three times this say nothing about growth.
_FALL_VALUES_MIN = 3

# Upper bounds of the classes that durations are counted in: 0.1 ms to 90 s, each a quarter above the one before.
BOUNDS_S = tuple(0.0001 * 1.25**power for power in range(62))


class Durations:
    """How many of some act took how long, since the start; recording costs a fraction of a microsecond."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)

    def record(self, seconds: float) -> None:
        """Counts one that took so many seconds."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1

    def counts(self) -> tuple[int, ...]:
        """How many fell into each class, those above the last bound at the end."""
        return tuple(self._counts)


def quantile(counts: Sequence[int], part: float) -> float | None:
    """The duration in seconds that `part` of those counted did not exceed; None when none was counted.

    It is off by a quarter at the most, the width of a class; beyond the last bound that bound is given, and below
    the first something below it.
    """
    up_to = list(accumulate(counts))
    wanted = part * up_to[-1]
    if not wanted:
        return None
    index = bisect_left(up_to, wanted)
    if index == len(BOUNDS_S):
        return BOUNDS_S[-1]
    low = BOUNDS_S[index - 1] if index else 0.0
    below = up_to[index] - counts[index]
    return low + (BOUNDS_S[index] - low) * (wanted - below) / counts[index]


@dataclass(frozen=True, slots=True)
class SinkSample:
    """One sink at one moment: points that wait, points that its cursor has passed, and those that it confirmed."""

    waiting_points: int
    passed_points: int
    confirmed_points: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. `at_s` is on a clock that only goes forward; counts are since any one moment.

    `appends` are `Durations.counts`, from append to durable. `wal_room` and `disk_room` are the bytes that are left
    under the limits at which nothing new is taken, the WAL's own and the disk's; infinite where there is none.
    """

    at_s: float
    requests: int
    points: int
    bytes: int
    commits: int
    entries: int
    appends: tuple[int, ...]
    wal_bytes: int
    wal_room: float = math.inf
    disk_room: float = math.inf
    sinks: Mapping[str, SinkSample] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """What comes in, by the second."""

    requests_per_s: float
    points_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Commits:
    """The last minute of commits: quantiles of append to durable in seconds, None when there was none."""

    p50_s: float | None
    p99_s: float | None
    per_s: float
    entries_per_commit: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """Ten seconds: rates over them, sizes at their end; None where nothing is known.

    `sinks` has (points waiting, points confirmed by the second) by name.
    """

    points_per_s: float | None = None
    wal_bytes: int | None = None
    append_p99_s: float | None = None
    sinks: Mapping[str, tuple[int, float]] = field(default_factory=dict)


class History:
    """A minute of samples and an hour of steps. Not for two threads at once."""

    def __init__(self) -> None:
        self._recent: deque[Sample] = deque()
        self._steps: deque[Step] = deque(maxlen=STEPS_MAX)
        # The first sample of the step under way, and where that step begins.
        self._opening: Sample | None = None
        self.end_s = 0.0

    def add(self, sample: Sample) -> None:
        """Takes the next sample; one that is not later than the last is ignored."""
        if self._recent and sample.at_s <= self._recent[-1].at_s:
            return
        self._recent.append(sample)
        while len(self._recent) > 2 and self._recent[1].at_s <= sample.at_s - _RECENT_S:
            self._recent.popleft()
        if self._opening is None:
            self._opening, self.end_s = sample, sample.at_s
            return
        over = int((sample.at_s - self.end_s) / STEP_S)
        if not over:
            return
        if over == 1:
            self._steps.append(_step(self._opening, sample))
        else:  # nobody looked for a while: what went on in each of these steps is not known
            self._steps.extend(Step() for _ in range(min(over, STEPS_MAX)))
        self.end_s += over * STEP_S
        self._opening = sample

    @property
    def steps(self) -> Sequence[Step]:
        """The steps that are over, oldest first; the last of them ended at `end_s`, on the samples' clock."""
        return tuple(self._steps)

    def sink_names(self) -> list[str]:
        """Every sink that any step or the last sample knows, in order."""
        known = {name for step in self._steps for name in step.sinks}
        if self._recent:
            known |= set(self._recent[-1].sinks)
        return sorted(known)

    def rates(self) -> Rates:
        """What came in over the last ten seconds, by the second."""
        span = self._span(_RATE_S)
        if span is None:
            return Rates(0.0, 0.0, 0.0)
        first, last, seconds = span
        return Rates(
            (last.requests - first.requests) / seconds,
            (last.points - first.points) / seconds,
            (last.bytes - first.bytes) / seconds,
        )

    def commits(self) -> Commits:
        """How committing went over the last minute."""
        span = self._span(_RECENT_S)
        if span is None:
            return Commits(None, None, 0.0, None)
        first, last, seconds = span
        appends = _difference(first.appends, last.appends)
        commits = last.commits - first.commits
        return Commits(
            quantile(appends, 0.5),
            quantile(appends, 0.99),
            commits / seconds,
            (last.entries - first.entries) / commits if commits else None,
        )

    def full_in_s(self) -> float | None:
        """Seconds until the WAL has no room, under its limit or on its disk, at its own growth over the last minute.

        0 when a limit is reached; None when the WAL does not grow, whatever else fills the disk, and when its growth
        would take more than a week.
        """
        if not self._recent:
            return None
        last = self._recent[-1]
        return self._reached_in_s(
            min(last.wal_room, last.disk_room), [each.wal_room for each in self._recent]
        )

    def disk_full_in_s(self) -> float | None:
        """Seconds until the disk reaches its floor, at the trend of the last minute, whatever fills it; as above."""
        rooms = [each.disk_room for each in self._recent]
        return self._reached_in_s(rooms[-1], rooms) if rooms else None

    def _reached_in_s(self, room: float, rooms: Sequence[float]) -> float | None:
        """Seconds until nothing is left of `room` at the rate at which `rooms`, one per sample, shrink."""
        if room <= 0:
            return 0.0
        over_s = self._recent[-1].at_s - self._recent[0].at_s
        if over_s < _GROWTH_S_MIN or not math.isfinite(rooms[-1]) or not _falls(rooms):
            return None
        shrinks_per_s = -_slope(zip((sample.at_s for sample in self._recent), rooms, strict=True))
        found = room / shrinks_per_s if shrinks_per_s > 0 else math.inf
        return found if found <= FORECAST_S_MAX else None

    def confirmed_per_s(self, sink: str) -> float:
        """Points that a sink confirmed over the last ten seconds, by the second."""
        span = self._span(_RATE_S)
        if span is None or not all(sink in sample.sinks for sample in span[:2]):
            return 0.0
        first, last, seconds = span
        return (last.sinks[sink].confirmed_points - first.sinks[sink].confirmed_points) / seconds

    def catch_up_s(self, sink: str) -> float | None:
        """Seconds until nothing waits for a sink, at the rates of the last ten seconds; None: it falls behind, or
        fewer than five seconds are known.

        A sink for which no more waits than came in within these ten seconds keeps pace: the result is when it will
        have what waits now. The caller knows whether the sink delivers at all.
        """
        if not self._recent or sink not in self._recent[-1].sinks:
            return None
        waiting = self._recent[-1].sinks[sink].waiting_points
        if waiting <= 0:
            return 0.0
        span = self._span(_RATE_S)
        if span is None or sink not in span[0].sinks:
            return None
        first, last, seconds = span
        if seconds < _CATCH_UP_S_MIN:
            return None
        accepted_per_s = (last.points - first.points) / seconds
        passed_per_s = (last.sinks[sink].passed_points - first.sinks[sink].passed_points) / seconds
        if waiting <= accepted_per_s * seconds:
            return waiting / max(passed_per_s, accepted_per_s)
        gains_per_s = passed_per_s - accepted_per_s
        return waiting / gains_per_s if gains_per_s > 0 else None

    def _span(self, seconds: float) -> tuple[Sample, Sample, float] | None:
        """The last sample, the one about `seconds` before it (or the first), and the seconds between."""
        if len(self._recent) < 2:
            return None
        last = self._recent[-1]
        before = [sample for sample in self._recent if sample.at_s <= last.at_s - seconds]
        first = before[-1] if before else self._recent[0]
        return first, last, last.at_s - first.at_s


def _step(first: Sample, last: Sample) -> Step:
    seconds = last.at_s - first.at_s
    sinks = {}
    for name, sink in last.sinks.items():
        before = first.sinks.get(name, sink)
        sinks[name] = (sink.waiting_points, (sink.confirmed_points - before.confirmed_points) / seconds)
    return Step(
        points_per_s=(last.points - first.points) / seconds,
        wal_bytes=last.wal_bytes,
        append_p99_s=quantile(_difference(first.appends, last.appends), 0.99),
        sinks=sinks,
    )


def _difference(first: Sequence[int], last: Sequence[int]) -> list[int]:
    return [after - before for before, after in zip(first, last, strict=True)]


def _falls(values: Sequence[float]) -> bool:
    """Whether the last third lies below the first: not so for what goes up and down while a node keeps pace."""
    third = len(values) // 3
    return third >= _FALL_VALUES_MIN and max(values[-third:]) < min(values[:third])


def _slope(points: Iterable[tuple[float, float]]) -> float:
    """By how much y rises for each x, as the least squares have it; 0 where that cannot be said."""
    known = list(points)
    mean_x = math.fsum(x for x, _ in known) / len(known)
    mean_y = math.fsum(y for _, y in known) / len(known)
    spread = math.fsum((x - mean_x) ** 2 for x, _ in known)
    together = math.fsum((x - mean_x) * (y - mean_y) for x, y in known)
    return together / spread if spread else 0.0
