"""A look from outside: true while the server writes, and it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.wal.factories import Clock, new_entry, open_store
from tests.wal.factories import settings as store_settings
from wal_ingest.errors import NoWal, StorageFailed, WalDamaged
from wal_ingest.wal.cursor import Cursor, Trouble
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.inspect import status
from wal_ingest.wal.required import Requirement
from wal_ingest.wal.segment import Ends, read_ends, read_entry
from wal_ingest.wal.writer import Writer

START_NS = Clock().now_ns


def files(directory: Path) -> dict[str, bytes]:
    """Every durable file and its bytes; lock files hold nothing durable."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith("-lock")
    }


def fill(directory: Path) -> None:
    """Two sealed segments of two entries each, and one entry in the last; the sink has confirmed three."""
    clock = Clock()
    store = open_store(directory, clock)
    for number in range(1, 6):
        store.wal.commit([[new_entry(number, points=10, accepted_ns=START_NS + number)]])
        if number % 2 == 0:
            store.wal.seal()
    store.state.commit_cursor("influxdb", Cursor(3, 30, parked=1))
    store.close()


def test_a_status_counts_what_is_kept_and_what_waits(tmp_path: Path) -> None:
    fill(tmp_path)
    before = files(tmp_path)
    found = status(tmp_path, now_ns=START_NS + 5_000_000_004)
    assert (found.first_seq, found.last_seq) == (1, 5)
    assert (found.points_accepted, found.points_kept) == (50, 50)
    assert [(row.first_seq, row.last_seq, row.points, row.sealed) for row in found.segments] == [
        (1, 2, 20, True),
        (3, 4, 20, True),
        (5, 5, 10, False),
    ]
    assert found.bytes == sum(row.bytes for row in found.segments)
    sink = found.sinks["influxdb"]
    assert (sink.cursor_seq, sink.waiting_entries, sink.waiting_points, sink.parked) == (3, 2, 20, 1)
    assert sink.oldest_waiting_s == 5.0
    assert found.server_pid is None
    assert files(tmp_path) == before


def test_nothing_waits_for_a_sink_that_has_everything(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.state.commit_cursor("archive", Cursor(1, 1))
    store.close()
    sink = status(tmp_path, now_ns=START_NS).sinks["archive"]
    assert (sink.waiting_entries, sink.waiting_points, sink.oldest_waiting_s) == (0, 0, None)


def test_a_damaged_segment_is_shown_and_hides_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path)
    first = sorted((tmp_path / "wal").glob("*.lmdb"))[0]
    first.write_bytes(b"foreign" * 5000)
    found = status(tmp_path, now_ns=START_NS)
    assert [bool(row.error) for row in found.segments] == [True, False, False]
    assert found.points_kept == 30
    open_store(tmp_path).close()
    assert status(tmp_path, now_ns=START_NS).damaged == [first.name]


def test_where_there_is_no_wal_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoWal, match="there is no WAL in") as caught:
        status(tmp_path / "nowhere", now_ns=START_NS)
    assert "--data-dir" in caught.value.hint


async def test_a_look_beside_a_busy_writer_is_whole_and_leaves_no_trace(tmp_path: Path) -> None:
    store = open_store(tmp_path, segment_bytes_max=1 << 20)
    store.commit_cursor("archive", Cursor(0, 0))
    writer = Writer(store.wal, store_settings(segment_bytes_max=1 << 20))
    looks = 0

    async def write() -> None:
        for number in range(1, 400):
            await writer.append([new_entry(number, points=5, filler=200)])
        done.set()

    done = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        nursery.start_soon(write)
        while not done.is_set():
            before = store.wal.last_seq
            found = await trio.to_thread.run_sync(lambda: status(tmp_path, now_ns=START_NS))
            assert not [row.error for row in found.segments if row.error]
            # A look may see a commit whose last sync is still under way, one entry here; memory never does.
            assert before <= found.last_seq <= store.wal.last_seq + 1
            assert found.points_accepted == found.last_seq * 5
            assert found.sinks["archive"].waiting_points == found.last_seq * 5
            looks += 1
        nursery.cancel_scope.cancel()
    assert looks > 5
    assert sorted(path.name for path in (tmp_path / "wal").glob("*-lock")) == [
        f"{store.wal.segments()[-1].path.name}-lock"
    ]
    store.close()


def test_a_segment_truncated_during_the_look_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    for number in (1, 2):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    store.close()
    real = read_ends

    def truncated_first(path: Path) -> Ends:
        if path == store.wal.segments()[0].path:
            path.unlink()
        return real(path)

    monkeypatch.setattr("wal_ingest.wal.inspect.read_ends", truncated_first)
    told = status(tmp_path, now_ns=START_NS)
    assert [row.error for row in told.segments] == ["", ""]
    assert told.first_seq == 2


def test_truncation_between_two_looks_is_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    for number in (1, 2, 3):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    store.close()
    real = read_ends

    def truncated(path: Path) -> Ends:
        ends = real(path)
        if ends.header.first_seq == 1:
            for segment in store.wal.segments()[:2]:
                segment.path.unlink()
        return ends

    monkeypatch.setattr("wal_ingest.wal.inspect.read_ends", truncated)
    assert status(tmp_path, now_ns=START_NS).gaps == []


@pytest.mark.parametrize("oldest", [WalDamaged(Path("x"), "odd"), StorageFailed(Path("x"), "odd"), None])
def test_the_age_is_that_of_the_oldest_entry_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, oldest: Exception | None
) -> None:
    store = open_store(tmp_path)
    for number in (1, 2):
        store.wal.commit([[new_entry(number, accepted_ns=START_NS + number)]])
        store.wal.seal()
    store.commit_cursor("influxdb", Cursor())
    store.close()
    real = read_entry

    def read(path: Path, seq: int) -> Entry | None:
        if seq > unreadable:
            return real(path, seq)
        if oldest is not None:
            raise oldest
        return None

    monkeypatch.setattr("wal_ingest.wal.inspect.read_entry", read)
    unreadable = 1
    assert status(tmp_path, now_ns=START_NS + 10**9 + 2).sinks["influxdb"].oldest_waiting_s == 1.0
    unreadable = 2
    assert status(tmp_path, now_ns=START_NS).sinks["influxdb"].oldest_waiting_s is None


def test_a_pause_is_told_before_any_trouble(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.commit_cursor("influxdb", Cursor())
    store.state.note_trouble("influxdb", Trouble("retrying", "away", 5))
    store.state.pause("influxdb", now_ns=10**9)
    store.close()
    sink = status(tmp_path, now_ns=3 * 10**9).sinks["influxdb"]
    assert (sink.state, sink.reason, sink.state_s) == ("paused", "paused by an operator", 2.0)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Requirement(True, absent_since_ns=10**9), ("absent", 2.0)),
        (Requirement(True, absent_since_ns=10**9, forgotten=True), ("forgotten", 2.0)),
        (Requirement(False, absent_since_ns=10**9), ("paused", 1.0)),
        (Requirement(True), ("paused", 1.0)),
    ],
    ids=["absent", "forgotten", "absent but optional", "present"],
)
def test_that_a_sink_is_absent_is_told_before_its_pause(
    tmp_path: Path, record: Requirement, expected: tuple[str, float]
) -> None:
    store = open_store(tmp_path)
    store.commit_cursor("influxdb", Cursor())
    store.state.note_requirements({"influxdb": record})
    store.state.pause("influxdb", now_ns=2 * 10**9)
    store.close()
    sink = status(tmp_path, now_ns=3 * 10**9).sinks["influxdb"]
    assert (sink.state, sink.state_s) == expected
