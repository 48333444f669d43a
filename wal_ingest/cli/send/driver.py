"""Sends pieces over links until all of them are settled: reads ahead, comes back after losses, stops in order.

Who waits for whom: the reader takes pieces as long as the ledger's window has room; the sender keeps marks, and sends
what the ledger gives out; the receiver tells the ledger of answers. Whoever changes the ledger wakes the others. One
connection follows another; the reader stays.

A signal ends reading and sending at once; what is under way may still be answered for `DRAIN_S_MAX` seconds, or until
the next signal. A record that cannot be sent ends reading; what is in front of it still goes.
"""

from __future__ import annotations

import os
import re
from random import Random

import trio

from wal_ingest.cli.output import points_text
from wal_ingest.cli.posting import NotTaken
from wal_ingest.cli.send.job import Job
from wal_ingest.cli.send.ledger import Cut, Known, LostTrack, Slot
from wal_ingest.cli.send.links import Connect, Link
from wal_ingest.cli.send.pieces import Piece
from wal_ingest.cli.sifting import Refused
from wal_ingest.cli.stopping import Interrupted
from wal_ingest.client.errors import REPLACED, TRY_AGAIN_LATER, StreamClosed, Unreachable
from wal_ingest.client.messages import Ack, Refusal, Welcome
from wal_ingest.client.patience import is_misconfigured, wait_s
from wal_ingest.confirmation import hint_for
from wal_ingest.errors import ConfigError, WalIngestError
from wal_ingest.wal.gzip_codec import compress

DRAIN_S_MAX = 10.0
MARK_PIECES = 16
MARK_S = 1.0
RETRY_S_MIN = 0.25
RETRY_S_MAX = 30.0
# Below this, compressing costs more than it saves.
_PLAIN_BYTES_MAX = 512
# Closes that say that this program, or the node, is at fault: coming back changes nothing.
_FAULTS = (1002, 1003, 1007, 1009, 1010)
_PLACE = re.compile(r"(?:line [0-9]+(?:, column [0-9]+)?|index [0-9]+): ")


class GaveUp(NotTaken):
    """The node took nothing for as long as `--give-up-after` says. What it had confirmed before stays confirmed."""


