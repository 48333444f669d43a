"""`wal-ingest send` as it is typed, against a real node: formats, ways, refusals, and ends of every kind."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_wal_taking import stored, stored_lines
from tests.rigs.forked import quick_command
from tests.rigs.processes import Process, free_port, http_status, wait_until
from tests.rigs.service import COMMAND, Service, environment, run_bytes

SETTINGS = {"wal.keep_confirmed_s": 3600, "log.level": "warning"}


def send(*arguments: str | Path, stdin: bytes = b"", token: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `wal-ingest send` to its end."""
    ran = run_bytes("send", *arguments, stdin=stdin, env={"WAL_INGEST_TOKEN": token} if token else None)
    return subprocess.CompletedProcess(ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A node for all tests of this file: they keep apart by names of their own."""
    folder = tmp_path_factory.mktemp("node")
    with Service(folder / "data", logs=folder, settings=SETTINGS) as service:
        yield service


@pytest.fixture(params=["ws", "http"])
def to(request: pytest.FixtureRequest, node: Service) -> str:
    """The node, by either way."""
    return node.url.replace("http", request.param)


def of(node: Service, name: str) -> list[bytes]:
    """The lines of a measurement that the node has."""
    return [line for line in stored_lines(node.data_dir).splitlines() if line.startswith(name.encode())]


FLEET = {"serverId": "web-17", "cpu": 0.5, "ram": 1.0, "timestamp": 1_763_800_000_000}


def test_every_format_goes_every_way(to: str, node: Service, tmp_path: Path) -> None:
    name = "f" + to[:2]
    objects = [{"measurement": name, "fields": {"v": n}, "timestamp": n} for n in range(2500)]
    (tmp_path / "a.lp").write_bytes(b"".join(b"%s v=%d.5 %d\n" % (name.encode(), n, n) for n in range(2500)))
    (tmp_path / "b.json").write_text(json.dumps(objects))
    (tmp_path / "c.ndjson.gz").write_bytes(
        gzip.compress("\n".join(json.dumps(each) for each in objects).encode())
    )
    (tmp_path / "d.csv").write_text("at,room,v\n" + "".join(f"{n},r{n % 3},{n}\n" for n in range(2500)))
    files = [tmp_path / each for each in ("a.lp", "b.json", "c.ndjson.gz")]
    told = json.loads(send(*files, "--to", to, "--json").stdout)
    assert (told["to"], told["points"], told["frames"], told["rejected"]) == (to, 7500, 9, 0)
    assert told["seq"] == stored(node.data_dir)[-1].seq
    ran = send(
        tmp_path / "d.csv", "--to", to, "--measurement", name, "--tag", "room", "--time", "at",
        "--precision", "ms", "--org", "acme", "--bucket", name,
    )  # fmt: skip
    assert ran.stdout == f"2,500 points in 3 frames taken by {to}\n"
    lines = of(node, name)
    assert len(lines) == 10_000
    assert lines[0] == b"%s v=0.5 0" % name.encode()
    assert lines[2499 + 2] == b"%s v=1.0 1000000" % name.encode()
    assert lines[-1] == b"%s,room=r0 v=2499 2499000000" % name.encode()
    last = stored(node.data_dir)[-1].destination
    assert (last.org, last.bucket) == ("acme", name)


def test_standard_input_is_sent_as_it_comes(node: Service) -> None:
    child = subprocess.Popen(
        [quick_command(), "send", "-", "--to", node.url.replace("http", "ws")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({}),
    )
    assert child.stdin is not None
    child.stdin.write(b"slow v=1\n")
    child.stdin.flush()
    wait_until(lambda: len(of(node, "slow ")) == 1, "the first line is there before the input ends")
    out, err = child.communicate(b"slow v=2\n", timeout=60)
    assert (child.returncode, err) == (0, b"")
    assert out.startswith(b"2 points in 2 frames taken by ws://")
    assert len(of(node, "slow ")) == 2


def test_a_bad_line_ends_it_with_its_place_and_the_way_on(to: str, node: Service, tmp_path: Path) -> None:
    name = ("bad" + to[:2]).encode()
    file = tmp_path / "bad.lp"
    file.write_bytes(b"# c\n" + b"".join(b"%s v=%d %d\n" % (name, n, n) for n in range(1500)) + b"no point\n")
    ran = send(file, "--to", to)
    assert ran.returncode == 1
    assert (
        ran.stderr
        == (
            f"error: {file}: line 1502, column 9: the end of the body where a space and the fields should follow\n"
            "try: write such lines to a file and go on, with --skip-invalid FILE; taken: 1,501 lines of "
            f"{file}; go on behind that with --skip-lines 1501\n"
        )
        or "line 1502, column 9: " in ran.stderr
    )
    assert len(of(node, name.decode())) == 1500
    again = send(file, "--to", to, "--skip-lines", "1501", "--skip-invalid", tmp_path / "rejected.lp")
    assert again.returncode == 0, again.stderr
    assert "rejected: 1 record, in " in again.stdout
    assert (tmp_path / "rejected.lp").read_bytes().endswith(b"\nno point\n")
    assert len(of(node, name.decode())) == 1500


def test_what_only_the_node_refuses_is_set_aside_as_well(tmp_path: Path) -> None:
    lines = [b'm v=%d,t="%s" %d\n' % (n, b"x" * (1900 if n in (7, 8, 1500) else 9), n) for n in range(2000)]
    (tmp_path / "a.lp").write_bytes(b"".join(lines))
    with Service(
        tmp_path / "data", logs=tmp_path, settings={**SETTINGS, "server.line_bytes_max": 1500}
    ) as strict:
        to = strict.url.replace("http", "ws")
        ran = send(tmp_path / "a.lp", "--to", to)
        assert ran.returncode == 1
        assert "a.lp: line 8: the line is longer than 1500 bytes (server.line_bytes_max)" in ran.stderr
        rejected = tmp_path / "rejected.lp"
        for way, count in ((to, 1), (strict.url, 2)):
            ran = send(tmp_path / "a.lp", "--to", way, "--skip-invalid", rejected, "--bucket", f"b{count}")
            assert ran.stdout.startswith("1,997 points in 2 frames taken by "), ran.stderr
            assert (
                b"".join(rejected.read_bytes().splitlines(keepends=True)[1::2])
                == lines[7] + lines[8] + lines[1500]
            )
            rejected.unlink()
            entries = [each for each in stored(strict.data_dir) if each.destination.bucket == f"b{count}"]
            assert sum(each.points for each in entries) == 1997


def untimed(count: int) -> bytes:
    """Lines without times: one that is stored twice is two points."""
    return b"".join(b"kill,n=%d v=1\n" % n for n in range(count))


def numbers(data_dir: Path) -> list[int]:
    """Which of them are stored."""
    lines = stored_lines(data_dir).splitlines()
    return sorted(int(line.split(b"=")[1].split(b" ")[0]) for line in lines)


def gets_on(child: Process, place: Callable[[], int], to: int) -> None:
    """Waits until a command has come so far, or has ended."""
    wait_until(lambda: place() > to or not child.running, "it gets on", every_s=0.005)


def test_killed_again_and_again_it_sends_every_line_once(tmp_path: Path) -> None:
    count = 60_000
    (tmp_path / "a.lp").write_bytes(untimed(count))
    progress = tmp_path / "progress.json"
    kills = 0
    with Service(tmp_path / "data", logs=tmp_path, settings=SETTINGS) as service:
        command: list[str | Path] = [
            COMMAND, "send", tmp_path / "a.lp", "--to", service.url.replace("http", "ws"),
            "--resume", progress, "--batch-points", "100",
        ]  # fmt: skip

        def place() -> int:
            return json.loads(progress.read_text())["mark"]["place"]["records"] if progress.exists() else 0

        for _ in range(4):
            child = Process(
                "send", [*command, "--rate", "40000"], log=tmp_path / "send.log", env=environment({})
            )
            gets_on(child, place, place() + 3_000)
            # What the command does between two notes of its progress cannot be seen from here, and a kill must do no
            # harm at any of those moments: so one is drawn.
            time.sleep(random.random() * 0.1)
            kills += child.running
            child.end()
        ran = subprocess.run(
            command, capture_output=True, text=True, env=environment({}), check=False, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("60,000 points in 600 frames taken by ")
        assert kills >= 2
        assert numbers(service.data_dir) == list(range(count))
        again = send(*command[2:], "--json")
        assert json.loads(again.stdout)["points"] == count
        assert numbers(service.data_dir) == list(range(count))


def more_come(data: Path) -> None:
    """Waits until there are more points than now."""
    now = len(numbers(data))
    wait_until(lambda: len(numbers(data)) > now, "more points come")


def test_a_node_that_is_away_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.lp").write_bytes(untimed(30_000))
    port = free_port()
    data = tmp_path / "data"
    err = tmp_path / "send.err"
    child = Process(
        "send",
        [COMMAND, "send", tmp_path / "a.lp", "--to", f"ws://127.0.0.1:{port}", "--rate", "6000"],
        log=err, stdout=tmp_path / "send.out", env=environment({}),
    )  # fmt: skip
    serve: list[str | Path] = [COMMAND, "serve", "--data-dir", data, "--bind", f"127.0.0.1:{port}"]
    wait_until(
        lambda: "Connection refused; going on as soon as it takes points again" in err.read_text(),
        "it says so",
    )
    for _ in range(2):
        node = Process("node", serve, log=tmp_path / "node.log", env=environment(SETTINGS))
        wait_until(lambda: http_status(f"http://127.0.0.1:{port}/healthz") == 200, "the node is there")
        more_come(data)
        node.kill()
    node = Process("node", serve, log=tmp_path / "node.log", env=environment(SETTINGS))
    wait_until(lambda: not child.running, "it ends", s_max=60)
    assert child.exit_code == 0, err.read_text()
    assert numbers(data) == list(range(30_000))
    node.end()


def test_a_signal_ends_it_and_the_same_command_goes_on(tmp_path: Path, node: Service) -> None:
    (tmp_path / "a.lp").write_bytes(b"".join(b"sig,n=%d v=1\n" % n for n in range(40_000)))
    out, err = tmp_path / "out", tmp_path / "err"
    to = node.url.replace("http", "ws")
    resume: list[str | Path] = ["--resume", tmp_path / "progress.json"]
    command: list[str | Path] = [COMMAND, "send", tmp_path / "a.lp", "--to", to, *resume]
    child = Process("send", [*command, "--rate", "10000"], log=err, stdout=out, env=environment({}))
    wait_until(lambda: len(of(node, "sig,")) > 2_000, "some are sent")
    child.signal(signal.SIGINT)
    wait_until(lambda: not child.running, "it ends")
    assert child.exit_code == 1
    assert err.read_text() == (
        f"error: interrupted\ntry: the same command goes on where this one ended: {resume[1]} knows\n"
    )
    # All that was sent is settled, so nothing is in doubt.
    kept = json.loads((tmp_path / "progress.json").read_text())["mark"]
    assert kept["points"] == len(of(node, "sig,"))
    assert send(*command[2:]).returncode == 0
    assert len(of(node, "sig,")) == 40_000


def test_without_progress_a_signal_names_the_lines_to_skip(tmp_path: Path, node: Service) -> None:
    (tmp_path / "a.lp").write_bytes(b"".join(b"cut,n=%d v=1\n" % n for n in range(40_000)))
    err = tmp_path / "err"
    command: list[str | Path] = [COMMAND, "send", tmp_path / "a.lp", "--to", node.url.replace("http", "ws")]
    child = Process(
        "send", [*command, "--rate", "10000"], log=err, stdout=tmp_path / "out", env=environment({})
    )
    wait_until(lambda: len(of(node, "cut,")) > 2_000, "some are sent")
    child.signal(signal.SIGTERM)
    wait_until(lambda: not child.running, "it ends")
    assert child.exit_code == 1
    taken = len(of(node, "cut,"))
    assert f"go on behind that with --skip-lines {taken}\n" in err.read_text()
    assert send(*command[2:], "--skip-lines", str(taken)).returncode == 0
    assert len(of(node, "cut,")) == 40_000


def test_a_signal_ends_it_while_it_waits_for_standard_input(tmp_path: Path, node: Service) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stdin, os.fdopen(write, "wb") as producer:
        err = tmp_path / "err"
        command: list[str | Path] = [COMMAND, "send", "-", "--to", node.url.replace("http", "ws")]
        child = Process("send", command, log=err, env=environment({}), stdin=stdin)
        producer.write(b"held,n=1 v=1\nheld,n=2 ")
        producer.flush()
        wait_until(lambda: len(of(node, "held,")) == 1, "what came is sent")
        child.signal(signal.SIGINT)
        wait_until(lambda: not child.running, "it ends")
    assert (child.exit_code, "error: interrupted" in err.read_text()) == (1, True), err.read_text()


@pytest.mark.parametrize("waits", [True, False], ids=["in a read", "in the parser"])
def test_it_ends_in_order_whatever_its_reader_is_at(waits: bool) -> None:
    """The interpreter must not be taken down under a thread that holds standard input's lock, or runs in RE2."""
    lines = b"".join(b'busy,n=%d v="a b",w=%d\n' % (n, n) for n in range(100_000))
    command = [str(COMMAND), "send", "-", "--to", "ws://", "--batch-points", "10000"]
    child = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({}),
    )
    with child:
        assert child.stdin is not None
        assert child.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            # Standard input stays open behind what is written.
            child.stdin.write(gzip.compress(lines)[:1000] if waits else lines)
        said = child.stderr.read()
    assert (child.returncode, said) == (
        2,
        b"error: the URL names no host\ntry: such as ws://127.0.0.1:8400\n",
    )


