"""`wal-ingest replay` as a user types it: what it writes, what it says, what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.cli.node_dir import START_NS, make_node_dir
from tests.flusher.sinks.http_fake import Answer, FakeInfluxDB, Request, fake_influxdb
from tests.flusher.twins import lines_of
from tests.rigs.forked import quick_command
from tests.rigs.processes import Process, wait_until
from tests.rigs.service import COMMAND, environment, run_command
from wal_ingest.wal.gzip_codec import compress

SECRET = "hush-hush"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A node's directory with 30 entries of five points, one a second from 21:00:01 on; `cpu` and `mem` in turn."""
    return make_node_dir(tmp_path / "node", map(lines, range(1, 31)), sealed_after=(10, 20))


def lines(first: int, last: int | None = None) -> bytes:
    seqs = range(first, (first if last is None else last) + 1)
    return b"".join(lines_of(seq, 5, measurement="cpu" if seq % 2 else "mem") for seq in seqs)


def written(database: FakeInfluxDB) -> list[bytes]:
    return sorted(line for request in database.requests for line in request.lines.splitlines(keepends=True))


def expected(first: int, last: int) -> list[bytes]:
    return sorted(lines(first, last).splitlines(keepends=True))


def replay(
    data_dir: Path, database: FakeInfluxDB, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    settings = {
        "influxdb.url": database.url,
        "influxdb.org": "acme",
        "influxdb.bucket": "metrics",
        "influxdb.token": SECRET,
        "flusher.retry_s_min": 0.05,
        "flusher.hold_retry_s": 0.3,
    }
    ran = run_command("replay", "--data-dir", data_dir, *arguments, settings=settings)
    assert ran.returncode == code, f"exit code {ran.returncode}: {ran.stdout}{ran.stderr}"
    assert SECRET not in ran.stdout + ran.stderr
    return ran


def files_of(directory: Path) -> dict[str, bytes]:
    """Every file of a node but those of its replays."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.relative_to(directory).parts[0] != "replay"
    }


def test_a_range_is_written_and_nothing_of_the_node_changes(data_dir: Path, database: FakeInfluxDB) -> None:
    before = files_of(data_dir)
    ran = replay(data_dir, database, "--seq", "5..14")
    assert written(database) == expected(5, 14)
    assert "replaying seqs 5 to 14 of the WAL" in ran.stderr
    assert ran.stdout.splitlines()[:4] == [
        "done: 50 points read",
        "confirmed  50",
        "rejected   0",
        "lost       0",
    ]
    assert files_of(data_dir) == before


def test_a_range_of_time_is_that_of_acceptance(data_dir: Path, database: FakeInfluxDB) -> None:
    ran = replay(
        data_dir, database, "--since", "2026-11-22T21:00:12Z", "--until", "2026-11-22T21:00:20Z", "--json"
    )
    assert written(database) == expected(12, 19)
    told = json.loads(ran.stdout)
    assert told["sources"] == [{"source": "wal", "reads": "seqs 12 to 19 of the WAL"}]
    assert (told["state"], told["points"], told["confirmed"], told["rejected"], told["lost"]) == (
        "done",
        40,
        40,
        0,
        [],
    )
    assert told["to"] == {"url": database.url, "org": "acme", "bucket": "metrics"}


def test_only_the_named_measurements_are_written(data_dir: Path, database: FakeInfluxDB) -> None:
    ran = replay(data_dir, database, "--seq", "1..", "--measurement", "mem", "--json")
    assert written(database) == [line for line in expected(1, 30) if line.startswith(b"mem")]
    assert json.loads(ran.stdout)["points"] == 75


def test_a_dry_run_counts_and_contacts_nobody(data_dir: Path, database: FakeInfluxDB) -> None:
    ran = replay(data_dir, database, "--seq", "1..", "--dry-run", "--rate", "15")
    assert "seqs 1 to 30 of the WAL: 150 points in 30 entries" in ran.stdout
    assert "accepted 2026-11-22T21:00:01Z to 2026-11-22T21:00:30Z" in ran.stdout
    assert "about 10 s at 15 points/s (as --rate says)" in ran.stdout
    told = json.loads(
        replay(
            data_dir, database, "--since", "2026-11-22", "--dry-run", "--measurement", "cpu", "--json"
        ).stdout
    )
    assert (told["points"], told["sources"][0]["points"], told["sources"][0]["points_chosen"]) == (
        75,
        150,
        75,
    )
    assert database.connections == 0
    assert not (data_dir / "replay").exists()


def test_a_finished_replay_is_not_done_again_unless_it_is_asked_for(
    data_dir: Path, database: FakeInfluxDB
) -> None:
    replay(data_dir, database, "--seq", "1..3")
    again = replay(data_dir, database, "--seq", "1..3")
    assert "already done on" in again.stderr
    assert "--restart to do it again" in again.stderr
    assert json.loads(replay(data_dir, database, "--seq", "1..3", "--json").stdout)["state"] == "already done"
    assert written(database) == expected(1, 3)
    replay(data_dir, database, "--seq", "1..3", "--restart")
    assert written(database) == sorted(expected(1, 3) * 2)


def test_a_finished_range_that_moves_with_the_clock_is_another_one_by_now(
    data_dir: Path, database: FakeInfluxDB
) -> None:
    replay(data_dir, database, "--since", "99999d")
    replay(data_dir, database, "--since", "99999d")
    assert written(database) == sorted(expected(1, 30) * 2)


def test_a_range_that_moves_with_the_clock_is_said_to_be_an_old_one_when_an_interrupted_replay_goes_on(
    data_dir: Path, database: FakeInfluxDB
) -> None:
    fresh = replay(data_dir, database, "--since", "99999d")
    assert "as it was asked for" not in fresh.stderr
    [record] = (data_dir / "replay").glob("*.json")
    saved = json.loads(record.read_text())
    record.write_text(json.dumps(saved | {"finished_ns": 0, "started_ns": START_NS}))
    ran = replay(data_dir, database, "--since", "99999d")
    assert "that was the range as it was asked for on 2026-11-22T21:00:00Z" in ran.stderr


def test_rejected_points_go_to_a_file_with_the_reason_and_the_rest_is_written(
    data_dir: Path, database: FakeInfluxDB, tmp_path: Path
) -> None:
    bad = lines(7).splitlines(keepends=True)[2]

    def answer(request: Request) -> Answer:
        if bad not in request.lines:
            return Answer()
        said = b'{"code": "unprocessable entity", "message": "field type conflict"}'
        return Answer(422, said, {"Content-Type": "application/json"})

    database.answer = answer
    ran = replay(data_dir, database, "--seq", "1..", "--json", code=1)
    told = json.loads(ran.stdout)
    assert (told["confirmed"], told["rejected"]) == (149, 1)
    (row,) = [json.loads(line) for line in Path(told["rejected_file"]).read_text().splitlines()]
    assert (row["seq"], row["line"], row["status"]) == (7, bad.decode().strip(), 422)
    assert "field type conflict" in row["reason"]
    named = tmp_path / "rejected.jsonl"
    again = replay(data_dir, database, "--seq", "1..", "--restart", "--rejected", str(named), code=1)
    assert f"rejected   1 (in {named})" in again.stdout
    assert len(named.read_text().splitlines()) == 1


def test_a_database_that_refuses_the_token_is_waited_for_and_said(
    data_dir: Path, database: FakeInfluxDB
) -> None:
    answers = iter([Answer(401, b'{"code": "unauthorized", "message": "no such token"}')] * 2)
    database.answer = lambda _request: next(answers, Answer())
    ran = replay(data_dir, database, "--seq", "1..", "--in-flight", "1")
    assert "holding until it is put right: HTTP 401: no such token" in ran.stderr
    assert set(written(database)) == set(expected(1, 30))


def test_the_configured_token_goes_to_no_other_server(
    data_dir: Path, database: FakeInfluxDB, tmp_path: Path
) -> None:
    with fake_influxdb() as other:
        replay(data_dir, database, "--seq", "1..3", "--to", other.url, "--bucket", "b")
        assert written(other) == expected(1, 3)
        assert all("authorization" not in request.headers for request in other.requests)
        assert all("bucket=b" in request.path for request in other.requests)
        (tmp_path / "token").write_text("its-own\n")
        token = ("--token-file", str(tmp_path / "token"))
        replay(data_dir, database, "--seq", "4", "--to", other.url, "--org", "o", *token)
        assert other.requests[-1].headers["authorization"] == "Token its-own"
        assert "org=o" in other.requests[-1].path
    replay(data_dir, database, "--seq", "4", "--to", database.url + "/")
    assert database.requests[-1].headers["authorization"] == f"Token {SECRET}"


def test_batches_are_no_larger_than_asked_for(data_dir: Path, database: FakeInfluxDB) -> None:
    replay(data_dir, database, "--seq", "1..", "--batch-points", "7")
    assert written(database) == expected(1, 30)
    assert max(request.lines.count(b"\n") for request in database.requests) <= 7


def test_it_is_said_plainly_when_the_beginning_is_not_kept(data_dir: Path, database: FakeInfluxDB) -> None:
    first = min((data_dir / "wal").glob("*.lmdb"))
    first.unlink()
    ran = replay(data_dir, database, "--since", "2026-11-22T20:00:00Z", "--json", code=1)
    said = (
        "the range begins at 2026-11-22T20:00:00Z, but what is kept begins at 2026-11-22T21:00:11Z (seq 11): "
        "points before that are not replayed"
    )
    assert f"warning: {said}" in ran.stderr
    assert json.loads(ran.stdout)["warnings"] == [said]
    assert written(database) == expected(11, 30)


def test_what_is_lost_is_named_and_the_rest_is_written(data_dir: Path, database: FakeInfluxDB) -> None:
    member = compress(lines(7))
    for path in (data_dir / "wal").glob("*.lmdb"):
        path.write_bytes(path.read_bytes().replace(member, member[:20] + b"\0\0" + member[22:]))
    ran = replay(data_dir, database, "--seq", "1..", code=1)
    assert "lost       5\n  lost: seq 7 (5 points), 00000000000000000001.lmdb" in ran.stdout
    assert written(database) == sorted(expected(1, 6) + expected(8, 30))
    dry = replay(data_dir, database, "--seq", "1..", "--dry-run", code=1)
    assert "  lost: seq 7 (5 points), 00000000000000000001.lmdb" in dry.stdout


def test_the_archive_is_replayed_by_whole_hours(data_dir: Path, database: FakeInfluxDB) -> None:
    day = data_dir / "archive" / "2026-11-22"
    day.mkdir(parents=True)
    (day / "20.lp.gz").write_bytes(compress(lines(40)) + compress(lines(41)))
    (day / "21.lp.gz").write_bytes(compress(lines(42)) + compress(lines(43))[:-9])
    asked = ("--from", "archive", "--since", "2026-11-22T20:59:00Z")
    ran = replay(data_dir, database, *asked)
    assert written(database) == expected(40, 42)
    assert "whole hours are replayed" in ran.stderr
    dry = replay(data_dir, database, *asked, "--dry-run")
    assert (
        "2 files of the archive, 2026-11-22/20.lp.gz to 2026-11-22/21.lp.gz: 15 points in 3 gzip"
        in dry.stdout
    )


def test_senders_buckets_that_the_archive_does_not_keep_are_spoken_of(
    data_dir: Path, database: FakeInfluxDB
) -> None:
    (data_dir / "archive" / "2026-11-22").mkdir(parents=True)
    (data_dir / "archive" / "2026-11-22" / "21.lp.gz").write_bytes(compress(lines(1)))
    ran = run_command(
        *("replay", "--from", "archive", "--since", "2026-11-22", "--dry-run", "--data-dir", data_dir),
        settings={"influxdb.url": database.url, "influxdb.destination": "request"},
    )
    assert "the archive does not keep the senders' buckets: its points go to (none)" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "a replay needs a range"),
        (("--since", "1h", "--seq", "4"), "a replay needs a range"),
        (("--until", "1h"), "a replay needs a range"),
        (("--since", "1h", "--until", "2h"), "ends (2h) before it begins (1h)"),
        (("--seq", "4", "--to", "kafka"), "'kafka' is no sink to replay to"),
        (("--seq", "4", "--to", "http://me:pass@host"), "holds a user and password"),
        (("--seq", "4", "--to", "ftp://host"), "no http:// or https:// address"),
        (("--seq", "4", "--token-file", "/nowhere"), "the token cannot be read"),
        (("--seq", "4", "--rejected", "/nowhere/at/all"), "no such directory"),
        (("--seq", "4", "--from", "archive"), "no archive"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(
    data_dir: Path, database: FakeInfluxDB, arguments: tuple[str, ...], said: str
) -> None:
    ran = replay(data_dir, database, *arguments, code=3 if said == "no archive" else 2)
    assert said in ran.stderr
    assert "pass@" not in ran.stderr
    assert database.requests == []


def test_without_a_configured_database_one_must_be_named(data_dir: Path) -> None:
    ran = run_command("replay", "--seq", "4", "--data-dir", data_dir)
    assert ran.returncode == 2
    assert "try: set it, or name a server with --to" in ran.stderr


def test_a_directory_without_a_wal_is_named(tmp_path: Path, database: FakeInfluxDB) -> None:
    for arguments in (("--seq", "4"), ("--since", "1h")):
        assert "there is no WAL in" in replay(tmp_path, database, *arguments, code=2).stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "archive").mkdir()
    told = replay(tmp_path, database, "--since", "1h", code=1)
    assert "nothing is kept of what was accepted since" in told.stderr


def test_progress_can_be_kept_elsewhere(data_dir: Path, database: FakeInfluxDB, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = replay(data_dir, database, "--seq", "4", "--state-dir", str(tmp_path / "file" / "no"), code=2)
    assert "--state-dir DIR" in ran.stderr
    replay(data_dir, database, "--seq", "4", "--state-dir", str(tmp_path / "mine"))
    (saved,) = (tmp_path / "mine").glob("*.json")
    told: dict[str, Any] = json.loads(saved.read_text())
    assert told["confirmed"] == 5
    assert not (data_dir / "replay").exists()


def test_on_a_terminal_a_bar_shows_the_figures_and_the_trouble(
    data_dir: Path, database: FakeInfluxDB
) -> None:
    seen = threading.Event()
    database.answer = lambda _request: Answer() if seen.is_set() else Answer(503, b"starting up")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        settings = {"influxdb.url": database.url, "influxdb.bucket": "b", "influxdb.in_flight_max": 1}
        arguments = ("--data-dir", data_dir, "--seq", "1..", "--rate", "100", "--batch-points", "50")
        process = subprocess.Popen(
            [quick_command(), "replay", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            env=environment(settings) | {"COLUMNS": "150", "TERM": "xterm"},
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other end of a terminal is gone when the process is
            while data := terminal.read(4096):
                shown += data
                if b"starting up" in shown:
                    seen.set()
        assert process.wait(timeout=10) == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "━" in text
    assert re.search(r"\d+ points confirmed, [\d,]+ points/s, about \d+ s left", text)
    assert "; retrying: HTTP 503: starting up" in text


def test_a_killed_replay_goes_on_behind_what_it_had_remembered(
    data_dir: Path, database: FakeInfluxDB, tmp_path: Path
) -> None:
    settings = {"influxdb.url": database.url, "influxdb.org": "acme", "influxdb.bucket": "metrics"}
    slowly = ("--seq", "1..", "--rate", "20", "--batch-points", "5")
    process = Process(
        "wal-ingest replay",
        [COMMAND, "replay", "--data-dir", data_dir, *slowly],
        log=tmp_path / "replay.err",
        env=environment(settings),
    )

    def remembered() -> int:
        found = list((data_dir / "replay").glob("*.json"))
        confirmed: int = json.loads(found[0].read_text())["confirmed"] if found else 0
        return confirmed

    before = wait_until(remembered, "the replay remembers a place", also=tmp_path / "replay.err")
    process.kill()
    ran = replay(data_dir, database, "--seq", "1..")
    assert f"{before} points are confirmed" in ran.stderr
    assert "confirmed  150" in ran.stdout
    assert set(written(database)) == set(expected(1, 30))
    assert len(written(database)) < 2 * 150
