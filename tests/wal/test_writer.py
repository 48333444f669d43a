"""Group commit: an append returns when it is durable, many share a sync, and a failure is final."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.wal.factories import MIB, Clock, new_entry, open_store, read_all, settings
from wal_ingest.errors import (
    AppendQueueFull,
    ComeBackLater,
    CommitTooSlow,
    Stopping,
    StorageFailed,
    WalBroken,
    WalFull,
)
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.log import Appended
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer


class HeldCommits:
    """Holds every commit of a store until it is let go, and counts the groups in each."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._commit = store.wal.commit
        self._release = threading.Semaphore(0)
        self._began = threading.Semaphore(0)
        self.sizes: list[int] = []
        monkeypatch.setattr(store.wal, "commit", self._held)

    def _held(self, groups: Sequence[Sequence[NewEntry]]) -> list[Appended]:
        self.sizes.append(len(groups))
        self._began.release()
        self._release.acquire()
        return self._commit(groups)

    async def began(self) -> None:
        """Waits until a commit has begun."""
        await trio.to_thread.run_sync(self._began.acquire)

    def let_go(self, count: int = 1) -> None:
        """Lets so many commits finish."""
        self._release.release(count)


async def test_an_append_returns_its_seqs_once_they_can_be_read(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        assert await writer.append([new_entry(1), new_entry(2)]) == Appended(1, 2)
        assert [seq for seq, _ in read_all(store)] == [1, 2]
        assert await writer.append([new_entry(3)]) == Appended(3, 3)
        nursery.cancel_scope.cancel()
    store.close()


async def test_appends_that_wait_share_the_next_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings())
    got: dict[int, Appended] = {}

    async def append(number: int) -> None:
        got[number] = await writer.append([new_entry(number)])

    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as appenders:
            appenders.start_soon(append, 0)
            await commits.began()
            for number in range(1, 20):
                appenders.start_soon(append, number)
            await trio.testing.wait_all_tasks_blocked()
            assert got == {}, "nothing is told before its commit returned"
            commits.let_go(2)
        nursery.cancel_scope.cancel()
    assert commits.sizes == [1, 19]
    lines = dict(read_all(store))
    assert {number: lines[appended.first_seq] for number, appended in got.items()} == {
        number: new_entry(number).lines for number in range(20)
    }
    store.close()


async def test_a_commit_takes_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings(commit_bytes_max=64 * 1024))
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as appenders:
            appenders.start_soon(writer.append, [new_entry(0)])
            await commits.began()
            for number in range(1, 7):
                appenders.start_soon(writer.append, [new_entry(number, filler=31_000)])
            await trio.testing.wait_all_tasks_blocked()
            commits.let_go(4)
        nursery.cancel_scope.cancel()
    assert sum(commits.sizes) == 7
    assert max(commits.sizes) == 3, "the group that crosses the limit is its last"
    store.close()


async def test_a_full_queue_is_refused_for_now_but_one_large_request_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings(append_queue_bytes_max=MIB))
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as appenders:
            appenders.start_soon(writer.append, [new_entry(0, filler=2 * MIB)])
            await commits.began()
            with pytest.raises(AppendQueueFull) as caught:
                await writer.append([new_entry(1)])
            assert caught.value.retry_after_s >= 1
            commits.let_go()
        commits.let_go()
        await writer.append([new_entry(2)])
        nursery.cancel_scope.cancel()
    store.close()


async def test_a_failed_commit_is_final_for_all_who_wait_and_all_who_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    calls = []

    def failing(groups: object) -> list[Appended]:
        calls.append(groups)
        raise StorageFailed(tmp_path, "Input/output error")

    monkeypatch.setattr(store.wal, "commit", failing)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        with pytest.raises(WalBroken, match="Input/output error"):
            await writer.append([new_entry(1)])
        await writer.failed.wait()
        with pytest.raises(WalBroken):
            await writer.append([new_entry(2)])
        await writer.seal()
    assert isinstance(writer.failure, StorageFailed)
    assert len(calls) == 1, "a sync is never retried"
    store.close()


