"""The confirm tracker: batches are settled in any order and confirmed strictly in the order of their seqs. Pure.

Invariants:

* The cursor that `pending` offers covers exactly the settled batches from the front: it never passes an
  unsettled one.
* A dead letter leaves together with the cursor that passes it, never before and never after.
* `full` bounds what is held: batches beyond the oldest unsettled one, bytes of unsettled bodies, and
  bytes of dead letters that are not on disk yet. A stuck batch therefore stops the reading, not the memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from wal_ingest.flusher.batches import Batch
from wal_ingest.wal.cursor import Cursor, DeadLetter

# What a dead letter costs beside its line and its reason, roughly.
_LETTER_BYTES = 300


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a batch: every point is confirmed, or among `letters`.

    `position` is the sink's, None when it gave none.
    """

    position: bytes | None = None
    letters: tuple[DeadLetter, ...] = ()


@dataclass(slots=True, eq=False)
class Slot:
    """A batch's place in the order. The batch itself is let go of once it is settled."""

    last_seq: int
    points_after: int
    points: int
    body_bytes: int
    batch: Batch | None
    settled: Settled | None = None
    letter_bytes: int = field(default=0)


class Window:
    """The batches between a sink's durable cursor and the newest one read."""

    def __init__(self, cursor: Cursor, *, batches_max: int, bytes_max: int) -> None:
        self.durable = cursor
        self._confirmed = cursor
        self._slots: deque[Slot] = deque()
        self._letters: list[DeadLetter] = []
        self._letters_bytes = 0
        self._held_bytes = 0
        self._batches_max = batches_max
        self._bytes_max = bytes_max

    @property
    def full(self) -> bool:
        """Whether nothing more may be added now. One batch always fits, however large."""
        if not self._slots and not self._letters:
            return False
        return len(self._slots) >= self._batches_max or self._held_bytes >= self._bytes_max

    @property
    def unsettled(self) -> bool:
        """Whether any batch is still on its way."""
        return bool(self._slots)

    def opened(self, position: bytes) -> Cursor:
        """The durable cursor with the position that a sink opened with; only before the first `add`."""
        return replace(self.durable, position=position)

    def add(self, batch: Batch) -> Slot:
        """Takes the next batch in order; its slot is what `settle` wants back."""
        slot = Slot(batch.last_seq, batch.points_after, batch.points, len(batch.body), batch)
        self._slots.append(slot)
        self._held_bytes += slot.body_bytes
        return slot

    def settle(self, slot: Slot, settled: Settled) -> bool:
        """Notes what became of a batch; true when `pending` has more to offer because of it."""
        slot.batch = None
        slot.settled = settled
        slot.letter_bytes = sum(
            len(letter.line) + len(letter.reason) + _LETTER_BYTES for letter in settled.letters
        )
        self._held_bytes += slot.letter_bytes - slot.body_bytes
        advanced = False
        while self._slots and self._slots[0].settled is not None:
            self._pass(self._slots.popleft())
            advanced = True
        return advanced

    def pending(self) -> tuple[Cursor, Sequence[DeadLetter]] | None:
        """The cursor to commit and the letters that belong to the same transaction; None when nothing is due."""
        if self._confirmed.seq == self.durable.seq:
            return None
        return self._confirmed, tuple(self._letters)

    def committed(self, cursor: Cursor, letters: Sequence[DeadLetter] = ()) -> None:
        """What `pending` or `opened` offered is on disk now."""
        if self._confirmed is self.durable:
            self._confirmed = cursor
        self.durable = cursor
        del self._letters[: len(letters)]
        self._held_bytes -= self._letters_bytes
        self._letters_bytes = sum(
            len(letter.line) + len(letter.reason) + _LETTER_BYTES for letter in self._letters
        )
        self._held_bytes += self._letters_bytes

    def _pass(self, slot: Slot) -> None:
        settled = slot.settled
        assert settled is not None
        self._confirmed = self._confirmed.passed(
            seq=slot.last_seq,
            points_after=slot.points_after,
            points=slot.points,
            parked=len(settled.letters),
            position=settled.position,
        )
        self._letters.extend(settled.letters)
        self._letters_bytes += slot.letter_bytes
