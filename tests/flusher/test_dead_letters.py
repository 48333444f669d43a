"""Dead letters that are written again: what the sink takes by now is told apart from what it still refuses."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from tests.flusher.fake_sink import FakeSink
from tests.flusher.rig import SETTINGS
from tests.flusher.twins import now_ns, run_inline
from wal_ingest.errors import StorageFailed
from wal_ingest.flusher.dead_letters import Written, write_again
from wal_ingest.flusher.outcome import Outcome, Rejected, Unavailable
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.entry import Destination


def letters(count: int, bucket: str = "b", start: int = 1) -> list[DeadLetter]:
    return [
        DeadLetter("fake", 7, b"m v=%d 1\n" % n, "refused", 400, n, Destination("o", bucket), n)
        for n in range(start, start + count)
    ]


async def again(sink: FakeSink, these: list[DeadLetter]) -> list[Written]:
    told: list[Written] = []
    await write_again(
        sink, these, SETTINGS, run_sync=run_inline, now_ns=now_ns, rng=Random(7), written=told.append
    )
    return told


async def test_all_are_written_in_batches_and_told_of_batch_by_batch() -> None:
    sink, these = FakeSink(), letters(25)
    told = await again(sink, these)
    assert [len(each.confirmed) for each in told] == [10, 10, 5]
    assert [letter for each in told for letter in each.confirmed] == these
    assert sink.confirmed == [letter.line for letter in these]
    assert sink.closed == 1


async def test_a_batch_has_one_destination() -> None:
    sink, these = FakeSink(), [*letters(2, "one"), *letters(3, "two", start=3), *letters(1, "one", start=6)]
    assert [len(each.confirmed) for each in await again(sink, these)] == [2, 3, 1]


async def test_what_is_refused_again_is_named_with_the_reason_of_this_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sink, these = FakeSink(), [*letters(4), *letters(1), *letters(3, start=5)]  # one line is there twice

    def refuse(lines: list[bytes]) -> Outcome | None:
        return Rejected("still no", 422) if any(b"v=3 " in line for line in lines) else None

    sink.answer = refuse
    [told] = await again(sink, these)
    assert [letter.line for letter in told.refused] == [these[2].line]
    assert (told.refused[0].reason, told.refused[0].status) == ("still no", 422)
    assert (told.refused[0].number, told.refused[0].seq) == (3, 7)
    assert list(told.confirmed) == these[:2] + these[3:]


async def test_a_sink_that_is_away_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    sink, tries = FakeSink(), iter([Unavailable("away"), Unavailable("away"), None])
    sink.answer = lambda _lines: next(tries)
    [told] = await again(sink, letters(3))
    assert len(told.confirmed) == 3
    assert len(sink.writes) == 3


async def test_when_the_confirmed_cannot_be_noted_it_ends_and_the_sink_is_closed() -> None:
    sink = FakeSink()

    def fail(_written: Written) -> None:
        raise StorageFailed(Path("state.lmdb"), "no space")

    with pytest.raises(StorageFailed, match="no space"):
        await write_again(
            sink, letters(1), SETTINGS, run_sync=run_inline, now_ns=now_ns, rng=Random(7), written=fail
        )
    assert sink.closed == 1


async def test_a_cancellation_gives_a_write_up_and_closes_the_sink() -> None:
    sink = FakeSink()

    async def never(_lines: list[bytes]) -> Outcome | None:
        await trio.sleep_forever()
        raise AssertionError

    sink.answer = never
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again, sink, letters(1))
        await sink.wrote(1)
        nursery.cancel_scope.cancel()
    assert sink.closed == 1


async def test_without_letters_nothing_is_written() -> None:
    sink = FakeSink()
    assert await again(sink, []) == []
    assert (sink.writes, sink.closed) == ([], 1)
