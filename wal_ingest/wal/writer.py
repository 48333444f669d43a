"""Group commit: many appends, one thread, one durable sync for all that wait.

Invariants:

* An append returns only after the commit that holds its entries has returned: an acknowledgement is a value.
* No timer gathers appends. While one sync is under way the next ones queue, and all of them share the next
  commit, up to `commit_bytes_max`: the sync in progress is the gathering window. A lone append waits for nothing.
* No append waits for ever: after `commit_wait_s_max`, or an eighth later at the most, its sender is told to come back,
  and what became of it is unknown.
* A failed commit is final. Everyone who waits gets `WalBroken`, so does everyone who comes after; `failed` is set,
  and the service ends the process. Nothing is tried again, least of all a sync.

Who waits for whom: appenders (Trio tasks) wait for the thread; the thread waits only for the disk. It wakes Trio
once per commit, whatever the number of appends in it.

Cancelling an append that waits takes nothing back: its entries may become durable all the same, which is no harm,
because the sender was told nothing and will send them again.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog
import trio

from wal_ingest.errors import (
    AppendQueueFull,
    ComeBackLater,
    CommitTooSlow,
    DiskFull,
    Stopping,
    StorageFailed,
    WalBroken,
    WalDamaged,
    WalFull,
)
from wal_ingest.settings import WalSettings
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.log import Appended, Wal
from wal_ingest.wal.space import free_disk_bytes

# What a sender is told to wait when the WAL is full: draining takes longer than a commit.
_FULL_RETRY_AFTER_S = 10
_BUSY_RETRY_AFTER_S = 1

# How often the oldest append is looked at within `commit_wait_s_max`: a sender waits an eighth longer at the most.
_LOOKS_IN_A_WAIT = 8

_log = structlog.get_logger("wal_ingest.wal")


class Observer(Protocol):
    """Whoever wants to know how committing goes."""

    def committed(self, entries: int, seconds: float) -> None:
        """A commit of so many entries took so many seconds. Called on the writer's thread; it must not raise."""
        ...


class _Nobody:
    def committed(self, entries: int, seconds: float) -> None:
        """Nobody wants to know."""


Told = Callable[["Appended | ComeBackLater"], None]
"""Who is told what became of an append."""


class _Ticket:
    """One append that waits: its entries, and what it will be told."""

    __slots__ = ("appended", "begun_s", "bytes", "entries", "error", "settled", "told")

    def __init__(self, entries: Sequence[NewEntry], size_bytes: int, told: Told) -> None:
        self.entries: Sequence[NewEntry] = entries
        self.bytes = size_bytes
        self.told: Told | None = told
        self.begun_s = trio.current_time()
        self.appended: Appended | None = None
        self.error: ComeBackLater | None = None
        # The thread is done with it; whoever appended may have been told before.
        self.settled = False

    def is_open(self) -> bool:
        """Whether it may still become durable."""
        return not self.settled

    def tell(self, outcome: Appended | ComeBackLater) -> None:
        """Tells whoever appended, unless that was done before."""
        told, self.told = self.told, None
        if told is not None:
            told(outcome)

    def settle(self) -> None:
        """Tells what the thread made of it."""
        outcome = self.error if self.error is not None else self.appended
        assert outcome is not None
        self.settled = True
        self.entries = ()
        self.tell(outcome)


class _SealRequest:
    """A wish to have the last segment sealed: when it is due, or in any case."""

    __slots__ = ("done", "even_when_not_due")

    def __init__(self, even_when_not_due: bool) -> None:
        self.done = trio.Event()
        self.even_when_not_due = even_when_not_due

    def settle(self) -> None:
        """Wakes whoever wished for it."""
        self.done.set()


