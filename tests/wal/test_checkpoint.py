"""How far each stream has come, across the lives of the process: nothing that is in doubt is ever claimed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.inline import read_everything
from tests.wal.factories import MIB, Clock, fill, new_entry, open_store
from tests.wal.test_damage import DAMAGE, flip
from wal_ingest.errors import ConfigError, DiskFull, NoWal, StorageFailed, WalFull
from wal_ingest.wal import checkpoint
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import Mark, NewEntry
from wal_ingest.wal.lmdb_file import LmdbFile, MapFull
from wal_ingest.wal.lmdb_pages import Found, PageReader
from wal_ingest.wal.segment import Segment, segment_name
from wal_ingest.wal.space import Reserve
from wal_ingest.wal.state import State
from wal_ingest.wal.store import Store
from wal_ingest.wal.stream_list import read_streams
from wal_ingest.wal.streams import Position, Stored

CLIENTS = ("web-1", "web-2", "web-3")


def marked(client_id: str, number: int, *parts: int, filler: int = 0, crc: int = 7) -> list[NewEntry]:
    """A frame: an entry of so many points for each part, or one of one point."""
    mark = Mark(client_id, number, crc)
    entries = [
        new_entry(number, points=points, filler=filler, accepted_ns=10**18) for points in parts or (1,)
    ]
    return [NewEntry(each.lines, each.points, each.accepted_ns, mark=mark) for each in entries]


def noisy(client_id: str, number: int) -> list[NewEntry]:
    """A frame of one entry of 20 KB that cannot be compressed to much less."""
    line = b'm t="%s" %d\n' % (random.Random(number).randbytes(10_000).hex().encode(), number)
    return [NewEntry(line, 1, 10**18, mark=Mark(client_id, number, 7))]


def table(store: Store) -> dict[str, Position | None]:
    """What the store says of each client."""
    return {client_id: store.wal.positions.of(client_id) for client_id in CLIENTS}


def numbers(store: Store, client_id: str = "web-1") -> list[int]:
    """The frames of a stream that are remembered."""
    position = store.wal.positions.of(client_id)
    return [] if position is None else [stored.number for stored in position.stored]


def claims(positions: dict[str, Position | None]) -> set[int]:
    """The seqs of all frames that positions say are durable."""
    known = [position for position in positions.values() if position is not None]
    return {stored.seq for position in known for stored in position.stored}


def claimed(store: Store) -> set[int]:
    """The seqs of all frames that the store says are durable."""
    return claims(table(store))


def killed(data_dir: Path) -> Path:
    """The directory as a kill -9 leaves it now."""
    target = data_dir.with_name(f"{data_dir.name}-killed")
    if target.exists():
        shutil.rmtree(target)
    return Path(shutil.copytree(data_dir, target, ignore=shutil.ignore_patterns("*.sock")))


def clock() -> Clock:
    """A clock at which the frames here were accepted just now."""
    return Clock(10**18)


# -- while it runs -----------------------------------------------------------------------------------------


def test_a_frame_is_known_as_soon_as_its_commit_has_returned(tmp_path: Path) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1, 1000, 1000, 5), [new_entry(1)], marked("web-2", 9)])
    store.wal.commit([marked("web-1", 4, 3)])
    first, second = store.wal.positions.of("web-1"), store.wal.positions.of("web-2")
    assert first is not None
    assert second is not None
    assert first.stored == (Stored(1, 3, 2005, 7), Stored(4, 6, 3, 7))
    assert second.stored == (Stored(9, 5, 1, 7),)
    assert store.wal.positions.of("web-3") is None
    store.close()


@pytest.mark.parametrize("error", [DiskFull("full"), StorageFailed(Path("x"), "EIO")], ids=["full", "failed"])
def test_a_frame_whose_commit_did_not_succeed_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise error

    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1)])
    with monkeypatch.context() as patch:
        patch.setattr(LmdbFile, "append", fails)
        with pytest.raises(type(error)):
            store.wal.commit([marked("web-1", 2), marked("web-2", 1)])
    assert (numbers(store, "web-1"), numbers(store, "web-2")) == ([1], [])
    store.close()
    store = open_store(tmp_path, clock())
    assert (numbers(store, "web-1"), numbers(store, "web-2")) == ([1], [])
    store.close()


def test_a_commit_that_goes_into_the_next_segment_is_known_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1)])
    append, full = LmdbFile.append, [True]

    def once_full(file: LmdbFile, items: list[tuple[bytes, bytes]]) -> None:
        if full.pop() if full else False:
            raise MapFull(file.path, "the map is full")
        append(file, items)

    monkeypatch.setattr(LmdbFile, "append", once_full)
    store.wal.commit([marked("web-1", 2, 5, 5)])
    position = store.wal.positions.of("web-1")
    assert position is not None
    assert position.stored == (Stored(1, 1, 1, 7), Stored(2, 3, 10, 7))
    monkeypatch.undo()
    store.close()


# -- across lives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_what_a_killed_process_knew_the_next_one_knows(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data_dir = tmp_path / "data"
    store = open_store(data_dir, clock(), streams_max=2)
    kills = 0
    for number in range(1, 61):
        act = rng.choice(["frame", "frame", "frames", "plain", "seal", "save", "drop", "kill", "close"])
        client_id = rng.choice(CLIENTS)
        if act == "frame":
            store.wal.commit([marked(client_id, number, *rng.choices(range(1, 9), k=rng.randint(1, 3)))])
        elif act == "frames":
            store.wal.commit([marked(client_id, number), marked("web-1", number + 1), [new_entry(1)]])
        elif act == "plain":
            store.wal.commit([[new_entry(number)]])
        elif act == "seal":
            store.wal.seal()
        elif act == "save":
            assert store.save_positions(10**18)
        elif act == "drop":
            store.wal.truncate(rng.randint(0, store.wal.last_seq))
        else:
            known = table(store)
            kills += 1
            if act == "close":
                store.close()
            else:
                copy = killed(data_dir)
                store.close()
                shutil.rmtree(data_dir)
                copy.rename(data_dir)
            store = open_store(data_dir, clock(), streams_max=2)
            before = claims(known)
            assert claimed(store) <= before
            # What was dropped since the checkpoint was written is in doubt; all else is known.
            assert {seq for seq in before if seq >= store.wal.first_seq} <= claimed(store)
    assert kills
    store.close()


def test_a_clean_end_leaves_nothing_to_be_read_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1, 5, 6), marked("web-2", 3)])
    known = table(store)
    store.close()
    monkeypatch.setattr(checkpoint, "_marked", lambda *_args: pytest.fail("the log was read"))
    store = open_store(tmp_path, clock())
    assert table(store) == known
    store.close()


def test_a_start_reads_no_more_than_the_newest_part_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SCAN_BYTES_MAX", 1)
    store = open_store(tmp_path / "data", clock())
    for number in (1, 2, 3):
        store.wal.commit([marked("web-1", number)])
        store.wal.seal()
    copy = killed(tmp_path / "data")
    store.close()
    store = open_store(copy, clock())
    assert numbers(store) == [3]
    store.close()


def test_streams_that_are_too_many_or_too_old_go_from_the_file_too(tmp_path: Path) -> None:
    time = clock()
    store = open_store(tmp_path, time, streams_max=2, stream_keep_s=60.0)
    store.wal.commit([marked("web-1", 1), marked("web-2", 1)])
    assert store.save_positions(time.now_ns)
    store.wal.commit([marked("web-3", 1)])
    assert store.save_positions(time.now_ns)
    assert [key for key, _ in store.state.records(b"stream/")] == [b"stream/web-2", b"stream/web-3"]
    assert store.save_positions(time.now_ns + 61 * 10**9)
    assert list(store.state.records(b"stream/")) == []
    assert table(store) == dict.fromkeys(CLIENTS)
    store.close()


def test_a_stream_that_had_to_go_stays_forgotten_when_the_one_that_drove_it_out_is_lost(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path, clock(), streams_max=1)
    store.wal.commit([marked("web-1", 1)])
    store.wal.seal()
    store.wal.commit([marked("web-2", 2)])
    store.wal.seal()
    store.wal.set_aside(store.wal.segments()[1].path, "a byte was changed")
    assert (numbers(store, "web-1"), numbers(store, "web-2")) == ([], [])
    store.close()


def test_a_save_is_due_when_a_stream_has_moved_or_a_segment_was_sealed(tmp_path: Path) -> None:
    store = open_store(tmp_path, clock())
    assert not store.positions_are_due
    store.wal.commit([[new_entry(1)]])
    assert not store.positions_are_due
    store.wal.seal()
    assert store.positions_are_due
    assert store.save_positions(10**18)
    assert not store.positions_are_due
    store.wal.commit([marked("web-1", 1)])
    assert store.positions_are_due
    assert store.save_positions(10**18)
    assert not store.positions_are_due
    store.close()


@pytest.mark.parametrize("saved_before", [True, False])
def test_a_stream_that_an_operator_forgot_stays_forgotten_though_the_log_has_its_frames(
    tmp_path: Path, saved_before: bool
) -> None:
    store = open_store(tmp_path / "data", clock())
    store.wal.commit([marked("web-1", 1), marked("web-1", 2**53 - 1), marked("web-2", 5)])
    if saved_before:
        store.save_positions(10**18)
    forgotten = store.forget_stream("web-1")
    assert (forgotten.durable, forgotten.last_seq) == (2**53 - 1, 2)
    after = killed(tmp_path / "data")
    with pytest.raises(ConfigError, match="no stream is called 'web-1'"):
        store.forget_stream("web-1")
    store.close()
    again = open_store(after, clock())
    assert (numbers(again, "web-1"), numbers(again, "web-2")) == ([], [5])
    assert len(read_everything(again)) == 3
    again.wal.commit([marked("web-1", 1)])
    assert numbers(again, "web-1") == [1]
    again.close()


def test_a_stream_is_said_to_be_forgotten_for_now_where_the_disk_has_no_room_to_write_that_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "data", clock())
    store.wal.commit([marked("web-1", 1)])
    with monkeypatch.context() as patch:
        patch.setattr(State, "write_if_room", lambda *_args: False)
        with pytest.raises(WalFull, match="forgotten until this node ends"):
            store.forget_stream("web-1")
    assert numbers(store) == []
    # The next save has room.
    assert store.positions_are_due
    assert store.save_positions(10**18)
    again = open_store(killed(tmp_path / "data"), clock())
    assert numbers(again) == []
    again.close()
    store.close()


@pytest.mark.parametrize("seed", range(5))
def test_what_is_listed_from_outside_is_what_the_store_knows(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store = open_store(tmp_path / "data", clock())
    highest = dict.fromkeys(CLIENTS, 0)
    for _ in range(30):
        client_id = rng.choice(CLIENTS)
        highest[client_id] += rng.randint(1, 3)
        store.wal.commit([marked(client_id, highest[client_id], *[1] * rng.randint(1, 3))])
        if rng.random() < 0.2:
            store.save_positions(10**18)
        if rng.random() < 0.1 and highest[client_id]:
            store.forget_stream(client_id)
        before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
        listed = read_streams(tmp_path / "data", clients_max=100)
        assert listed == store.wal.positions.listed()
        assert before == {
            path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()
        }
    store.close()
    assert read_streams(tmp_path / "data", clients_max=100) == listed
    with pytest.raises(NoWal):
        read_streams(tmp_path / "nothing", clients_max=100)


def test_entries_without_marks_and_lost_ones_between_move_no_stream_in_a_look_from_outside(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path, clock())
    for entries in ([new_entry(1)], marked("web-1", 1), [new_entry(2)]):
        store.wal.commit([entries])
        store.wal.seal()
    store.wal.commit([marked("web-2", 1)])
    path = killed(tmp_path)
    listed = store.wal.positions.listed()
    store.close()
    assert read_streams(path, clients_max=100) == listed
    (path / "wal" / segment_name(1)).write_bytes(b"")
    assert read_streams(path, clients_max=100) == listed


def test_where_nothing_changed_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1)])
    assert store.save_positions(10**18)
    with monkeypatch.context() as patch:
        patch.setattr(State, "write_if_room", lambda *_args: pytest.fail("something was written"))
        assert store.save_positions(10**18)
        store.close()


# -- dropping segments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the checkpoint", "before the drop", "after the drop"])
def test_a_kill_at_any_moment_of_a_truncation_that_writes_a_checkpoint_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    data_dir = tmp_path / "data"
    store = open_store(data_dir, clock())
    for number in (1, 2, 3):
        store.wal.commit([marked("web-1", number, 5)])
        store.wal.seal()
    known = table(store)
    copies: list[Path] = []
    write, drop = State.write_if_room, Segment.drop

    def watched_write(state: State, *args: object) -> bool:
        if moment == "before the checkpoint":
            copies.append(killed(data_dir))
        return write(state, *args)  # type: ignore[arg-type]

    def watched_drop(segment: Segment) -> None:
        if moment == "before the drop" and not copies:
            copies.append(killed(data_dir))
        drop(segment)

    monkeypatch.setattr(State, "write_if_room", watched_write)
    monkeypatch.setattr(Segment, "drop", watched_drop)
    assert store.wal.truncate(2) == 2
    if moment == "after the drop":
        copies.append(killed(data_dir))
    monkeypatch.undo()
    assert table(store) == known
    store.close()
    assert len(copies) == 1
    store = open_store(copies[0], clock())
    assert store.wal.first_seq == (3 if moment == "after the drop" else 1)
    assert table(store) == known
    store.close()


def test_what_was_dropped_after_the_latest_checkpoint_is_in_doubt_until_the_next(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", clock())
    for number in (1, 2, 3):
        store.wal.commit([marked("web-1", number, 5)])
        store.wal.seal()
    assert store.save_positions(10**18)
    store.wal.truncate(2)
    copy = killed(tmp_path / "data")
    store.close()
    store = open_store(copy, clock())
    assert (store.wal.first_seq, numbers(store)) == (3, [3])
    store.close()
    store = open_store(tmp_path / "data", clock())
    assert numbers(store) == [1, 2, 3]
    store.close()


def test_what_was_dropped_long_before_is_still_known(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", clock())
    for number in (1, 2, 3):
        store.wal.commit([marked("web-1", number, 5)])
        store.wal.seal()
    store.wal.truncate(2)
    assert store.save_positions(10**18)
    copy = killed(tmp_path / "data")
    store.close()
    store = open_store(copy, clock())
    assert (store.wal.first_seq, numbers(store)) == (3, [1, 2, 3])
    store.close()


def test_segments_go_without_a_checkpoint_where_the_disk_has_no_room_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "data", clock())
    for number in (1, 2, 3):
        store.wal.commit([marked("web-1", number)])
        store.wal.seal()

    def full(_reserve: Reserve, _length: int, *, step: int) -> None:
        raise DiskFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Reserve, "hold", full)
        assert not store.save_positions(10**18)
        assert store.positions_are_due
        assert store.wal.truncate(2) == 2
        store.commit_cursor("influxdb", Cursor(2, 2))  # delivery goes on
        assert numbers(store) == [1, 2, 3]
        copy = killed(tmp_path / "data")
    assert store.save_positions(10**18)
    assert not store.positions_are_due
    store.close()
    store = open_store(tmp_path / "data", clock())
    assert numbers(store) == [1, 2, 3]
    store.close()
    store = open_store(copy, clock())
    assert numbers(store) == [3]
    store.close()


def test_a_file_that_cannot_take_any_more_is_no_failure_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: LmdbFile, *_args: object) -> None:
        raise MapFull(file.path, "the map is full")

    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1)])
    with monkeypatch.context() as patch:
        patch.setattr(LmdbFile, "write", full)
        assert not store.save_positions(10**18)
    assert store.save_positions(10**18)
    store.close()


def test_a_checkpoint_that_cannot_be_written_is_a_failure_and_what_changed_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: LmdbFile, *_args: object) -> None:
        raise StorageFailed(file.path, "Input/output error")

    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1)])
    store.wal.seal()
    with monkeypatch.context() as patch:
        patch.setattr(LmdbFile, "write", fails)
        with pytest.raises(StorageFailed, match="Input/output error"):
            store.save_positions(10**18)
        with pytest.raises(StorageFailed, match="Input/output error"):
            store.wal.truncate(1)
        assert store.wal.first_seq == 1
        assert store.positions_are_due
        store.close()
    store = open_store(tmp_path, clock())
    assert numbers(store) == [1]
    store.close()


# -- directories from elsewhere ----------------------------------------------------------------------------


def without_checkpoint(data_dir: Path) -> None:
    """Takes the checkpoint out of a state file, as an earlier version would have left it."""
    file = LmdbFile(data_dir / "state.lmdb", map_bytes=MIB)
    file.write([], [b"streams"])
    file.close()


def test_a_directory_of_an_earlier_version_gets_a_checkpoint_and_is_not_read_nor_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, clock())
    for number in (1, 2):
        store.wal.commit([[new_entry(number)]])
        store.wal.seal()
    store.close()
    without_checkpoint(tmp_path)
    segments = {path: path.read_bytes() for path in (tmp_path / "wal").glob("*[12].lmdb")}
    assert len(segments) == 2
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_marked", lambda *_args: pytest.fail("the log was read"))
        store = open_store(tmp_path, clock())
    assert checkpoint.read_through(store.state) == checkpoint.Through(2, 1)
    assert {path: path.read_bytes() for path in segments} == segments
    store.wal.commit([marked("web-1", 1)])
    copy = killed(tmp_path)
    store.close()
    store = open_store(copy, clock())
    assert numbers(store) == [1]
    store.close()


@pytest.mark.parametrize("value", [None, b"not JSON", b'{"seq": "7"}'])
def test_positions_without_a_checkpoint_that_can_be_read_are_forgotten_for_good(
    tmp_path: Path, value: bytes | None
) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1)])
    store.close()
    file = LmdbFile(tmp_path / "state.lmdb", map_bytes=MIB)
    file.write([] if value is None else [(b"streams", value)], [b"streams"])
    file.close()
    # A reader from outside does not guess which entries come after it: it lists what was written down.
    assert [position.client_id for position in read_streams(tmp_path, clients_max=100)] == ["web-1"]
    store = open_store(tmp_path, clock())
    assert numbers(store) == []
    assert list(store.state.records(b"stream/")) == []
    store.close()
    store = open_store(tmp_path, clock())
    assert numbers(store) == []
    store.close()


@pytest.mark.parametrize("value", [b"", b"x" * 60, bytes(44)])
def test_a_position_that_cannot_be_read_is_forgotten_and_the_others_are_not(
    tmp_path: Path, value: bytes
) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1), marked("web-2", 1)])
    store.close()
    file = LmdbFile(tmp_path / "state.lmdb", map_bytes=MIB)
    file.write([(b"stream/web-1", value), (b"stream/\xff", value)])
    file.close()
    store = open_store(tmp_path, clock())
    assert (numbers(store, "web-1"), numbers(store, "web-2")) == ([], [1])
    assert store.save_positions(10**18)
    assert [key for key, _ in store.state.records(b"stream/")] == [b"stream/web-2"]
    store.close()


def test_a_lost_state_file_costs_positions_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1)])
    store.close()
    (tmp_path / "state.lmdb").unlink()
    store = open_store(tmp_path, clock())
    assert numbers(store) == []
    [appended] = store.wal.commit([marked("web-1", 1)])
    assert (appended.first_seq, numbers(store)) == (2, [1])
    store.close()


def test_an_old_state_file_that_was_restored_claims_only_what_is_there(tmp_path: Path) -> None:
    data_dir, old = tmp_path / "data", tmp_path / "state.old"
    store = open_store(data_dir, clock())
    for number in (1, 2):
        store.wal.commit([marked("web-1", number)])
        store.wal.seal()
    store.close()
    shutil.copy(data_dir / "state.lmdb", old)
    store = open_store(data_dir, clock())
    for number in (3, 4):
        store.wal.commit([marked("web-1", number)])
        store.wal.seal()
    store.wal.truncate(1)
    store.close()
    shutil.copy(old, data_dir / "state.lmdb")
    store = open_store(data_dir, clock())
    assert (store.wal.first_seq, numbers(store)) == (2, [2, 3, 4])
    store.close()


def test_an_old_log_that_was_restored_is_believed_and_what_it_does_not_have_is_forgotten(
    tmp_path: Path,
) -> None:
    data_dir, old = tmp_path / "data", tmp_path / "wal.old"
    store = open_store(data_dir, clock())
    store.wal.commit([marked("web-1", 1), marked("web-2", 1)])
    store.close()
    shutil.copytree(data_dir / "wal", old)
    store = open_store(data_dir, clock())
    store.wal.commit([marked("web-1", 2), marked("web-3", 1)])
    store.close()
    shutil.rmtree(data_dir / "wal")
    old.rename(data_dir / "wal")
    store = open_store(data_dir, clock())
    assert [numbers(store, each) for each in CLIENTS] == [[1], [1], []]
    [appended] = store.wal.commit([marked("web-1", 2)])
    assert appended.first_seq > 4
    store.close()


def test_a_log_that_was_taken_away_leaves_no_claim_and_no_seq_to_give_out_again(tmp_path: Path) -> None:
    store = open_store(tmp_path, clock())
    store.wal.commit([marked("web-1", 1), marked("web-2", 1)])
    store.close()
    shutil.rmtree(tmp_path / "wal")
    store = open_store(tmp_path, clock())
    assert claimed(store) == set()
    [appended] = store.wal.commit([[new_entry(1)]])
    assert appended.first_seq == 3
    store.close()


# -- damage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Three segments of frames 1 to 25, of the three clients in turns; with a checkpoint (True) or without."""
    directory = tmp_path_factory.mktemp("directories")
    store = open_store(directory / "data", clock())
    for number in range(1, 26):
        store.wal.commit([noisy(CLIENTS[number % 3], number)])
        if number in (8, 16):
            store.wal.seal()
    unsaved = killed(directory / "data").rename(directory / "unsaved")
    assert store.save_positions(10**18)
    saved = killed(directory / "data")
    store.close()
    return {True: saved, False: unsaved}


