"""Points whose strings hold line feeds, through every command that reads, cuts or counts: each stays whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.cli.node_dir import START_NS, make_node_dir
from tests.flusher.sinks.http_fake import Answer, FakeInfluxDB, Request
from tests.rigs.service import Service, run_command, to_influxdb
from tests.wal.factories import Clock, open_store
from wal_ingest.points import split_points
from wal_ingest.wal.entry import Destination, NewEntry
from wal_ingest.wal.gzip_codec import compress

POINTS = 40


def note(n: int, text: str = "") -> bytes:
    """A point of five measurements in turn; most have line feeds in a string, and text that looks like points."""
    text = text or "\n".join(["one", f"cpu v={n} 1", '\\"two\\"', "# three", ""][: n % 6])
    return f'note{n % 5},host=a\\ b text="{text}",n={n}i {START_NS + n}\n'.encode()


NOTES = [note(n) for n in range(POINTS)]
BAD = note(17, "bad\nnote3 text=\n# worse")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A node's directory with 8 entries of five points."""
    return make_node_dir(tmp_path / "node", (b"".join(NOTES[at : at + 5]) for at in range(0, POINTS, 5)))


def written(database: FakeInfluxDB) -> list[bytes]:
    """All points that the database confirmed, cut by the tests' own eyes: each begins with its name."""
    return sorted(b"note" + each for request in database.requests for each in cut(request.lines))


def cut(lines: bytes) -> list[bytes]:
    assert lines.startswith(b"note")
    return [each.replace(b"\x00", b"note") for each in mark(lines).split(b"\x01")[1:]]


def mark(lines: bytes) -> bytes:
    """A mark instead of each name that begins a point; in strings no `note` has a host."""
    for n in range(5):
        lines = lines.replace(b"note%d,host" % n, b"\x01%d,host" % n)
    return lines.replace(b"note", b"\x00")


def settings_for(database: FakeInfluxDB) -> dict[str, object]:
    return to_influxdb(
        database.url, influxdb__server="influxdb", flusher__retry_s_min=0.05, flusher__hold_retry_s=0.3
    )


def run(*arguments: str | Path, data: Path, database: FakeInfluxDB | None = None, code: int = 0) -> str:
    settings = settings_for(database) if database is not None else {}
    ran = run_command(*arguments, "--data-dir", data, settings=settings)
    assert ran.returncode == code, f"exit code {ran.returncode}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def test_looking_at_the_log_counts_and_shows_whole_points(data_dir: Path, tmp_path: Path) -> None:
    assert run("wal", "cat", data=data_dir).encode() == b"".join(NOTES)
    for limit in (1, 4, 7, 38):
        assert run("wal", "cat", "--limit", str(limit), data=data_dir).encode() == b"".join(NOTES[:limit])
    assert run("wal", "cat", "--seq", "3..4", data=data_dir).encode() == b"".join(NOTES[10:20])
    picked = run("wal", "cat", "--measurement", "note2", data=data_dir).encode()
    assert picked == b"".join(NOTES[2::5])
    run("wal", "export", tmp_path / "all.lp.gz", data=data_dir)
    assert gzip.decompress((tmp_path / "all.lp.gz").read_bytes()) == b"".join(NOTES)
    run("wal", "export", tmp_path / "some.lp.gz", "--measurement", "note4", data=data_dir)
    assert gzip.decompress((tmp_path / "some.lp.gz").read_bytes()) == b"".join(NOTES[4::5])
    assert json.loads(run("wal", "status", "--json", data=data_dir))["points_kept"] == POINTS
    assert "everything is whole" in run("wal", "verify", data=data_dir)