async def test_a_wal_at_its_limit_refuses_until_it_was_truncated(tmp_path: Path) -> None:
    clock = Clock()
    store = open_store(tmp_path, clock, wal_bytes_max=MIB)
    writer = Writer(store.wal, settings(wal_bytes_max=MIB))
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        await writer.append([NewEntry(b'm t="%s" 1\n' % bytes(range(48, 58)).hex().encode() * 200_000, 1, 5)])
        store.wal.segments()[0].bytes = 2 * MIB
        writer.measure()
        with pytest.raises(WalFull, match=r"wal\.wal_bytes_max"):
            await writer.append([new_entry(2)])
        assert isinstance(writer.refusal(), WalFull)
        await writer.seal()
        store.wal.truncate(1)
        writer.measure()
        assert writer.refusal() is None
        await writer.append([new_entry(3)])
        nursery.cancel_scope.cancel()
    store.close()


async def test_a_disk_below_its_floor_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    free = [500]
    writer = Writer(store.wal, settings(free_disk_bytes_min=1000), free_bytes=lambda _path: free[0])
    with pytest.raises(WalFull, match=r"wal\.free_disk_bytes_min"):
        await writer.append([new_entry(1)])
    free[0] = 1000
    writer.measure()
    assert writer.refusal() is None
    store.close()


async def test_a_stop_commits_what_waits_and_takes_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings())
    got: list[Appended] = []

    async def append(number: int) -> None:
        got.append(await writer.append([new_entry(number)]))

    async with trio.open_nursery() as appenders:
        async with trio.open_nursery() as nursery:
            await nursery.start(writer.run)
            appenders.start_soon(append, 1)
            await commits.began()
            appenders.start_soon(append, 2)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            commits.let_go(2)
        with pytest.raises(Stopping):
            await writer.append([new_entry(3)])
    assert sorted(appended.first_seq for appended in got) == [1, 2]
    store.close()


async def test_a_cancelled_append_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as appenders:
                appenders.start_soon(writer.append, [new_entry(1)])
                await commits.began()
                scope.cancel()
        commits.let_go(2)
        assert await writer.append([new_entry(2)]) == Appended(2, 2)
        nursery.cancel_scope.cancel()
    assert [seq for seq, _ in read_all(store)] == [1, 2]
    store.close()


async def test_a_reader_is_woken_by_what_was_appended(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        async with trio.open_nursery() as readers:
            readers.start_soon(writer.wait_appended, 0)
            readers.start_soon(writer.wait_appended, 1)
            await trio.testing.wait_all_tasks_blocked()
            await writer.append([new_entry(1), new_entry(2)])
        await writer.wait_appended(1)
        nursery.cancel_scope.cancel()
    assert store.wal.last_seq == 2
    store.close()


class Noted:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.commits: list[tuple[int, float]] = []

    def committed(self, entries: int, seconds: float) -> None:
        self.commits.append((entries, seconds))


async def test_an_observer_is_told_of_every_commit_with_its_entries_and_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    noted, now_s = Noted(), [7.0]
    writer = Writer(store.wal, settings(), monotonic_s=lambda: now_s[0], observer=noted)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        nursery.start_soon(writer.append, [new_entry(1)])
        await commits.began()
        nursery.start_soon(writer.append, [new_entry(2), new_entry(3)])
        nursery.start_soon(writer.append, [new_entry(4)])
        await trio.testing.wait_all_tasks_blocked()
        now_s[0] = 7.5
        commits.let_go(2)
        await writer.wait_appended(2)
        nursery.cancel_scope.cancel()
    assert noted.commits == [(1, 0.5), (3, 0.0)]
    store.close()


async def test_a_commit_that_failed_is_not_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)

    def failing(_: object) -> list[Appended]:
        raise StorageFailed(tmp_path, "no")

    monkeypatch.setattr(store.wal, "commit", failing)
    noted = Noted()
    writer = Writer(store.wal, settings(), observer=noted)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        with pytest.raises(WalBroken):
            await writer.append([new_entry(1)])
        await writer.failed.wait()
    assert noted.commits == []
    store.close()