def three_segments(data_dir: Path, source: Path) -> list[Path]:
    """A copy of one of the directories; its segments."""
    shutil.copytree(source, data_dir)
    return sorted((data_dir / "wal").glob("*.lmdb"))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "unsaved"])
def test_whatever_is_damaged_no_frame_is_claimed_that_is_not_there(
    tmp_path: Path,
    directories: dict[bool, Path],
    damage: Callable[[Path], object],
    which: int,
    saved: bool,
) -> None:
    data_dir = tmp_path / "data"
    paths = three_segments(data_dir, directories[saved])
    damage(paths[which])
    store = open_store(data_dir, clock())
    survivors = set(read_everything(store))
    # Of the frames in a damaged segment none is claimed, though most of their entries are delivered.
    assert len(claimed(store)) in (16, 17)
    assert claimed(store) <= survivors
    store.wal.commit([marked("web-1", 99)])
    store.close()
    store = open_store(data_dir, clock())
    assert claimed(store) <= set(read_everything(store))
    assert 99 in numbers(store)
    store.close()


@pytest.mark.parametrize("at", [1000, -16], ids=["in the entry", "in its page"])
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "unsaved"])
def test_damage_within_a_segment_is_left_to_its_readers_and_forgotten_with_it(
    tmp_path: Path, directories: dict[bool, Path], saved: bool, at: int
) -> None:
    data_dir = tmp_path / "data"
    paths = three_segments(data_dir, directories[saved])
    reader = PageReader(paths[1])
    [twelfth] = [item for item in reader.whatever_from(b"") if isinstance(item, Found) and item.key[-1] == 12]
    reader.close()
    flip(paths[1], twelfth.offset + at)
    store = open_store(data_dir, clock())
    assert store.wal.damaged == []
    whole = {*range(1, 9), *range(17, 26)}
    assert claimed(store) == (set(range(1, 26)) if saved else whole)
    assert set(read_everything(store)) >= whole
    assert len(store.wal.damaged) == 1
    assert claimed(store) == whole
    copy = killed(data_dir)
    store.close()
    for directory in (data_dir, copy):
        store = open_store(directory, clock())
        assert claimed(store) == whole
        store.close()


