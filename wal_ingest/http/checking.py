"""From a body as it was sent to canonical lines: on the spot what is small or goes in bulk, the rest in a thread.

The way into a thread and back costs more than checking a usual body does, so most bodies are checked where their
request runs; what would hold up everybody else's goes to a thread.

A thread does not help by itself, for it takes the interpreter's lock. So what runs there works on a slice of 64 KiB at
a time, rests between slices while other bodies are being checked, and sources take turns (see `lanes`). Of bodies that
are large once decoded only one is in memory at a time: it has its lane until its points are durable or refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic, sleep, thread_time
from typing import NamedTuple, Protocol, TypeVar

import trio

from wal_ingest.errors import BodyTooLarge, PointError
from wal_ingest.http.body import Hold
from wal_ingest.http.lanes import Lane
from wal_ingest.http.observer import Oddity
from wal_ingest.http.requests import Format, sniff
from wal_ingest.points import BetweenSlices, Lines, Precision, go_on, split_lines, split_points
from wal_ingest.points.encoding import TooManyMembers, decode_body, frames_at_most
from wal_ingest.points.json_points import accept_json, accept_ndjson
from wal_ingest.points.line_protocol import (
    accept_good_lines,
    accept_line_protocol,
    accept_line_protocol_fast,
)
from wal_ingest.points.text import as_utf8, without_mark
from wal_ingest.points.times import (
    OddTimes,
    TimeGuess,
    TimeOutsideWindow,
    TimeWindow,
    implausible_points,
    looks_like,
    outside,
    unit_name,
    window_reason,
    with_guessed_times,
)
from wal_ingest.points.utf8 import first_invalid_byte
from wal_ingest.settings import ServerSettings

T = TypeVar("T")
P = TypeVar("P", Precision, None)

# A body of up to this many bytes, after decompression, is checked without going to a thread.
INLINE_BYTES_MAX = 256 * 1024

# JSON takes five to fifty times as long as line protocol that goes in bulk, and a body that needs the exact parser
# a hundred times: larger ones go to a thread, so that one sender's mistakes do not make everybody wait.
JSON_INLINE_BYTES_MAX = 64 * 1024
SLOW_INLINE_BYTES_MAX = 4 * 1024

# Bodies that are checked in threads at one time: the usual ones, and those that are larger than `LARGE_BYTES`, each
# of which may take `body_bytes_max` and `LINES_BYTES_MAX` more than the budget counts.
USUAL_AT_ONCE = 2
LARGE_AT_ONCE = 1
LARGE_BYTES = 1024 * 1024

# At most so many bodies of one source wait for each of the two lanes.
_WAITING_MAX = 64
_LARGE_WAITING_MAX = 8

# The lines of a body may take so many bytes, or twice `body_bytes_max` if that is more: a time makes a short line
# four times as long.
LINES_BYTES_MAX = 64 * 1024 * 1024

# While there are other requests, a thread rests so many seconds for each second of work: the event loop waits up to
# 0.2 ms each time it needs the interpreter's lock back from a busy thread, several times for each request.
_REST = 3.0
# There are other requests if a body was checked without a thread within this time.
_RECENT_S = 0.05


# Compressed bodies of more members or frames than this are decoded in a thread: each costs as much as a small body.
INLINE_MEMBERS_MAX = 16

# How many refused lines of a request are described, and how much of each is quoted.
REFUSALS_MAX = 100
REFUSED_TEXT_MAX = 200


@dataclass(frozen=True, slots=True)
class Reading:
    """How a body is to be read: `written` and `precision` are None where the sender did not name them.

    `partial` says that good lines of line protocol are taken although others are bad.
    """

    written: Format | None
    precision: Precision | TimeGuess | None = None
    partial: bool = False


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line that was left out: its text (cut off when long) and why."""

    text: str
    error: PointError


class Odd(NamedTuple):
    """So many points are odd in that way. `looks_like` is the unit that the first of their times would be plausible in,
    such as "seconds"; empty for none."""

    oddity: Oddity
    points: int
    looks_like: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """The canonical lines of a body, and what is to be reported of it.

    `dropped` lines were left out, the first of them are in `refusals`. `odd` is what is odd about the points.
    """

    lines: Lines
    dropped: int = 0
    refusals: tuple[RefusedLine, ...] = ()
    odd: tuple[Odd, ...] = ()


