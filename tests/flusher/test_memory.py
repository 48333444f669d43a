"""What delivery holds is bounded in bytes, whatever the size of points: over a log that is made as it is read."""

from __future__ import annotations

import base64
import random
import tracemalloc

import trio
import trio.testing

from tests.flusher.fake_sink import FakeSink
from tests.flusher.rig import DeliveryRig
from tests.flusher.twins import NOWHERE, START_NS, MemoryLog
from wal_ingest.flusher.batches import BATCH_BYTES_MAX
from wal_ingest.flusher.delivery import WINDOW_BYTES_MAX
from wal_ingest.flusher.outcome import Outcome
from wal_ingest.wal.entry import CODEC_GZIP, Entry
from wal_ingest.wal.gzip_codec import compress

POINTS, POINT_BYTES, POINTS_AN_ENTRY = 50_000, 10_000, 100
_MIB = 2**20


class MadeLog(MemoryLog):
    """Entries of large points that hardly compress. None is kept: each read makes them anew, as from a disk."""

    def __init__(self) -> None:
        super().__init__()
        text = base64.b64encode(random.Random(7).randbytes(POINT_BYTES * 3 // 4)).decode()
        lines = "".join(f'm,n={n} text="{text[n:] + text[:n]}" {START_NS}\n' for n in range(POINTS_AN_ENTRY))
        self._raw_bytes, self._payload = len(lines), compress(lines.encode())

    @property
    def last_seq(self) -> int:
        return POINTS // POINTS_AN_ENTRY

    @property
    def points_total(self) -> int:
        return POINTS

    def read(self, after_seq: int, *, bytes_max: int) -> list[Entry]:
        count = max(1, bytes_max // len(self._payload))
        return [
            Entry(
                seq,
                POINTS_AN_ENTRY,
                (seq - 1) * POINTS_AN_ENTRY,
                START_NS,
                "",
                NOWHERE,
                CODEC_GZIP,
                self._raw_bytes,
                bytes(bytearray(self._payload)),  # a copy, as a read gives
            )
            for seq in range(after_seq + 1, min(after_seq + count, self.last_seq) + 1)
        ]


class Archive(FakeSink):
    """Gathers as many points as the archive does, and keeps the sizes of the writes only."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_points_max = POINTS
        self.paused = trio.Event()
        self.largest_bytes = 0

        async def answer(lines: list[bytes]) -> Outcome | None:
            self.largest_bytes = max(self.largest_bytes, sum(map(len, lines)))
            self.writes.clear()
            await self.paused.wait()
            lines.clear()
            return None

        self.answer = answer


async def test_fifty_thousand_points_of_10_kb_wait_and_drain_in_bounded_memory(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    rig.log, sink = MadeLog(), Archive()
    rig.sink = sink
    tracemalloc.start()
    try:
        async with rig.running():
            await trio.sleep(60.0)
            waiting_bytes, _ = tracemalloc.get_traced_memory()
            sink.paused.set()
            await rig.state.reached(rig.log.last_seq)
            _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert POINTS * POINT_BYTES > 450 * _MIB
    assert sink.largest_bytes <= BATCH_BYTES_MAX
    # The window; a batch that is filled, joined and written, and what was read and is not in one yet.
    assert waiting_bytes <= WINDOW_BYTES_MAX + 6 * BATCH_BYTES_MAX, waiting_bytes
    assert peak_bytes <= WINDOW_BYTES_MAX + 10 * BATCH_BYTES_MAX, peak_bytes
