"""A replay over twins, on virtual time: everything once and in order remembered, stopping, pace, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from tests.flusher.fake_sink import FakeSink
from tests.flusher.rig import SETTINGS
from tests.flusher.twins import MemoryLog, now_ns, run_inline
from wal_ingest.errors import ArchiveBroken, OperatorNeeded, StorageFailed
from wal_ingest.flusher.outcome import Misconfigured, Outcome, Rejected, Unavailable
from wal_ingest.flusher.replay import run as run_module
from wal_ingest.flusher.replay.places import Passed, Place, Unit
from wal_ingest.flusher.replay.record import Step
from wal_ingest.flusher.replay.run import Replay
from wal_ingest.flusher.status import SinkState
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.lost import Lost

Clock = trio.testing.MockClock
LOST = Lost("f", 2, 2, 7, "damaged")


class MemorySource:
    """Entries of a log in memory, from behind a place; `lost` come first, `fail` at the end."""

    name = "wal"

    def __init__(self, log: MemoryLog, *, after: Place | None = None) -> None:
        self.log = log
        self.after_seq = after.seq if after else 0
        self.passed = Passed()
        self.lost: list[Lost] = []
        self.fail: Exception | None = None
        self.chosen: Callable[[int], bool] = lambda _seq: True

    def expected_points(self) -> int:
        return self.log.points_total

    def describe(self) -> str:
        return "a log in memory"

    def items(self) -> Iterator[Unit | Lost]:
        yield from self.lost
        for entry in self.log.entries:
            if entry.seq > self.after_seq:
                self.passed.note(
                    points=entry.points, stored_bytes=1, raw_bytes=1, accepted_ns=entry.accepted_ns
                )
                if not self.chosen(entry.seq):
                    entry = replace(entry, points=0, payload=b"")
                yield Unit(entry, Place(source="wal", seq=entry.seq))
        if self.fail is not None:
            raise self.fail


class Rig:
    """Log, sink and what is remembered; they outlive the replays over them."""

    def __init__(self, *, in_flight_max: int = 1) -> None:
        self.log = MemoryLog()
        self.sink = FakeSink(in_flight_max=in_flight_max)
        self.steps: list[Step] = []
        self.times: list[float] = []
        self.letters: list[DeadLetter] = []
        self.fail: Exception | None = None
        self.source = MemorySource(self.log)

    def remember(self, step: Step, letters: Sequence[DeadLetter]) -> None:
        if self.fail is not None:
            raise self.fail
        self.steps.append(step)
        self.times.append(trio.current_time())
        self.letters.extend(letters)

    def replay(self, *, rate: float | None = None, after: Place | None = None) -> Replay:
        self.source.after_seq = after.seq if after else 0
        return Replay(
            [self.source],
            self.sink,
            self.remember,
            SETTINGS,
            points_max=10,
            rate=rate,
            run_sync=run_inline,
            now_ns=now_ns,
            rng=Random(7),
            after=after,
        )


async def test_everything_is_written_once_in_order_and_remembered(autojump_clock: Clock) -> None:
    rig = Rig()
    for points in (1, 9, 10, 3, 25):
        rig.log.append(points)
    rig.source.lost = [LOST]
    replay = rig.replay()
    assert await replay.run()
    assert rig.sink.confirmed == rig.log.all_lines()
    assert rig.steps[-1] == Step(Place(source="wal", seq=5), 48, 0, (LOST,), finished=True)
    assert replay.lost == [LOST]
    assert rig.sink.closed == 1
    moment = replay.moment()
    assert (moment.confirmed, moment.rejected, moment.settled, moment.expected) == (48, 0, 48, 48)
    assert (moment.state, moment.last_error) == (SinkState.DELIVERING, "")


async def test_what_is_read_and_not_confirmed_yet_is_no_progress(autojump_clock: Clock) -> None:
    rig, release = Rig(), trio.Event()
    for _ in range(6):
        rig.log.append(10)
    rig.source.chosen = lambda seq: seq != 2
    bad = rig.log.all_lines()[25]

    async def slowly(lines: list[bytes]) -> Outcome | None:
        await release.wait()
        return Rejected("type conflict", 422) if bad in lines else None

    rig.sink.answer = slowly
    replay = rig.replay()
    assert replay.moment().settled == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replay.run)
        await trio.testing.wait_all_tasks_blocked()
        # All is read. Ten points are not chosen, which settles them.
        assert (replay.moment().expected, replay.moment().settled) == (60, 10)
        release.set()
    moment = replay.moment()
    assert (moment.confirmed, moment.rejected, moment.settled) == (49, 1, 60)


async def test_points_that_a_source_counts_before_it_gives_them_are_no_progress(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "READ_BYTES_MAX", 1)  # every unit is a trip of its own
    rig = Rig()
    for _ in range(3):
        rig.log.append(10)

    def one_member() -> Iterator[Unit | Lost]:
        rig.source.passed.note(points=30, stored_bytes=1, raw_bytes=1, accepted_ns=1)
        yield from (Unit(entry, None) for entry in rig.log.entries[:2])
        yield Unit(rig.log.entries[2], Place(source="wal", seq=3))

    monkeypatch.setattr(rig.source, "items", one_member)
    seen: list[int] = []
    replay = rig.replay(rate=1)
    rig.sink.answer = lambda _lines: seen.append(replay.moment().settled)
    assert await replay.run()
    assert seen == [0, 10, 20]
    assert replay.moment().settled == 30


async def test_a_batch_ends_where_the_destination_does_and_its_place_is_the_entry_before(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "READ_BYTES_MAX", 1)  # every entry is a trip of its own
    rig = Rig()
    for bucket in ("a", "a", "b", "c"):
        rig.log.append(3, destination=Destination("", bucket))
    assert await rig.replay(rate=0.5).run()
    assert [len(lines) for _, lines in rig.sink.writes] == [6, 3, 3]
    places = {step.confirmed: step.place.seq for step in rig.steps if step.place is not None}
    assert places == {6: 2, 9: 3, 12: 4}


async def test_what_is_not_chosen_is_passed_over_and_remembered_too(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "READ_BYTES_MAX", 1)
    rig = Rig()
    for _ in range(30):
        rig.log.append(10)
    rig.source.chosen = lambda seq: seq == 12
    assert await rig.replay().run()
    assert len(rig.sink.confirmed) == 10
    assert rig.steps[-1].place == Place(source="wal", seq=30)
    rig.source.chosen = lambda _seq: False
    assert await rig.replay().run()
    assert rig.steps[-1].place == Place(source="wal", seq=30)
    assert rig.steps[-1].confirmed == 0


async def test_points_pass_no_faster_than_the_rate(autojump_clock: Clock) -> None:
    rig = Rig(in_flight_max=4)
    for _ in range(100):
        rig.log.append(10)
    began = trio.current_time()
    assert await rig.replay(rate=50).run()
    assert trio.current_time() - began == pytest.approx(99 * 10 / 50, abs=0.5)
    assert rig.sink.in_flight_peak == 1


async def test_writes_are_under_way_at_once_and_only_the_settled_beginning_is_remembered(
    autojump_clock: Clock,
) -> None:
    rig = Rig(in_flight_max=3)
    for _ in range(6):
        rig.log.append(10)
    first, others = trio.Event(), trio.Event()

    async def wait_for(event: trio.Event) -> Outcome | None:
        await event.wait()
        return None

    events = dict(zip((entry.lines() for entry in rig.log.entries), (first, others, others), strict=False))
    passed = trio.Event()
    passed.set()
    rig.sink.answer = lambda lines: wait_for(events.get(b"".join(lines), passed))
    replay = rig.replay()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replay.run)
        await rig.sink.wrote(3)
        assert rig.sink.in_flight == 3
        others.set()
        await rig.sink.wrote(6)
        await trio.testing.wait_all_tasks_blocked()
        assert len(rig.sink.confirmed) == 50
        assert all(step.place is None for step in rig.steps)
        first.set()
    assert rig.steps[-1] == Step(Place(source="wal", seq=6), 60, 0, (), finished=True)


async def test_a_stopped_replay_goes_on_behind_what_it_remembered(autojump_clock: Clock) -> None:
    rig = Rig()
    for _ in range(200):
        rig.log.append(10)
    replay = rig.replay()

    def stop_at_the_ninetieth(_lines: list[bytes]) -> None:
        if len(rig.sink.writes) == 90:
            replay.stop()

    rig.sink.answer = stop_at_the_ninetieth
    assert not await replay.run()
    last = rig.steps[-1]
    assert not last.finished
    assert last.place == Place(source="wal", seq=90)  # the write under way was finished and counts
    assert last.confirmed == 900
    rig.sink.answer = lambda _lines: None
    assert await rig.replay(after=last.place).run()
    assert rig.sink.confirmed == rig.log.all_lines()


async def test_rejected_points_are_remembered_with_the_place_behind_them(autojump_clock: Clock) -> None:
    rig = Rig()
    for _ in range(3):
        rig.log.append(10)
    bad = rig.log.all_lines()[13]
    rig.sink.answer = lambda lines: Rejected("type conflict", 422) if bad in lines else None
    replay = rig.replay()
    assert await replay.run()
    assert [(letter.line, letter.seq, letter.reason) for letter in rig.letters] == [(bad, 2, "type conflict")]
    assert rig.steps[-1] == Step(Place(source="wal", seq=3), 29, 1, (), finished=True)
    assert (replay.moment().rejected, replay.moment().last_error) == (1, "type conflict")


async def test_many_rejected_points_reach_their_file_before_memory_fills(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "LETTERS_MAX", 30)
    rig = Rig()
    for _ in range(10):
        rig.log.append(10)
    rig.sink.answer = lambda _lines: Rejected("points too old", 422, dropped=10)
    assert await rig.replay().run()
    assert len(rig.letters) == 100
    assert len(rig.steps) > 2
    assert rig.times[0] < run_module.SAVE_S


async def test_the_place_is_remembered_every_few_seconds_and_only_when_it_moved(
    autojump_clock: Clock,
) -> None:
    rig = Rig()
    for _ in range(4):
        rig.log.append(10)

    async def slowly() -> Outcome | None:
        await trio.sleep(8)
        return None

    rig.sink.answer = lambda _lines: slowly()
    assert await rig.replay().run()
    assert [step.confirmed for step in rig.steps] == [0, 10, 20, 30, 40]
    assert all(time % run_module.SAVE_S == pytest.approx(0, abs=0.1) for time in rig.times[:-1])


async def test_a_full_window_holds_the_reader_back(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "WINDOW_BATCHES_MAX", 2)
    rig = Rig()
    for _ in range(20):
        rig.log.append(10)
    assert await rig.replay().run()
    assert rig.sink.confirmed == rig.log.all_lines()


async def test_troubles_of_the_sink_are_seen_and_outlasted(autojump_clock: Clock) -> None:
    rig = Rig()
    rig.log.append(10)
    answers = iter([Unavailable("down", 503), Misconfigured("HTTP 401: no", 401), None])
    rig.sink.answer = lambda _lines: next(answers)
    replay = rig.replay()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replay.run)
        await rig.sink.wrote(1)
        await trio.testing.wait_all_tasks_blocked()
        assert (replay.moment().state, replay.moment().last_error) == (SinkState.RETRYING, "down")
        await rig.sink.wrote(2)
        await trio.testing.wait_all_tasks_blocked()
        assert (replay.moment().state, replay.moment().last_error) == (SinkState.HOLDING, "HTTP 401: no")
    assert rig.steps[-1].finished


async def test_what_cannot_be_read_ends_it_with_the_place_remembered(autojump_clock: Clock) -> None:
    rig = Rig()
    for _ in range(5):
        rig.log.append(10)
    rig.source.fail = StorageFailed(Path("f"), "Input/output error")
    rig.sink.in_flight_max = 2
    with pytest.raises(StorageFailed, match="Input/output"):
        await rig.replay().run()
    assert rig.sink.closed == 1
    assert not rig.steps[-1].finished


async def test_what_cannot_be_remembered_ends_it(autojump_clock: Clock) -> None:
    rig = Rig()
    rig.log.append(10)

    async def slowly() -> Outcome | None:
        await trio.sleep(8)
        return None

    rig.sink.answer = lambda _lines: slowly()
    rig.fail = StorageFailed(Path("f"), "No space left on device")
    with pytest.raises(StorageFailed, match="No space"):
        await rig.replay().run()
    assert rig.sink.closed == 1
    assert rig.steps == []


async def test_a_sink_that_raises_ends_it_and_one_that_cannot_be_opened_is_closed(
    autojump_clock: Clock,
) -> None:
    rig = Rig(in_flight_max=2)
    for _ in range(3):
        rig.log.append(10)

    def broken(_lines: list[bytes]) -> None:
        raise ArchiveBroken(Path("f"), "a sync failed")

    rig.sink.answer = broken
    with pytest.raises(ArchiveBroken):
        await rig.replay().run()
    rig.sink.opening = OperatorNeeded("look at me")
    with pytest.raises(OperatorNeeded):
        await rig.replay().run()
    assert rig.sink.closed == 2


async def test_a_cancelled_replay_remembers_what_it_has(autojump_clock: Clock) -> None:
    rig = Rig()
    for _ in range(50):
        rig.log.append(10)
    with trio.CancelScope() as scope:

        def cancel_at_the_fifth(_lines: list[bytes]) -> None:
            if len(rig.sink.writes) == 5:
                scope.cancel()

        rig.sink.answer = cancel_at_the_fifth
        await rig.replay().run()
    assert scope.cancelled_caught
    assert rig.steps[-1].place == Place(source="wal", seq=5)
    assert rig.sink.closed == 1
