"""Delivery over the real store, without threads: on trio's clock, virtual, so that the same seed gives the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import trio
import trio.testing

from tests.flusher.twins import run_inline
from wal_ingest.errors import UnknownFormatVersion, WalDamaged, WalIngestError
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.sinks import Sink
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.store import Store

SETTINGS = FlusherSettings(
    batch_points_max=20,
    batch_wait_s_max=0.5,
    cursor_commit_s=0.3,
    retry_s_min=0.2,
    retry_s_max=4.0,
    hold_retry_s=3.0,
)
READ_BYTES = 1 << 20


def read_setting_aside(store: Store, after_seq: int, *, bytes_max: int) -> list[Entry]:
    """What `service.LogReader.read` does, on this thread: damage is set aside and reading goes on."""
    while True:
        try:
            return store.wal.read(after_seq, bytes_max=bytes_max)
        except UnknownFormatVersion:
            raise
        except WalDamaged as exc:
            if store.wal.is_written_to(exc.path):
                store.wal.seal()
            store.wal.set_aside(exc.path, exc.reason)


def read_everything(store: Store) -> dict[int, bytes]:
    """The lines of every entry that is kept, by seq; damage is set aside on the way."""
    found: dict[int, bytes] = {}
    after_seq = 0
    while entries := read_setting_aside(store, after_seq, bytes_max=READ_BYTES):
        found |= {entry.seq: entry.lines() for entry in entries}
        after_seq = entries[-1].seq
    return found


def holding_seq(store: Store, sinks: Sequence[Sink]) -> int:
    """Up to where the WAL may be truncated: the rule of `service._truncate`, by the cursors that are on disk."""
    cursors = [(sink.required, store.cursor(sink.name).seq) for sink in sinks]
    holding = [seq for required, seq in cursors if required] or [seq for _, seq in cursors]
    return min(holding + [store.cursor(name).seq for name in store.absent_sinks()])


class InlineLog:
    """The real WAL as `flusher.log.Log`; nothing is appended while a delivery runs, so nobody is ever woken."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def last_seq(self) -> int:
        return self._store.wal.last_seq

    @property
    def points_total(self) -> int:
        return self._store.wal.points_total

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        return read_setting_aside(self._store, after_seq, bytes_max=bytes_max)

    async def wait_appended(self, after_seq: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.last_seq <= after_seq:
            await trio.sleep_forever()


def deliver(
    store: Store,
    sinks: Sequence[Sink],
    *,
    virtual_s: float,
    now_ns: Callable[[], int],
    seed: int = 0,
    confirmed: Callable[[str], None] = lambda _name: None,
) -> bool:
    """Delivers to all sinks until nothing waits, or for so many virtual seconds; true when nothing waits.

    Raises (in groups) what `Delivery.run` raises.
    """

    def drained() -> bool:
        return all(store.cursor(sink.name).seq >= store.wal.last_seq for sink in sinks)

    async def run() -> None:
        moved = trio.lowlevel.ParkingLot()

        def tell(name: str) -> None:
            confirmed(name)
            moved.unpark_all()

        deliveries = [
            Delivery(
                sink,
                InlineLog(store),
                store,
                SETTINGS,
                run_sync=run_inline,
                now_ns=now_ns,
                rng=Random(seed),
                confirmed=tell,
                grace_s=1.0,
            )
            for sink in sinks
        ]
        async with trio.open_nursery() as nursery:
            for delivery in deliveries:
                nursery.start_soon(delivery.run)
            with trio.move_on_after(virtual_s):
                while not drained():
                    await moved.park()
            for delivery in deliveries:
                delivery.stop()

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
    return drained()


def first_of_ours(error: BaseException) -> WalIngestError | None:
    """The first of our own errors in a group of groups; None when anything in it is not ours."""
    if isinstance(error, BaseExceptionGroup):
        found = [first_of_ours(inner) for inner in error.exceptions]
        return found[0] if all(found) else None
    return error if isinstance(error, WalIngestError) else None
