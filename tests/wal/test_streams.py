"""The table of positions: what it says, what it forgets, and that it is the same when it is built again. Pure."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.wal.entry import Mark
from wal_ingest.wal.streams import STORED_MAX, Position, Positions, Stored

HOUR_NS = 3600 * 10**9


def positions(clients_max: int = 100) -> Positions:
    """An empty table."""
    return Positions(clients_max=clients_max, mutex=threading.Lock())


def numbers(table: Positions, client_id: str = "a") -> list[int]:
    """The numbers of a stream's frames that are remembered."""
    position = table.of(client_id)
    return [] if position is None else [stored.number for stored in position.stored]


def test_a_frame_is_remembered_with_its_seq_its_points_and_its_crc() -> None:
    table = positions()
    assert table.of("a") is None
    table.apply(Mark("a", 3, 99), 10, 500, 7)
    table.apply(Mark("a", 8, 98), 12, 600, 9)
    position = table.of("a")
    assert position is not None
    assert position.stored == (Stored(3, 10, 500, 99), Stored(8, 12, 600, 98))
    assert (position.durable, position.last_seq, position.last_ns) == (8, 12, 9)
    assert table.of("b") is None


def test_the_entries_of_one_frame_add_up_and_it_has_the_seq_of_the_last() -> None:
    table = positions()
    for seq, points in ((10, 1000), (11, 1000), (12, 7)):
        table.apply(Mark("a", 3, 99), seq, points, 7)
    position = table.of("a")
    assert position is not None
    assert position.stored == (Stored(3, 12, 2007, 99),)


def test_points_that_add_up_to_more_than_fit_are_as_many_as_fit() -> None:
    table = positions()
    for seq in (1, 2):
        table.apply(Mark("a", 1, 0), seq, 2**32 - 1, 7)
    position = table.of("a")
    assert position is not None
    assert position.stored[0].points == 2**32 - 1


@pytest.mark.parametrize("crc", [1, 2])
def test_a_number_that_comes_again_later_is_where_it_was_stored_last(crc: int) -> None:
    table = positions()
    table.apply(Mark("a", 1, 1), 1, 10, 7)
    table.apply(Mark("a", 2, 1), 2, 10, 7)
    table.apply(Mark("a", 1, crc), 5, 30, 7)
    position = table.of("a")
    assert position is not None
    assert position.stored == (Stored(1, 5, 30, crc), Stored(2, 2, 10, 1))
    assert (position.durable, position.last_seq) == (2, 5)


def test_only_the_frames_with_the_highest_numbers_are_remembered() -> None:
    table = positions()
    for number in range(1, STORED_MAX + 11):
        table.apply(Mark("a", number, 0), number, 1, 7)
    assert numbers(table) == list(range(11, STORED_MAX + 11))
    table.apply(Mark("a", 5, 0), 1000, 1, 7)
    assert numbers(table) == list(range(11, STORED_MAX + 11))


def test_beyond_the_limit_the_stream_that_was_silent_longest_is_forgotten() -> None:
    table = positions(clients_max=2)
    for seq, client_id in enumerate(["a", "b", "a", "c"], 1):
        table.apply(Mark(client_id, seq, 0), seq, 1, 100 - seq)
    assert table.of("b") is None
    assert (numbers(table, "a"), numbers(table, "c"), len(table)) == ([1, 3], [4], 2)


def test_a_stream_that_had_to_go_and_comes_back_is_known_from_there_on() -> None:
    table = positions(clients_max=2)
    for seq, client_id in enumerate(["a", "b", "c", "a"], 1):
        table.apply(Mark(client_id, seq, 0), seq, 1, 100)
    assert (numbers(table, "a"), table.of("b")) == ([4], None)


def test_a_stream_that_was_silent_for_too_long_is_forgotten_by_a_clock_that_may_have_been_wrong() -> None:
    table = positions()
    for seq, (client_id, ns) in enumerate([("ahead", 90), ("old", 1), ("edge", 10), ("new", 19)], 1):
        table.apply(Mark(client_id, 1, 0), seq, 1, ns * HOUR_NS)
    table.forget_silent(now_ns=20 * HOUR_NS, keep_s=10 * 3600)
    assert [table.of(each) is not None for each in ("ahead", "old", "edge", "new")] == [
        False,
        False,
        True,
        True,
    ]
    table.forget_silent(now_ns=100 * HOUR_NS, keep_s=10 * 3600)
    assert len(table) == 0


def test_frames_whose_entries_are_gone_are_forgotten_and_a_stream_with_none_left() -> None:
    table = positions()
    for seq, client_id in enumerate(["a", "b", "a", "b", "b"], 1):
        table.apply(Mark(client_id, seq, 0), seq, 1, 7)
    table.take_changes()
    table.forget_entries([])
    table.forget_entries([(6, 2**64 - 1)])
    assert not table.changed
    table.forget_entries([(1, 1), (3, 4)])
    assert (table.of("a"), numbers(table, "b")) == (None, [2, 5])
    changes = table.take_changes()
    assert (changes["a"], changes["b"]) == (None, table.of("b"))


