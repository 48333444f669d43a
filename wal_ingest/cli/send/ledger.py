"""What became of each piece: numbers, answers, and how far everything is settled. Pure.

Invariants:

1. The `place` up to which all is settled only moves on, over pieces that are durable or wholly rejected.
2. A number means the same bytes for ever. The pieces behind the place have the numbers of the last mark and then rising
   ones, so that whoever begins again at a mark gives every piece the number that it had. What breaks that order, a
   piece that gets another number, is in a mark before it is sent (`must_record`).
3. At most `window` pieces are unsettled, or settled since the last mark. A node remembers at least twice as many frames
   (`STORED_MIN`), so after any crash it knows of each of them whether it is durable: nothing is stored twice.

A piece that the node refused loses the record it named, and goes again under a new number. So does one whose number
was passed over (it was refused in an earlier life). New numbers are given out only when all pieces with numbers up to
the node's `durable` are known, because these may be among them.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass

from msgspec import Struct, field

from wal_ingest.cli.send.cutting import Place
from wal_ingest.cli.send.pieces import Piece
from wal_ingest.errors import WalIngestError

Crc32 = Callable[[bytes], int]

STORED_MIN = 64
"""How many of a stream's most recent frames a node that knows it remembers."""


class LostTrack(WalIngestError):
    """The node knows more of this stream than its sender, or other things: what is sent further may be stored twice.

    Unlike `Refused`, nothing is wrong with the file.
    """

    hint = "send what is missing without --resume, or with a new file for it"


class Cut(Struct, frozen=True, array_like=True):
    """A record that the node refused: its index among those that the piece had then, and why."""

    at: int
    reason: str
    column: int | None = None


class Numbered(Struct, frozen=True, array_like=True):
    """A piece behind the place of a mark: its number, 0 when nothing of it is to be sent, and what was cut out."""

    number: int
    cuts: tuple[Cut, ...] = ()


class Mark(Struct, kw_only=True):
    """How far everything is settled: enough to begin again with.

    `numbered` are the pieces behind the place that had numbers then; those behind them get `next_number` and on.
    """

    file: int = 0
    place: Place = field(default_factory=Place)
    next_number: int = 1
    numbered: tuple[Numbered, ...] = ()
    points: int = 0
    frames: int = 0
    bytes: int = 0
    rejected: int = 0
    seq: int | None = None


@dataclass(slots=True, eq=False)
class Slot:
    """A piece that has a number. `waits` says that it is to get another one."""

    piece: Piece
    number: int
    cuts: tuple[Cut, ...] = ()
    settled: bool = False
    waits: bool = False


class Known:
    """What a node knows of a stream: the highest durable number, and the most recent durable frames."""

    def __init__(self, durable: int = 0, stored: Iterable[tuple[int, int, int]] = ()) -> None:
        """`stored` are numbers with seq and CRC-32."""
        self.durable = durable
        self.stored = {number: (seq, crc) for number, seq, crc in stored}

    def forgets(self, number: int) -> bool:
        """Whether the number is of a time of which the node remembers nothing."""
        return len(self.stored) >= STORED_MIN and number < min(self.stored)


