"""Many writes at once through one InfluxDB sink: its threads share a pool of connections, and none may trip."""

from __future__ import annotations

import gzip
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import trio

from tests.rigs.victoria_metrics import VictoriaMetrics
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.settings import InfluxDBSettings
from wal_ingest.wal.entry import Destination

WRITERS = 8
WRITES = 1_200


@pytest.fixture
def threads_take_turns_often() -> Iterator[None]:
    """As the service sets it: what threads do to each other shows sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.needs("victoria-metrics")
@pytest.mark.usefixtures("threads_take_turns_often")
async def test_thousands_of_writes_at_once_over_shared_connections_are_all_confirmed(
    victoria_metrics: VictoriaMetrics,
) -> None:
    """A connection that went back to the pool before its answer was closed ended the server once in 10,000 writes."""
    settings = InfluxDBSettings(url=victoria_metrics.url, org="any", bucket="any", in_flight_max=WRITERS)
    sink = InfluxDBSink(settings, run_sync=trio.to_thread.run_sync, now_ns=time.time_ns)
    line = f"manywrites value=1 {time.time_ns()}\n".encode()
    batch = Batch(1, 1, 1, 1, 0, Destination(), gzip.compress(line), len(line))
    outcomes: Counter[str] = Counter()

    async def write() -> None:
        for _ in range(WRITES):
            outcomes[type(await sink.write(batch)).__name__] += 1

    await sink.open(None)
    async with trio.open_nursery() as nursery:
        for _ in range(WRITERS):
            nursery.start_soon(write)
    await sink.aclose()

    assert outcomes == {"Confirmed": WRITERS * WRITES}
