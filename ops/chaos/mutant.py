"""The server with one thing deliberately broken: `python -m ops.chaos.mutant NAME serve …`.

A harness that cannot fail proves nothing. So each promise that the server's safety rests on is broken here once, by
replacing a function when the process starts; the tree stays as it is. When a function that is to be replaced is not
there any more, the start fails, so that no mutation turns into the healthy build in silence.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lmdb
import trio

from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.outcome import Confirmed, Outcome
from wal_ingest.flusher.sinks import influxdb
from wal_ingest.flusher.window import Settled, Slot
from wal_ingest.wal import lmdb_file
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.log import Appended, Wal
from wal_ingest.wal.segment import Segment
from wal_ingest.wal.state import State
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Told, Writer, _Ticket

_LATE_S = 1.5
_SEQS_AGAIN = 20


@dataclass(frozen=True, slots=True)
class Mutation:
    """`faults` are those that bring it to light, `idle_s` how idle the clients are meanwhile."""

    what: str
    apply: Callable[[], None]
    faults: tuple[str, ...]
    idle_s: float = 0.05


def _swap(owner: Any, name: str, new: Any) -> Any:
    """Replaces an attribute that must be there; gives what it was."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    return old


def _sync_off() -> None:
    def unsynced(*arguments: Any, **options: Any) -> Any:
        return opened(*arguments, **{**options, "sync": False, "metasync": False})

    opened = _swap(lmdb, "open", unsynced)
    _swap(lmdb_file.LmdbFile, "sync", lambda _self: None)
    _swap(os, "fsync", lambda _fd: None)
    _swap(os, "fdatasync", lambda _fd: None)


def _cursor_before_confirmation() -> None:
    async def work(self: Any, receive: trio.MemoryReceiveChannel[Slot]) -> None:
        async for slot in receive:
            batch = slot.batch
            assert batch is not None
            self._window.begin(slot)
            self._note_settled(batch, Settled())
            await self._writer.settle(batch)

    _swap(Delivery, "_work", work)


def _truncation_before_cursor() -> None:
    late: list[tuple[str, Cursor, Sequence[DeadLetter]]] = []
    mutex = threading.Lock()

    def commit(self: State, sink: str, cursor: Cursor, letters: Sequence[DeadLetter] = ()) -> None:
        with mutex:
            late.append((sink, cursor, letters))
            self._cursors[sink] = cursor
        timer = threading.Timer(_LATE_S, catch_up, (self, 1))
        timer.daemon = True
        timer.start()

    def catch_up(self: State, count: int) -> None:
        with mutex:
            for sink, cursor, letters in late[:count]:
                newest = self._cursors.pop(sink)
                durable(self, sink, cursor, letters)
                self._cursors[sink] = newest
            del late[:count]

    def close(self: State) -> None:
        catch_up(self, len(late))
        closed(self)

    durable = _swap(State, "commit_cursor", commit)
    closed = _swap(State, "close", close)


def _reused_seq() -> None:
    opened: set[int] = set()

    def begin(self: Wal) -> Segment:
        if id(self) not in opened:
            opened.add(id(self))
            self._next_seq = max(1, self._next_seq - _SEQS_AGAIN)
        segment: Segment = begun(self)
        return segment

    begun = _swap(Wal, "_begin_segment", begin)


def _answer_before_commit() -> None:
    promised = 0

    def submit(self: Writer, entries: Sequence[NewEntry], told: Told) -> None:
        nonlocal promised
        ticket = _Ticket(entries, sum(len(entry.lines) for entry in entries), lambda _: None)
        self._admit(ticket.bytes)
        self._queued_bytes += ticket.bytes
        self._queue.put(ticket)
        first = max(promised, self._wal.last_seq) + 1
        promised = first + len(entries) - 1
        trio.lowlevel.current_trio_token().run_sync_soon(told, Appended(first, promised))

    _swap(Writer, "submit", submit)


def _any_2xx_confirms() -> None:
    def outcome(status: int, *arguments: Any, **options: Any) -> Outcome:
        if 200 <= status < 300:
            return Confirmed()
        judged: Outcome = classified(status, *arguments, **options)
        return judged

    classified = _swap(influxdb, "outcome_of", outcome)


def _absent_sink_holds_nothing() -> None:
    _swap(Store, "absent_sinks", lambda _self: {})


MUTATIONS = {
    "sync_off": Mutation("nothing is synced", _sync_off, ("db_down+power_cut",)),
    "cursor_before_confirmation": Mutation(
        "the cursor moves before the sink has confirmed", _cursor_before_confirmation, ("db_down+kill",)
    ),
    "truncation_before_cursor": Mutation(
        f"segments go {_LATE_S:g} s before the cursor (and its dead letters) are on disk",
        _truncation_before_cursor,
        ("db_400+kill",),
    ),
    "reused_seq": Mutation(
        f"a restart numbers on from {_SEQS_AGAIN} seqs before the end", _reused_seq, ("kill",)
    ),
    "answer_before_commit": Mutation(
        "the 202 goes out before the commit", _answer_before_commit, ("disk_full", "kill"), idle_s=0.005
    ),
    "any_2xx_confirms": Mutation(
        "whatever answers with a 2xx confirms a batch", _any_2xx_confirms, ("default_backend",)
    ),
    "absent_sink_holds_nothing": Mutation(
        "a start without a sink's settings gives up what waits for it",
        _absent_sink_holds_nothing,
        ("db_down+sink_vanishes",),
    ),
    # The healthy build through the same door: what it says must be nothing.
    "none": Mutation("nothing is broken", lambda: None, ()),
}


def main() -> None:
    name, *arguments = sys.argv[1:]
    MUTATIONS[name].apply()
    sys.argv = ["wal-ingest", *arguments]

    from wal_ingest.cli import main as serve

    serve()


if __name__ == "__main__":
    main()
