"""The WAL as the flusher reads it."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import trio

from wal_ingest.errors import StorageFailed
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.recovery import SetAside
from wal_ingest.wal.space import is_no_descriptors
from wal_ingest.wal.store import Store
from wal_ingest.wal.writer import Writer

# How long a reading waits where the process has no file descriptor left: connections come and go.
_DESCRIPTOR_WAIT_S = 1.0

_log = structlog.get_logger("wal_ingest.service")


@dataclass(frozen=True, slots=True)
class LogReader:
    """The WAL as the flusher reads it. Damage is met here: the segment is set aside and reading goes on."""

    store: Store
    writer: Writer

    @property
    def last_seq(self) -> int:
        """The highest committed seq."""
        return self.store.wal.last_seq

    @property
    def points_total(self) -> int:
        """Points of all entries ever committed."""
        return self.store.wal.points_total

    async def wait_appended(self, after_seq: int) -> None:
        """Returns as soon as `last_seq` is above `after_seq`."""
        await self.writer.wait_appended(after_seq)

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        """Entries behind a seq; called in a worker thread. Raises `UnknownFormatVersion`, `StorageFailed`."""
        while True:
            try:
                return self.store.read_past_damage(
                    after_seq,
                    bytes_max=bytes_max,
                    seal=lambda: trio.from_thread.run(self.writer.seal),
                    tell=report_set_aside,
                )
            except StorageFailed as exc:
                if not is_no_descriptors(exc.number):
                    raise
                trio.from_thread.run(trio.sleep, _DESCRIPTOR_WAIT_S)


def report_set_aside(moved: SetAside) -> None:
    """Logs a damaged file, and how much of it is delivered all the same."""
    _log.error(
        "damaged segment set aside",
        path=str(moved.path),
        reason=moved.reason,
        readable_points=moved.readable_points,
        lost_points=moved.lost_points,
    )
