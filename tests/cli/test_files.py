"""Files that commands write and read: devices, pipes and links stay what they are, and pipes are read as pipes."""

from __future__ import annotations

import gzip
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from tests.cli.test_wal_taking import stored_lines
from tests.rigs.forked import quick_command
from tests.rigs.service import Service, environment, run_command
from wal_ingest.cli.outfile import OutFile
from wal_ingest.errors import ConfigError

LINE = b"cpu,host=a v=1 1763800000000000000\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with one point."""
    folder = tmp_path_factory.mktemp("wal")
    points = folder / "points.lp"
    points.write_bytes(LINE)
    ran = run_command("wal", "import", points, "--data-dir", folder / "data")
    assert ran.returncode == 0, ran.stderr
    return folder / "data"


@pytest.fixture(params=[(), ("--measurement", "cpu")], ids=["whole", "picked"])
def export(request: pytest.FixtureRequest, data: Path) -> list[str]:
    """Either way of `wal export`, but for its file."""
    return ["wal", "export", "--force", "--data-dir", str(data), *request.param]


def test_a_device_is_written_into_and_stays_a_device(tmp_path: Path, export: list[str]) -> None:
    null = tmp_path / "null"
    try:
        os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("devices can be made by root only")
    ran = run_command(*export, null)
    assert ran.returncode == 0, ran.stderr
    assert stat.S_ISCHR(null.lstat().st_mode)


def test_a_named_pipe_gets_the_points_and_stays_a_pipe(tmp_path: Path, export: list[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    ran = run_command(*export, pipe)
    reader.join(10)
    assert ran.returncode == 0, ran.stderr
    assert gzip.decompress(got[0]) == LINE
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, export: list[str]) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("x")
    link.symlink_to("target")
    ran = run_command(*export, link)
    assert ran.returncode == 0, ran.stderr
    assert link.readlink() == Path("target")
    assert gzip.decompress(target.read_bytes()) == LINE
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link"}


def test_standard_output_by_its_name_goes_to_the_reader(data: Path, export: list[str]) -> None:
    before = Path("/dev/stdout").readlink()
    ran = subprocess.run(
        [quick_command(), *export, "/dev/stdout"],
        capture_output=True,
        check=False,
        timeout=60,
        env=environment({}),
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(gzip.compress(b"")[:2])
    assert Path("/dev/stdout").readlink() == before


def test_a_directory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        OutFile(str(tmp_path), force=True)


def test_a_file_that_is_there_is_refused_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("x")
    (tmp_path / "link").symlink_to("there")
    for name in ("there", "link"):
        with pytest.raises(ConfigError, match="is there already"):
            OutFile(str(tmp_path / name))
    assert (tmp_path / "there").read_text() == "x"


def test_a_reader_that_leaves_early_is_no_error_of_the_disk(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    opened = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_RDONLY)))
    opened.start()

    def write_much() -> None:
        with OutFile(str(pipe)) as out:
            opened.join(10)
            for _ in range(4):
                out.write(b"x" * 65_536)

    with pytest.raises(BrokenPipeError):
        write_much()
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


@pytest.fixture(params=["plain", "gzip"])
def sent(request: pytest.FixtureRequest) -> bytes:
    """A line of its own, as it comes through a pipe."""
    line = b"piped,as=%s v=1 1763800000000000000\n" % request.param.encode()
    return gzip.compress(line) if request.param == "gzip" else line


def piped(sent: bytes, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a command that reads `/dev/stdin`, a pipe under a file's name."""
    return subprocess.run(
        [quick_command(), *arguments],
        input=sent,
        capture_output=True,
        check=False,
        timeout=60,
        env=environment({}),
    )


def test_a_pipe_is_imported_as_a_pipe(tmp_path: Path, sent: bytes) -> None:
    ran = piped(sent, "wal", "import", "/dev/stdin", "--data-dir", tmp_path / "data")
    assert ran.returncode == 0, ran.stderr
    assert b"piped" in stored_lines(tmp_path / "data")


@pytest.mark.parametrize("way", ["ws", "http"])
def test_a_pipe_is_sent_as_a_pipe(tmp_path: Path, sent: bytes, way: str) -> None:
    with Service(tmp_path / "data", logs=tmp_path, settings={"wal.keep_confirmed_s": 3600}) as service:
        ran = piped(sent, "send", "/dev/stdin", "--to", service.url.replace("http", way))
        assert ran.returncode == 0, ran.stderr
        assert b"piped" in stored_lines(tmp_path / "data")
        refused = piped(sent, "send", "/dev/stdin", "--resume", tmp_path / "r", "--to", service.url)
        assert refused.returncode == 2
        assert b"cannot be read again" in refused.stderr