async def test_sealing_on_request_begins_a_new_segment_unless_the_last_is_empty(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        await writer.seal()
        assert len(store.wal.segments()) == 1
        await writer.append([new_entry(1)])
        await writer.seal_if_due()
        assert len(store.wal.segments()) == 1
        await writer.seal()
        assert [segment.sealed for segment in store.wal.segments()] == [True, False]
        nursery.cancel_scope.cancel()
    store.close()


async def test_an_append_does_not_wait_for_a_hanging_disk_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    now_s = [0.0]
    writer = Writer(store.wal, settings(commit_wait_s_max=0.2), monotonic_s=lambda: now_s[0])
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        with pytest.raises(CommitTooSlow):
            await writer.append([new_entry(1)])
        now_s[0] = 1.0
        assert isinstance(writer.refusal(), CommitTooSlow), "the node is not ready meanwhile"
        commits.let_go(2)
        await writer.seal_if_due()
        assert writer.refusal() is None
        assert await writer.append([new_entry(2)]) == Appended(2, 2)
        nursery.cancel_scope.cancel()
    store.close()


async def test_a_bug_in_the_commit_is_told_to_those_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)

    def buggy(_: object) -> list[Appended]:
        raise AssertionError("a bug")

    monkeypatch.setattr(store.wal, "commit", buggy)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        with pytest.raises(WalBroken, match="AssertionError: a bug"):
            await writer.append([new_entry(1)])
        await writer.failed.wait()
    assert writer.failure is not None
    store.close()


async def test_who_submits_is_told_once_and_later_than_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings())
    told: list[Appended | ComeBackLater] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        for number in (1, 2):
            writer.submit([new_entry(number)], told.append)
        await commits.began()
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
        commits.let_go(2)
        await writer.seal_if_due()
        assert told == [Appended(1, 1), Appended(2, 2)]
        nursery.cancel_scope.cancel()
    assert len(told) == 2
    store.close()


async def test_what_is_not_taken_is_raised_and_not_told(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = Writer(store.wal, settings(append_queue_bytes_max=1_000))
    told: list[Appended | ComeBackLater] = []
    writer.submit([new_entry(1, filler=1_000)], told.append)
    with pytest.raises(AppendQueueFull):
        writer.submit([new_entry(2)], told.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        await writer.seal_if_due()
        nursery.cancel_scope.cancel()
    with pytest.raises(Stopping):
        writer.submit([new_entry(3)], told.append)
    assert told == [Appended(1, 1)]
    store.close()


async def test_who_was_sent_away_by_a_slow_disk_is_told_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings(commit_wait_s_max=0.2), monotonic_s=lambda: 0.0)
    told: list[Appended | ComeBackLater] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        for number in range(3):
            writer.submit([new_entry(number)], told.append)
        with trio.fail_after(5):
            while len(told) < 3:
                await trio.testing.wait_all_tasks_blocked(0.01)
        errors = [each for each in told if isinstance(each, CommitTooSlow)]
        assert [error.is_open() for error in errors] == [True] * 3
        commits.let_go(2)
        await writer.seal_if_due()
        assert [error.is_open() for error in errors] == [False] * 3
        assert len(told) == 3
        assert nobody_waits(writer)
        nursery.cancel_scope.cancel()
    assert [seq for seq, _ in read_all(store)] == [1, 2, 3]
    store.close()


def nobody_waits(writer: Writer) -> bool:
    """Whether no entries are kept for anybody."""
    return not writer._waiting


async def test_entries_of_a_commit_that_returned_are_let_go_of(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = Writer(store.wal, settings())
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        for number in range(20):
            await writer.append([new_entry(number)])
            assert nobody_waits(writer)
        nursery.cancel_scope.cancel()
    store.close()


async def test_what_a_commit_made_durable_is_told_though_the_sealing_behind_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise StorageFailed(store.wal.directory, "Input/output error")

    store = open_store(tmp_path)
    commits = HeldCommits(store, monkeypatch)
    writer = Writer(store.wal, settings())
    told: list[Appended | ComeBackLater] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(writer.run)
        writer.submit([new_entry(1)], told.append)
        await commits.began()
        monkeypatch.setattr(store.wal, "seal", fails)
        writer.submit([new_entry(2)], told.append)
        nursery.start_soon(writer.seal)
        await trio.testing.wait_all_tasks_blocked()
        commits.let_go(2)
        await writer.failed.wait()
        nursery.cancel_scope.cancel()
    assert told == [Appended(1, 1), Appended(2, 2)]
    assert "Input/output error" in str(writer.failure)
    store.close()
