"""`wal import` and `wal salvage`: points go in whole or are told where they stopped, directly and through a server."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.rigs.forked import quick_command
from tests.rigs.prepared import POINTS, lines, prepare
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, environment, run_bytes
from tests.wal.factories import open_store, read_all
from tests.wal.test_damage import flip, zero, zero_tree
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.reading import WalReader


def wal(
    *arguments: str | Path, data: Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs `wal-ingest wal …` to its end, as bytes."""
    return run_bytes("wal", *arguments, "--data-dir", data, env=env, stdin=stdin)


def stored(data: Path) -> list[Entry]:
    """Every entry that can be read."""
    with WalReader(data) as reader:
        return [item for item in reader.entries() if isinstance(item, Entry)]


def stored_lines(data: Path) -> bytes:
    """Every line that can be read."""
    return b"".join(entry.lines() for entry in stored(data))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The prepared data directory."""
    prepare(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Service]:
    """A running server that keeps what it delivered."""
    with Service(tmp_path / "data", logs=tmp_path, settings={"wal.keep_confirmed_s": 3600}) as service:
        yield service


class Moody(BaseHTTPRequestHandler):
    """Answers with the statuses of a list, in turn, then as a node that stored the points; keeps what it took.

    `says` is the body of every answer that is not a confirmation. With a `token` it asks for it.
    """

    moods: ClassVar[list[int]] = []
    taken: ClassVar[list[tuple[str, bytes]]] = []
    says: ClassVar[bytes] = b""
    token: ClassVar[str] = ""

    def do_POST(self) -> None:
        """Takes a body, or not."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.moods.pop(0) if self.moods else 202
        if self.token and self.headers["Authorization"] != f"Bearer {self.token}":
            status = 401
        if status == 0:
            self.close_connection = True
            return
        said = self.says
        if status == 202:
            lines = gzip.decompress(body)
            self.taken.append((self.path, lines))
            said = self.says or b'{"received":true,"points":%d,"seq":1}' % lines.count(b"\n")
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_args: object) -> None:
        """Says nothing."""


@pytest.fixture
def moody() -> Iterator[str]:
    """The address of a server with moods."""
    Moody.moods, Moody.taken, Moody.says, Moody.token = [], [], b"", ""
    server = HTTPServer(("127.0.0.1", 0), Moody)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


# -- import ---------------------------------------------------------------------------------------------


def test_an_import_into_a_directory_without_a_log_says_that_it_made_one(tmp_path: Path) -> None:
    """The name may be mistyped."""
    ran = wal("import", "-", data=tmp_path / "dta", stdin=lines(1))
    assert ran.stdout.endswith(f"taken into a new WAL in {tmp_path / 'dta'}\n".encode())


