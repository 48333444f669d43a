"""Reading dead letters in the order of their numbers, a little at a time, while they are moved and removed.

The state file says where letters are; between two looks at it that may change. So one look gives a piece: blocks whose
numbers lie within each other, or some records. A block that cannot be read is looked up once more: where it is named no
longer, its letters are gone, or were removed while they were read; else it is damaged.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from wal_ingest.errors import WalDamaged
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.letter_blocks import Block


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes after a number: blocks, or letters of higher numbers; neither where nothing does."""

    blocks: list[Block] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)


def cluster(blocks: Iterable[Block]) -> list[Block]:
    """The first of some blocks in order, and those that lie within the numbers of these."""
    found: list[Block] = []
    last = 0
    for block in blocks:
        if found and block.first_number > last:
            break
        found.append(block)
        last = max(last, block.record.last_number)
    return found


def in_order(
    piece_after: Callable[[int], Piece], read: Callable[[Block], list[DeadLetter]]
) -> Iterator[DeadLetter]:
    """All letters, oldest first. Blocks are read when their first letter is due. Raises what the two raise."""
    after = 0
    while True:
        piece = piece_after(after)
        if piece.blocks:
            yield from _merged(piece.blocks, partial(_read, after, piece_after, read))
            after = max(block.record.last_number for block in piece.blocks)
        elif piece.letters:
            yield from piece.letters
            after = piece.letters[-1].number
        else:
            return


def _merged(blocks: list[Block], read: Callable[[Block], list[DeadLetter]]) -> Iterator[DeadLetter]:
    waiting = list(reversed(blocks))
    heads: list[tuple[int, DeadLetter, Iterator[DeadLetter]]] = []
    while waiting or heads:
        while waiting and (not heads or waiting[-1].first_number < heads[0][0]):
            letters = iter(read(waiting.pop()))
            for letter in letters:
                heapq.heappush(heads, (letter.number, letter, letters))
                break
        if not heads:
            continue
        _number, letter, letters = heads[0]
        yield letter
        following = next(letters, None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following.number, following, letters))


def _read(
    after: int,
    piece_after: Callable[[int], Piece],
    read: Callable[[Block], list[DeadLetter]],
    block: Block,
) -> list[DeadLetter]:
    try:
        return read(block)
    except WalDamaged:
        place = block.record.file, block.record.offset
        if any((each.record.file, each.record.offset) == place for each in piece_after(after).blocks):
            raise
        return []
