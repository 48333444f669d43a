"""Once a second: the numbers that need a look at the disk, or a memory of what they were.

Nothing here may keep the node from its work: what cannot be read keeps the value it had, and every look at the disk
happens in a thread, because a disk may hang.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from wal_ingest.acts import Act
from wal_ingest.errors import ComeBackLater, StorageFailed, WalDamaged, WalIngestError
from wal_ingest.flusher.status import SinkStatus
from wal_ingest.history import History, Sample, SinkSample
from wal_ingest.metrics import ROUTES, Metrics
from wal_ingest.service.recent import OddTimes, RecentOddTimes, RecentRequests
from wal_ingest.settings import WalSettings
from wal_ingest.wal.letters import LetterGroup
from wal_ingest.wal.log import Wal
from wal_ingest.wal.segment import read_entry
from wal_ingest.wal.space import free_disk_bytes
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

LOOK_S = 1.0
# Dead letters are counted by reason; that takes the state's lock for a moment.
_LETTERS_S = 5.0
ERRORS_MAX = 20


@dataclass(frozen=True, slots=True)
class SeenError:
    """Something that went wrong: when (Unix time in nanoseconds), with what, in whose words."""

    at_ns: int
    source: str
    message: str


class LastErrors:
    """The last things that went wrong, or that operators did, each once, the newest first."""

    def __init__(self) -> None:
        self._seen: deque[SeenError] = deque(maxlen=ERRORS_MAX)

    def note(self, at_ns: int, source: str, message: str) -> None:
        """Remembers an error; one that was there already moves to the front."""
        for seen in self._seen:
            if (seen.source, seen.message) == (source, message):
                self._seen.remove(seen)
                break
        self._seen.appendleft(SeenError(at_ns, source, message))

    def listed(self) -> Sequence[SeenError]:
        """All of them, the newest first."""
        return sorted(self._seen, key=lambda seen: seen.at_ns, reverse=True)


class Watch:
    """Looks at the node once a second; everybody else reads what it saw from memory.

    `lag_s` is by sink the age in seconds of the oldest entry that it has yet to confirm, 0.0 when there is none.
    `given_up_ns` is the Unix time at which points were last given up, 0 for never; what was given up before the start
    counts as given up at the start, because when it was is not known. `acts` are operators' commands.
    """

    def __init__(
        self,
        store: Store,
        writer: Writer,
        statuses: Callable[[], Sequence[SinkStatus]],
        metrics: Metrics,
        settings: WalSettings,
        *,
        now_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
        free_bytes: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        self._free_bytes = free_bytes
        self._store = store
        self._writer = writer
        self._statuses = statuses
        self._metrics = metrics
        self._settings = settings
        self._now_ns = now_ns
        self._monotonic_s = monotonic_s
        self._oldest: dict[str, tuple[int, int]] = {}
        self._damaged_seen = 0
        self._refusal_seen: type[ComeBackLater] | None = None
        self._given_up = 0
        self.given_up_ns = 0
        self.requests = RecentRequests(ROUTES)
        self._odd_times = RecentOddTimes()
        metrics.front.on_odd = self._noticed
        self.acts = LastErrors()
        self.history = History()
        self.errors = LastErrors()
        self.lag_s: dict[str, float] = {}
        self.letters: Sequence[LetterGroup] = ()
        self.disk_free_bytes = free_bytes(store.wal.directory)

    async def run(self) -> None:
        """Looks, for ever. **Cancellation:** leaves nothing behind."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count_letters)
            while True:
                await self.look()
                await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """One look at everything but the dead letters."""
        statuses = self._statuses()
        self.lag_s = await trio.to_thread.run_sync(self._look_at_disk, statuses)
        self.history.add(self._sample(statuses))
        self.requests.sample(self._monotonic_s(), self._metrics.front.accepted)
        self._note_errors(statuses)
        self._note_given_up(statuses)

    async def _count_letters(self) -> None:
        while True:
            self.letters = await trio.to_thread.run_sync(self._read_letters)
            await trio.sleep(_LETTERS_S)

    def _read_letters(self) -> Sequence[LetterGroup]:
        try:
            return self._store.state.letter_groups()
        except WalIngestError:
            return self.letters  # whoever needs the state says so; this only counts

    def _noticed(self, source: str, oddity: str, looks_like: str, points: int) -> None:
        self._odd_times.noticed(self._monotonic_s(), source, oddity, looks_like, points)

    def odd_times(self) -> list[OddTimes]:
        """The points of the last minutes with implausible times, by source, most points first."""
        return self._odd_times.listed(self._monotonic_s())

    def failed_request(self, words: str) -> None:
        """A request failed for a reason that nobody foresaw."""
        self.errors.note(self._now_ns(), "http", words)

    def operated(self, act: Act) -> None:
        """An operator gave the node a command."""
        self.acts.note(self._now_ns(), "operator", str(act))

    # -- in a thread -----------------------------------------------------------------------------------

    def _look_at_disk(self, statuses: Sequence[SinkStatus]) -> dict[str, float]:
        # Where it fails, the writer, which asks the same after each commit, is the one to say so.
        with contextlib.suppress(OSError):
            self.disk_free_bytes = self._free_bytes(self._store.wal.directory)
        return {status.name: self._lag_s(status) for status in statuses}

    def _lag_s(self, status: SinkStatus) -> float:
        seq = status.cursor.seq
        if self._store.wal.last_seq <= seq:
            return 0.0
        known = self._oldest.get(status.name)
        if known is None or known[0] != seq:
            known = (seq, accepted_behind(self._store.wal, seq, self._now_ns()))
            self._oldest[status.name] = known
        # A clock that was set back must not make what waits younger than nothing.
        return max(0.0, (self._now_ns() - known[1]) / 1e9)

    # -- what is made of it ----------------------------------------------------------------------------

    def _sample(self, statuses: Sequence[SinkStatus]) -> Sample:
        wal, front, commits = self._store.wal, self._metrics.front, self._metrics.commits
        total = wal.points_total
        wal_room, disk_room = self._rooms(total, statuses)
        return Sample(
            at_s=self._monotonic_s(),
            requests=front.requests,
            points=total,
            bytes=front.body_bytes,
            commits=commits.commits,
            entries=commits.entries,
            appends=front.appends.counts(),
            wal_bytes=wal.bytes,
            wal_room=wal_room,
            disk_room=disk_room,
            sinks={
                status.name: SinkSample(
                    total - status.cursor.settled, status.cursor.settled, status.cursor.confirmed
                )
                for status in statuses
            },
        )

    def _rooms(self, total: int, statuses: Sequence[SinkStatus]) -> tuple[float, float]:
        """The bytes left under the WAL's limit and above the disk's floor, if what is confirmed were gone.

        What waits is taken from the points, not from the files: those go a segment at a time, and are kept a while.
        """
        wal = self._store.wal
        size, kept = wal.bytes, total - wal.first_points_before
        passed = min((status.cursor.points for status in holding(statuses)), default=total)
        waiting_bytes = size * min(1.0, max(0, total - passed) / kept) if kept > 0 else 0.0
        on_disk = self.disk_free_bytes - self._settings.free_disk_bytes_min
        return self._settings.wal_bytes_max - waiting_bytes, on_disk + size - waiting_bytes

    def _note_given_up(self, statuses: Sequence[SinkStatus]) -> None:
        given_up = sum(status.cursor.skipped + status.cursor.expired for status in statuses)
        if given_up > self._given_up:
            self.given_up_ns = self._now_ns()
        self._given_up = given_up

    def _note_errors(self, statuses: Sequence[SinkStatus]) -> None:
        now_ns = self._now_ns()
        for status in statuses:
            if status.last_error:
                self.errors.note(status.last_error_ns, status.name, status.last_error)
        damaged = self._store.wal.damaged
        for moved in damaged[self._damaged_seen :]:
            self.errors.note(now_ns, "wal", f"damaged segment set aside as {moved.path.name}: {moved.reason}")
        self._damaged_seen = len(damaged)
        refusal = self._writer.refusal()
        if refusal is not None and type(refusal) is not self._refusal_seen:
            self.errors.note(now_ns, "wal", f"refusing: {refusal}")
        self._refusal_seen = type(refusal) if refusal is not None else None


def holding(statuses: Sequence[SinkStatus]) -> Sequence[SinkStatus]:
    """The sinks for whose sake segments are kept: the required ones, or all where none is."""
    return [status for status in statuses if status.required] or statuses


def accepted_behind(wal: Wal, seq: int, now_ns: int) -> int:
    """When the entry behind a seq was accepted, in Unix nanoseconds; `now_ns` when there is none.

    Where it cannot be read, the time at which its segment was begun: a little early, never late. Blocks on the disk.
    """
    for segment in wal.segments():
        if segment.last_seq > seq:
            try:
                entry = read_entry(segment.path, max(seq + 1, segment.first_seq))
            except (WalDamaged, StorageFailed):
                entry = None  # whoever reads it to deliver it reports it
            return entry.accepted_ns if entry is not None else segment.header.created_ns
    return now_ns