def test_progress_belongs_to_its_files_its_node_and_its_options(tmp_path: Path, node: Service) -> None:
    file, progress = tmp_path / "a.lp", tmp_path / "progress.json"
    file.write_bytes(b"prog v=1 1\n")
    to = node.url.replace("http", "ws")
    same: list[str | Path] = [file, "--to", to, "--resume", progress]
    assert send(*same).returncode == 0
    for arguments, words in (
        ([*same, "--precision", "s"], "was begun without --precision"),
        ([*same, "--batch-points", "7"], "was begun with --batch-points 1000"),
        ([file, *same], "was begun with other files"),
        ([file, "--to", node.url, "--resume", progress], f"was begun with --to {to}"),
        ([*same, "--skip-lines", "1"], "--resume knows itself"),
        (["-", *same[1:]], "is no file"),
    ):
        ran = send(*arguments)
        assert (ran.returncode, words in ran.stderr) == (2, True), ran.stderr
    file.write_bytes(b"prog v=1 1\nprog v=2 2\n")
    ran = send(*same)
    assert ran.returncode == 2
    assert (
        f"error: {file} has changed since {progress} was begun: it has 22 bytes, and had 11\n" in ran.stderr
    )
    progress.write_text("{}")
    assert "is no progress of wal-ingest send" in send(*same).stderr
    assert len(of(node, "prog")) == 1


