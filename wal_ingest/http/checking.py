"""From a body as it was sent to canonical lines: on the spot what is small or goes in bulk, the rest elsewhere.

The way into a thread and back costs more than checking a usual body does, so most bodies are checked where their
request runs; what would hold up everybody else's goes to a thread, or to a process of its own.

A thread does not help by itself, for it takes the interpreter's lock. So what runs there works on a slice of 64 KiB at
a time, rests between slices while other bodies are being checked, and sources take turns (see `lanes`). Bodies that are
large once decoded, or of very many members, go to the worker process (see `worker`), one at a time: each has its lane
until its points are durable or refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic, sleep, thread_time
from typing import Protocol, TypeVar

import trio

from wal_ingest.errors import BodyTooLarge
from wal_ingest.http.body import Hold
from wal_ingest.http.check import (
    Check,
    Checked,
    Reading,
    check_of,
    check_whole,
    decode_and_check,
    limit_lines,
)
from wal_ingest.http.lanes import Lane
from wal_ingest.http.requests import Format
from wal_ingest.points import Lines, split_lines
from wal_ingest.points.encoding import TooManyMembers, decode_body, frames_at_most
from wal_ingest.settings import ServerSettings
from wal_ingest.wal.entry import ENTRY_POINTS_MAX

T = TypeVar("T")

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

# While there are other requests, a thread rests so many seconds for each second of work: the event loop waits up to
# 0.2 ms each time it needs the interpreter's lock back from a busy thread, several times for each request.
_REST = 3.0
# There are other requests if a body was checked without a thread within this time.
_RECENT_S = 0.05


# Compressed bodies of more members or frames than this are decoded in a thread: each costs as much as a small body.
INLINE_MEMBERS_MAX = 16


class Door(Protocol):
    """Runs a function elsewhere and awaits it; tests use a twin that runs it on the spot."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


