"""The contract of a sink, over every sink and its fakes: whatever passes here can be put behind delivery."""

from __future__ import annotations

import gzip
import itertools
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from tests.flusher.fake_sink import FakeSink
from tests.flusher.sinks.http_fake import fake_influxdb
from tests.flusher.twins import START_NS, MemoryLog
from tests.rigs.influxdb import InfluxDB
from tests.rigs.victoria_metrics import VictoriaMetrics
from wal_ingest.flusher.batches import Batch, Batcher
from wal_ingest.flusher.outcome import Confirmed
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.sinks.archive import ArchiveSink
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.settings import ArchiveSettings, InfluxDBSettings
from wal_ingest.wal.entry import CODEC_GZIP, CODEC_RAW

MS = 1_000_000

# A point of these tests: its entry's tag, its value, its time in milliseconds.
Point = tuple[int, int, int]


@dataclass
class Case:
    """A sink under test: `make` gives a new one over the same store, `stored` what the store holds."""

    make: Callable[[], Sink]
    stored: Callable[[], set[Point]]
    measurement: str
    log: MemoryLog = field(default_factory=MemoryLog)

    def batch(self, *sizes: int) -> Batch:
        """One batch of new entries with so many points each."""
        entries = [self.log.append(points, lines=self._lines(points)) for points in sizes]
        (batch,) = (batcher := Batcher(self.make().group, points_max=1_000_000)).add(
            entries
        ) + batcher.flush()
        return batch

    def _lines(self, points: int) -> bytes:
        seq = self.log.last_seq + 1
        return b"".join(
            f"{self.measurement},seq={seq} n={n}i {START_NS + n * MS}\n".encode() for n in range(points)
        )

    def points(self, *sizes: int) -> set[Point]:
        """What is stored when the first entries had so many points each."""
        return {(seq, n, START_NS // MS + n) for seq, size in enumerate(sizes, start=1) for n in range(size)}


def points_of(lines: bytes, measurement: str) -> set[Point]:
    found = set()
    for line in lines.decode().splitlines():
        key, fields, time = line.split(" ")
        name, _, seq = key.partition(",seq=")
        assert name == measurement
        found.add((int(seq), int(fields[2:-1]), int(time) // MS))
    return found


def _influxdb_sink(url: str, bucket: str) -> Callable[[], Sink]:
    settings = InfluxDBSettings(url=url, token="t", org="o", bucket=bucket)
    return lambda: InfluxDBSink(settings, run_sync=trio.to_thread.run_sync, now_ns=lambda: START_NS)


def fake_case(request: pytest.FixtureRequest, measurement: str) -> Case:
    kept: list[bytes] = []

    def make() -> Sink:
        sink = FakeSink(in_flight_max=4)
        sink.confirmed = kept
        return sink

    return Case(make, lambda: points_of(b"".join(kept), measurement), measurement)


def archive_case(request: pytest.FixtureRequest, measurement: str) -> Case:
    data_dir: Path = request.getfixturevalue("tmp_path")

    def stored() -> set[Point]:
        files = sorted(data_dir.glob("archive/*/*.lp.gz"))
        return points_of(b"".join(gzip.decompress(file.read_bytes()) for file in files), measurement)

    return Case(
        lambda: ArchiveSink(data_dir, ArchiveSettings(), run_sync=trio.to_thread.run_sync),
        stored,
        measurement,
    )


def fake_influxdb_case(request: pytest.FixtureRequest, measurement: str) -> Case:
    stack = ExitStack()
    request.addfinalizer(stack.close)
    server = stack.enter_context(fake_influxdb())

    def stored() -> set[Point]:
        return points_of(b"".join(each.lines for each in server.requests), measurement)

    return Case(_influxdb_sink(server.url, "b"), stored, measurement)


def victoria_metrics_case(request: pytest.FixtureRequest, measurement: str) -> Case:
    server: VictoriaMetrics = request.getfixturevalue("victoria_metrics")

    def stored() -> set[Point]:
        found = set()
        for series, samples in server.values(f'{{__name__="{measurement}_n"}}').items():
            seq = int(series.partition('seq="')[2].partition('"')[0])
            found |= {(seq, int(value), ms) for ms, value in samples.items()}
        return found

    return Case(_influxdb_sink(server.url, "b"), stored, measurement)


def influxdb_case(request: pytest.FixtureRequest, measurement: str) -> Case:
    server: InfluxDB = request.getfixturevalue("influxdb")
    database = server.fresh_database()

    def stored() -> set[Point]:
        rows = server.rows(database, f'SELECT n, seq FROM "{measurement}"')
        return {(int(row["seq"]), row["n"], row["time"] // MS) for row in rows}

    return Case(_influxdb_sink(server.url, database), stored, measurement)


CASES = {
    "the fake sink": fake_case,
    "archive": archive_case,
    "influxdb sink, faulty server": fake_influxdb_case,
    "influxdb sink, VictoriaMetrics": victoria_metrics_case,
    "influxdb sink, InfluxDB": influxdb_case,
}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param](request, f"contract_{uuid.uuid4().hex}")


async def written(sink: Sink, *batches: Batch) -> list[bytes | None]:
    """Writes in turn; gives the positions. Each must be confirmed."""
    positions = []
    for batch in batches:
        outcome = await sink.write(batch)
        assert isinstance(outcome, Confirmed), outcome
        positions.append(outcome.position)
    return positions


async def test_a_confirmed_batch_can_be_read_back_whole(case: Case) -> None:
    sink = case.make()
    await sink.open(None)
    await written(sink, case.batch(1000))
    await sink.aclose()
    assert case.stored() == case.points(1000)


async def test_every_line_of_concatenated_members_arrives(case: Case) -> None:
    sizes = (1, 1, 300, 1, 200, 400, 1)
    sink = case.make()
    await sink.open(None)
    batch = case.batch(*sizes)
    assert {entry.codec for entry in case.log.entries} == {CODEC_RAW, CODEC_GZIP}
    await written(sink, batch)
    await sink.aclose()
    assert case.stored() == case.points(*sizes)


async def test_a_batch_of_one_point_is_written(case: Case) -> None:
    sink = case.make()
    await sink.open(None)
    await written(sink, case.batch(1))
    await sink.aclose()
    assert case.stored() == case.points(1)


async def test_writing_a_batch_again_changes_nothing(case: Case) -> None:
    sink = case.make()
    await sink.open(None)
    batch = case.batch(50)
    await written(sink, batch, batch)
    await sink.aclose()
    assert case.stored() == case.points(50)


async def test_as_many_writes_as_it_says_can_be_under_way_at_once(case: Case) -> None:
    sink = case.make()
    await sink.open(None)
    sizes = [100] * sink.in_flight_max
    async with trio.open_nursery() as nursery:
        for points in sizes:
            nursery.start_soon(written, sink, case.batch(points))
    await sink.aclose()
    assert case.stored() == case.points(*sizes)


async def test_it_goes_on_from_each_position_that_it_gave(case: Case) -> None:
    sink = case.make()
    await sink.open(None)
    batches = [case.batch(30), case.batch(30), case.batch(30)]
    positions = await written(sink, *batches)
    await sink.aclose()
    for at in (2, 1, 0):  # a restart with a cursor that is further and further behind
        sink = case.make()
        await sink.open(positions[at])
        positions[at + 1 :] = await written(sink, *batches[at + 1 :])
        await sink.aclose()
        assert case.stored() == case.points(30, 30, 30)


async def test_after_a_cancelled_write_it_closes_and_the_batch_can_be_written_again(case: Case) -> None:
    batch = case.batch(40)
    sink = case.make()
    await sink.open(None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await sink.write(batch)
    await sink.aclose()
    sink = case.make()
    await sink.open(None)
    await written(sink, batch)
    await sink.aclose()
    assert case.stored() == case.points(40)


async def test_a_check_finds_all_of_it_right_and_writes_nothing(case: Case) -> None:
    sink = case.make()
    await sink.open(None)
    found = await sink.check()
    await sink.aclose()
    assert found
    assert [check for check in found if not check.right] == []
    assert case.stored() == set()


def test_entries_that_came_alike_share_a_group(case: Case) -> None:
    sink = case.make()
    first, second = case.log.append(1), case.log.append(2)
    assert hash(sink.group(first)) == hash(sink.group(second))
    assert sink.group(first) == sink.group(second)


def test_it_says_who_it_is(case: Case) -> None:
    sink = case.make()
    assert sink.name
    assert isinstance(sink.required, bool)
    assert sink.in_flight_max >= 1


async def test_closing_without_opening_is_harmless(case: Case) -> None:
    sink = case.make()
    assert await sink.aclose() is None  # type: ignore[func-returns-value]


def test_sinks_have_names_of_their_own(tmp_path: Path) -> None:
    names = [
        FakeSink().name,
        ArchiveSink(tmp_path, ArchiveSettings(), run_sync=trio.to_thread.run_sync).name,
        _influxdb_sink("http://127.0.0.1:1", "b")().name,
    ]
    assert all(one != other for one, other in itertools.combinations(names, 2))
