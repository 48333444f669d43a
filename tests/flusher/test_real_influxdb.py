"""Delivery into a real InfluxDB: what it refuses, in its own words, ends as dead letters; all else arrives."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from random import Random

import trio
from msgspec import structs

from tests.flusher.rig import SETTINGS
from tests.flusher.twins import START_NS, MemoryLog, MemoryState, run_inline
from tests.rigs.influxdb import InfluxDB
from tests.rigs.needs import require
from tests.rigs.victoria_metrics import VictoriaMetrics
from wal_ingest.flusher.batches import Batcher
from wal_ingest.flusher.delivery import Delivery
from wal_ingest.flusher.outcome import Misconfigured, Rejected, TooLarge, Unavailable
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.settings import InfluxDBSettings


def sink_to(influxdb: InfluxDB, database: str) -> InfluxDBSink:
    settings = InfluxDBSettings(url=influxdb.url, bucket=database)
    return InfluxDBSink(settings, run_sync=trio.to_thread.run_sync, now_ns=time.time_ns)


async def deliver(sink: InfluxDBSink, log: MemoryLog, *, points_max: int = 10) -> MemoryState:
    state = MemoryState()
    settings = structs.replace(SETTINGS, batch_points_max=points_max)
    delivery = Delivery(sink, log, state, settings, run_sync=run_inline, now_ns=time.time_ns, rng=Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delivery.run)
        await state.reached(log.last_seq, sink.name)
        delivery.stop()
    return state


async def test_a_type_conflict_is_parked_with_influxdbs_reason_and_the_rest_is_written(
    influxdb: InfluxDB,
) -> None:
    database = influxdb.fresh_database()
    log = MemoryLog()
    log.append(1, lines=f"cpu,host=a v=1.5 {START_NS}\n".encode())
    mixed = [f"cpu,host=b v={n}.5 {START_NS + n}\n" for n in range(10)]
    mixed[7] = f'cpu,host=b v="text" {START_NS + 7}\n'
    log.append(10, lines="".join(mixed).encode())
    state = await deliver(sink_to(influxdb, database), log)
    assert [(letter.seq, letter.line.decode()) for letter in state.letters] == [(2, mixed[7])]
    assert "field type conflict" in state.letters[0].reason
    assert state.letters[0].status == 400
    rows = influxdb.rows(database, "SELECT v FROM cpu WHERE host = 'b'")
    assert [row["v"] for row in rows] == [n + 0.5 for n in range(10) if n != 7]


async def test_points_beyond_the_retention_are_parked_and_the_rest_is_written(influxdb: InfluxDB) -> None:
    database = influxdb.fresh_database()
    influxdb.query(f'ALTER RETENTION POLICY "autogen" ON {database} DURATION 1h SHARD DURATION 1h')
    now = time.time_ns()
    log = MemoryLog()
    log.append(2, lines=f"cpu v=1 {now}\ncpu v=2 {now - 10 * 3_600_000_000_000}\n".encode())
    state = await deliver(sink_to(influxdb, database), log)
    assert [letter.line.split()[1] for letter in state.letters] == [b"v=2"]
    assert [row["v"] for row in influxdb.rows(database, "SELECT v FROM cpu")] == [1]


async def test_a_refusal_says_how_many_points_were_dropped(influxdb: InfluxDB) -> None:
    database = influxdb.fresh_database()
    log = MemoryLog()
    log.append(1, lines=f"cpu v=1.5 {START_NS}\n".encode())
    log.append(2, lines=f'cpu v="a" {START_NS + 1}\ncpu v=2 {START_NS + 2}\n'.encode())
    sink = sink_to(influxdb, database)
    await sink.open(None)
    batcher = Batcher(sink.group, points_max=2)
    outcomes = [await sink.write(batch) for batch in batcher.add(log.entries) + batcher.flush()]
    await sink.aclose()
    assert isinstance(outcomes[1], Rejected)
    assert outcomes[1].dropped == 1


async def test_a_database_that_does_not_exist_is_misconfigured(influxdb: InfluxDB) -> None:
    sink = sink_to(influxdb, "nobody_made_this")
    await sink.open(None)
    log = MemoryLog()
    log.append(1)
    (batch,) = (batcher := Batcher(sink.group, points_max=10)).add(log.entries) + batcher.flush()
    outcome = await sink.write(batch)
    await sink.aclose()
    assert isinstance(outcome, Misconfigured)
    assert "database not found" in outcome.reason


async def test_batches_that_are_too_large_for_the_server_are_halved_until_they_fit(tmp_path: Path) -> None:
    require("influxdb")
    with InfluxDB(tmp_path, body_bytes_max=1024) as influxdb:
        database = influxdb.fresh_database()
        log = MemoryLog()
        for seq in (1, 2, 3):
            lines = [
                f"cpu,seq={seq} v={n * n * 31 * seq % 100_003}i {START_NS + n * 997}\n" for n in range(300)
            ]
            log.append(300, lines="".join(lines).encode())
        sink = sink_to(influxdb, database)
        await sink.open(None)
        (batch,) = (batcher := Batcher(sink.group, points_max=1000)).add(log.entries) + batcher.flush()
        assert isinstance(await sink.write(batch), TooLarge)
        await sink.aclose()
        state = await deliver(sink_to(influxdb, database), log, points_max=1000)
        assert state.letters == []
        assert influxdb.rows(database, "SELECT count(v) FROM cpu")[0]["count"] == 900


async def test_victoriametrics_words_about_a_body_it_cannot_read_park_nothing(
    victoria_metrics: VictoriaMetrics,
) -> None:
    settings = InfluxDBSettings(url=victoria_metrics.url, bucket="b")
    sink = InfluxDBSink(settings, run_sync=trio.to_thread.run_sync, now_ns=time.time_ns)
    await sink.open(None)
    log = MemoryLog()
    log.append(10)
    (batch,) = (batcher := Batcher(sink.group, points_max=100)).add(log.entries) + batcher.flush()
    outcome = await sink.write(replace(batch, body=batch.body[:-9]))
    await sink.aclose()
    assert isinstance(outcome, Unavailable)
    assert outcome.status == 400
    assert outcome.suspect
