"""A data directory that version d14ec14 wrote, opened by today's: every point is there and is delivered.

`tests/fixtures/make_data_dir.py` made it, and says what is in it. A later version gets another file beside it.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.flusher.sinks.http_fake import fake_influxdb
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, run_command
from wal_ingest.client.messages import Welcome
from wal_ingest.client.stream import open_stream

FIXTURE = Path(__file__).parent / "fixtures" / "data-dir-d14ec14.tar.gz"


class Left:
    """A copy of what the older version left."""

    def __init__(self, root: Path) -> None:
        with tarfile.open(FIXTURE) as tar:
            tar.extractall(root, filter="data")
        self.root = root
        self.data_dir = root / "data"
        self.config = root / "node.toml"
        self.expected: dict[str, Any] = json.loads((root / "expected.json").read_text())

    def run(self, *words: str | Path, code: int = 0) -> str:
        ran = run_command(*words, "--config", self.config, "--data-dir", self.data_dir)
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))

    def archived(self) -> list[str]:
        files = sorted((self.data_dir / "archive").glob("*/*.lp.gz"))
        return [line for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]


@pytest.fixture
def left(tmp_path: Path) -> Left:
    assert FIXTURE.stat().st_size < 50_000
    return Left(tmp_path)


def serving(left: Left, url: str) -> Service:
    """Today's node over it, with that version's settings; its database is elsewhere now."""
    settings: dict[str, object] = {"influxdb.url": url, "wal.keep_confirmed_s": 1e9}
    env = {"WAL_INGEST_CONFIG": str(left.config)}
    return Service(left.data_dir, logs=left.root, settings=settings, env=env)


def test_its_settings_file_is_read(left: Left) -> None:
    assert "fine" in run_command("config", "check", left.config).stdout
    told = json.loads(run_command("config", "--json", "--config", left.config).stdout)
    assert told["influxdb.bucket"] == {"value": "metrics", "from": str(left.config)}
    assert told["wal.segment_s_max"]["value"] == 5.0


def test_the_commands_that_look_find_all_of_it_and_change_nothing(left: Left) -> None:
    expected = left.expected
    before = {path: path.read_bytes() for path in left.data_dir.rglob("*") if path.is_file()}
    status = left.json("wal", "status")
    assert (status["points_accepted"], status["last_seq"]) == (len(expected["lines"]), expected["last_seq"])
    assert len(status["segments"]) == expected["segments"] == 3
    assert (status["damaged"], status["lost"], status["gaps"]) == ([], [], [])
    assert status["sinks"]["influxdb"]["waiting_points"] == len(expected["waiting"])
    assert all(sink["unaccounted_points"] == 0 for sink in status["sinks"].values())
    left.run("wal", "verify")  # exit code 3 where anything is damaged
    assert left.run("wal", "cat").splitlines() == expected["lines"]
    left.run("wal", "export", left.root / "out.lp.gz")
    assert gzip.decompress((left.root / "out.lp.gz").read_bytes()).decode().splitlines() == expected["lines"]
    [letters] = left.json("dead-letters", "list")
    assert (letters["sink"], letters["points"]) == ("influxdb", 1)
    assert [letter["line"] for letter in left.json("dead-letters", "show")] == expected["parked"]
    sinks = left.json("sink", "status")
    assert {name: sink["waiting_points"] for name, sink in sinks.items()} == {"influxdb": 9, "archive": 0}
    assert left.archived() == expected["lines"]
    assert {path: path.read_bytes() for path in left.data_dir.rglob("*") if path.is_file()} == before


def test_what_waited_is_delivered_once_and_what_was_confirmed_is_not_sent_again(left: Left) -> None:
    with fake_influxdb() as database:
        with serving(left, database.url) as service:
            service.wait_drained("influxdb")
            service.wait_drained("archive")
            service.post("/metrics", b"later v=1 1795780000000000000\n", {"Content-Type": "text/plain"})
            service.wait_drained("influxdb")
            service.wait_drained("archive")
            status = json.loads(service.get("/status.json"))
            assert service.stop() == 0
        sent = [line for request in database.requests for line in request.lines.decode().splitlines()]
        assert sent == [*left.expected["waiting"], "later v=1 1795780000000000000"]
        assert {request.headers["authorization"] for request in database.requests} == {"Token the-token"}
    account = status["account"]["influxdb"]
    assert (account["waiting"], account["parked"], account["unaccounted"]) == (0, 1, 0)
    assert left.archived() == [*left.expected["lines"], "later v=1 1795780000000000000"]
    assert left.run("wal", "cat").splitlines()[:-1] == left.expected["lines"]


async def test_its_stream_is_welcomed_where_it_was_and_goes_on(left: Left) -> None:
    service = serving(left, "http://127.0.0.1:9")
    service.start()
    try:
        address = service.url.replace("http", "ws")
        async with open_stream(address, client_id=left.expected["client_id"]) as stream:
            welcome = stream.welcome
            assert isinstance(welcome, Welcome)
            assert welcome.durable == left.expected["durable"]
            assert [frame.seq for frame in welcome.stored] == left.expected["seqs"]
            await stream.send(4, b"after v=1 1\n")
            answer = await stream.receive()
            assert answer.number == 4
    finally:
        service.kill()
    assert left.run("wal", "cat").splitlines() == [*left.expected["lines"], "after v=1 1"]


def test_its_dead_letter_can_be_written_again(left: Left) -> None:
    with fake_influxdb() as database, serving(left, database.url) as service:
        service.wait_drained("influxdb")
        ran = run_command("dead-letters", "retry", "--sink", "influxdb", "--data-dir", left.data_dir)
        assert ran.returncode == 0, ran.stderr
        wait_until(lambda: left.expected["parked"][0] in _sent(database.requests), "it is sent")
        assert left.json("dead-letters", "list") == []


def _sent(requests: list[Any]) -> list[str]:
    return [line for request in requests for line in request.lines.decode().splitlines()]