def test_plain_and_gzip_files_and_standard_input_are_taken_alike(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.lp", tmp_path / "b.lp.gz"
    plain.write_bytes(lines(1))
    packed.write_bytes(gzip.compress(lines(2)) + gzip.compress(lines(3)))
    data = tmp_path / "data"
    told = json.loads(wal("import", plain, packed, "--json", "--org", "o", "--bucket", "b", data=data).stdout)
    assert (told["lines"], told["points"]) == (3 * POINTS, 3 * POINTS)
    again = wal("import", "-", data=data, stdin=lines(4))
    assert again.stdout.endswith(f"taken into the WAL in {data}\n".encode())
    assert stored_lines(data) == b"".join(lines(number) for number in range(1, 5))
    first = stored(data)[0]
    assert (first.source, first.destination.org, first.destination.bucket) == ("import", "o", "b")


def test_many_chunks_keep_every_line_and_their_order(tmp_path: Path) -> None:
    every = b"".join(b"cpu,host=web-%d v=%d %d\n" % (n % 99, n, n + 1) for n in range(120_000))
    (tmp_path / "big.lp").write_bytes(every[:-1])  # without the last line feed
    ran = wal("import", tmp_path / "big.lp", data=tmp_path / "data")
    assert ran.stdout.startswith(b"120,000 points in 120,000 lines taken into a new WAL in ")
    assert stored_lines(tmp_path / "data") == every
    assert max(entry.points for entry in stored(tmp_path / "data")) == 1000


def test_times_comments_and_blank_lines_are_as_in_a_request(tmp_path: Path) -> None:
    ran = wal("import", "-", "--precision", "s", data=tmp_path / "data", stdin=b"# c\n\nm v=1 5\r\nm v=2\n")
    assert ran.stdout.startswith(b"2 points in 4 lines taken")
    first, second = stored_lines(tmp_path / "data").splitlines()
    assert first == b"m v=1 5000000000"
    assert second.startswith(b"m v=2 1")


BAD = b"m v=1 1\nm v=2 2\nm v=lots 3\nm v=4 4\nno point\nm v=6 6\n"


def test_a_line_that_is_no_point_ends_the_import_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "bad.lp"
    file.write_bytes(BAD)
    ran = wal("import", file, data=tmp_path / "data")
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {file}: line 3, column 5: the field value is neither".encode())
    assert b"--skip-invalid" in ran.stderr
    assert b"--skip-lines 2" in ran.stderr
    assert stored_lines(tmp_path / "data") == b"m v=1 1\nm v=2 2\n"
    again = wal("import", file, "--skip-lines", "3", data=tmp_path / "data")
    assert f"{file}: line 5, column 9".encode() in again.stderr
    assert wal("import", file, "--skip-lines", "5", data=tmp_path / "data").returncode == 0
    assert stored_lines(tmp_path / "data") == b"m v=1 1\nm v=2 2\nm v=4 4\nm v=6 6\n"


def test_invalid_lines_may_be_set_aside_with_their_reasons(tmp_path: Path) -> None:
    file, rejected = tmp_path / "bad.lp", tmp_path / "rejected.lp"
    file.write_bytes(BAD)
    told = json.loads(
        wal("import", file, "--skip-invalid", rejected, "--json", data=tmp_path / "data").stdout
    )
    assert (told["lines"], told["points"], told["rejected"]) == (6, 4, 2)
    assert stored_lines(tmp_path / "data") == b"m v=1 1\nm v=2 2\nm v=4 4\nm v=6 6\n"
    found = rejected.read_bytes().splitlines()
    assert found[1::2] == [b"m v=lots 3", b"no point"]
    assert found[0].startswith(f"# {file}: line 3, column 5: ".encode())
    assert found[2].startswith(f"# {file}: line 5, column ".encode())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (gzip.compress(b"m v=1 1\n", mtime=0)[:-6], "cannot be read"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
        ("m v=1 1\n".encode("utf-16"), "is UTF-16, and only UTF-8 is read\ntry: iconv -f UTF-16 -t UTF-8"),
        (gzip.compress("m v=1 1\n".encode("utf-16"), mtime=0), "is UTF-16, and only UTF-8 is read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "x.gz"
    if content is not None:
        file.write_bytes(content)
    ran = wal("import", file, data=tmp_path / "data")
    assert ran.returncode == 1
    assert f"error: {file} {words}" in ran.stderr.decode()


@pytest.mark.parametrize("more", [["--precision", "min"], ["--url", "ftp://x"], ["--url", "http://x:99999"]])
def test_options_that_make_no_sense_are_usage_errors(tmp_path: Path, more: list[str]) -> None:
    assert wal("import", "-", *more, data=tmp_path / "data").returncode == 2


def test_a_running_server_is_asked_for_and_takes_what_is_sent_to_it(server: Service, tmp_path: Path) -> None:
    refused = wal("import", "-", data=server.data_dir, stdin=lines(1))
    assert refused.returncode == 2
    assert b"is in use by process" in refused.stderr
    assert b"--url http://" in refused.stderr
    sent = wal("import", "-", "--url", server.url, "--bucket", "b", data=server.data_dir, stdin=lines(1))
    assert sent.returncode == 0, sent.stderr
    assert stored_lines(server.data_dir) == lines(1)
    assert {entry.destination.bucket for entry in stored(server.data_dir)} == {"b"}


def test_a_server_that_is_busy_is_waited_for(moody: str, tmp_path: Path) -> None:
    Moody.moods = [503, 429, 0, 503]
    ran = wal("import", "-", "--url", moody + "/", "--org", "a b", data=tmp_path, stdin=lines(1))
    assert ran.returncode == 0, ran.stderr
    assert Moody.taken == [("/metrics?org=a+b&precision=ns", lines(1))]
    assert ran.stderr.count(b"answered 503") == 1


def test_a_body_that_is_too_large_is_halved(moody: str, tmp_path: Path) -> None:
    Moody.moods = [413, 413]
    body = b"".join(lines(number) for number in range(1, 5))
    assert wal("import", "-", "--url", moody, data=tmp_path, stdin=body).returncode == 0
    assert b"".join(taken for _path, taken in Moody.taken) == body
    assert len(Moody.taken) == 3


def test_a_server_that_refuses_ends_the_import_and_says_how_far_it_came(moody: str, tmp_path: Path) -> None:
    every = b"".join(b"m v=%d %d\n" % (n, n + 1) for n in range(100_000))
    Moody.moods = [202, 401]
    ran = wal("import", "-", "--url", moody, data=tmp_path, stdin=every)
    assert ran.returncode == 1
    assert b"answered 401" in ran.stderr
    [(_path, taken)] = Moody.taken
    assert f"--skip-lines {taken.count(chr(10).encode())}".encode() in ran.stderr


@pytest.mark.parametrize(
    ("status", "says", "words"),
    [
        (200, b"hello", 'HTTP 200 with "hello"'),
        (200, b"<html><title>Login</title>", 'HTTP 200 with an HTML page titled "Login"'),
        (200, b'{"error":"database not found"}', 'HTTP 200 with an error: "database not found"'),
        (204, b"", "HTTP 204 with an empty body"),
        (202, b'{"received":true,"points":1,"seq":1}', f"HTTP 202 confirms 1 points, and {POINTS} were sent"),
    ],
)
def test_an_answer_that_no_node_gives_takes_no_points_for_imported(
    moody: str, tmp_path: Path, status: int, says: bytes, words: str
) -> None:
    Moody.moods, Moody.says = [status], says
    ran = wal("import", "-", "--url", moody, data=tmp_path, stdin=lines(1))
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert words in ran.stderr.decode()
    assert b"try: the address must be that of a wal-ingest node" in ran.stderr


def token_by(way: str, folder: Path) -> tuple[list[str | Path], dict[str, str]]:
    """Options and environment that give a command the node's token."""
    (folder / "token").write_text("s3cret\n")
    by_way: dict[str, list[str | Path]] = {
        "option": ["--token", "s3cret"],
        "file": ["--token-file", folder / "token"],
    }
    return by_way.get(way, []), {"WAL_INGEST_TOKEN": "s3cret"} if way == "environment" else {}


def test_a_byte_order_mark_of_a_file_is_no_part_of_its_first_point(tmp_path: Path) -> None:
    (tmp_path / "x.lp").write_bytes(b"\xef\xbb\xbfcpu v=1 1\nmem v=2 2\n")
    ran = wal("import", tmp_path / "x.lp", data=tmp_path / "data")
    assert ran.returncode == 0, ran.stderr
    assert stored_lines(tmp_path / "data") == b"cpu v=1 1\nmem v=2 2\n"


@pytest.mark.parametrize("way", ["option", "file", "environment"])
def test_a_protected_server_takes_an_import_with_its_token(moody: str, tmp_path: Path, way: str) -> None:
    Moody.token = "s3cret"
    options, env = token_by(way, tmp_path)
    ran = wal("import", "-", "--url", moody, *options, data=tmp_path / "data", stdin=lines(1), env=env)
    assert ran.returncode == 0, ran.stderr
    assert Moody.taken


def test_without_a_token_a_protected_server_is_named_with_the_remedy(moody: str, tmp_path: Path) -> None:
    Moody.token = "s3cret"
    ran = wal("import", "-", "--url", moody, data=tmp_path, stdin=lines(1))
    assert (ran.returncode, Moody.taken) == (1, [])
    assert b"try: give the node's write token with --token, --token-file or WAL_INGEST_TOKEN" in ran.stderr


def test_two_tokens_and_a_token_file_without_a_token_are_usage_errors(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    cases: list[list[str | Path]] = [["--token", "t", "--token-file", empty], ["--token-file", empty]]
    for options in cases:
        ran = wal("import", "-", "--url", "http://127.0.0.1:9", *options, data=tmp_path, stdin=lines(1))
        assert ran.returncode == 2, ran.stderr


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [quick_command(), "wal", "import", "-", "--url", "http://127.0.0.1:9", "--data-dir", tmp_path],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({}),
    )
    _out, err = child.communicate(lines(1), timeout=60)
    assert child.returncode == 1
    assert b"http://127.0.0.1:9 cannot be reached: " in err


def test_an_interrupted_import_says_how_many_lines_are_taken(moody: str, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [quick_command(), "wal", "import", "-", "--url", moody, "--data-dir", tmp_path],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({}),
    )
    every = b"".join(b"m v=%d %d\n" % (n, n + 1) for n in range(100_000))
    assert child.stdin is not None
    child.stdin.write(every)
    child.stdin.flush()
    wait_until(lambda: bool(Moody.taken), "the first chunk is taken")
    child.send_signal(signal.SIGTERM)
    _out, err = child.communicate(timeout=30)
    assert child.returncode == 1
    taken = sum(body.count(b"\n") for _path, body in Moody.taken)
    assert err.startswith(b"error: interrupted\n")
    assert f"--skip-lines {taken}\n".encode() in err


def test_a_full_wal_takes_nothing_more(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[wal]\nwal_bytes_max = 1048576\nsegment_bytes_max = 1048576\n")
    noise = b"".join(b'm t="%s" %d\n' % (str(hash((n, 1)) ** 7).encode() * 30, n + 1) for n in range(12_000))
    ran = wal("import", "-", "--config", config, data=tmp_path / "data", stdin=noise)
    assert ran.returncode == 1
    assert b"wal.wal_bytes_max" in ran.stderr
    taken = stored_lines(tmp_path / "data").count(b"\n")
    assert f"--skip-lines {taken}\n".encode() in ran.stderr


# -- salvage --------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(data: Path) -> Path:
    """A data directory in which the second segment was set aside: its tree is gone, entry 4 is broken."""
    second = sorted((data / "wal").glob("*.lmdb"))[1]
    place = second.read_bytes().index(lines_member(data, 4)) + 100
    flip(second, place)
    zero_tree(second)
    open_store(data).close()
    return data


def lines_member(data: Path, seq: int) -> bytes:
    """An entry's payload as it is stored."""
    [payload] = [entry.payload for entry in stored(data) if entry.seq == seq]
    return payload


def set_aside(data: Path) -> Path:
    """The file that was set aside."""
    [path] = (data / "wal/damaged").glob("*.lmdb")
    return path


def test_a_dry_run_says_what_is_to_be_had_and_does_nothing(damaged: Path) -> None:
    evidence = set_aside(damaged).read_bytes()
    told = json.loads(wal("salvage", "--all", "--dry-run", "--json", data=damaged).stdout)
    assert (told["to"], told["entries"], told["points"]) == ("", 1, POINTS)
    [file] = told["files"]
    assert [(lost["first_seq"], lost["last_seq"], lost["points"]) for lost in file["lost"]] == [
        (4, 4, POINTS)
    ]
    assert set_aside(damaged).read_bytes() == evidence
    assert not list((damaged / "wal/damaged").glob("*.salvaged.json"))


def test_salvaged_entries_come_back_with_what_they_had(damaged: Path) -> None:
    evidence = set_aside(damaged).read_bytes()
    ran = wal("salvage", "--all", data=damaged)
    assert ran.returncode == 0, ran.stderr
    assert b"1,000 points of 1 entry are in the WAL in " in ran.stdout
    last = stored(damaged)[-1]
    assert (last.seq, last.lines(), last.source) == (7, lines(3), "web-a")
    assert (last.destination.org, last.destination.bucket) == ("acme", "metrics")
    assert last.accepted_ns == 1_795_381_200 * 10**9 + 2 * 600 * 10**9
    assert set_aside(damaged).read_bytes() == evidence
    note = json.loads((damaged / "wal/damaged" / f"{set_aside(damaged).name}.salvaged.json").read_text())
    assert (note["entries"], note["points"], note["to"]) == (1, POINTS, f"the WAL in {damaged}")
    assert [lost["first_seq"] for lost in note["lost"]] == [4]
    store = open_store(damaged)
    assert [seq for seq, _lines in read_all(store)] == [1, 2, 5, 6, 7]
    store.close()
    assert wal("verify", data=damaged).returncode == 0
    told = json.loads(wal("status", "--json", data=damaged).stdout)
    assert told["damaged"] == [set_aside(damaged).name]


def test_what_was_salvaged_is_not_salvaged_again_by_mistake(damaged: Path) -> None:
    assert wal("salvage", "--all", data=damaged).returncode == 0
    count = len(stored(damaged))
    passed = wal("salvage", "--all", data=damaged)
    assert (passed.returncode, b"was salvaged before" in passed.stdout) == (0, True)
    refused = wal("salvage", set_aside(damaged), data=damaged)
    assert (refused.returncode, b"--again" in refused.stderr) == (2, True)
    assert len(stored(damaged)) == count
    assert wal("salvage", set_aside(damaged), "--again", data=damaged).returncode == 0
    assert len(stored(damaged)) == count + 1


def test_points_may_be_salvaged_into_a_file(damaged: Path, tmp_path: Path) -> None:
    out = tmp_path / "salvaged.lp.gz"
    assert wal("salvage", "--all", "--out", out, data=damaged).returncode == 0
    assert gzip.decompress(out.read_bytes()) == lines(3)
    assert len(stored(damaged)) == 4
    refused = wal("salvage", "--all", "--again", "--out", out, data=damaged)
    assert (refused.returncode, b"is there already" in refused.stderr) == (2, True)


def test_two_files_with_the_same_entries_give_them_once(damaged: Path, tmp_path: Path) -> None:
    copy = tmp_path / set_aside(damaged).name
    copy.write_bytes(set_aside(damaged).read_bytes())
    told = json.loads(wal("salvage", set_aside(damaged), copy, "--json", data=damaged).stdout)
    assert (told["entries"], [file["already"] for file in told["files"]]) == (1, [0, 1])


def test_a_running_server_takes_what_is_salvaged(damaged: Path, tmp_path: Path) -> None:
    settings = {"wal.keep_confirmed_s": 3600, "wal.segment_bytes_max": 1 << 20}
    with Service(damaged, logs=tmp_path, settings=settings) as server:
        refused = wal("salvage", "--all", data=damaged)
        assert (refused.returncode, b"--url http://" in refused.stderr) == (2, True)
        ran = wal("salvage", "--all", "--url", server.url, data=damaged)
        assert ran.returncode == 0, ran.stderr
        last = stored(damaged)[-1]
        assert (last.lines(), last.destination.bucket) == (lines(3), "metrics")


@pytest.mark.parametrize("way", ["option", "file", "environment"])
def test_a_protected_server_takes_what_is_salvaged_with_its_token(
    damaged: Path, moody: str, tmp_path: Path, way: str
) -> None:
    Moody.token = "s3cret"
    refused = wal("salvage", "--all", "--url", moody, data=damaged)
    assert (refused.returncode, Moody.taken) == (1, [])
    assert (
        b"try: give the node's write token with --token, --token-file or WAL_INGEST_TOKEN" in refused.stderr
    )
    options, env = token_by(way, tmp_path)
    ran = wal("salvage", "--all", "--url", moody, *options, data=damaged, env=env)
    assert ran.returncode == 0, ran.stderr
    assert [taken for _path, taken in Moody.taken] == [lines(3)]


def test_an_answer_that_no_node_gives_takes_no_points_for_salvaged(damaged: Path, moody: str) -> None:
    Moody.moods, Moody.says = [200], b"<html><title>Login</title>"
    ran = wal("salvage", "--all", "--url", moody, data=damaged)
    assert ran.returncode == 1
    assert b'HTTP 200 with an HTML page titled "Login"' in ran.stderr
    assert not list((damaged / "wal/damaged").glob("*.salvaged.json"))


def test_a_refused_salvage_leaves_no_note(damaged: Path, moody: str) -> None:
    Moody.moods = [400]
    ran = wal("salvage", "--all", "--url", moody, data=damaged)
    assert (ran.returncode, b"answered 400" in ran.stderr) == (1, True)
    assert not list((damaged / "wal/damaged").glob("*.salvaged.json"))


def test_a_segment_that_the_opening_sets_aside_is_salvaged_all_the_same(data: Path) -> None:
    path = sorted((data / "wal").glob("*.lmdb"))[1]
    zero(path, 0)
    ran = wal("salvage", path, data=data)
    assert ran.returncode == 0, ran.stderr
    assert b"set aside as damaged: " in ran.stderr
    assert [entry.seq for entry in stored(data)] == [1, 2, 5, 6, 7, 8]
    assert set_aside(data).with_name(path.name + ".salvaged.json").exists()


def test_a_file_without_anything_to_salvage_is_told(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "00000000000000000099.lmdb"
    path.write_bytes(b"nothing")
    told = json.loads(wal("salvage", path, "--json", data=data).stdout)
    assert (told["entries"], told["files"][0]["lost"][0]["first_seq"]) == (0, 99)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--all", "x"], ["nowhere.lmdb"], ["--all", "--out", "x", "--url", "http://127.0.0.1:1"]],
    ids=" ".join,
)
def test_a_salvage_of_nothing_or_of_too_much_is_a_usage_error(data: Path, arguments: list[str]) -> None:
    assert wal("salvage", *arguments, data=data).returncode == 2


# -- strings with line feeds ----------------------------------------------------------------------------

NOTES = [b'note text="%s\nb",n=%di %d\n' % (b"a\n" * (n % 5), n, n + 1) for n in range(40)]


def test_strings_with_line_feeds_are_imported_whole_and_stay_whole(tmp_path: Path) -> None:
    # The long string spans the chunks that a file is read in.
    every = [*NOTES[:20], b'note text="%s" 21\n' % (b"x\n" * 500_000), *NOTES[20:]]
    path, data = tmp_path / "a.lp", tmp_path / "data"
    path.write_bytes(b"".join(every))
    ran = wal("import", path, data=data)
    assert ran.stdout.startswith(b"41 points in "), ran.stderr
    assert stored_lines(data) == b"".join(every)
    assert wal("cat", data=data).stdout == b"".join(every)
    assert wal("cat", "--limit", "3", data=data).stdout == b"".join(every[:3])
    assert gzip.decompress(wal("export", "-", data=data).stdout) == b"".join(every)


def test_a_bad_record_among_strings_with_line_feeds_is_rejected_alone(tmp_path: Path) -> None:
    path, data, rejected = tmp_path / "a.lp", tmp_path / "data", tmp_path / "rejected.lp"
    bad = b'note text="bad\nb",n=x 1\n'
    path.write_bytes(b"".join([*NOTES[:7], bad, *NOTES[7:]]))
    number = b"".join(NOTES[:7]).count(b"\n") + 1
    ran = wal("import", path, data=data)
    assert ran.returncode == 1
    assert b"a.lp: line %d: " % number in ran.stderr
    assert b"--skip-lines %d" % (number - 1) in ran.stderr
    assert stored_lines(data) == b"".join(NOTES[:7])
    again = wal("import", path, "--skip-lines", str(number - 1), "--skip-invalid", rejected, data=data)
    assert again.returncode == 0, again.stderr
    assert stored_lines(data) == b"".join(NOTES)
    assert rejected.read_bytes().endswith(b"\n" + bad)


def test_a_quote_that_is_not_closed_swallows_no_line_of_an_import(tmp_path: Path) -> None:
    path, data = tmp_path / "a.lp", tmp_path / "data"
    path.write_bytes(lines(1) + b'm s="open 1\n' + lines(2))
    ran = wal("import", path, "--skip-invalid", tmp_path / "rejected.lp", data=data)
    assert ran.returncode == 0, ran.stderr
    assert stored_lines(data) == lines(1) + lines(2)