def test_an_export_is_imported_and_sent_again_as_it_was(data_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.lp.gz"
    run("wal", "export", file, data=data_dir)
    run("wal", "import", file, data=tmp_path / "other")
    assert run("wal", "cat", data=tmp_path / "other").encode() == b"".join(NOTES)
    with Service(tmp_path / "third", logs=tmp_path, settings={"wal.keep_confirmed_s": 3600}) as service:
        for scheme in ("ws", "http"):
            ran = run_command("send", file, "--to", f"{scheme}://127.0.0.1:{service.port}")
            assert ran.returncode == 0, ran.stderr
        assert service.stop() == 0
    assert run("wal", "cat", data=tmp_path / "third").encode() == 2 * b"".join(NOTES)


@pytest.mark.parametrize("points_max", [1, 3, 1000])
def test_a_replay_writes_whole_points(data_dir: Path, database: FakeInfluxDB, points_max: int) -> None:
    told = run("replay", "--seq", "1..", "--batch-points", str(points_max), data=data_dir, database=database)
    assert f"confirmed  {POINTS}" in told
    assert written(database) == sorted(NOTES)
    assert all(len(cut(request.lines)) <= points_max for request in database.requests)


def test_a_replay_of_one_measurement_writes_its_points_whole(data_dir: Path, database: FakeInfluxDB) -> None:
    run("replay", "--seq", "1..", "--measurement", "note3", data=data_dir, database=database)
    assert written(database) == sorted(NOTES[3::5])


def test_a_replay_of_the_archive_writes_whole_points(
    data_dir: Path, database: FakeInfluxDB, tmp_path: Path
) -> None:
    day = data_dir / "archive" / "2026-11-22"
    day.mkdir(parents=True)
    (day / "21.lp.gz").write_bytes(compress(b"".join(NOTES[:13])) + compress(b"".join(NOTES[13:])))
    asked = ("--from", "archive", "--since", "2026-11-22T21:00:00Z")
    told = run("replay", *asked, "--batch-points", "3", data=data_dir, database=database)
    assert f"confirmed  {POINTS}" in told
    assert written(database) == sorted(NOTES)


def refuses_bad(request: Request) -> Answer:
    if b'text="bad' not in request.lines:
        return Answer()
    said = b'{"code": "unprocessable entity", "message": "field type conflict"}'
    return Answer(422, said, {"Content-Type": "application/json"})


def test_a_replay_sets_a_refused_point_aside_with_all_its_lines(
    tmp_path: Path, database: FakeInfluxDB
) -> None:
    clock = Clock(START_NS)
    store = open_store(tmp_path / "node", clock, keep_confirmed_s=0)
    store.wal.commit([[NewEntry(b"".join([*NOTES[:20], BAD]), 21, START_NS, "", Destination())]])
    store.close()
    database.answer = refuses_bad
    run(
        "replay",
        "--seq",
        "1..",
        "--rejected",
        tmp_path / "r.jsonl",
        data=tmp_path / "node",
        database=database,
        code=1,
    )
    (row,) = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert row["line"] == BAD.decode().removesuffix("\n")
    taken = [
        point for request in database.requests if b"bad" not in request.lines for point in cut(request.lines)
    ]
    assert sorted(b"note" + each for each in set(taken)) == sorted(NOTES[:20])


def test_a_refused_point_is_found_by_halving_parked_shown_exported_and_retried_whole(
    tmp_path: Path, database: FakeInfluxDB
) -> None:
    database.answer = refuses_bad
    data = tmp_path / "data"
    with Service(data, logs=tmp_path, settings=settings_for(database)) as service:
        body = b"".join([*NOTES[:20], BAD, *NOTES[20:]])
        assert service.post("/write?db=x", body, {}) == 204
        told = service.wait_drained("influxdb")
        assert service.stop() == 0
    assert told["sinks"]["influxdb"]["parked"] == 1
    (letter,) = json.loads(run("dead-letters", "show", "--json", data=data))
    assert letter["line"] == BAD.decode().removesuffix("\n")
    assert BAD.decode() in run("dead-letters", "show", data=data)
    run("dead-letters", "export", tmp_path / "letters.lp.gz", data=data)
    exported = gzip.decompress((tmp_path / "letters.lp.gz").read_bytes())
    assert split_points(exported, 1) == [BAD]
    run("wal", "import", tmp_path / "letters.lp.gz", data=tmp_path / "other")
    assert run("wal", "cat", data=tmp_path / "other").encode() == BAD
    database.answer = lambda _request: Answer()
    database.requests.clear()
    run("dead-letters", "retry", data=data, database=database)
    assert [request.lines for request in database.requests if request.lines] == [BAD]
    assert json.loads(run("dead-letters", "show", "--json", data=data)) == []


def test_bytes_that_are_no_utf_8_are_read_by_send_and_import_as_the_node_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "latin.lp"
    file.write_bytes(b'cpu,unit=\xb0C v=1 1\nlog text="B\xfcro\n\x80",v=2 2\n')
    want = 'cpu,unit=°C v=1 1\nlog text="Büro\n€",v=2 2\n'
    run("wal", "import", file, data=tmp_path / "imported")
    assert run("wal", "cat", data=tmp_path / "imported") == want
    with Service(tmp_path / "sent", logs=tmp_path, settings={"wal.keep_confirmed_s": 3600}) as service:
        for scheme in ("ws", "http"):
            ran = run_command("send", file, "--to", f"{scheme}://127.0.0.1:{service.port}")
            assert ran.returncode == 0, ran.stderr
        assert service.stop() == 0
    assert run("wal", "cat", data=tmp_path / "sent") == 2 * want
