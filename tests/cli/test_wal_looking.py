"""`wal ls`, `cat`, `verify`, `export`: they change nothing, survive their readers, and tell what is lost."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.node_dir import make_node_dir
from tests.rigs.forked import quick_command
from tests.rigs.prepared import ENTRIES, POINTS, START_NS, lines, prepare
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, environment, run_bytes, run_command
from tests.wal.factories import new_entry, open_store
from tests.wal.test_damage import flip, zero_tree
from wal_ingest.cli.wal.ls import listing

ALL_LINES = b"".join(lines(number) for number in range(1, ENTRIES + 1))
LOOKS = (
    ["status"],
    ["ls"],
    ["cat"],
    ["cat", "--json"],
    ["verify"],
    ["export", "-"],
    ["salvage", "--all", "--dry-run"],
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The prepared data directory."""
    prepare(tmp_path / "data")
    return tmp_path / "data"


def wal(*arguments: str | Path, data: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs `wal-ingest wal …` to its end, as bytes."""
    return run_bytes("wal", *arguments, "--data-dir", data)


def tree(directory: Path) -> dict[str, tuple[int, int, int, str]]:
    """Everything in a directory: mode, size, time of the last change, digest."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        stat = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(directory))] = (stat.st_mode, stat.st_size, stat.st_mtime_ns, digest)
    return found


def segments(data: Path) -> list[Path]:
    """The segments' files."""
    return sorted((data / "wal").glob("*.lmdb"))


def as_somebody_else(arguments: list[str], data: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a command as a user who owns nothing (nobody), where this one may become that."""
    # Once for nothing as this user, so that everything is imported: nobody else may be able to read the installation.
    code = """
import contextlib, os, sys
from wal_ingest.cli import app, main
sys.argv = ["wal-ingest", *sys.argv[1:]]
shown = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
with contextlib.suppress(SystemExit):
    app()
sys.stdout.flush()
os.dup2(shown, 1)
os.setgid(65534)
os.setuid(65534)
main()
"""
    return subprocess.run(
        [sys.executable, "-c", code, "wal", *arguments, "--data-dir", data],
        capture_output=True,
        check=False,
        timeout=60,
        env=environment({}),
    )


@pytest.mark.parametrize("arguments", LOOKS, ids=" ".join)
def test_a_look_changes_no_byte_and_no_time(data: Path, arguments: list[str]) -> None:
    before = tree(data)
    assert wal(*arguments, data=data).returncode == 0
    assert tree(data) == before


def test_output_that_cannot_be_written_is_an_error(data: Path) -> None:
    for arguments in (["wal", "verify", "--data-dir", data], ["config", "sample"], ["--version"]):
        with Path("/dev/full").open("wb") as full:
            ran = subprocess.run(
                [quick_command(), *arguments], stdout=full, stderr=subprocess.PIPE, env=environment({})
            )
        assert (ran.returncode, ran.stderr) == (
            1,
            b"error: the output could not be written: No space left on device\n",
        )


@pytest.mark.parametrize("arguments", LOOKS[1:5], ids=" ".join)
def test_a_look_works_for_another_user_on_what_is_read_only(
    data: Path, arguments: list[str], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # The folders of a test run belong to its user alone; nobody may at least go through them.
    for path in (tmp_path, *tmp_path.parents):
        if path == Path(tempfile.gettempdir()) or path == path.parent:
            break
        path.chmod(path.stat().st_mode | 0o011)
    before = tree(data)
    ran = as_somebody_else(arguments, data)
    assert ran.returncode == 0, ran.stderr
    assert tree(data) == before


def test_who_may_not_look_is_told_so(data: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    (data / "wal").chmod(0o700)
    for command in ("ls", "cat", "verify"):
        ran = as_somebody_else([command], data)
        error, remedy = ran.stderr.splitlines()
        assert (ran.returncode, error.split(b": ")[-1]) == (2, b"Permission denied")
        assert remedy.startswith(b"try: sudo -u ")


def test_a_listing_has_every_segment_with_its_state(data: Path) -> None:
    told = json.loads(wal("ls", "--json", data=data).stdout)
    assert [
        (row["first_seq"], row["last_seq"], row["entries"], row["points"]) for row in told["segments"]
    ] == [
        (1, 2, 2, 2000),
        (3, 4, 2, 2000),
        (5, 6, 2, 2000),
    ]
    assert [(row["sealed"], row["confirmed"]) for row in told["segments"]] == [
        (True, True),
        (True, False),
        (False, False),
    ]
    assert told["segments"][1]["last_accepted_at"] == "2026-11-22T21:30:00.000000000Z"


def test_a_listing_shows_damage_and_survives_a_lost_state(data: Path) -> None:
    segments(data)[1].write_bytes(b"no LMDB" * 1000)
    (data / "state.lmdb").write_bytes(b"")
    told = wal("ls", data=data)
    assert told.returncode == 0
    assert b"damaged: a meta page is not LMDB's" in told.stdout
    assert b"confirmed" not in told.stdout
    open_store(data).close()
    told = wal("ls", data=data)
    assert b"set aside: damaged/00000000000000000003.lmdb" in told.stdout


def test_600_segments_are_listed_in_less_than_a_second(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    store.wal.seal()
    [first, *_rest] = store.wal.segments()
    content = first.path.read_bytes()
    store.close()
    for number in range(2, 602):
        (tmp_path / "wal" / f"{number + 10:020d}.lmdb").write_bytes(content)
    began = time.process_time()
    found = listing(tmp_path)
    assert len(found.segments) == 602
    assert time.process_time() - began < 1


def test_points_come_as_they_were_stored(data: Path) -> None:
    ran = wal("cat", data=data)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, ALL_LINES, b"")


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        (["--seq", "2..3"], [2, 3]),
        (["--since", "2026-11-22T21:30:00Z"], [4, 5, 6]),
        (["--until", str(START_NS // 10**9 + 1)], [1]),
        (["--source", "web-b", "--seq", "..4"], [2, 4]),
        (["--source", "nobody"], []),
        (["--limit", "0"], []),
        (["--measurement", "cpu", "--measurement", "my disk"], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_filters_choose_entries(data: Path, filters: list[str], numbers: list[int]) -> None:
    assert wal("cat", *filters, data=data).stdout == b"".join(lines(number) for number in numbers)


def test_a_limit_counts_points_and_cuts_within_an_entry(data: Path) -> None:
    found = wal("cat", "--limit", "1500", data=data).stdout
    assert found == b"".join(ALL_LINES.splitlines(keepends=True)[:1500])


def test_a_measurement_chooses_points_within_entries(data: Path) -> None:
    found = wal("cat", "--measurement", "my disk", "--limit", "150", data=data).stdout
    disk = [line for line in ALL_LINES.splitlines(keepends=True) if line.startswith(b"my\\ disk,")]
    assert found == b"".join(disk[:150])


def test_entries_as_json_have_what_the_sender_said(data: Path) -> None:
    rows = [json.loads(line) for line in wal("cat", "--json", "--seq", "2..3", data=data).stdout.splitlines()]
    assert [(row["seq"], row["source"], row["org"], row["points"]) for row in rows] == [
        (2, "web-b", "acme", POINTS),
        (3, "web-a", "acme", POINTS),
    ]
    assert rows[0]["lines"].encode() == lines(2)
    assert rows[0]["accepted_at"] == "2026-11-22T21:10:00.000000000Z"


def test_what_is_lost_is_told_and_the_rest_is_printed(data: Path) -> None:
    flip(segments(data)[0], 20000)
    ran = wal("cat", data=data)
    assert ran.returncode == 3
    assert ran.stdout == ALL_LINES[len(lines(1)) :]
    assert ran.stderr.startswith(b"lost: seq 1 (1,000 points), 00000000000000000001.lmdb at byte ")


@pytest.mark.parametrize(
    "arguments", [["cat"], ["cat", "--json"], ["cat", "--follow"], ["export", "-"]], ids=" ".join
)
def test_a_reader_that_goes_ends_the_command_quietly(data: Path, arguments: list[str]) -> None:
    with (data.parent / "err").open("wb") as err:
        child = subprocess.Popen(
            [quick_command(), "wal", *arguments, "--data-dir", data],
            stdout=subprocess.PIPE,
            stderr=err,
            env=environment({}),
        )
    assert child.stdout is not None
    assert child.stdout.read(10)
    child.stdout.close()
    child.wait(timeout=20)
    # How small the entries get depends on the processor's instructions.
    said = (data.parent / "err").read_bytes()
    assert re.fullmatch(rb"(6,000 points of 6 entries, seqs 1 to 6, \d+\.\d KiB in -\n)?", said), said


def has_lines(out: Path, count: int) -> bool:
    """Whether a file has so many lines."""
    return out.read_bytes().count(b"\n") == count


@contextlib.contextmanager
def following(data: Path, out: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`wal cat --follow` into a file."""
    with out.open("wb") as file:
        child = subprocess.Popen(
            [quick_command(), "wal", "cat", "--follow", *arguments, "--data-dir", data],
            stdout=file,
            stderr=subprocess.PIPE,
            env=environment({}),
        )
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_following_goes_on_beside_a_server_and_ends_on_a_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    # What is confirmed is kept: on a slow machine it would be gone before the command reads it.
    settings = {"wal.segment_s_max": 1, "wal.keep_confirmed_s": 3600}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        service.post("/metrics", b"m v=1 1\n", {"Content-Type": "text/plain"})
        with following(tmp_path / "data", out) as child:
            for n in range(2, 7):
                wait_until(functools.partial(has_lines, out, n - 1), f"{n - 1} points are printed")
                service.post("/metrics", b"m v=1 %d\n" % n, {"Content-Type": "text/plain"})
            wait_until(lambda: out.read_bytes().endswith(b"m v=1 6\n"), "the last point is printed")
            child.send_signal(number)
            _out, err = child.communicate(timeout=10)
            assert (child.returncode, err) == (0, b"")
    assert out.read_bytes() == b"".join(b"m v=1 %d\n" % n for n in range(1, 7))


def test_following_ends_when_the_limit_is_reached(data: Path) -> None:
    out = data.parent / "out"
    with following(data, out, "--limit", "1200") as child:
        assert child.wait(timeout=20) == 0
    assert out.read_bytes().count(b"\n") == 1200


def test_verification_is_silent_about_a_running_server(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path) as service:
        for n in range(1, 20):
            service.post("/metrics", b"m v=1 %d\n" % n, {"Content-Type": "text/plain"})
            if n % 6 == 0:
                ran = wal("verify", data=tmp_path / "data")
                assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, b"everything is whole")


def test_verification_of_damage_needs_an_operator(data: Path) -> None:
    flip(segments(data)[0], 20000)
    zero_tree(segments(data)[1])
    (data / "state.lmdb").write_bytes(b"")
    ran = wal("verify", data=data)
    assert ran.returncode == 3
    for words in (
        b"lost: seq 1 (1,000 points)",
        b"damaged: 00000000000000000003.lmdb: ",
        b"damaged: state.lmdb: ",
    ):
        assert words in ran.stdout
    assert ran.stdout.endswith(b"1,000 points lost in what is listed above\n")


@pytest.mark.parametrize(
    ("gone", "lost"),
    [
        ([0], ["seqs 1 to 2"]),
        ([1], ["seqs 3 to 4"]),
        ([2], ["seqs 5 to 6"]),
        ([0, 1], ["seqs 1 to 4"]),
        ([1, 2], ["seqs 3 to 6"]),
        ([0, 2], ["seqs 1 to 2", "seqs 5 to 6"]),
        ([0, 1, 2], ["seqs 1 to 6"]),
    ],
)
def test_verification_names_what_missing_segments_held(
    tmp_path: Path, gone: list[int], lost: list[str]
) -> None:
    data = make_node_dir(tmp_path / "data", [b"m v=1 1\n" * 5] * 6, sealed_after=(2, 4))
    files = segments(data)
    for index in gone:
        files[index].unlink()
    ran = wal("verify", data=data)
    assert ran.returncode == 3
    said = ran.stdout.decode().splitlines()
    found = [line.partition(" (")[0] for line in said if line.startswith("lost: ")]
    assert sorted(found) == [f"lost: {each}" for each in lost]
    assert "everything is whole" not in said


def test_an_export_is_the_points_in_gzip(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "points.lp.gz"
    told = json.loads(wal("export", out, "--json", data=data).stdout)
    assert gzip.decompress(out.read_bytes()) == ALL_LINES
    assert (told["entries"], told["points"], told["bytes"]) == (6, 6 * POINTS, out.stat().st_size)
    assert gzip.decompress(wal("export", "-", "--seq", "2", data=data).stdout) == lines(2)
    chosen = gzip.decompress(wal("export", "-", "--measurement", "cpu", data=data).stdout)
    assert chosen == b"".join(line for line in ALL_LINES.splitlines(keepends=True) if line.startswith(b"cpu"))


def test_an_export_overwrites_nothing_unless_it_is_told_to(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "points.lp.gz"
    out.write_bytes(b"mine")
    refused = wal("export", out, data=data)
    assert refused.returncode == 2
    assert b"is there already" in refused.stderr
    assert out.read_bytes() == b"mine"
    assert wal("export", out, "--force", data=data).returncode == 0
    assert gzip.decompress(out.read_bytes()) == ALL_LINES
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_an_export_of_small_entries_and_of_none_is_gzip_too(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    for number in range(1, 4):
        store.wal.commit([[new_entry(number)]])
    store.close()
    packed = wal("export", "-", data=tmp_path / "data").stdout
    assert gzip.decompress(packed) == b"m v=1 2\nm v=2 3\nm v=3 4\n"
    assert packed.count(b"\x1f\x8b\x08") == 1
    assert gzip.decompress(wal("export", "-", "--seq", "9", data=tmp_path / "data").stdout) == b""


def test_an_export_of_damage_has_the_rest(data: Path, tmp_path: Path) -> None:
    flip(segments(data)[0], 20000)
    out = tmp_path / "points.lp.gz"
    assert wal("export", out, data=data).returncode == 3
    assert gzip.decompress(out.read_bytes()) == ALL_LINES[len(lines(1)) :]


def test_an_export_into_no_folder_is_an_error(data: Path, tmp_path: Path) -> None:
    ran = wal("export", tmp_path / "nowhere" / "x.gz", data=data)
    assert ran.returncode == 3
    assert b"cannot be written: No such file or directory" in ran.stderr


@pytest.mark.parametrize("command", ["ls", "cat", "verify"])
def test_where_there_is_no_wal_the_command_says_so(tmp_path: Path, command: str) -> None:
    ran = run_command("wal", command, "--data-dir", tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: there is no WAL in ")


def test_every_command_shows_an_example(tmp_path: Path) -> None:
    for command in ("status", "ls", "cat", "verify", "salvage", "export", "import"):
        assert "Example: " in run_command("wal", command, "--help").stdout, command