class Writer:
    """The one door through which entries reach the WAL.

    `free_bytes` tells how much of the disk is free; an argument so that tests can fill a disk. `observer` is told of
    every commit.
    """

    def __init__(
        self,
        wal: Wal,
        settings: WalSettings,
        *,
        free_bytes: Callable[[Path], int] = free_disk_bytes,
        monotonic_s: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self._observer: Observer = observer or _Nobody()
        self._monotonic_s = monotonic_s
        self._commit_began_s: float | None = None
        self._wal = wal
        self._settings = settings
        self._free_bytes = free_bytes
        # None ends the thread.
        self._queue: queue.SimpleQueue[_Ticket | _SealRequest | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        # Tickets whose senders wait, oldest first.
        self._waiting: deque[_Ticket] = deque()
        self._appended = trio.lowlevel.ParkingLot()
        self._stopping = False
        self._full: str | None = None
        # By the last commit, whatever the file system says of its room.
        self._disk_was_full = False
        self.failed = trio.Event()
        self.failure: StorageFailed | WalDamaged | None = None
        self.measure()

    # -- the Trio side ---------------------------------------------------------------------------------

    async def append(self, entries: Sequence[NewEntry]) -> Appended:
        """Makes entries durable, all or none, and returns their seqs. At least one entry.

        Raises `WalFull`, `AppendQueueFull`, `Stopping` (nothing was stored), `WalBroken` and `CommitTooSlow`
        (unknown, see there).

        **Cancellation:** the caller stops waiting; the entries may become durable nevertheless.
        """
        outcome: Appended | ComeBackLater | None = None
        done = trio.Event()

        def told(what: Appended | ComeBackLater) -> None:
            nonlocal outcome
            outcome = what
            done.set()

        self.submit(entries, told)
        await done.wait()
        try:
            if isinstance(outcome, ComeBackLater):
                raise outcome
            assert outcome is not None
            return outcome
        finally:
            outcome = None  # else the error and this frame would hold each other, and the entries

    def submit(self, entries: Sequence[NewEntry], told: Told) -> None:
        """`append` for whoever cannot wait: `told` is called once, in Trio's thread and later than now.

        It is given what `append` returns or raises, and must not raise. Raises `WalFull`, `AppendQueueFull`,
        `Stopping`, `WalBroken` and `CommitTooSlow` as `append` does for what is not taken; then it tells nothing.
        """
        size = sum(len(entry.lines) for entry in entries)
        self._admit(size)
        ticket = _Ticket(entries, size, told)
        self._queued_bytes += size
        self._waiting.append(ticket)
        self._queue.put(ticket)

    async def _watch_the_slow(self) -> None:
        """Sends those away whose appends take too long; what became of them they find out by sending again.

        One task for all of them: a time-out for each costs more than an append does.
        """
        wait_s = self._settings.commit_wait_s_max
        while True:
            await trio.sleep(wait_s / _LOOKS_IN_A_WAIT)
            too_old_s = trio.current_time() - wait_s
            while self._waiting and self._waiting[0].begun_s <= too_old_s:
                ticket = self._waiting.popleft()
                ticket.tell(
                    CommitTooSlow(
                        f"not committed within {wait_s:g} s (wal.commit_wait_s_max)",
                        retry_after_s=_FULL_RETRY_AFTER_S,
                        is_open=ticket.is_open,
                    )
                )

    def refusal(self) -> ComeBackLater | None:
        """Why nothing new is taken at this moment, or None."""
        if self.failure is not None:
            return WalBroken(f"the WAL failed: {self.failure}", retry_after_s=_FULL_RETRY_AFTER_S)
        if self._stopping:
            return Stopping("the server is shutting down", retry_after_s=_BUSY_RETRY_AFTER_S)
        if self._full is not None:
            return WalFull(self._full, retry_after_s=_FULL_RETRY_AFTER_S)
        began_s = self._commit_began_s
        if began_s is not None and self._monotonic_s() - began_s > self._settings.commit_wait_s_max:
            return CommitTooSlow(
                "the disk has not finished a commit in time", retry_after_s=_FULL_RETRY_AFTER_S
            )
        return None

    def _admit(self, size: int) -> None:
        refusal = self.refusal()
        if refusal is not None:
            raise refusal
        # An empty queue takes anything, so that no limit can shut out one large request for good.
        if self._queued_bytes and self._queued_bytes + size > self._settings.append_queue_bytes_max:
            raise AppendQueueFull(
                f"{self._queued_bytes} bytes already wait for the disk (wal.append_queue_bytes_max)",
                retry_after_s=_BUSY_RETRY_AFTER_S,
            )

    async def wait_appended(self, after_seq: int) -> None:
        """Returns as soon as an entry with a seq above `after_seq` is durable."""
        while self._wal.last_seq <= after_seq:
            await self._appended.park()
        await trio.lowlevel.checkpoint()

    async def seal_if_due(self) -> None:
        """Has the thread seal the last segment when its age says so, and waits for it."""
        await self._seal(even_when_not_due=False)

    async def seal(self) -> None:
        """Has the thread seal the last segment now, if it holds an entry, and waits for it."""
        await self._seal(even_when_not_due=True)

    async def _seal(self, *, even_when_not_due: bool) -> None:
        if self.refusal_is_final():
            await trio.lowlevel.checkpoint()
            return
        request = _SealRequest(even_when_not_due)
        self._queue.put(request)
        await request.done.wait()

    def refusal_is_final(self) -> bool:
        """Whether the thread has ended, or is about to: nothing is written any more."""
        return self._stopping or self.failure is not None

    def space_is_short(self) -> bool:
        """Whether the WAL or the disk is full, or within a tenth of it: what is kept out of courtesy should go."""
        settings = self._settings
        if self._full is not None or self._wal.bytes >= 0.9 * settings.wal_bytes_max:
            return True
        return self._free_bytes(self._wal.directory) < 1.1 * settings.free_disk_bytes_min

    def measure(self) -> None:
        """Looks at the WAL's size and the free disk, and opens or shuts the door accordingly."""
        self._full = self._why_full()

    def _why_full(self) -> str | None:
        size = self._wal.bytes
        if size >= self._settings.wal_bytes_max:
            return (
                f"the WAL has {size} bytes, its limit is {self._settings.wal_bytes_max} (wal.wal_bytes_max)"
            )
        free = self._free_bytes(self._wal.directory)
        floor = self._settings.free_disk_bytes_min
        if free < floor:
            return f"the disk has {free} bytes free, its floor is {floor} (wal.free_disk_bytes_min)"
        return None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs the thread until cancelled; then takes nothing new, commits what waits, and returns.

        Returns early, without raising, after a failure: the waiters must get their 503 first, and it is for the
        service (which watches `failed`) to end the process.
        """
        token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            limiter = trio.CapacityLimiter(1)
            # The thread is not abandoned on cancellation: it ends by the None behind the last ticket.
            nursery.start_soon(lambda: trio.to_thread.run_sync(self._thread, token, limiter=limiter))
            task_status.started()
            try:
                async with trio.open_nursery() as watching:
                    watching.start_soon(self._watch_the_slow)
                    await self.failed.wait()
                    watching.cancel_scope.cancel()
            finally:
                self._stopping = True
                self._queue.put(None)

    def _settle(self, waiting: list[_Ticket | _SealRequest], bytes_done: int) -> None:
        """Runs in Trio, once per commit: wakes everyone whose entries are durable now."""
        self._queued_bytes -= bytes_done
        for ticket in waiting:
            ticket.settle()
        while self._waiting and self._waiting[0].told is None:
            self._waiting.popleft()
        if self.failure is not None:
            self.failed.set()
        self._appended.unpark_all()

    # -- the thread's side -----------------------------------------------------------------------------

    def _thread(self, token: trio.lowlevel.TrioToken) -> None:
        last = False
        while not last:
            tickets, seals, last = self._take()
            self._commit_began_s = self._monotonic_s()
            self._commit(tickets, seals)
            waiting: list[_Ticket | _SealRequest] = [*tickets, *seals]
            token.run_sync_soon(self._settle, waiting, sum(ticket.bytes for ticket in tickets))
            # Behind the answers, which need not wait for it; the next commit does.
            if not self._measure_again():
                token.run_sync_soon(self._settle, [], 0)
            self._commit_began_s = None

    def _measure_again(self) -> bool:
        """`measure`, unless there is no point in it; false when it failed, which is final."""
        if self.failure is None and not self._disk_was_full:
            try:
                self.measure()
            except Exception as exc:
                _log.exception("the free disk cannot be told")
                self.failure = StorageFailed(self._wal.directory, f"{type(exc).__name__}: {exc}")
                return False
        return True

    def _take(self) -> tuple[list[_Ticket], list[_SealRequest], bool]:
        """Waits for the first ticket and takes those that wait behind it, up to `commit_bytes_max`."""
        tickets: list[_Ticket] = []
        seals: list[_SealRequest] = []
        size = 0
        item = self._queue.get()
        while True:
            if item is None:
                return tickets, seals, True
            if isinstance(item, _Ticket):
                tickets.append(item)
                size += item.bytes
            else:
                seals.append(item)
            if size >= self._settings.commit_bytes_max:
                return tickets, seals, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return tickets, seals, False

    def _commit(self, tickets: Sequence[_Ticket], seals: Sequence[_SealRequest]) -> None:
        """One commit: durable, then told. After a failure nothing is written any more."""
        if self.failure is None:
            self._disk_was_full = False
            try:
                if tickets:
                    began_s = self._monotonic_s()
                    results = self._wal.commit([ticket.entries for ticket in tickets])
                    for ticket, appended in zip(tickets, results, strict=True):
                        ticket.appended = appended
                    entries = results[-1].last_seq - results[0].first_seq + 1
                    self._observer.committed(entries, self._monotonic_s() - began_s)
                if any(request.even_when_not_due for request in seals):
                    self._wal.seal()
                elif seals:
                    self._wal.seal_if_due()
                return
            except DiskFull as exc:
                # Nothing was written, so this is no failure: the same senders come again, and find room or not.
                self._full, self._disk_was_full = str(exc), True
                for ticket in tickets:
                    ticket.error = WalFull(str(exc), retry_after_s=_FULL_RETRY_AFTER_S)
                return
            except (StorageFailed, WalDamaged) as exc:
                self.failure = exc
            except Exception as exc:  # whatever it is, those who wait must be told
                _log.exception("the WAL failed in a way that is a bug")
                self.failure = StorageFailed(self._wal.directory, f"{type(exc).__name__}: {exc}")
        for ticket in tickets:
            if ticket.appended is None:
                ticket.error = WalBroken(f"the WAL failed: {self.failure}", retry_after_s=_FULL_RETRY_AFTER_S)
