"""Reading a body under three limits: its own size, the time it takes, and what all bodies hold together.

Memory: a request's bytes are counted from the moment they are read until its points are durable or refused.
While a compressed body is being decompressed its output is not counted yet; it is limited by itself, and few
are decompressed at one time.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from wal_ingest.errors import BodyTooLarge, BodyTooSlow, ComeBackLater

# How many of those that wait for memory go on when some comes back: all of them would be too many again.
_WOKEN_AT_ONCE = 16

# One source may hold one part of so many. Less than the half that `BodyBudget.room` waits for: a source at its limit
# must not keep the streams of others waiting.
_SHARES = 3

# A body without new bytes for so long may be dropped when others find no room.
_STALLED_S = 1.0

# A read of a few packets costs as much as one of 512 KiB. So from this size of the body on, the reader waits after each
# read for more to arrive. That limits a connection to 128 MiB a second.
LARGE_BODY_BYTES = 256 * 1024
_UNHURRIED_S = 0.004

# Over how long the least rate of a body is measured, and from which size on.
_PACE_S = 10.0
_PACED_FROM_BYTES = 64 * 1024

Receive = Callable[[], Awaitable[dict[str, Any]]]


class TooManyBodies(ComeBackLater):
    """The bodies that are being read and checked hold all the memory that `server.bodies_bytes_max` gives them.

    Unlike `AppendQueueFull`, where the disk is slow, here senders are: many large bodies arrive at one time.
    """


class ClientGone(Exception):
    """The client disconnected before its body was whole: there is nobody to answer, and nothing was stored."""


class Place(Protocol):
    """See `lanes.Lane`."""

    def leave(self, source: str) -> None: ...


class BodyBudget:
    """The bytes that requests in progress hold, and how many they may.

    One source may hold a third of it while it has several bodies; the rest is for the other sources. When a body
    finds no room, the largest one that has stalled is dropped for it: of its own source, or of any when all is taken.
    """

    def __init__(self, bytes_max: int, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self._monotonic_s = monotonic_s
        self._waiting = trio.lowlevel.ParkingLot()
        self._by_source: dict[str, int] = {}
        # Bodies that arrived in part, each with the time of its last bytes.
        self._arriving: dict[Hold, float] = {}
        # Whether one of those that wait looks for stalled bodies.
        self._is_watched = False

    @property
    def has_room(self) -> bool:
        """Whether `room` would return at once."""
        return self.held_bytes * 2 <= self.bytes_max

    async def room(self) -> None:
        """Returns when half of it is free: for whoever can wait before it begins to read a body.

        The other half is for bodies that were begun, so that those who wait can never keep each other waiting. Bodies
        that have stalled do not keep them waiting either: they are dropped, the largest first.

        **Cancellation:** changes nothing.
        """
        while not self.has_room:
            if self._is_watched:
                await self._waiting.park()
                continue
            self._is_watched = True
            try:
                if not self.drop_stalled(bytes_min=1):
                    with trio.move_on_after(_STALLED_S):
                        await self._waiting.park()
            finally:
                self._is_watched = False
                # Another one watches from now on.
                self._waiting.unpark()

    def take(self, source: str, own: int, count: int) -> None:
        """Counts `count` more bytes for a body of `source` that holds `own`. Raises TooManyBodies."""
        while (whole := self.held_bytes + count > self.bytes_max) or self._is_over_share(source, own, count):
            if not self.drop_stalled(None if whole else source, bytes_min=1):
                raise TooManyBodies("too many bodies are being read at this time (server.bodies_bytes_max)")
        self.held_bytes += count
        if source:
            self._by_source[source] = self._by_source.get(source, 0) + count

    def give_back(self, count: int, source: str = "") -> None:
        """Takes bytes out of the account, and lets a few of those go on that wait for room."""
        self.held_bytes -= count
        self.disown(source, count)
        if self._waiting and self.has_room:
            self._waiting.unpark(count=_WOKEN_AT_ONCE if self.held_bytes else len(self._waiting))

    def disown(self, source: str, count: int) -> None:
        """Takes bytes out of the account of a source."""
        left = self._by_source.pop(source, 0) - count
        if left > 0:
            self._by_source[source] = left

    def arrived_in_part(self, hold: Hold) -> None:
        """More of a body came, and the rest is outstanding."""
        self._arriving[hold] = self._monotonic_s()

    def arrived(self, hold: Hold) -> None:
        """Nothing more is outstanding of a body."""
        self._arriving.pop(hold, None)

    def _is_over_share(self, source: str, own: int, count: int) -> bool:
        """A single body of a source is under no share: it may be as large as the settings allow."""
        held = self._by_source.get(source, 0)
        return bool(source) and held > own and (held + count) * _SHARES > self.bytes_max

    def drop_stalled(self, source: str | None = None, *, bytes_min: int = 0) -> bool:
        """Drops the largest body without bytes for `_STALLED_S`, of `source` or of any; false when there is none.

        One that holds fewer than `bytes_min` bytes is left alone.
        """
        before_s = self._monotonic_s() - _STALLED_S
        candidates = [
            hold
            for hold, last_s in self._arriving.items()
            if last_s <= before_s and source in (None, hold.source) and hold.bytes >= bytes_min
        ]
        if not candidates:
            return False
        max(candidates, key=lambda hold: hold.bytes).drop()
        return True


class Hold:
    """One request's share of the budget; `release` gives all of it back, and may be called again.

    `source` is the address of the sender; without one no share is kept.
    """

    def __init__(self, budget: BodyBudget, source: str = "") -> None:
        self.budget = budget
        self.source = source
        self.bytes = 0
        self.was_dropped = False
        # Where the body has its turn to be checked, until its bytes are released.
        self.lane: Place | None = None
        # What reads the body, while it is outstanding.
        self.reading: trio.CancelScope | None = None

    def take(self, count: int) -> None:
        """Counts `count` more bytes. Raises TooManyBodies, and counts nothing, when they are too many."""
        self.budget.take(self.source, self.bytes, count)
        self.bytes += count

    def whole(self) -> None:
        """The body has arrived: it may be held for as long as storing takes, and counts for its source no more."""
        self.budget.arrived(self)
        self.budget.disown(self.source, self.bytes)
        self.source = ""

    def release(self) -> None:
        """Gives all of it back."""
        lane, self.lane = self.lane, None
        if lane is not None:
            lane.leave(self.source)
        self.budget.arrived(self)
        if self.bytes:
            self.budget.give_back(self.bytes, self.source)
            self.bytes = 0

    def drop(self) -> None:
        """Ends the reading of a body that has stalled, and gives its bytes to others."""
        self.was_dropped = True
        self.release()
        if self.reading is not None:
            self.reading.cancel()


async def read_body(
    receive: Receive, hold: Hold, *, bytes_max: int, body_s_max: float, bytes_per_s_min: int = 0
) -> bytes:
    """The whole body as it was sent, still encoded.

    Raises BodyTooLarge as soon as it is over `bytes_max`, BodyTooSlow after `body_s_max` seconds or below
    `bytes_per_s_min` (see `BodyPace`), TooManyBodies, also when it stalled while others had no room, and ClientGone.
    Cancellation: what was read is dropped, and stays counted until the hold is released.
    """
    pace = BodyPace(bytes_per_s_min, body_s_max)
    with trio.CancelScope(deadline=pace.end_s) as hold.reading:
        try:
            # From the beginning on: its connection counts, if not its bytes.
            hold.budget.arrived_in_part(hold)
            return await _read(receive, hold, bytes_max, pace)
        finally:
            hold.budget.arrived(hold)
    if hold.was_dropped:
        raise stalled("the body")
    raise pace.too_slow("the body")


def stalled(what: str) -> TooManyBodies:
    """The error for a body that was dropped."""
    return TooManyBodies(f"{what} stalled while others had no room (server.bodies_bytes_max)")


class BodyPace:
    """The deadline of a body. From 64 KiB on it must come at the least rate: a small one holds up no others.

    The rate is an average over 10 seconds, so that a lost packet and its repetitions are no stall.
    """

    def __init__(self, bytes_per_s_min: int, body_s_max: float) -> None:
        self.end_s = trio.current_time() + body_s_max
        self._body_s_max = body_s_max
        self._bytes_per_s_min = bytes_per_s_min
        self._step_bytes = int(bytes_per_s_min * _PACE_S)
        self._step_ends_at_bytes = _PACED_FROM_BYTES

    def deadline_s(self, body_bytes: int, before_s: float) -> float:
        """When the reading ends, with so much of the body read; `before_s` is the deadline until now."""
        if not self._step_bytes or body_bytes < self._step_ends_at_bytes:
            return before_s
        self._step_ends_at_bytes = body_bytes + self._step_bytes
        return min(self.end_s, trio.current_time() + _PACE_S)

    def too_slow(self, what: str) -> BodyTooSlow:
        """The error for a body whose deadline has passed."""
        if trio.current_time() < self.end_s:
            least = f"less than {self._bytes_per_s_min} bytes a second (server.body_bytes_per_s_min)"
            return BodyTooSlow(f"{what} arrived at {least}")
        return BodyTooSlow(f"{what} did not arrive within {self._body_s_max:g} seconds (server.body_s_max)")


async def _read(receive: Receive, hold: Hold, bytes_max: int, pace: BodyPace) -> bytes:
    whole: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        if piece:
            if len(whole) + len(piece) > bytes_max:
                raise BodyTooLarge("the body", limit_bytes=bytes_max, setting="server.body_bytes_max")
            hold.take(len(piece))
            if not whole:
                whole = piece
            else:
                # Not a list of pieces: a body of one-byte chunks would take fifty times its size.
                if isinstance(whole, bytes):
                    whole = bytearray(whole)
                whole += piece
        if not message.get("more_body", False):
            return bytes(whole)
        if piece and hold.reading is not None:
            hold.budget.arrived_in_part(hold)
            hold.reading.deadline = pace.deadline_s(len(whole), hold.reading.deadline)
            await unhurried(len(whole))


async def unhurried(body_bytes: int) -> bool:
    """Lets more of a body arrive before the next read, if it is large; gives whether it is.

    Cancellation: changes nothing.
    """
    is_large = body_bytes >= LARGE_BODY_BYTES
    if is_large:
        await trio.sleep(_UNHURRIED_S)
    return is_large


async def discard_body(receive: Receive) -> None:
    """Reads and drops everything until the client is gone or was answered.

    The server keeps a few pieces of a body for an application and then waits for it: one that answers without
    reading must go on taking them, or the connection waits for ever.
    """
    while (await receive())["type"] == "http.request":
        pass
