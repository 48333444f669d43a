"""docs/COMMANDS.md on replay: its commands are typed, and its tables have the keys of what is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.flusher.sinks.http_fake import Answer, Request, fake_influxdb
from tests.rigs.pages import Reader, commands, masked
from tests.rigs.prepared import lines, prepare
from tests.rigs.service import run_command
from tests.test_commands_page import keys_of, keys_told, section
from wal_ingest.wal.gzip_codec import compress


def alike(output: str) -> str:
    """As `masked`, and also durations and rates."""
    return re.sub(r"took       [\d.]+ s(, [\d,]+ points/s)?", "took", masked(output))


@pytest.mark.needs("jq")
def test_the_commands_about_replay_do_what_the_page_shows(tmp_path: Path) -> None:
    prepare(tmp_path / "data")
    with fake_influxdb() as database:
        settings = {"INFLUXDB_URL": database.url, "INFLUXDB_ORG": "acme", "INFLUXDB_BUCKET": "metrics"}
        reader = Reader(tmp_path, errors_too=True, mask=alike, env=settings)
        reader.moved = {"8086": database.url.rpartition(":")[2]}
        steps = list(commands(section("replay")))
        assert len(steps) == 6
        for command, shown in steps:
            reader.type(command, shown)
    disks = [
        line for request in database.requests if "disks" in request.path for line in request.lines.split()
    ]
    assert len(disks) == 600 * 4  # measurement (of two words), fields and time


def test_the_page_has_every_key_of_what_replay_prints_as_json(tmp_path: Path) -> None:
    prepare(tmp_path / "data")
    member = compress(lines(3))
    for path in (tmp_path / "data" / "wal").glob("*.lmdb"):
        path.write_bytes(path.read_bytes().replace(member[40:60], bytes(20)))

    def refuse_one(request: Request) -> Answer:
        if b"host=web-00 usage=0.0" in request.lines:
            return Answer(422, b'{"message": "points beyond retention policy"}')
        return Answer()

    with fake_influxdb() as database:
        database.answer = refuse_one
        arguments = ("replay", "--seq", "1..", "--json", "--data-dir", tmp_path / "data")
        settings = {"influxdb.url": database.url, "influxdb.bucket": "b"}
        for more, command in (("--dry-run", "replay --dry-run"), ("--rate=99999999", "replay")):
            ran = run_command(*arguments, more, settings=settings)
            told = json.loads(ran.stdout)
            # Scalars in lists that happen to be empty are written as the list.
            assert keys_of(told) | {"warnings[]"} == keys_told(command), ran.stderr
