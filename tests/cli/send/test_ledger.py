"""The ledger against a model of a node: every point is stored once, whatever breaks and whenever the sender dies."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from zlib import crc32

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from wal_ingest.cli.send.cutting import Place
from wal_ingest.cli.send.formats import Format
from wal_ingest.cli.send.ledger import STORED_MIN, Cut, Known, Ledger, LostTrack, Mark, Numbered, Slot
from wal_ingest.cli.send.pieces import Piece

PIECE = 3


def piece(number: int, *, points: int = PIECE) -> Piece:
    """The piece of a file with that number, from 0: lines that say where they stand."""
    first = number * PIECE
    records = [b"m v=%d %d\n" % (n, n) for n in range(first, first + points)]
    numbers = range(first + 1, first + points + 1)
    return Piece(0, "f", Place(0, first), Place(0, first + PIECE), Format.LINES, records, numbers, points)


@dataclass
class Node:
    """A node as the protocol has it. `bad` are lines that it takes for no points."""

    bad: set[bytes] = field(default_factory=set)
    stored: list[tuple[int, int, int]] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    sent: int = 0

    def connect(self) -> Known:
        self.sent = 0
        return Known(self.durable, self.stored[-STORED_MIN:])

    @property
    def durable(self) -> int:
        return max((number for number, _seq, _crc in self.stored), default=0)

    def take(self, slot: Slot) -> int | None:
        """The index of the first bad line, or None when the frame is stored."""
        assert slot.number > self.sent, "numbers rise on a connection"
        self.sent = slot.number
        assert slot.number > self.durable, "a number of the past"
        for at, line in enumerate(slot.piece.records):
            if line in self.bad:
                return at
        self.lines += slot.piece.records
        self.stored.append((slot.number, len(self.stored) + 1, crc32(slot.piece.body)))
        return None


class Sender:
    """What the commands do with a ledger, with its file of progress: dies and begins again when it is told to."""

    def __init__(self, node: Node, pieces: list[Piece], random: Random) -> None:
        self.node = node
        self.pieces = pieces
        self.random = random
        self.kept = msgspec.json.encode(Mark())
        self.rejected: list[bytes] = []
        self.begin()

    def begin(self) -> None:
        mark = msgspec.json.decode(self.kept, type=Mark)
        self.ledger = Ledger(mark, crc32=crc32)
        self.next = mark.place.records // PIECE
        self.reconnect()

    def reconnect(self) -> None:
        self.answers: list[tuple[int, int | None]] = []
        self.ledger.connected(self.node.connect())

    def record(self) -> None:
        mark = self.ledger.mark()
        self.rejected += self.ledger.rejected_texts
        self.kept = msgspec.json.encode(mark)
        self.ledger.recorded()

    def read(self) -> None:
        if self.next == len(self.pieces):
            self.ledger.end()
        elif self.ledger.window_left > 0:
            self.ledger.take(self.pieces[self.next])
            self.next += 1
        elif self.ledger.since_mark:
            self.record()

    def send(self) -> None:
        if self.ledger.must_record:
            self.record()
        slot = self.ledger.next_to_send()
        if slot is not None:
            self.answers.append((slot.number, self.node.take(slot)))

    def hear(self) -> None:
        if not self.answers:
            return
        # The refusals among some answers, then one ack for the others.
        count = self.random.randint(1, len(self.answers))
        heard, self.answers = self.answers[:count], self.answers[count:]
        stored = []
        for number, bad in heard:
            if bad is None:
                stored.append(number)
                continue
            slot = self.ledger.sent_as(number)
            assert slot is not None
            self.ledger.refused(slot, Cut(bad, "because"))
        if stored:
            self.ledger.acked(stored[-1], len(self.node.stored))

    @property
    def done(self) -> bool:
        return self.next == len(self.pieces) and self.ledger.is_settled


STEPS = ("read", "send", "hear", "record", "reconnect", "begin")


# A script of random steps does not shrink to anything that says more.
@settings(max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.randoms(use_true_random=False))
def test_every_line_is_stored_once_whatever_happens(random: Random) -> None:
    count = random.randint(1, 150)
    empty = {random.randrange(count) for _ in range(random.choice([0, 0, 5]))}
    pieces = [piece(at, points=0 if at in empty else PIECE) for at in range(count)]
    every = [record for each in pieces for record in each.records]
    bad = {line for line in every if random.random() < random.choice([0, 0.05, 0.5])}
    node = Node(bad)
    sender = Sender(node, pieces, random)
    weights = (
        [random.randint(1, 40) for _ in range(3)]
        + [random.choice([0, 1, 20])]
        + [random.randint(0, 3), random.randint(0, 3)]
    )
    for step in random.choices(STEPS, weights, k=600):
        for _ in range(random.choice([1, 1, 30]) if step in ("read", "send") else 1):
            getattr(sender, step)()
    for _ in range(5_000):
        if sender.done:
            break
        sender.read()
        sender.send()
        sender.hear()
    assert sender.done
    sender.record()
    mark = msgspec.json.decode(sender.kept, type=Mark)
    assert sorted(node.lines) == sorted(set(every) - bad)
    assert mark.points == len(every) - len(bad)
    assert mark.rejected == len(bad)
    assert {text.partition(b"\n")[2] for text in sender.rejected} == bad
    assert mark.place.records == count * PIECE
    assert mark.frames == len(node.stored)


def test_a_piece_is_never_sent_again_while_its_connection_lives() -> None:
    ledger = Ledger(Mark(), crc32=crc32)
    ledger.take(piece(0))
    first = ledger.next_to_send()
    assert first is not None
    assert first.number == 1
    assert ledger.next_to_send() is None


def test_pieces_that_wait_for_new_numbers_get_them_when_the_last_of_the_mark_has_no_points() -> None:
    """With a full window nothing else would come to give them any: the command waited for ever."""
    numbered = (Numbered(1), Numbered(0, tuple(Cut(0, "because") for _ in range(PIECE))))
    ledger = Ledger(Mark(next_number=3, numbered=numbered), window=2, crc32=crc32)
    # Number 1 was passed over, refused in an earlier life.
    ledger.connected(Known(2, [(2, 1, 0)]))
    ledger.take(piece(0))
    ledger.take(piece(1))
    ledger.mark()
    ledger.recorded()
    slot = ledger.next_to_send()
    assert slot is not None
    assert slot.number == 3


def test_the_window_is_full_of_what_is_settled_and_not_kept() -> None:
    ledger = Ledger(Mark(), window=2, crc32=crc32)
    for at in range(2):
        ledger.take(piece(at))
        ledger.next_to_send()
    assert ledger.window_left == 0
    ledger.acked(2, 7)
    assert (ledger.window_left, ledger.since_mark) == (0, 2)
    mark = ledger.mark()
    ledger.recorded()
    assert ledger.window_left == 2
    assert (mark.points, mark.seq, mark.next_number) == (6, 7, 3)


def test_what_is_settled_while_a_mark_is_being_kept_is_not_taken_for_kept() -> None:
    ledger = Ledger(Mark(), window=2, crc32=crc32)
    for at in range(2):
        ledger.take(piece(at))
        ledger.next_to_send()
    ledger.acked(1, 1)
    ledger.mark()
    ledger.acked(2, 2)
    ledger.recorded()
    assert ledger.since_mark == 1


def test_an_old_copy_of_the_progress_is_noticed() -> None:
    ledger = Ledger(Mark(), crc32=crc32)
    ledger.connected(Known(200, [(number, number, 0) for number in range(137, 201)]))
    with pytest.raises(LostTrack, match="old copy"):
        ledger.take(piece(0))


def test_other_bytes_under_a_number_are_noticed() -> None:
    ledger = Ledger(Mark(), crc32=crc32)
    ledger.connected(Known(1, [(1, 1, 0)]))
    with pytest.raises(LostTrack, match="other bytes for frame 1"):
        ledger.take(piece(0))