def thread_door(threads_max: int = USUAL_AT_ONCE + LARGE_AT_ONCE) -> Door:
    """The real way into a thread, for `threads_max` at one time.

    Cancellation: the thread finishes by itself and its result is dropped; the work must be pure.
    """
    limiter = trio.CapacityLimiter(threads_max)

    async def run(work: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    return run


class Checker:
    """Decodes and validates bodies under the limits of the settings; both doors share one.

    `in_worker` is the way into the worker process; without it large bodies go to a thread as well.
    """

    def __init__(
        self,
        settings: ServerSettings,
        in_thread: Door | None = None,
        in_worker: Door | None = None,
        *,
        monotonic_s: Callable[[], float] = monotonic,
        rest: Callable[[float], None] = sleep,
    ) -> None:
        self._settings = settings
        self._monotonic_s = monotonic_s
        self._rest = rest
        self._in_thread = in_thread if in_thread is not None else thread_door()
        self._in_worker = in_worker if in_worker is not None else self._in_thread
        self._usual = Lane(USUAL_AT_ONCE, waiting_max=_WAITING_MAX)
        self._large = Lane(LARGE_AT_ONCE, waiting_max=_LARGE_WAITING_MAX)
        # When a body was last checked on the spot.
        self._inline_s = -math.inf

    async def take(self, body: bytes, encoding: str, reading: Reading, *, now_ns: int, hold: Hold) -> Checked:
        """`decode` and `check` in one: what becomes large stays in the worker process until it is lines."""
        decoded = await self._decode_small(body, encoding, hold)
        if decoded is not None:
            return await self.check(decoded, reading, now_ns=now_ns, hold=hold)
        work = partial(decode_and_check, body, encoding, reading, self._settings, now_ns)
        checked = await self._run(work, work, LARGE_BYTES + 1, hold)
        hold.take(sum(len(piece.data) for piece in checked.pieces))
        return checked

    async def decode(self, body: bytes, encoding: str, hold: Hold) -> bytes:
        """The body without its encoding, counted in `hold`: decompressed on the spot when what comes out is small.

        Raises what `decode_body` raises, and TooManyBodies. Cancellation: only the hold remains.
        """
        decoded = await self._decode_small(body, encoding, hold)
        if decoded is None:
            large = partial(decode_body, body, encoding, bytes_max=self._settings.body_bytes_max)
            decoded = await self._run(large, large, LARGE_BYTES + 1, hold)
            hold.take(len(decoded))
        return decoded

    async def _decode_small(self, body: bytes, encoding: str, hold: Hold) -> bytes | None:
        """The body without its encoding, unless that is large or has many members; counted in `hold`, where it is new.

        How large it becomes is known afterwards only: what becomes larger is begun once more, where it has its turn.
        """
        bytes_max = self._settings.body_bytes_max
        if not encoding:
            return decode_body(body, encoding, bytes_max=bytes_max)
        if frames_at_most(body, encoding) > INLINE_MEMBERS_MAX:
            return None
        if len(body) <= INLINE_BYTES_MAX:
            inline_bytes_max = min(INLINE_BYTES_MAX, bytes_max)
            try:
                decoded = decode_body(
                    body, encoding, bytes_max=inline_bytes_max, members_max=INLINE_MEMBERS_MAX
                )
            except TooManyMembers:
                return None
            except BodyTooLarge:
                if bytes_max <= INLINE_BYTES_MAX:
                    raise
            else:
                hold.take(len(decoded))
                return decoded
        if len(body) <= LARGE_BYTES:
            usual = partial(decode_body, body, encoding, bytes_max=min(LARGE_BYTES, bytes_max))
            try:
                decoded = await self._run(usual, usual, 0, hold)
            except BodyTooLarge:
                if bytes_max <= LARGE_BYTES:
                    raise
            else:
                hold.take(len(decoded))
                return decoded
        return None

    async def check(self, body: bytes, reading: Reading, *, now_ns: int, hold: Hold) -> Checked:
        """The canonical lines of a decoded body.

        Raises PointError, BadRequest; for lines that are bad only unless `reading.partial`; BodyTooLarge when they take
        more than `LINES_BYTES_MAX`, and TooManyBodies. Cancellation: only the hold remains, which the caller releases.
        """
        check = check_of(body, reading, self._settings, now_ns)
        body, written = check.body, check.written
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
        slices = _Slices(self._settings, self._has_others, self._rest)
        return await self._run(partial(slices.run, check), partial(check_whole, check), len(body), hold)

    async def cut(self, checked: Checked, hold: Hold) -> Sequence[Lines]:
        """The lines in pieces for entries. Cancellation: only the hold remains."""
        lines = checked.lines
        if checked.pieces:
            return checked.pieces
        if len(lines.data) <= INLINE_BYTES_MAX:
            return split_lines(lines, ENTRY_POINTS_MAX)
        split = partial(split_lines, lines, ENTRY_POINTS_MAX)
        return await self._run(split, split, 0, hold)

    async def _run(self, here: Callable[[], T], there: Callable[[], T], size: int, hold: Hold) -> T:
        """Does what a body needs, when it is its turn: `here` in a thread, `there` in the worker process.

        `size` is its size decoded, as far as known. A body that was large once has its lane to its end.
        """
        if size > LARGE_BYTES and hold.lane is None:
            await self._large.enter(hold.source)
            hold.lane = self._large
        if hold.lane is not None:
            return await self._in_worker(there)
        await self._usual.enter(hold.source)
        try:
            return await self._in_thread(here)
        finally:
            self._usual.leave(hold.source)

    def _has_others(self) -> bool:
        return self._monotonic_s() - self._inline_s < _RECENT_S


class _Slices:
    """What happens between the slices of a body that is checked in a thread."""

    def __init__(
        self, settings: ServerSettings, has_others: Callable[[], bool], rest: Callable[[float], None]
    ) -> None:
        self._settings = settings
        self._has_others = has_others
        self._rest = rest
        self._worked_s = 0.0

    def run(self, check: Check) -> Checked:
        """All of the check, slice by slice."""
        self._worked_s = thread_time()
        return check.whole(self._between)

    def _between(self, made_bytes: int) -> None:
        limit_lines(self._settings, made_bytes)
        if self._has_others():
            self._rest((thread_time() - self._worked_s) * _REST)
        self._worked_s = thread_time()