class Ledger:
    """The pieces between the last mark and what was read last."""

    def __init__(self, mark: Mark, *, window: int = STORED_MIN // 2, crc32: Crc32) -> None:
        self._at = copy(mark)
        self._given = deque(mark.numbered)
        self._next_number = mark.next_number
        self.window = window
        self._crc32 = crc32
        self._slots: deque[Slot] = deque()
        self._to_send: list[Slot] = []
        self._sent: deque[Slot] = deque()
        self._known = Known()
        self._seq = mark.seq
        self._renumberings = 0
        self._since_mark = 0
        self.rejected_texts: list[bytes] = []
        # What is in the mark that is being kept, and in those that are.
        self._noted = (0, 0, 0)
        self._renumberings_kept = 0

    # -- pieces in --------------------------------------------------------------------------------------

    @property
    def window_left(self) -> int:
        """How many pieces may be taken; `mark` and `recorded` make room when it is settled pieces that take it."""
        return self.window - len(self._slots) - self._since_mark

    @property
    def frames(self) -> int:
        """How many frames were settled, in this life and before."""
        return self._at.frames

    @property
    def points(self) -> int:
        """How many points were settled in order, in this life and before."""
        return self._at.points

    @property
    def unsettled_points(self) -> int:
        """How many points were read and are not confirmed."""
        return sum(slot.piece.points for slot in self._slots if not slot.settled)

    @property
    def since_mark(self) -> int:
        """How many pieces were settled since the last mark."""
        return self._since_mark

    @property
    def must_record(self) -> bool:
        """Whether a mark must be kept before anything else is sent."""
        return self._renumberings > self._renumberings_kept

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be sent or answered."""
        return not self._slots

    @property
    def in_flight(self) -> int:
        """How many frames are sent and not answered."""
        return len(self._sent)

    def take(self, piece: Piece) -> None:
        """Gives the next piece of the files its number. Raises `LostTrack`."""
        given = self._given.popleft() if self._given else None
        for cut in given.cuts if given is not None else ():
            piece = piece.without(cut.at, cut.reason, cut.column)
        slot = Slot(piece, 0, given.cuts if given is not None else ())
        self._slots.append(slot)
        if not piece.points:
            slot.settled = True
        else:
            slot.number = given.number if given is not None and given.number else self._new_number()
            self._look_up(slot)
        self._advance()
        # Also after a piece without points: it may be the last of the mark, and others of a full window wait for that.
        self._renumber()

    def end(self) -> None:
        """There are no more pieces."""
        self._given.clear()
        self._next_number = max(self._next_number, self._known.durable + 1)
        self._renumber()

    # -- frames out, answers in -------------------------------------------------------------------------

    def connected(self, known: Known) -> None:
        """A new connection, on which nothing is sent yet. Raises `LostTrack`."""
        self._known = known
        self._sent.clear()
        self._to_send.clear()
        for slot in self._slots:
            if not slot.settled and not slot.waits:
                self._look_up(slot)
        self._advance()
        self._renumber()

    def next_to_send(self) -> Slot | None:
        """The next frame; it counts as sent. None when there is none, or something must be done first.

        Numbers rise on a connection: while pieces of the mark are not read again, one of them may have a lower one.
        """
        if self.must_record or self._given or not self._to_send:
            return None
        slot = self._to_send.pop(0)
        self._sent.append(slot)
        return slot

    def acked(self, number: int, seq: int | None) -> None:
        """All that was sent up to this number, in sending order, is durable."""
        if all(slot.number != number for slot in self._sent):
            return
        while True:
            slot = self._sent.popleft()
            slot.settled = True
            if slot.number == number:
                break
        self._seq = seq if seq is not None else self._seq
        self._advance()

    def sent_as(self, number: int) -> Slot | None:
        """The frame that was sent under a number and not answered."""
        return next((slot for slot in self._sent if slot.number == number), None)

    def given_up(self, slot: Slot) -> None:
        """The node refused a frame, and that is the end: the place stays in front of it."""
        self._sent.remove(slot)

    def refused(self, slot: Slot, cut: Cut) -> None:
        """The node refused a frame because of one record: the others go again."""
        self._sent.remove(slot)
        slot.piece = slot.piece.without(cut.at, cut.reason, cut.column)
        slot.cuts = (*slot.cuts, cut)
        if slot.piece.points:
            slot.waits = True
        else:
            slot.number, slot.settled = 0, True
        self._advance()
        self._renumber()

    # -- marks ------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """How far it is now."""
        self._at.next_number = self._next_number
        self._at.numbered = (
            *(Numbered(slot.number, slot.cuts) for slot in self._slots),
            *self._given,
        )
        self._at.seq = self._seq
        self._noted = (self._since_mark, self._renumberings, len(self.rejected_texts))
        return copy(self._at)

    def recorded(self) -> None:
        """The mark that was taken last is kept, and so are the rejected texts that there were then."""
        settled, self._renumberings_kept, texts = self._noted
        self._since_mark -= settled
        del self.rejected_texts[:texts]
        self._noted = (0, self._renumberings_kept, 0)

    # -- within -----------------------------------------------------------------------------------------

    def _new_number(self) -> int:
        number = self._next_number
        self._next_number += 1
        return number

    def _look_up(self, slot: Slot) -> None:
        """What the node knows of a piece decides what is done with it."""
        if slot.number > self._known.durable:
            insort(self._to_send, slot, key=lambda slot: slot.number)
            return
        found = self._known.stored.get(slot.number)
        if found is not None:
            seq, crc = found
            if crc != self._crc32(slot.piece.body):
                raise LostTrack(
                    f"the node has other bytes for frame {slot.number} of this stream: {slot.piece.name} was cut "
                    "otherwise then, or somebody else uses its client_id"
                )
            slot.settled = True
            self._seq = max(self._seq or 0, seq)
        elif self._known.forgets(slot.number):
            raise LostTrack(
                f"the node has frames up to {self._known.durable} of this stream, far more than was noted here: "
                "is the progress file an old copy?"
            )
        else:
            slot.waits = True

    def _renumber(self) -> None:
        if self._given or self._next_number <= self._known.durable:
            return
        for slot in self._slots:
            if slot.waits:
                slot.number, slot.waits = self._new_number(), False
                self._to_send.append(slot)
                self._renumberings += 1

    def _advance(self) -> None:
        """Moves the place on over what is settled."""
        while self._slots and self._slots[0].settled:
            slot = self._slots.popleft()
            piece = slot.piece
            self._since_mark += 1
            self._at.file, self._at.place = piece.file, piece.end
            self._at.points += piece.points
            self._at.frames += 1 if slot.number else 0
            self._at.bytes += sum(map(len, piece.records)) if slot.number else 0
            self._at.rejected += len(piece.rejected)
            self.rejected_texts += [rejected.text for rejected in piece.rejected]
