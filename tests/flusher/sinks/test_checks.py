"""What a look at a sink finds: right or wrong, in which respect, and never a point written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.flusher.sinks.http_fake import Answer, FakeInfluxDB, fake_influxdb
from tests.flusher.twins import START_NS
from tests.rigs.influxdb import InfluxDB
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.sinks.archive import ArchiveSink
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.settings import ArchiveSettings, InfluxDBSettings

TOKEN = "s3cret-t0ken"
MISSING_POINTS = b'{"code":"invalid","message":"writing requires points"}'


@pytest.fixture
def fake() -> Iterator[FakeInfluxDB]:
    with fake_influxdb() as server:
        yield server


async def checked(url: str, bucket: str = "b") -> list[Check]:
    sink = InfluxDBSink(
        InfluxDBSettings(url=url, token=TOKEN, org="o", bucket=bucket),
        run_sync=trio.to_thread.run_sync,
        now_ns=lambda: START_NS,
    )
    await sink.open(None)
    try:
        return await sink.check()
    finally:
        await sink.aclose()


@pytest.mark.parametrize(
    ("answer", "right", "found"),
    [
        (Answer(204), True, "accepted"),
        (Answer(400, MISSING_POINTS), True, "accepted"),
        (Answer(400, b'{"error":"write: no data was sent"}'), True, "accepted"),
        (Answer(401, b'{"message":"unauthorized access"}'), False, "the token is not accepted"),
        (Answer(403, b'{"message":"insufficient permissions"}'), False, "may not write to the bucket"),
        (Answer(404, b'{"message":"bucket \\"b\\" not found"}'), False, 'bucket "b" not found'),
        (Answer(503, b"later"), False, "cannot be told now"),
        (Answer(502, b"<html><head><title>502 Bad Gateway\n</title>"), False, "(HTTP 502: 502 Bad Gateway)"),
        (Answer(500, b""), False, "cannot be told now (HTTP 500)"),
        (Answer(418, b"I am a teapot"), False, "does not answer as an InfluxDB does"),
        (Answer(200, b"<html>", {"Content-Type": "text/html"}), False, "does not answer as an InfluxDB does"),
    ],
)
async def test_each_answer_says_what_is_right_and_what_is_wrong(
    fake: FakeInfluxDB, answer: Answer, right: bool, found: str
) -> None:
    fake.answer = lambda _request: answer
    checks = await checked(fake.url)
    assert all(check.right for check in checks) is right
    assert found in checks[-1].found
    assert [request.lines for request in fake.requests] == [b""]
    assert TOKEN not in str(checks)


async def test_the_version_of_the_server_is_told(fake: FakeInfluxDB) -> None:
    fake.answer = lambda _request: Answer(204, headers={"X-Influxdb-Version": "v2.7.1"})
    assert (await checked(fake.url))[0].found == f"{fake.url} answers, as InfluxDB v2.7.1"


async def test_a_server_that_is_away_is_a_wrong_address() -> None:
    [check] = await checked("http://127.0.0.1:9")
    assert (check.what, check.right) == ("address", False)
    assert check.found == "http://127.0.0.1:9 cannot be reached: Connection refused"


@pytest.mark.needs("influxdb")
async def test_a_real_influxdb_says_that_the_bucket_is_missing(influxdb: InfluxDB) -> None:
    assert all(check.right for check in await checked(influxdb.url, influxdb.fresh_database()))
    missing = await checked(influxdb.url, "nowhere")
    assert [check.right for check in missing] == [True, False]
    assert 'database not found: "nowhere"' in missing[1].found


def archive(data_dir: Path) -> ArchiveSink:
    return ArchiveSink(data_dir, ArchiveSettings(), run_sync=trio.to_thread.run_sync)


async def test_an_archive_is_looked_at_without_being_made(tmp_path: Path) -> None:
    checks = await archive(tmp_path / "data").check()
    assert [(check.what, check.right) for check in checks] == [("directory", True), ("free disk", True)]
    assert list(await trio.Path(tmp_path).iterdir()) == []


async def test_an_archive_that_is_a_file_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("a file")
    [check] = await archive(tmp_path).check()
    assert not check.right
    assert "is no directory" in check.found


async def test_an_archive_that_this_user_may_not_write_to_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may write anywhere
    [check] = await archive(tmp_path).check()
    assert not check.right
    assert "may not write" in check.found


async def test_a_look_never_shows_the_token(fake: FakeInfluxDB) -> None:
    fake.answer = lambda _request: Answer(204, headers={"X-Influxdb-Version": f"2.7 {TOKEN}"})
    checks = await checked(fake.url)
    assert checks[0].found.endswith("as InfluxDB 2.7 ***")