def test_a_change_is_taken_once_and_again_when_it_was_put_back_unless_there_is_a_newer_one() -> None:
    table = positions()
    for client_id in ("a", "b"):
        table.apply(Mark(client_id, 1, 0), 1, 1, 7)
    taken = table.take_changes()
    assert not table.changed
    assert table.take_changes() == {}
    table.apply(Mark("b", 2, 0), 2, 1, 7)
    table.put_back(taken)
    assert table.take_changes() == {"a": table.of("a"), "b": table.of("b")}


def test_a_position_comes_back_from_its_bytes_and_nothing_else_passes_for_it() -> None:
    table = positions()
    for number in (1, 2):
        table.apply(Mark("a", number, 5), number, 1, 7)
    position = table.of("a")
    assert position is not None
    value = position.encode()
    assert Position.decode("a", value) == position
    assert Position.decode("b", value) is None
    for length in range(len(value)):
        assert Position.decode("a", value[:length]) is None
    for at in range(len(value)):
        damaged = bytearray(value)
        damaged[at] ^= 0x10
        assert Position.decode("a", bytes(damaged)) is None
    assert Position.decode("a", position._replace(packed=position.packed * 40).encode()) is None
    assert Position.decode("a", position._replace(packed=b"").encode()) is None


# -- the table against a model, and against itself built again ----------------------------------------------


@dataclass
class Stream:
    """What the model knows of a stream."""

    last_ns: int = 0
    last_seq: int = 0
    frames: dict[int, Stored] = field(default_factory=dict)


def expected(entries: Sequence[tuple[Mark, int, int, int]], clients_max: int) -> dict[str, Stream]:
    """The table, in the plainest words."""
    streams: dict[str, Stream] = {}
    for mark, seq, points, accepted_ns in entries:
        stream = streams.setdefault(mark.client_id, Stream())
        known = stream.frames.get(mark.number)
        if known is not None and (known.crc, known.seq) == (mark.crc, seq - 1):
            points += known.points
        stream.frames[mark.number] = Stored(mark.number, seq, points, mark.crc)
        stream.frames = {number: stream.frames[number] for number in sorted(stream.frames)[-STORED_MAX:]}
        stream.last_ns, stream.last_seq = accepted_ns, seq
        if len(streams) > clients_max:
            del streams[min(streams, key=lambda each: streams[each].last_seq)]
    return streams


frames = st.tuples(
    st.sampled_from("abcd"),
    st.one_of(st.integers(1, 4), st.integers(1, 200)),
    st.integers(0, 1),
    st.lists(st.integers(1, 1000), min_size=1, max_size=3),
    st.booleans(),
)


@given(st.lists(frames, max_size=120), st.integers(1, 5))
def test_a_table_built_again_from_any_checkpoint_and_the_log_behind_it_is_the_table_that_was_lost(
    story: list[tuple[str, int, int, list[int], bool]], clients_max: int
) -> None:
    live, on_disk = positions(clients_max), dict[str, bytes]()
    entries: list[tuple[Mark, int, int, int]] = []
    saved = 0
    for client_id, number, crc, parts, save in story:
        for points in parts:
            entries.append((Mark(client_id, number, crc), len(entries) + 1, points, len(entries) * 3 % 50))
            live.apply(*entries[-1])
        if save:
            saved = len(entries)
            for changed, position in live.take_changes().items():
                if position is None:
                    on_disk.pop(changed, None)
                else:
                    on_disk[changed] = position.encode()
    again = positions(clients_max)
    read = [Position.decode(client_id, value) for client_id, value in on_disk.items()]
    again.restore(position for position in read if position is not None)
    assert None not in read
    for entry in entries[saved:]:
        again.apply(*entry)

    wanted = expected(entries, clients_max)
    for table in (live, again):
        assert len(table) == len(wanted)
        for client_id, stream in wanted.items():
            position = table.of(client_id)
            assert position is not None
            assert list(position.stored) == list(stream.frames.values())
            assert (position.last_ns, position.last_seq) == (stream.last_ns, stream.last_seq)
            assert position.durable == max(stream.frames)


def test_a_table_that_is_too_large_for_a_smaller_limit_loses_the_streams_that_were_silent_longest() -> None:
    table = positions()
    for seq, client_id in enumerate("abc", 1):
        table.apply(Mark(client_id, 1, 0), seq, 1, 7)
    smaller = positions(clients_max=2)
    smaller.restore(position for each in "cab" if (position := table.of(each)) is not None)
    assert [smaller.of(each) is not None for each in "abc"] == [False, True, True]
    assert smaller.take_changes() == {"a": None}


def test_a_stream_that_an_operator_forgets_is_gone_and_the_others_are_not() -> None:
    table = positions()
    table.apply(Mark("a", 2**53 - 1, 1), 1, 10, 7)
    table.apply(Mark("b", 5, 1), 2, 20, 7)
    table.take_changes()
    gone = table.forget("a")
    assert gone is not None
    assert (gone.client_id, gone.durable) == ("a", 2**53 - 1)
    assert table.forget("a") is None
    assert table.of("a") is None
    assert [each.client_id for each in table.listed()] == ["b"]
    assert table.take_changes() == {"a": None}
    table.apply(Mark("a", 1, 1), 3, 1, 7)
    assert numbers(table) == [1]
