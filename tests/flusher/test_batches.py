"""Entries become batches, and batches are halved, without losing, doubling or reordering a line."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.flusher.twins import MemoryLog, lines_of
from wal_ingest.flusher.batches import Batch, Batcher, Part, halve, join, others, part_of_entry, pick
from wal_ingest.wal.entry import CODEC_GZIP, CODEC_RAW, Destination, Entry


def entries_of(sizes: list[int], *, destinations: list[str] | None = None) -> list[Entry]:
    log = MemoryLog()
    for number, points in enumerate(sizes):
        bucket = destinations[number % len(destinations)] if destinations else ""
        log.append(points, destination=Destination("", bucket))
    return log.entries


def batches_of(entries: list[Entry], points_max: int) -> list[Batch]:
    batcher = Batcher(lambda entry: entry.destination, points_max=points_max)
    return batcher.add(entries) + batcher.flush()


def members_of(body: bytes) -> int:
    members = 0
    while body:
        member = zlib.decompressobj(wbits=31)
        member.decompress(body)
        body = member.unused_data
        members += 1
    return members


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    buckets=st.lists(st.sampled_from("ab"), min_size=1, max_size=5),
    points_max=st.integers(1, 20),
)
def test_batches_hold_every_line_once_and_in_order(
    sizes: list[int], buckets: list[str], points_max: int
) -> None:
    entries = entries_of(sizes, destinations=buckets)
    batcher = Batcher(lambda entry: entry.destination, points_max=points_max)
    batches = batcher.add(entries) + batcher.flush()
    runs = batcher.take_runs()
    for bucket in set(buckets):
        destination = Destination("", bucket)
        mine = [batch for batch in batches if batch.group == destination]
        assert b"".join(batch.lines() for batch in mine) == b"".join(
            entry.lines() for entry in entries if entry.destination == destination
        )
        assert all(earlier.last_seq < later.first_seq for earlier, later in itertools.pairwise(mine))
    for batch in batches:
        assert batch.points <= points_max or batch.first_seq == batch.last_seq
        assert batch.points == batch.lines().count(b"\n") == sum(part.points for part in batch.parts)
        assert {part.destination for part in batch.parts} == {batch.destination}
        assert batch.points == sum(run.points for run in batch.runs)
        assert set(batch.runs) <= set(runs)
    # The runs are all that was read, in order, without gaps.
    assert [run.first_seq for run in runs[1:]] == [run.last_seq + 1 for run in runs[:-1]]
    assert [run.points_after for run in runs] == list(itertools.accumulate(run.points for run in runs))
    assert sum(run.points for run in runs) == sum(sizes)


def test_a_full_batch_is_given_at_once_and_the_rest_waits() -> None:
    batcher = Batcher(lambda _entry: None, points_max=10)
    full = batcher.add(entries_of([4, 4, 4, 10, 3]))
    assert [batch.points for batch in full] == [8, 4, 10]
    assert batcher.open_points == 3
    assert batcher.oldest_accepted_ns is not None
    assert [batch.points for batch in batcher.flush()] == [3]
    assert batcher.flush() == []
    assert batcher.oldest_accepted_ns is None


def test_members_are_concatenated_as_they_lie_and_runs_of_tiny_entries_share_one() -> None:
    entries = entries_of([1, 1, 1, 40, 1, 1, 40, 40])
    assert [entry.codec for entry in entries[2:5]] == [CODEC_RAW, CODEC_GZIP, CODEC_RAW]
    (batch,) = batches_of(entries, 1000)
    assert entries[3].payload in batch.body
    assert entries[6].payload + entries[7].payload in batch.body
    assert members_of(batch.body) == 5


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_halving_down_to_single_lines_keeps_each_with_its_seq(sizes: list[int]) -> None:
    (batch,) = batches_of(entries_of(sizes), 1000)
    pieces = [batch]
    while any(piece.points > 1 for piece in pieces):
        pieces = [half for piece in pieces for half in (halve(piece) if piece.points > 1 else (piece,))]
    expected = [
        (seq, line)
        for seq, points in enumerate(sizes, start=1)
        for line in lines_of(seq, points).splitlines(keepends=True)
    ]
    assert [(piece.parts[0].seq, piece.lines()) for piece in pieces] == expected
    assert {piece.last_seq for piece in pieces} == {batch.last_seq}


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    chosen=st.sets(st.integers(0, 80)),
    again=st.sets(st.integers(0, 80)),
)
def test_a_piece_of_a_piece_has_the_chosen_lines_each_with_its_seq_and_number(
    sizes: list[int], chosen: set[int], again: set[int]
) -> None:
    (batch,) = batches_of(entries_of(sizes), 1000)
    piece, named = batch, [(seq, n) for seq, points in enumerate(sizes, start=1) for n in range(points)]
    for places in (sorted(chosen), sorted(again)):
        places = [place for place in places if place < piece.points] or [piece.points - 1]
        rest = others(piece.points, places)
        assert sorted([*places, *rest]) == list(range(piece.points))
        lines = piece.split()
        named = [named[place] for place in places]
        piece = pick(piece, lines, places)
        assert piece.split() == [lines[place] for place in places]
        assert [(part.seq, part.first + n) for part in piece.parts for n in range(part.points)] == named
        neighbours = itertools.pairwise(piece.parts)
        assert all(a.seq != b.seq or a.first + a.points < b.first for a, b in neighbours)


def test_pieces_that_were_joined_are_one_part_again() -> None:
    (batch,) = batches_of(entries_of([6]), 1000)
    joined = join(halve(batch))
    assert len(joined.parts) == 2
    again = pick(joined, joined.split(), range(1, 6))
    assert again.parts == (Part(1, 5, batch.destination, 1),)


def test_one_line_cannot_be_halved() -> None:
    (batch,) = batches_of(entries_of([1]), 10)
    with pytest.raises(ValueError, match="one line"):
        halve(batch)


def test_a_body_that_is_not_what_the_batch_says_is_never_halved() -> None:
    (batch,) = batches_of(entries_of([4]), 4)
    with pytest.raises(ValueError, match="4 points, 5 expected"):
        halve(replace(batch, points=5))


def test_destinations_in_turn_fill_batches_side_by_side() -> None:
    batches = batches_of(entries_of([1] * 2_000, destinations=["a", "b"]), 1_000)
    assert [batch.points for batch in batches] == [1_000, 1_000]


def test_a_batch_is_bounded_in_bytes_as_well() -> None:
    log = MemoryLog()
    for _ in range(20):
        log.append(1, lines=b'm s="' + b"x" * 1_000 + b'" 1\n')
    batcher = Batcher(lambda _entry: None, points_max=50_000, bytes_max=4_000)
    batches = batcher.add(log.entries) + batcher.flush()
    assert all(batch.raw_bytes <= 4_000 for batch in batches)
    assert [batch.points for batch in batches] == [3] * 6 + [2]
    (alone,) = (small := Batcher(lambda _entry: None, points_max=10, bytes_max=100)).add(log.entries[:1])
    assert alone.points == 1  # what is larger than a batch is one by itself
    assert small.flush() == []


def test_the_batches_that_fill_are_bounded_in_number_and_in_bytes() -> None:
    batcher = Batcher(lambda entry: entry.destination, points_max=10, groups_max=3)
    closed = batcher.add(entries_of([1] * 10, destinations=list("abcde")))
    assert len(batcher.flush()) == 3
    assert sum(batch.points for batch in closed) == 7


def test_only_batches_that_fill_for_long_are_flushed_when_a_time_is_given() -> None:
    entries = entries_of([1, 1], destinations=["a", "b"])
    batcher = Batcher(lambda entry: entry.destination, points_max=10)
    batcher.add(entries[:1], now_ns=100)
    batcher.add(entries[1:], now_ns=200)
    assert [batch.group for batch in batcher.flush(opened_before_ns=150)] == [entries[0].destination]
    assert batcher.open_points == 1


def test_part_of_an_entry_is_a_batch_of_those_lines() -> None:
    (entry,) = entries_of([10])
    batch = part_of_entry(entry, [(2, 3), (8, 1)], None)
    lines = entry.lines().splitlines(keepends=True)
    assert batch.split() == [*lines[2:5], lines[8]]
    assert batch.parts == (Part(1, 3, Destination(), 2), Part(1, 1, Destination(), 8))
    assert [(run.points, run.settled) for run in batch.runs] == [(10, 6)]
