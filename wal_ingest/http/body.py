"""Reading a body under three limits: its own size, the time it takes, and what all bodies hold together.

Memory: a request's bytes are counted from the moment they are read until its points are durable or refused.
While a compressed body is being decompressed its output is not counted yet; it is limited by itself, and few
are decompressed at one time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from wal_ingest.errors import BodyTooLarge, BodyTooSlow, ComeBackLater

# How many of those that wait for memory go on when some comes back: all of them would be too many again.
_WOKEN_AT_ONCE = 16

Receive = Callable[[], Awaitable[dict[str, Any]]]


class TooManyBodies(ComeBackLater):
    """The bodies that are being read and checked hold all the memory that `server.bodies_bytes_max` gives them.

    Unlike `AppendQueueFull`, where the disk is slow, here senders are: many large bodies arrive at one time.
    """


class ClientGone(Exception):
    """The client disconnected before its body was whole: there is nobody to answer, and nothing was stored."""


class BodyBudget:
    """The bytes that requests in progress hold, and how many they may."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.held_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def has_room(self) -> bool:
        """Whether `room` would return at once."""
        return self.held_bytes * 2 <= self.bytes_max

    async def room(self) -> None:
        """Returns when half of it is free: for whoever can wait before it begins to read a body.

        The other half is for bodies that were begun, so that those who wait can never keep each other waiting.
        """
        while not self.has_room:
            await self._waiting.park()

    def give_back(self, count: int) -> None:
        """Takes bytes out of the account, and lets a few of those go on that wait for room."""
        self.held_bytes -= count
        if self._waiting and self.has_room:
            self._waiting.unpark(count=_WOKEN_AT_ONCE if self.held_bytes else len(self._waiting))


class Hold:
    """One request's share of the budget; `release` gives all of it back, and may be called again."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._bytes = 0

    def take(self, count: int) -> None:
        """Counts `count` more bytes. Raises TooManyBodies, and counts nothing, when they are too many."""
        if self._budget.held_bytes + count > self._budget.bytes_max:
            raise TooManyBodies("too many bodies are being read at this time (server.bodies_bytes_max)")
        self._budget.held_bytes += count
        self._bytes += count

    def release(self) -> None:
        if self._bytes:
            self._budget.give_back(self._bytes)
            self._bytes = 0


async def read_body(receive: Receive, hold: Hold, *, bytes_max: int, body_s_max: float) -> bytes:
    """The whole body as it was sent, still encoded.

    Raises BodyTooLarge as soon as it is over `bytes_max`, BodyTooSlow after `body_s_max` seconds, TooManyBodies,
    and ClientGone. Cancellation: what was read is dropped, and stays counted until the hold is released.
    """
    with trio.move_on_after(body_s_max):
        return await _read(receive, hold, bytes_max)
    raise BodyTooSlow(f"the body did not arrive within {body_s_max:g} seconds (server.body_s_max)")


async def _read(receive: Receive, hold: Hold, bytes_max: int) -> bytes:
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


async def discard_body(receive: Receive) -> None:
    """Reads and drops everything until the client is gone or was answered.

    The server keeps a few pieces of a body for an application and then waits for it: one that answers without
    reading must go on taking them, or the connection waits for ever.
    """
    while (await receive())["type"] == "http.request":
        pass
