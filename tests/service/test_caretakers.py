"""What is done on the side: when the positions of streams are written down, and how dropped segments give way."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from tests.flusher.twins import run_inline
from tests.wal.factories import MIB, Clock, fill, new_entry, open_store, settings
from tests.wal.test_leftover import open_files
from wal_ingest.errors import StorageFailed
from wal_ingest.service.caretakers import GIVE_BACK_PAUSE_S, SAVE_POSITIONS_S, Caretakers, Moved
from wal_ingest.service.sinks import SinkRunner
from wal_ingest.wal.checkpoint import read_through
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import Mark, NewEntry
from wal_ingest.wal.leftover import STEP_BYTES, Leftover
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a virtual clock a thread that works looks like one that waits."""
    monkeypatch.setattr(trio.to_thread, "run_sync", run_inline)


def caretakers(store: Store, clock: Clock) -> Caretakers:
    """Caretakers of a store that has no sinks; nothing is appended through the writer."""
    return Caretakers(store, cast("Writer", None), [], settings(), Moved(), now_ns=clock)


def saved_seq(store: Store) -> int:
    """Through which seq the checkpoint on disk is complete."""
    through = read_through(store.state)
    assert through is not None
    return through.seq


async def test_positions_are_written_down_now_and_then_while_streams_move(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    clock = Clock(10**18)
    store = open_store(tmp_path, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caretakers(store, clock).save_positions)
        store.wal.commit([[NewEntry(b"m v=1 1\n", 1, 10**18, mark=Mark("web-1", 1, 7))]])
        await trio.sleep(SAVE_POSITIONS_S / 2)
        assert saved_seq(store) == 0
        await trio.sleep(SAVE_POSITIONS_S)
        assert saved_seq(store) == 1
        store.wal.commit([[new_entry(2)]])
        await trio.sleep(SAVE_POSITIONS_S)
        assert saved_seq(store) == 1
        store.wal.seal()
        await trio.sleep(SAVE_POSITIONS_S)
        assert saved_seq(store) == 2
        nursery.cancel_scope.cancel()
    store.close()


async def test_positions_that_cannot_be_written_end_the_node_as_a_cursor_would(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: LmdbFile, *_args: object) -> None:
        raise StorageFailed(file.path, "Input/output error")

    store = open_store(tmp_path, Clock(10**18))
    store.wal.commit([[NewEntry(b"m v=1 1\n", 1, 10**18, mark=Mark("web-1", 1, 7))]])
    monkeypatch.setattr(LmdbFile, "write", fails)
    with pytest.raises(StorageFailed, match="Input/output error"):
        await caretakers(store, Clock(10**18)).save_positions()
    store.close()


class AnyWriter:
    """As much of a writer as the truncation needs."""

    def __init__(self) -> None:
        self.is_short = False

    def space_is_short(self) -> bool:
        return self.is_short

    async def seal_if_due(self) -> None:
        """There is none."""


class Confirmed:
    """A sink that has everything."""

    name = "archive"
    required = True


def three_segments(tmp_path: Path, clock: Clock) -> Store:
    """A store with three sealed segments of one and a half steps each, all confirmed."""
    store = open_store(tmp_path, clock, segment_bytes_max=64 * MIB)
    for number in range(3):
        fill(store, 11, start=1 + 11 * number, filler=STEP_BYTES // 8)
        store.wal.seal()
    store.commit_cursor("archive", Cursor(store.wal.last_seq, store.wal.points_total))
    return store


def gentle(store: Store, writer: AnyWriter, moved: Moved, clock: Clock) -> Caretakers:
    return Caretakers(
        store,
        cast("Writer", writer),
        cast("list[SinkRunner]", [Confirmed()]),
        settings(keep_confirmed_s=0.0),
        moved,
        now_ns=clock,
    )


@pytest.mark.parametrize("is_short", [False, True])
async def test_dropped_segments_give_their_space_back_step_by_step_unless_it_is_needed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    monkeypatch.setattr("wal_ingest.service.caretakers.DROPPED_AT_ONCE_MAX", 2)
    clock, writer, moved = Clock(10**18), AnyWriter(), Moved()
    writer.is_short = is_short
    steps: list[float] = []
    whole = Leftover.give_back

    def watched(leftover: Leftover) -> bool:
        steps.append(trio.current_time())
        return whole(leftover)

    monkeypatch.setattr(Leftover, "give_back", watched)
    store = three_segments(tmp_path, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gentle(store, writer, moved, clock).truncate)
        moved.set()
        await trio.sleep(10)
        assert len(store.wal.segments()) == 1
        nursery.cancel_scope.cancel()
    assert len(steps) == 6
    pauses = [after - before for before, after in itertools.pairwise(steps)]
    pause_s = 0.0 if is_short else GIVE_BACK_PAUSE_S
    # The last step of each file has nothing to free any more, so nothing is waited for behind it.
    assert pauses == pytest.approx([pause_s, 0, pause_s, 0, pause_s])
    store.close()


async def test_a_stop_does_not_wait_for_space(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    clock, moved = Clock(10**18), Moved()
    store = three_segments(tmp_path, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gentle(store, AnyWriter(), moved, clock).truncate)
        moved.set()
        await trio.sleep(GIVE_BACK_PAUSE_S / 2)
        assert len(store.wal.segments()) == 1
        assert "(deleted)" in " ".join(open_files(tmp_path))
        nursery.cancel_scope.cancel()
    assert "(deleted)" not in " ".join(open_files(tmp_path))
    store.close()
