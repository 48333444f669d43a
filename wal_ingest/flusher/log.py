"""What delivery needs of its surroundings: a log to read, a state to commit to, threads, and a clock.

The flusher knows the WAL only through these; the service hands in the real ones, tests hand in twins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import Entry

T = TypeVar("T")

# Wall clock: Unix time in nanoseconds.
NowNs = Callable[[], int]


class RunSync(Protocol):
    """The thread door: runs a blocking function elsewhere and waits for it, like `trio.to_thread.run_sync`.

    Options it must understand, and may ignore: `abandon_on_cancel`, `limiter`.
    """

    async def __call__(self, sync_fn: Callable[..., T], *args: Any, **options: Any) -> T: ...


class Log(Protocol):
    """The WAL as a reader sees it: committed entries only."""

    @property
    def last_seq(self) -> int:
        """The highest committed seq; 0 before the first."""
        ...

    @property
    def points_total(self) -> int:
        """The points of all committed entries since the WAL was born."""
        ...

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        """The entries behind `after_seq`, in order: at least one if there is one, about `bytes_max` stored bytes.

        Blocks on the disk. Seqs have gaps only where damage was set aside. Raises WalDamaged.
        """
        ...

    async def wait_appended(self, after_seq: int) -> None:
        """Returns as soon as `last_seq > after_seq`. **Cancellation:** leaves nothing behind."""
        ...


class State(Protocol):
    """What is remembered durably of each sink."""

    def cursor(self, sink: str) -> Cursor:
        """The sink's cursor as it is on disk; a new sink's is before the first entry."""
        ...

    def commit_cursor(self, sink: str, cursor: Cursor, letters: Sequence[DeadLetter]) -> None:
        """Moves the cursor and parks the letters in one durable transaction. Blocks on the disk.

        Raises `NoRoomForLetters` where the letters have no room: nothing was written, it may be tried again. Whatever
        else it raises is final for this process: what reached the disk is unknown.
        """
        ...
