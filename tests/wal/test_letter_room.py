"""Room for dead letters: a limit of their own, the disk's floor, and a disk that is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wal.factories import MIB, Clock, open_store, settings
from tests.wal.test_letters import letter
from wal_ingest.errors import DiskFull, NoRoomForLetters
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.letter_room import LetterLimits
from wal_ingest.wal.space import Reserve
from wal_ingest.wal.state import State, read_dead_letters
from wal_ingest.wal.store import Store


def state_of(directory: Path, *, bytes_max: int = MIB, floor: int = 0, free_bytes: int = 1 << 40) -> State:
    limits = LetterLimits(bytes_max, floor)
    return State(directory, now_ns=1, limits=limits, free_bytes=lambda _path: free_bytes)


def test_letters_fit_under_their_limit() -> None:
    reason = r"901 bytes are used, 100 more are needed, the limit is 1000 \(flusher\.dead_letters_bytes_max"
    limits = LetterLimits(1_000, 500)
    limits.check_bytes("influxdb", used_bytes=900, more_bytes=100)
    with pytest.raises(NoRoomForLetters, match=reason) as caught:
        limits.check_bytes("influxdb", used_bytes=901, more_bytes=100)
    assert caught.value.sink == "influxdb"
    assert "wal-ingest dead-letters list" in caught.value.hint


def test_letters_stay_above_the_floor() -> None:
    limits = LetterLimits(1_000, 500)
    limits.check_disk(more_bytes=100, free_bytes=600)
    reason = r"the disk has 599 bytes free, 100 are needed, and 500 must stay free \(half of wal\.free"
    with pytest.raises(DiskFull, match=reason):
        limits.check_disk(more_bytes=100, free_bytes=599)


@pytest.mark.parametrize("limits", [{"bytes_max": 10}, {"floor": 500, "free_bytes": 400}])
def test_where_letters_have_no_room_nothing_is_written_and_it_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    monkeypatch.setattr("wal_ingest.wal.state._RESERVE_BYTES", 4096)
    state = state_of(tmp_path, **limits)
    with pytest.raises(NoRoomForLetters):
        state.commit_cursor("influxdb", Cursor(5, 50, parked=1, confirmed=49), [letter(1)])
    assert state.cursor("influxdb") is None
    assert list(state.dead_letters("influxdb")) == []
    state.commit_cursor("influxdb", Cursor(4, 40, confirmed=40))
    state.close()
    state = state_of(tmp_path)
    assert state.cursor("influxdb") == Cursor(4, 40, confirmed=40)
    state.commit_cursor("influxdb", Cursor(5, 50, parked=1, confirmed=49), [letter(1)])
    assert [each.seq for each in state.dead_letters("influxdb")] == [1]
    state.close()
    assert [each.seq for each in read_dead_letters(state.path, "influxdb")] == [1]


def test_a_full_disk_is_no_room_and_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wal_ingest.wal.state._RESERVE_BYTES", 4096)
    state = state_of(tmp_path)

    def full(_reserve: Reserve, _length: int, *, step: int) -> None:
        raise DiskFull("the disk is full: state.lmdb cannot grow")

    with monkeypatch.context() as patch:
        patch.setattr(Reserve, "hold", full)
        with pytest.raises(NoRoomForLetters, match="the disk is full"):
            state.commit_cursor("influxdb", Cursor(5, 50, parked=1, confirmed=49), [letter(1)])
    state.commit_cursor("influxdb", Cursor(5, 50, parked=1, confirmed=49), [letter(1)])
    assert state.letter_bytes > 0
    state.close()


def test_the_floor_of_letters_is_half_of_the_logs_so_that_a_log_at_its_floor_still_drains(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path, settings(free_disk_bytes_min=8 * MIB), now_ns=Clock(), letters_bytes_max=64 * MIB)
    assert store.state.letter_limits == LetterLimits(64 * MIB, 4 * MIB)
    store.close()
    store = open_store(tmp_path)
    assert store.state.letter_limits.bytes_max == 1 << 30
    store.close()
