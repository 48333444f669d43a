"""One decoded body on its way to canonical lines. Pure: it runs on the spot, in a thread or in the worker process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

from wal_ingest.errors import BodyTooLarge, PointError
from wal_ingest.http.observer import Oddity
from wal_ingest.http.requests import Format, sniff
from wal_ingest.points import BetweenSlices, Lines, Precision, go_on, split_lines, split_points
from wal_ingest.points.encoding import decode_body
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
from wal_ingest.wal.entry import ENTRY_POINTS_MAX

P = TypeVar("P", Precision, None)

# What the points of a body may take as lines, or twice `body_bytes_max` where that is more: with its time a short line
# takes four times what it took without.
LINES_BYTES_MAX = 64 * 1024 * 1024

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

    `dropped` lines were left out, the first of them are in `refusals`. `odd` is what is odd about the points. Where the
    lines are many they may have been cut into `pieces`, of `ENTRY_POINTS_MAX` points each; `lines` has no data then.
    """

    lines: Lines
    dropped: int = 0
    refusals: tuple[RefusedLine, ...] = ()
    odd: tuple[Odd, ...] = ()
    pieces: tuple[Lines, ...] = ()


def decode_and_check(
    body: bytes, encoding: str, reading: Reading, settings: ServerSettings, now_ns: int
) -> Checked:
    """All that a body needs, in one go: for the worker process. Raises as `decode_body` and `check_whole`."""
    decoded = decode_body(body, encoding, bytes_max=settings.body_bytes_max)
    return check_whole(check_of(decoded, reading, settings, now_ns))


def check_of(body: bytes, reading: Reading, settings: ServerSettings, now_ns: int) -> Check:
    """The check that a decoded body needs. Raises BadRequest when it cannot be told how it is written."""
    body = without_mark(body)
    written = reading.written if reading.written is not None else sniff(body)
    return Check(body, written, reading, settings, now_ns)


def check_whole(check: Check) -> Checked:
    """All of the check, and its lines cut into pieces. Raises as `Checker.check`."""
    checked = check.whole(partial(limit_lines, check.settings))
    pieces = tuple(split_lines(checked.lines, ENTRY_POINTS_MAX))
    return replace(checked, lines=Lines(b"", checked.lines.points), pieces=pieces)


def limit_lines(settings: ServerSettings, made_bytes: int) -> None:
    """Raises BodyTooLarge for lines that take more than they may."""
    limit_bytes = max(LINES_BYTES_MAX, 2 * settings.body_bytes_max)
    if made_bytes > limit_bytes:
        raise BodyTooLarge(
            "what the points take as lines with their times",
            limit_bytes=limit_bytes,
            setting="64 MiB, or twice server.body_bytes_max",
        )


@dataclass(frozen=True, slots=True)
class Check:
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
