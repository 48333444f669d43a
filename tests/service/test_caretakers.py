"""What is done on the side: here, when the positions of streams are written down."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from tests.flusher.twins import run_inline
from tests.wal.factories import Clock, new_entry, open_store, settings
from wal_ingest.errors import StorageFailed
from wal_ingest.service.caretakers import SAVE_POSITIONS_S, Caretakers, Moved
from wal_ingest.wal.checkpoint import read_through
from wal_ingest.wal.entry import Mark, NewEntry
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
