"""Delivery over the node's stream: exact over a crash of either side.

An entry's seq is its frame's number, and the spool's identity is the client_id. So the node's welcome says where to go
on: what it holds is settled by number and checksum, the rest is sent again. Where its numbers are not this spool's (a
spool restored from a backup; one copied with a machine's image, so that two agents stream as one) everything that is
not settled goes under a new client_id: some points may be stored twice, which changes nothing, and none are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Protocol

import structlog
import trio

from wal_ingest.agent.spool import Spool
from wal_ingest.agent.window import Window, stored_of
from wal_ingest.client.errors import PROTOCOL_ERROR, REPLACED, StreamClosed
from wal_ingest.client.messages import Ack, Answer, Refusal, Welcome
from wal_ingest.errors import ComeBackLater
from wal_ingest.wal.entry import Entry

# What a frame's header line takes at the most, by the protocol.
_HEADER_BYTES_MAX = 1_024
_REFUSED_FOR_GOOD = (400, 413, 415)

_log = structlog.get_logger("wal_ingest.agent")


class Stream(Protocol):
    """An open stream (`wal_ingest.client.stream.StreamConnection`)."""

    welcome: Welcome

    async def send(self, number: int, body: bytes, *, encoding: str) -> None:
        """Sends a frame. Raises StreamClosed."""
        ...

    async def receive(self) -> Answer:
        """The next answer. Raises StreamClosed."""
        ...


OpenStream = Callable[[str], AbstractAsyncContextManager[Stream]]
"""Opens the stream of a client_id; raises Unreachable, StreamClosed."""


class OtherNumbers(ComeBackLater):
    """The node's numbers are not this spool's; a new stream was begun, so come back.

    Unlike `StreamClosed`, this is found out by us.
    """


class OverStream:
    """A way to the node. `connected` is called when it has said welcome."""

    def __init__(
        self, spool: Spool, open_stream: OpenStream, *, rng: Random, connected: Callable[[], None]
    ) -> None:
        self._spool = spool
        self._open_stream = open_stream
        self._rng = rng
        self._connected = connected

    async def deliver(self) -> None:
        """One connection, from its opening to its end. Never returns: raises what ended it.

        Raises `ComeBackLater` (`Unreachable`, `StreamClosed`, `OtherNumbers`), `StorageFailed`.

        **Cancellation:** leaves the connection; what was acknowledged is settled, or is found out by the next welcome.
        """
        try:
            async with self._open_stream(self._spool.stream_id) as stream:
                self._connected()
                await self._settle_stored(stream.welcome)
                await _Connection(self._spool, stream).run()
        except StreamClosed as exc:
            if exc.code == REPLACED:
                # We hold the spool's lock, so whoever it is streams from a copy of it.
                await self._begin_another("another agent streams as this one: its spool is a copy")
            raise
        except _NumberTaken as exc:
            raise await self._begin_another(str(exc)) from None

    async def _settle_stored(self, welcome: Welcome) -> None:
        """Settles what the node has of what is not settled here."""
        spool = self._spool
        if welcome.durable > spool.last_seq:
            raise await self._begin_another(
                "the node has more of this stream than the spool: it is an older copy"
            )
        while entries := await spool.read(spool.settled_seq):
            refused = {entry.seq for entry in entries if entry in spool.refused}
            found = stored_of(entries, welcome, refused)
            if found is None:
                raise await self._begin_another("the node has other points under this stream's numbers")
            if found:
                await spool.settle(found, refused=refused)
            if len(found) < len(entries):
                return

    async def _begin_another(self, reason: str) -> OtherNumbers:
        await self._spool.begin_stream(f"{self._rng.getrandbits(32):08x}")
        _log.warning("a new stream is begun", reason=reason, client_id=self._spool.stream_id)
        return OtherNumbers(reason)


class _NumberTaken(Exception):
    """The node answered 409."""


class _Connection:
    """Two tasks: one sends what is in the spool, as far as the window allows; one settles what is answered."""

    def __init__(self, spool: Spool, stream: Stream) -> None:
        self._spool = spool
        self._stream = stream
        self._window = Window()
        self._answered = trio.Event()

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                while True:
                    await self._take(await self._stream.receive())
        except BaseExceptionGroup as group:
            raise _told(group) from None

    async def _send(self) -> None:
        after_seq = self._spool.settled_seq
        while True:
            for entry in await self._spool.wait_read(after_seq):
                await self._send_entry(entry)
                after_seq = entry.seq

    async def _send_entry(self, entry: Entry) -> None:
        welcome = self._stream.welcome
        while self._window.unanswered >= welcome.window_frames:
            self._answered = trio.Event()
            await self._answered.wait()
        if entry in self._spool.refused:
            self._window.add(entry, refused=True)
            await self._settle()
            return
        body = entry.gzip_member()
        if len(body) + _HEADER_BYTES_MAX > welcome.frame_bytes_max:
            reason = f"{len(body)} bytes, and the node takes frames of {welcome.frame_bytes_max}"
            self._window.add(entry)
            await self._refuse(entry.seq, reason)
            return
        self._window.add(entry)
        await self._stream.send(entry.seq, body, encoding="gzip")

    async def _take(self, answer: Answer) -> None:
        try:
            if isinstance(answer, Ack):
                self._window.ack(answer.number)
                await self._settle()
            else:
                await self._take_refusal(answer)
        except ValueError as exc:
            raise StreamClosed(PROTOCOL_ERROR, str(exc)) from exc

    async def _take_refusal(self, refusal: Refusal) -> None:
        if refusal.number is None:
            raise ValueError(f"the node could not read a header of ours: {refusal.error}")
        if refusal.status in _REFUSED_FOR_GOOD:
            await self._refuse(refusal.number, f"{refusal.status}: {refusal.error}")
        elif refusal.status == 409:
            raise _NumberTaken(refusal.error)
        elif refusal.status != 503:  # behind which the node closes, and says when to come back
            raise ValueError(f"the node answered {refusal.status}: {refusal.error}")

    async def _refuse(self, number: int, reason: str) -> None:
        entry = self._window.refuse(number)
        path = await trio.to_thread.run_sync(self._spool.refused.keep, entry, reason)
        _log.error("refused by the node", points=entry.points, reason=reason, kept=str(path))
        await self._settle()

    async def _settle(self) -> None:
        entries, refused = self._window.take_settled()
        if entries:
            await self._spool.settle(entries, refused=refused)
        self._answered.set()


def _told(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one reason why a connection ended; both tasks may find it out at once."""
    reasons = [exc for exc in _leaves(group) if not isinstance(exc, trio.Cancelled)]
    if not reasons:
        return group
    return next((exc for exc in reasons if not isinstance(exc, StreamClosed)), reasons[0])


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    else:
        yield exc