class Driver:
    """Does one job."""

    def __init__(self, job: Job, connect: Connect, *, rng: Random) -> None:
        self._job = job
        self._ledger = job.ledger
        self._connect = connect
        self._rng = rng
        self._changed = trio.Event()
        self._stopped = trio.Event()
        self._connecting = trio.CancelScope()
        self._kept_s = 0.0
        # When the node last took something, or there was nothing for it.
        self._progress_s = 0.0
        self._trouble: Unreachable | StreamClosed | None = None
        # In a row: an ack ends it.
        self._failures = 0
        self._read_all = False
        # Why no more is read; raised when what was read before is settled.
        self._ended: WalIngestError | None = None
        # Why nothing can go on.
        self._broken: WalIngestError | None = None

    async def run(self) -> None:
        """Returns when everything is settled and kept. Raises why it could not be, kept as far as it went.

        **Cancellation:** leaves at once; what was kept last stands.
        """
        error: WalIngestError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            nursery.start_soon(self._read)
            if self._job.give_up_s is not None:
                nursery.start_soon(self._give_up, self._job.give_up_s)
            try:
                with self._connecting:
                    await self._send_all()
            except WalIngestError as exc:
                error = exc
            try:
                await self._keep()
            except WalIngestError as exc:
                error = error or exc
            nursery.cancel_scope.cancel()
        error = error or self._broken or self._ended
        if self._stopped.is_set() and not self._is_done:
            error = error or Interrupted("interrupted")
        if error is not None:
            raise error

    @property
    def _is_done(self) -> bool:
        return self._read_all and self._ledger.is_settled

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _watch(self) -> None:
        await self._signal()
        self._stopped.set()
        self._wake()
        # What is under way may be answered, unless the node does not even listen, or somebody is in a hurry.
        if self._ledger.in_flight:
            with trio.move_on_after(DRAIN_S_MAX):
                await self._signal()
        self._connecting.cancel()

    async def _give_up(self, after_s: float) -> None:
        """Ends it when the node has taken nothing for so long, though there was something for it."""
        self._progress_s = trio.current_time()
        while True:
            changed = self._changed
            if self._ledger.is_settled:
                await changed.wait()
                self._progress_s = trio.current_time()
                continue
            due_s = self._progress_s + after_s
            if trio.current_time() >= due_s:
                break
            with trio.move_on_at(due_s):
                await changed.wait()
        why = f": {self._words(self._trouble)}" if self._trouble is not None else ""
        error = GaveUp(
            f"gave up: {self._job.to} took nothing for {after_s:g} s{why}; "
            f"{points_text(self._ledger.points)} confirmed, {points_text(self._ledger.unsettled_points)} read and not "
            "confirmed"
        )
        error.hint = self._trouble.hint if self._trouble is not None else ""
        self._broken = error
        self._connecting.cancel()

    async def _signal(self) -> None:
        fd = self._job.stop.fileno()
        await trio.lowlevel.wait_readable(fd)
        os.read(fd, 1)

    async def _read(self) -> None:
        """Takes pieces as long as there is room for them."""
        next_s = trio.current_time()
        try:
            while not self._stopped.is_set() and self._ended is None:
                if self._ledger.window_left <= 0:
                    await self._changed.wait()
                    continue
                if self._job.points_per_s_max is not None:
                    await trio.sleep_until(next_s)
                piece = await trio.to_thread.run_sync(next, self._job.pieces, None, abandon_on_cancel=True)
                if piece is None:
                    self._ledger.end()
                    self._read_all = True
                    return
                if self._job.points_per_s_max is not None:
                    next_s = max(next_s, trio.current_time()) + piece.points / self._job.points_per_s_max
                self._job.bar.advance(piece.file_bytes)
                self._ledger.take(piece)
                self._wake()
        except LostTrack as exc:
            self._broken = exc
        except WalIngestError as exc:
            self._ended = exc
        finally:
            self._wake()

    # -- connections ------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        while True:
            try:
                async with self._connect() as link:
                    self._connected(link.welcome)
                    await self._talk(link)
                return
            except (Unreachable, StreamClosed) as exc:
                if self._stopped.is_set():
                    return
                self._raise_final(exc)
                if not self._failures:
                    self._job.tell(f"{self._words(exc)}; going on as soon as it takes points again")
                    if exc.hint:
                        self._job.tell(f"try: {exc.hint}")
                self._trouble = exc
                self._failures += 1
                wait = wait_s(
                    exc,
                    self._failures,
                    retry_s_min=RETRY_S_MIN,
                    retry_s_max=RETRY_S_MAX,
                    hold_s=RETRY_S_MAX,
                    rng=self._rng,
                )
                await trio.sleep(wait)

    def _connected(self, welcome: Welcome) -> None:
        frames = [(frame.number, frame.seq, frame.crc32) for frame in welcome.stored]
        if not welcome.durable and welcome.window_frames > 1 and self._ledger.frames:
            self._job.tell(
                f"{self._job.to} does not know this stream any more: up to {self._ledger.window} frames may be "
                "stored twice"
            )
        self._ledger.connected(Known(welcome.durable, frames))

    def _raise_final(self, exc: Unreachable | StreamClosed) -> None:
        """Raises what waiting does not mend."""
        if is_misconfigured(exc):
            status = exc.status if isinstance(exc, Unreachable) else 0
            hint = "is that the address of a node, and does it stream? http:// posts instead"
            if status in (401, 403) or not status:
                hint = hint_for(401)
            raise ConfigError(self._words(exc), hint=exc.hint or hint) from exc
        if isinstance(exc, StreamClosed) and exc.code == REPLACED:
            error = NotTaken(f"{self._job.to}: another wal-ingest send goes on with the same progress file")
            error.hint = "leave it to that one, or end it first"
            raise error from exc
        if isinstance(exc, StreamClosed) and exc.code in _FAULTS:
            raise NotTaken(self._words(exc)) from exc

    def _words(self, exc: Unreachable | StreamClosed) -> str:
        # The former says itself where.
        return str(exc) if isinstance(exc, Unreachable) else f"{self._job.to}: {exc}"

    # -- one connection ---------------------------------------------------------------------------------

    async def _talk(self, link: Link) -> None:
        """Sends and listens until all is settled, or nothing can go on. Raises what ends the connection."""
        failed: list[WalIngestError] = []

        async def listen() -> None:
            try:
                while True:
                    answer = await link.receive()
                    self._check_count(link, answer)
                    self._hear(answer)
                    self._wake()
            except WalIngestError as exc:
                failed.append(exc)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            with trio.CancelScope() as scope:
                try:
                    await self._send_until_done(link)
                except WalIngestError as exc:
                    failed.append(exc)
            nursery.cancel_scope.cancel()
        if failed:
            raise failed[0]

    async def _send_until_done(self, link: Link) -> None:
        ledger = self._ledger
        while self._broken is None:
            if ledger.must_record or self._is_time_to_keep():
                await self._keep()
                self._wake()
            if self._stopped.is_set():
                if not ledger.in_flight:
                    return
            elif ledger.in_flight < link.welcome.window_frames and (slot := ledger.next_to_send()):
                await self._send(link, slot)
                continue
            elif self._is_done or (self._ended and not ledger.in_flight):
                return
            changed = self._changed
            with trio.move_on_after(MARK_S):
                await changed.wait()

    async def _send(self, link: Link, slot: Slot) -> None:
        body, encoding = slot.piece.body, "identity"
        if len(body) > _PLAIN_BYTES_MAX:
            body, encoding = compress(body), "gzip"
        if len(body) > link.welcome.frame_bytes_max:
            raise _too_large(slot.piece, f"the node takes {link.welcome.frame_bytes_max} bytes in a frame")
        await link.send(
            slot.number,
            body,
            encoding=encoding,
            format=slot.piece.format.value,
            precision=slot.piece.precision,
        )

    def _check_count(self, link: Link, answer: Ack | Refusal) -> None:
        """Raises `Unreachable` for an answer that confirms another number of points than were sent.

        Only where an ack is about one frame. A piece that the node refused a record of has a count of its own.
        """
        if not isinstance(answer, Ack) or link.welcome.window_frames != 1:
            return
        slot = self._ledger.sent_as(answer.number)
        if slot is None or slot.piece.rejected or slot.piece.points == answer.points:
            return
        why = f"{self._job.to}: {slot.piece.points} points were sent, and {answer.points} are confirmed"
        raise Unreachable(why, wrong_peer=True, hint=hint_for(200))

    def _hear(self, answer: Ack | Refusal) -> None:
        if isinstance(answer, Ack) or answer.status != 503:
            self._progress_s, self._trouble = trio.current_time(), None
        if isinstance(answer, Ack):
            self._ledger.acked(answer.number, answer.seq)
            if self._failures:
                self._job.tell(f"{self._job.to} takes points again")
                self._failures = 0
            return
        if answer.status == 503:
            # The node closes the stream behind it. Nothing may be taken for durable that comes up to then.
            wait = f"retry after {answer.retry_after_s or 1:.0f} s: "
            raise StreamClosed(TRY_AGAIN_LATER, wait + answer.error)
        slot = self._ledger.sent_as(answer.number) if answer.number is not None else None
        if slot is None:
            raise NotTaken(f"{self._job.to} could not read a frame: {answer.error}")
        if answer.status == 409:
            raise LostTrack(f"{self._job.to}: {answer.error}")
        if answer.status == 413:
            raise _too_large(slot.piece, answer.error)
        at = answer.index if answer.index is not None else slot.piece.record_at(answer.line or 0)
        if not 0 <= at < len(slot.piece.records):
            raise NotTaken(f"{self._job.to} refused {slot.piece.name}: {answer.status}: {answer.error}")
        reason = _PLACE.sub("", answer.error, count=1)
        if self._job.skips:
            self._ledger.refused(slot, Cut(at, reason, answer.column))
            return
        piece = slot.piece
        self._ledger.given_up(slot)
        self._ended = self._ended or Refused(
            piece.name, piece.numbers[at], reason, unit=piece.unit_name, column=answer.column
        )

    def _is_time_to_keep(self) -> bool:
        since = self._ledger.since_mark
        return since >= MARK_PIECES or (since > 0 and trio.current_time() - self._kept_s >= MARK_S)

    async def _keep(self) -> None:
        """Makes known how far it is. Only the sender keeps, so one mark follows another."""
        mark, texts = self._ledger.mark(), list(self._ledger.rejected_texts)
        await trio.to_thread.run_sync(self._job.keep, mark, texts)
        self._ledger.recorded()
        self._kept_s = trio.current_time()
        self._job.bar.note(f"{mark.points:,} points")


def _too_large(piece: Piece, why: str) -> NotTaken:
    error = NotTaken(f"{piece.name}: from {piece.unit_name} {piece.numbers[0]} on: {why}")
    error.hint = "send fewer points at a time, with --batch-points"
    return error