class ThreadDoor(Protocol):
    """Runs a function in a thread and awaits it; tests use a twin that runs it on the spot."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


def thread_door(threads_max: int = USUAL_AT_ONCE + LARGE_AT_ONCE) -> ThreadDoor:
    """The real way into a thread, for `threads_max` at one time.

    Cancellation: the thread finishes by itself and its result is dropped; the work must be pure.
    """
    limiter = trio.CapacityLimiter(threads_max)

    async def run(work: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    return run


class Checker:
    """Decodes and validates bodies under the limits of the settings; both doors share one."""

    def __init__(
        self,
        settings: ServerSettings,
        in_thread: ThreadDoor | None = None,
        *,
        monotonic_s: Callable[[], float] = monotonic,
        rest: Callable[[float], None] = sleep,
    ) -> None:
        self._settings = settings
        self._monotonic_s = monotonic_s
        self._rest = rest
        self._in_thread = in_thread if in_thread is not None else thread_door()
        self._usual = Lane(USUAL_AT_ONCE, waiting_max=_WAITING_MAX)
        self._large = Lane(LARGE_AT_ONCE, waiting_max=_LARGE_WAITING_MAX)
        # When a body was last checked on the spot.
        self._inline_s = -math.inf

    async def decode(self, body: bytes, encoding: str, hold: Hold) -> bytes:
        """The body without its encoding, counted in `hold`: decompressed on the spot when what comes out is small.

        Raises what `decode_body` raises, and TooManyBodies. Cancellation: only the hold remains.
        """
        bytes_max = self._settings.body_bytes_max
        if not encoding:
            return decode_body(body, encoding, bytes_max=bytes_max)
        decoded = None
        if len(body) <= INLINE_BYTES_MAX and frames_at_most(body, encoding) <= INLINE_MEMBERS_MAX:
            try:
                decoded = decode_body(
                    body,
                    encoding,
                    bytes_max=min(INLINE_BYTES_MAX, bytes_max),
                    members_max=INLINE_MEMBERS_MAX,
                )
            except TooManyMembers:
                pass
            except BodyTooLarge:
                if bytes_max <= INLINE_BYTES_MAX:
                    raise
        if decoded is None:
            decoded = await self._decode_in_thread(body, encoding, hold)
        hold.take(len(decoded))
        return decoded

    async def _decode_in_thread(self, body: bytes, encoding: str, hold: Hold) -> bytes:
        """Its size is known only afterwards: a body that turns out large is decompressed again when it has its turn."""
        bytes_max = self._settings.body_bytes_max
        if len(body) <= LARGE_BYTES:
            try:
                return await self._run(
                    lambda: decode_body(body, encoding, bytes_max=min(LARGE_BYTES, bytes_max)), 0, hold
                )
            except BodyTooLarge:
                if bytes_max <= LARGE_BYTES:
                    raise
        return await self._run(
            lambda: decode_body(body, encoding, bytes_max=bytes_max), LARGE_BYTES + 1, hold
        )

    async def check(self, body: bytes, reading: Reading, *, now_ns: int, hold: Hold) -> Checked:
        """The canonical lines of a decoded body.

        Raises PointError, BadRequest; for lines that are bad only unless `reading.partial`; BodyTooLarge when they take
        more than `LINES_BYTES_MAX`, and TooManyBodies. Cancellation: only the hold remains, which the caller releases.
        """
        body = without_mark(body)
        written = reading.written if reading.written is not None else sniff(body)
        check = _Check(body, written, reading, self._settings, now_ns)
        inline_bytes_max = SLOW_INLINE_BYTES_MAX
        if written is Format.LINE_PROTOCOL and len(body) <= INLINE_BYTES_MAX:
            checked = check.fast()
            if checked is not None:
                self._inline_s = self._monotonic_s()
                return checked
        elif written is not Format.LINE_PROTOCOL:
            inline_bytes_max = JSON_INLINE_BYTES_MAX
        if len(body) <= inline_bytes_max:
            self._inline_s = self._monotonic_s()
            return check.whole()
        slices = _Slices(
            max(LINES_BYTES_MAX, 2 * self._settings.body_bytes_max), self._has_others, self._rest
        )
        return await self._run(lambda: slices.run(check), len(body), hold)

    async def cut(self, lines: Lines, points_max: int, hold: Hold) -> list[Lines]:
        """The lines in pieces of at most so many points. Cancellation: only the hold remains."""
        if len(lines.data) <= INLINE_BYTES_MAX:
            return split_lines(lines, points_max)
        return await self._run(lambda: split_lines(lines, points_max), 0, hold)

    async def _run(self, work: Callable[[], T], size: int, hold: Hold) -> T:
        """Runs in a thread what a body needs, when it is its turn; `size` is its size decoded, as far as known."""
        if size > LARGE_BYTES and hold.lane is None:
            await self._large.enter(hold.source)
            hold.lane = self._large
        if hold.lane is not None:
            return await self._in_thread(work)
        await self._usual.enter(hold.source)
        try:
            return await self._in_thread(work)
        finally:
            self._usual.leave(hold.source)

    def _has_others(self) -> bool:
        return self._monotonic_s() - self._inline_s < _RECENT_S


class _Slices:
    """What happens between the slices of a body that is checked in a thread."""

    def __init__(
        self, lines_bytes_max: int, has_others: Callable[[], bool], rest: Callable[[float], None]
    ) -> None:
        self._lines_bytes_max = lines_bytes_max
        self._has_others = has_others
        self._rest = rest
        self._worked_s = 0.0

    def run(self, check: _Check) -> Checked:
        """All of the check."""
        self._worked_s = thread_time()
        return check.whole(self._between)

    def _between(self, made_bytes: int) -> None:
        if made_bytes > self._lines_bytes_max:
            raise BodyTooLarge(
                "what the points take as lines with their times",
                limit_bytes=self._lines_bytes_max,
                setting="64 MiB, or twice server.body_bytes_max",
            )
        if self._has_others():
            self._rest((thread_time() - self._worked_s) * _REST)
        self._worked_s = thread_time()


@dataclass(frozen=True, slots=True)
class _Check:
    """One body on its way to canonical lines: `fast` does what goes in bulk, `whole` everything, however slow."""

    body: bytes
    written: Format
    reading: Reading
    settings: ServerSettings
    now_ns: int

    def fast(self) -> Checked | None:
        """The lines of a body of good line protocol; None when it is not that, or is more than bulk work."""
        try:
            lines = accept_line_protocol_fast(
                self.body,
                precision=self._precision(Precision.NS),
                now_ns=self.now_ns,
                line_bytes_max=self.settings.line_bytes_max,
            )
        except PointError:
            return None
        return None if lines is None else self._finished(lines)

    def whole(self, between: BetweenSlices = go_on) -> Checked:
        """Line by line where it must be. Raises as `Checker.check`."""
        if self.written is Format.LINE_PROTOCOL:
            return self._line_protocol(between)
        accept = accept_json if self.written is Format.JSON else accept_ndjson
        lines = accept(
            self.body,
            now_ns=self.now_ns,
            precision=self._precision(None),
            depth_max=self.settings.json_depth_max,
            line_bytes_max=self.settings.line_bytes_max,
            between=between,
        )
        return self._finished(lines)

    def _line_protocol(self, between: BetweenSlices) -> Checked:
        body, repaired = self.body, 0
        if first_invalid_byte(body) is not None:
            body, repaired = as_utf8(body)
        precision, limit = self._precision(Precision.NS), self.settings.line_bytes_max
        if not self.reading.partial:
            lines = accept_line_protocol(
                body, precision=precision, now_ns=self.now_ns, line_bytes_max=limit, between=between
            )
            return self._finished(lines, repaired=repaired)
        good = accept_good_lines(
            body,
            precision=precision,
            now_ns=self.now_ns,
            line_bytes_max=limit,
            refusals_max=REFUSALS_MAX,
            between=between,
        )
        refusals = tuple(
            RefusedLine(_text_at(body, start), error)
            for error, start in zip(good.refusals, good.starts, strict=True)
        )
        return self._finished(good.lines, good.dropped, refusals, repaired)

    def _precision(self, default: P) -> Precision | P:
        """The unit that the parser takes; where it is guessed, times are taken as they stand and changed afterwards."""
        precision = self.reading.precision
        if isinstance(precision, TimeGuess):
            return Precision.NS
        return precision or default

    def _finished(
        self, lines: Lines, dropped: int = 0, refusals: tuple[RefusedLine, ...] = (), repaired: int = 0
    ) -> Checked:
        """What is to be done with times, once the lines are canonical. Raises TimeOutsideWindow."""
        if isinstance(self.reading.precision, TimeGuess):
            lines = with_guessed_times(lines, self.reading.precision)
        settings = self.settings
        window = TimeWindow.around(
            self.now_ns, past_s=settings.time_window_past_s, future_s=settings.time_window_future_s
        )
        if window is not None:
            late = outside(lines, window)
            if late:
                lines, refused = self._without(lines, late, window)
                dropped, refusals = dropped + len(late), (*refusals, *refused)[:REFUSALS_MAX]
        found = implausible_points(lines, self.now_ns)
        if found is None and not repaired:
            return Checked(lines, dropped, refusals)
        past, future = found or (OddTimes(0, 0), OddTimes(0, 0))
        by_time = ((Oddity.TIME_PAST, past), (Oddity.TIME_FUTURE, future))
        odd = [self._odd(oddity, times) for oddity, times in by_time if times.points]
        if repaired:
            odd.append(Odd(Oddity.NOT_UTF8, repaired))
        return Checked(lines, dropped, refusals, tuple(odd))

    def _odd(self, oddity: Oddity, times: OddTimes) -> Odd:
        looks = looks_like(times.first_ns, self._unit_ns, self.now_ns)
        return Odd(oddity, times.points, unit_name(looks))

    @property
    def _unit_ns(self) -> int:
        """The unit in which the body's times were read."""
        precision = self.reading.precision
        default = Precision.NS if self.written is Format.LINE_PROTOCOL else Precision.MS
        return (precision if isinstance(precision, Precision) else default).value

    def _without(
        self, lines: Lines, late: Mapping[int, int], window: TimeWindow
    ) -> tuple[Lines, list[RefusedLine]]:
        """The lines without those whose time is outside the window; raises for the first unless `partial`."""
        unit_ns = self._unit_ns
        points = split_points(lines.data, lines.points)
        refused: list[RefusedLine] = []
        start, passed = 0, 1
        for index, time in list(late.items())[:REFUSALS_MAX]:
            reason = window_reason(time, unit_ns, window, self.now_ns)
            line = self._line_of(points[index], index, unit_ns)
            start, passed = _skip_lines(self.body, start, line - passed), line
            if self.written is Format.JSON:
                error = TimeOutsideWindow(reason, index=index)
            else:
                error = TimeOutsideWindow(reason, line=line)
            if not self.reading.partial:
                raise error
            refused.append(RefusedLine(_text_at(self.body, start), error))
        kept = [point for index, point in enumerate(points) if index not in late]
        return Lines(b"".join(kept), len(kept)), refused

    def _line_of(self, point: bytes, index: int, unit_ns: int) -> int:
        """The line of the body that a point came from, as far as the text still shows it."""
        head, _, time = point.rstrip(b"\n").rpartition(b" ")
        found = self.body.find(b"%b %d" % (head, int(time) // unit_ns))
        return index + 1 if found < 0 else self.body.count(b"\n", 0, found) + 1


def _skip_lines(body: bytes, start: int, lines: int) -> int:
    """Where the line begins that is so many after the one that begins at `start`; the same line for fewer than one."""
    for _ in range(lines):
        start = body.find(b"\n", start) + 1
    return start


def _text_at(body: bytes, start: int) -> str:
    """The text of the line that begins there, the first `REFUSED_TEXT_MAX` characters of it."""
    text = body[start : start + 4 * REFUSED_TEXT_MAX].partition(b"\n")[0].rstrip(b"\r")
    return text.decode(errors="replace")[:REFUSED_TEXT_MAX]
