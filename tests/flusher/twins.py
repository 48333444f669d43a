"""In-memory twins of what surrounds delivery: a log, a state, a thread door without threads, a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import trio

from wal_ingest.errors import NoRoomForLetters
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import CODEC_GZIP, CODEC_RAW, COMPRESS_BYTES_MIN, Destination, Entry
from wal_ingest.wal.gzip_codec import compress

T = TypeVar("T")

NOWHERE = Destination()
START_NS = 1_763_800_000_000_000_000


async def run_inline(sync_fn: Callable[..., T], *args: Any, **options: Any) -> T:
    """The thread door for virtual time: calls the function here and now."""
    await trio.lowlevel.checkpoint()
    return sync_fn(*args)


def now_ns() -> int:
    """Unix time that runs with trio's clock, virtual or not."""
    return START_NS + int(trio.current_time() * 1e9)


def lines_of(seq: int, points: int, *, measurement: str = "m") -> bytes:
    """Canonical lines that name their entry and number: `m,seq=3 n=1i <time>`."""
    return b"".join(f"{measurement},seq={seq} n={n}i {START_NS + seq}\n".encode() for n in range(points))


class MemoryLog:
    """A log of entries in memory, obeying `flusher.log.Log`."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._appended = trio.lowlevel.ParkingLot()
        self.reads = 0

    @property
    def last_seq(self) -> int:
        return self.entries[-1].seq if self.entries else 0

    @property
    def points_total(self) -> int:
        return self.entries[-1].points_before + self.entries[-1].points if self.entries else 0

    def append(
        self,
        points: int,
        *,
        lines: bytes | None = None,
        accepted_ns: int = START_NS,
        destination: Destination = NOWHERE,
        skip: int = 0,
    ) -> Entry:
        """Adds an entry, `skip` seqs behind the last one's successor."""
        seq = self.last_seq + 1 + skip
        data = lines_of(seq, points) if lines is None else lines
        small = len(data) < COMPRESS_BYTES_MIN
        entry = Entry(
            seq=seq,
            points=points,
            points_before=self.points_total,
            accepted_ns=accepted_ns,
            source="",
            destination=destination,
            codec=CODEC_RAW if small else CODEC_GZIP,
            raw_bytes=len(data),
            payload=data if small else compress(data),
        )
        self.entries.append(entry)
        self._appended.unpark_all()
        return entry

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        self.reads += 1
        found: list[Entry] = []
        taken = 0
        for entry in self.entries:
            if entry.seq > after_seq:
                if found and taken + len(entry.payload) > bytes_max:
                    break
                found.append(entry)
                taken += len(entry.payload)
        return found

    async def wait_appended(self, after_seq: int) -> None:
        await trio.lowlevel.checkpoint()
        while self.last_seq <= after_seq:
            await self._appended.park()

    def all_lines(self) -> list[bytes]:
        """Every line that was ever appended, in order."""
        return [line for entry in self.entries for line in entry.lines().splitlines(keepends=True)]


class MemoryState:
    """What is remembered of sinks, in memory: what a crash would leave. Obeys `flusher.log.State`."""

    def __init__(self) -> None:
        self.cursors: dict[str, Cursor] = {}
        self.letters: list[DeadLetter] = []
        self.commits: list[tuple[float, Cursor, int]] = []
        self.fail: Exception | None = None
        self.letters_max: int | None = None
        self._committed = trio.lowlevel.ParkingLot()

    def cursor(self, sink: str) -> Cursor:
        return self.cursors.get(sink, Cursor())

    def commit_cursor(self, sink: str, cursor: Cursor, letters: Sequence[DeadLetter]) -> None:
        if self.fail is not None:
            raise self.fail
        present = self.cursor(sink)
        assert cursor.seq >= present.seq, "a cursor never moves back"
        assert cursor.unaccounted == 0, "every point that is passed went one of the known ways"
        assert cursor.ahead >= 0
        if letters and self.letters_max is not None and len(self.letters) + len(letters) > self.letters_max:
            raise NoRoomForLetters(sink, f"{self.letters_max} letters are the limit")
        self.cursors[sink] = cursor
        self.letters.extend(letters)
        self.commits.append((trio.current_time(), cursor, len(letters)))
        self._committed.unpark_all()

    async def reached(self, seq: int, sink: str = "fake") -> None:
        """Returns when the sink's durable cursor is at `seq`, or behind it."""
        while self.cursor(sink).seq < seq:
            await self._committed.park()