def test_an_entry_from_the_future_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "data", clock())
    store.wal.commit([marked("web-1", 1)])
    store.wal.seal()
    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.entry.VERSION", 9)
        store.wal.commit([marked("web-1", 2), [new_entry(1)]])
    store.wal.commit([marked("web-1", 3)])
    copy = killed(tmp_path / "data")
    store.close()
    store = open_store(copy, clock())
    assert numbers(store) == [1]
    store.close()


def test_a_log_that_cannot_be_read_just_now_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_path: Path) -> None:
        raise StorageFailed(_path, "too many files are open")

    store = open_store(tmp_path / "data", clock())
    store.wal.commit([marked("web-1", 1)])
    copy = killed(tmp_path / "data")
    store.close()
    monkeypatch.setattr(checkpoint, "PageReader", fails)
    store = open_store(copy, clock())
    assert numbers(store) == []
    store.close()


def test_a_segment_from_which_an_entry_is_missing_adds_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data", clock())
    store.wal.commit([marked("web-1", number) for number in (1, 2, 3)])
    copy = killed(tmp_path / "data")
    path = store.wal.segments()[0].path
    store.close()
    file = LmdbFile(copy / "wal" / path.name, map_bytes=MIB)
    file.write([], [(2).to_bytes(8, "big")])
    file.close()
    store = open_store(copy, clock())
    assert numbers(store) == []
    store.close()


def test_entries_without_marks_take_part_in_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path, clock())
    fill(store, 3)
    assert not store.wal.positions.changed
    assert len(store.wal.positions) == 0
    store.close()