def test_rejected_records_and_progress_go_together(tmp_path: Path, node: Service) -> None:
    file, progress, rejected = tmp_path / "a.lp", tmp_path / "p.json", tmp_path / "rejected.lp"
    file.write_bytes(b"rej v=1 1\nrej v=lots\nrej v=3 3\n")
    same: list[str | Path] = [file, "--to", node.url.replace("http", "ws"), "--resume", progress]
    ran = send(*same)
    assert (ran.returncode, "line 2, column 7" in ran.stderr) == (1, True)
    # With progress a piece stays whole.
    assert of(node, "rej") == []
    told = json.loads(send(*same, "--skip-invalid", rejected, "--json").stdout)
    assert (told["points"], told["rejected"]) == (2, 1)
    assert rejected.read_bytes().endswith(b"\nrej v=lots\n")
    assert of(node, "rej") == [b"rej v=1 1", b"rej v=3 3"]


def test_a_wrong_token_is_a_usage_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "a.lp").write_bytes(b"m v=1 1\n")
    settings = {**SETTINGS, "server.write_token": "right"}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
        for to in (service.url, service.url.replace("http", "ws")):
            refused = send(tmp_path / "a.lp", "--to", to, "--token", "wrong")
            assert (refused.returncode, "WAL_INGEST_TOKEN" in refused.stderr) == (2, True), refused.stderr
            assert "wrong" not in refused.stderr.replace("wrong token", "")
            assert send(tmp_path / "a.lp", "--to", to, token="right").returncode == 0
        assert stored_lines(service.data_dir) == b"m v=1 1\n" * 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.lp"], 1, "nowhere.lp cannot be read: No such file or directory"),
        (["-", "--to", "ftp://x"], 2, "is no address of a server"),
        (["-", "--to", "ws://"], 2, "names no host"),
        (["-", "--format", "xml"], 2, "is no format"),
        (["-", "--format", "csv"], 2, "CSV needs a measurement"),
        (["-", "--precision", "h"], 2, "is no unit"),
        (["nowhere.lp", "--resume", "p"], 2, "nowhere.lp cannot be read"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_makes_no_sense_is_said(
    arguments: list[str], code: int, words: str, node: Service, tmp_path: Path
) -> None:
    where = [] if "--to" in arguments else ["--to", node.url.replace("http", "ws")]
    ran = subprocess.run(
        [quick_command(), "send", *arguments, *where],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment({}),
        input="a,b\n1,2\n",
        cwd=tmp_path,
    )
    assert (ran.returncode, words in ran.stderr) == (code, True), ran.stderr
    assert list(tmp_path.iterdir()) == []


def noted(name: str, count: int) -> list[bytes]:
    """Points whose strings hold line feeds."""
    return [b'%s text="%s\nb",n=%di %d\n' % (name.encode(), b"a\n" * (n % 5), n, n + 1) for n in range(count)]


def test_strings_with_line_feeds_are_sent_whole_and_a_bad_one_alone_is_rejected(
    to: str, node: Service, tmp_path: Path
) -> None:
    notes = noted("note" + to[:2], 60)
    bad = b'note text="bad\nb",n=x 1\n'
    path, rejected = tmp_path / "a.lp", tmp_path / "rejected.lp"
    path.write_bytes(b"".join([*notes[:7], bad, *notes[7:]]))
    ran = send(path, "--to", to, "--batch-points", "4", "--skip-invalid", rejected)
    assert ran.returncode == 0, ran.stderr
    assert b"".join(notes) in stored_lines(node.data_dir)
    number = b"".join(notes[:7]).count(b"\n") + 1
    assert b"a.lp: line %d: " % number in rejected.read_bytes()
    assert rejected.read_bytes().endswith(b"\n" + bad)


def test_a_node_that_refuses_a_record_of_several_lines_has_it_set_aside_alone(tmp_path: Path) -> None:
    notes = noted("m", 20)
    long = b'm text="a\nb\n%s",n=1i 1\n' % (b"x" * 1900)
    path, rejected = tmp_path / "a.lp", tmp_path / "rejected.lp"
    path.write_bytes(b"".join([*notes[:7], long, *notes[7:]]))
    settings = {**SETTINGS, "server.line_bytes_max": 1500}
    with Service(tmp_path / "data", logs=tmp_path, settings=settings) as strict:
        to = strict.url.replace("http", "ws")
        ran = send(path, "--to", to, "--skip-invalid", rejected)
        assert ran.returncode == 0, ran.stderr
        assert stored_lines(strict.data_dir) == b"".join(notes)
    assert rejected.read_bytes().endswith(b"\n" + long)
    assert b"a.lp: line %d" % (b"".join(notes[:7]).count(b"\n") + 1) in rejected.read_bytes()


def test_resume_within_strings_with_line_feeds_stores_nothing_twice(node: Service, tmp_path: Path) -> None:
    notes = noted("resumed", 60)
    path = tmp_path / "a.lp"
    path.write_bytes(b"".join([*notes[:31], b'resumed text="bad\nb",n=x 1\n', *notes[31:]]))
    command: list[str | Path] = [path, "--to", node.url.replace("http", "ws"), "--batch-points", "4"]
    command += ["--resume", tmp_path / "progress.json"]
    assert send(*command).returncode == 1
    assert notes[20] in stored_lines(node.data_dir)
    assert notes[31] not in stored_lines(node.data_dir)
    ran = send(*command, "--skip-invalid", tmp_path / "rejected.lp")
    assert ran.returncode == 0, ran.stderr
    found = stored_lines(node.data_dir)
    assert [found.count(note) for note in notes] == [1] * len(notes)


def test_a_csv_cell_with_a_line_break_arrives_as_one_point(to: str, node: Service, tmp_path: Path) -> None:
    name = "cell" + to[:2]
    (tmp_path / "a.csv").write_text('note,v,at\n"a\nb",1,1\nc,2,2\n')
    ran = send(
        tmp_path / "a.csv", "--to", to, "--measurement", name, "--time", "at", "--precision", "ns", "--json"
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["points"] == 2
    assert b'%s note="a\nb",v=1' % name.encode() in stored_lines(node.data_dir)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.lp", "m v=1 1\n".encode("utf-16"), "x.lp is UTF-16, and only UTF-8 is read\ntry: iconv"),
        ("x.csv", "at,v\n1,1\n".encode("utf-16"), "x.csv is UTF-16, and only UTF-8 is read\ntry: iconv"),
        (
            "x.csv",
            b"at,v\r1,1\r2,2\r",
            "x.csv: line 1: a carriage return within a line, and lines end with a line feed\ntry: tr ",
        ),
        ("x.csv", b"at,v\n1," + b"a" * 140_000, "x.csv: line 2: a cell has more than 131072 characters"),
        ("x.json", b'[{"a":1},', "x.json: the JSON is malformed: it is cut short\ntry: "),
        ("x.json", b"[1,]", "x.json: the JSON is malformed: a comma where nothing follows"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_plain_words(
    to: str, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    ran = send(tmp_path / name, "--to", to, "--measurement", "odd", "--time", "at", "--precision", "ns")
    assert ran.returncode == 1
    assert words in ran.stderr


def test_a_byte_order_mark_of_a_file_is_no_part_of_its_first_point(
    to: str, node: Service, tmp_path: Path
) -> None:
    name = "marked" + to[:2]
    (tmp_path / "x.lp").write_bytes(b"\xef\xbb\xbf%s v=1 1\n" % name.encode())
    ran = send(tmp_path / "x.lp", "--to", to)
    assert ran.returncode == 0, ran.stderr
    assert of(node, name) == [b"%s v=1 1" % name.encode()]
