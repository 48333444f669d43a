"""Whose settings a command works with: the running node's, those of the file that was found, or the defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flusher.sinks.http_fake import Answer, fake_influxdb
from tests.rigs.processes import wait_until
from tests.rigs.service import Service, environment, run_command
from tests.wal.factories import open_store
from wal_ingest import config
from wal_ingest.cli.node_settings import directory_of, settings_of_node, settings_on_disk
from wal_ingest.control import ask
from wal_ingest.errors import ConfigError, WalIngestError
from wal_ingest.wal.directory import DirectoryLock

AWAY = "http://127.0.0.1:9"
TOKEN = "the-databases-token"
TEXT = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A node whose database is away, with points that wait for it."""
    root = tmp_path_factory.mktemp("node")
    settings: dict[str, object] = {
        "influxdb.url": AWAY,
        "influxdb.bucket": "b",
        "influxdb.token": TOKEN,
        "server.write_token": "the-senders-token",
        "flusher.batch_points_max": 7,
    }
    with Service(root / "data", logs=root, settings=settings) as service:
        service.post("/metrics", b"m f=1 1\n", {**TEXT, "Authorization": "Bearer the-senders-token"})
        yield service


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory on a machine without any settings."""
    for name in os.environ.keys() - environment({}).keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "SEARCHED", (Path("wal-ingest.toml"), tmp_path / "etc" / "wal-ingest.toml"))
    return tmp_path


def write_settings(path: Path, batch_points_max: int, *more: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["[flusher]", f"batch_points_max = {batch_points_max}", *more]) + "\n")
    return path


# -- beside a node that runs -------------------------------------------------------------------------------


def test_a_check_beside_a_node_checks_the_database_of_that_node(node: Service) -> None:
    ran = run_command("sink", "check", "--data-dir", node.data_dir)
    assert ran.returncode == 1
    assert "influxdb: address: WRONG" in ran.stdout
    assert ran.stderr == f"settings: those of the node that runs on {node.data_dir}\n"
    shown = run_command("sink", "check", "--json", "--data-dir", node.data_dir)
    assert list(json.loads(shown.stdout)) == ["influxdb"]
    assert TOKEN not in ran.stdout + ran.stderr + shown.stdout + shown.stderr


def test_a_replay_beside_a_node_goes_to_the_database_of_that_node(node: Service) -> None:
    ran = run_command("replay", "--since", "1h", "--dry-run", "--json", "--data-dir", node.data_dir)
    assert json.loads(ran.stdout)["to"] == {"url": AWAY, "org": "", "bucket": "b"}
    assert "settings: those of the node that runs on " in ran.stderr


def test_dead_letters_beside_a_node_are_retried_with_the_settings_and_the_token_of_that_node(
    tmp_path: Path,
) -> None:
    with fake_influxdb() as database:
        database.answer = lambda _request: Answer(
            400, b'{"message": "partial write: field type conflict dropped=1"}'
        )
        settings: dict[str, object] = {
            "influxdb.url": database.url,
            "influxdb.bucket": "b",
            "influxdb.token": TOKEN,
        }
        with Service(tmp_path / "data", logs=tmp_path, settings=settings) as service:
            service.post("/metrics", b"m f=1 1\n", TEXT)
            wait_until(lambda: parked(service) == 1, "the point is parked")
            database.answer = lambda _request: Answer(204)
            database.requests.clear()
            ran = run_command("dead-letters", "retry", "--data-dir", service.data_dir)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            assert parked(service) == 0
    assert "influxdb: 1 of 1 point written" in ran.stdout
    assert "settings: those of the node that runs on " in ran.stderr


def parked(service: Service) -> int:
    shown = run_command("sink", "status", "--json", "--data-dir", service.data_dir)
    found: int = json.loads(shown.stdout)["influxdb"]["parked"]
    return found


def test_a_variable_of_the_commands_environment_goes_over_the_nodes_settings_and_is_named(
    node: Service,
) -> None:
    ran = run_command(
        "sink", "check", "--data-dir", node.data_dir, settings={"influxdb.url": "http://127.0.0.1:19"}
    )
    assert "127.0.0.1:19" in ran.stdout
    assert "with WAL_INGEST_INFLUXDB__URL of this environment" in ran.stderr


def test_a_file_that_is_named_is_checked_before_the_node_is_restarted_with_it(
    node: Service, alone: Path
) -> None:
    file = write_settings(alone / "new.toml", 8)
    ran = run_command("sink", "check", "--config", file, "--data-dir", node.data_dir)
    assert ran.returncode == 0
    assert "archive: " in ran.stdout
    assert ran.stderr == f"settings: {file}, not those of the node that runs on {node.data_dir}\n"


def test_the_node_is_asked_although_a_wrong_file_lies_about(
    node: Service, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (alone / "wal-ingest.toml").write_text("[flusher]\nno_such_key = 1\n")
    found = settings_of_node(None, data_dir=str(node.data_dir))
    assert found.flusher.batch_points_max == 7
    assert found.server.data_dir == str(node.data_dir)
    assert "settings: those of the node that runs on " in capsys.readouterr().err


def test_the_node_is_found_by_the_directory_in_the_file(
    node: Service, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(alone / "wal-ingest.toml", 8, "[server]", f'data_dir = "{node.data_dir}"')
    assert settings_of_node(None, data_dir=None).flusher.batch_points_max == 7
    assert "settings: those of the node that runs on " in capsys.readouterr().err


def test_the_node_tells_the_databases_token_to_its_own_user_and_never_the_senders(node: Service) -> None:
    told = ask(node.data_dir, "settings")
    assert told["influxdb.token"] == TOKEN
    assert "server.write_token" not in told
    assert "command=settings" not in node.process.log_tail()


def test_the_import_beside_a_node_names_the_address_of_that_node(node: Service, tmp_path: Path) -> None:
    lines = tmp_path / "late.lp"
    lines.write_bytes(b"m f=1 1\n")
    ran = run_command("wal", "import", lines, "--data-dir", node.data_dir)
    assert ran.returncode == 2
    assert f"--url http://127.0.0.1:{node.port}," in ran.stderr


def test_a_node_that_does_not_tell_its_settings_is_an_error_and_the_defaults_are_not_taken(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = DirectoryLock(alone)
    try:
        with pytest.raises(WalIngestError, match="does not answer") as told:
            settings_of_node(None, data_dir=str(alone))
        assert "--config FILE" in told.value.hint

        def older(_data_dir: Path, _command: str) -> object:
            raise WalIngestError("this node does not know the command")

        monkeypatch.setattr("wal_ingest.control.ask", older)
        with pytest.raises(WalIngestError, match="does not report its settings") as told:
            settings_of_node(None, data_dir=str(alone))
        assert "older version" in told.value.hint
    finally:
        lock.close()


def test_settings_of_another_versions_node_are_taken_as_far_as_they_are_known(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = DirectoryLock(alone)
    monkeypatch.setattr(
        "wal_ingest.control.ask",
        lambda _data_dir, _command: {"flusher.batch_points_max": 9, "flusher.of_the_future": 1},
    )
    try:
        assert settings_of_node(None, data_dir=str(alone)).flusher.batch_points_max == 9
    finally:
        lock.close()


# -- without a node ----------------------------------------------------------------------------------------


def test_without_a_node_the_first_file_that_is_there_is_taken_and_named(
    alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    named: list[tuple[Path | None, str]] = []

    def look(file: Path | None = None) -> int:
        settings = settings_of_node(file, data_dir=str(alone / "data"))
        named.append((file, capsys.readouterr().err))
        return settings.flusher.batch_points_max

    assert look() == 1_000
    assert "settings: the defaults; no node runs on" in named[-1][1]
    machine = write_settings(alone / "etc" / "wal-ingest.toml", 1)
    assert (look(), named[-1][1].split(";")[0]) == (1, f"settings: {machine}")
    write_settings(alone / "wal-ingest.toml", 2)
    assert (look(), named[-1][1].split(";")[0]) == (2, "settings: wal-ingest.toml")
    monkeypatch.setenv("WAL_INGEST_CONFIG", str(write_settings(alone / "variable.toml", 3)))
    assert (look(), named[-1][1].split(";")[0]) == (3, f"settings: {alone / 'variable.toml'}")
    typed = write_settings(alone / "typed.toml", 4)
    assert (look(typed), named[-1][1].split(";")[0]) == (4, f"settings: {typed}")
    monkeypatch.setenv("WAL_INGEST_FLUSHER__BATCH_POINTS_MAX", "5")
    assert look(typed) == 5
    assert "with WAL_INGEST_FLUSHER__BATCH_POINTS_MAX of this environment" in named[-1][1]


def test_a_file_of_another_directory_is_said_to_be_one(
    alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_settings(alone / "wal-ingest.toml", 2, "[server]", 'data_dir = "/var/lib/elsewhere"')
    settings_of_node(None, data_dir=str(alone / "copy"))
    assert "(whose data directory is /var/lib/elsewhere)" in capsys.readouterr().err
    settings_on_disk(None, data_dir=str(alone / "copy"))
    assert "(whose data directory is /var/lib/elsewhere)" in capsys.readouterr().err


def test_a_file_that_may_not_be_looked_at_is_an_error_and_not_passed_over(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.stat

    def stat(path: Path, **how: bool) -> os.stat_result:
        if path.parent.name == "etc":
            raise PermissionError(13, "Permission denied")
        return whole(path, **how)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ConfigError, match="Permission denied") as told:
        settings_on_disk(None, data_dir=str(alone))
    assert "as the node's user" in told.value.hint


def test_a_command_that_only_looks_needs_no_file_where_its_directory_is_given(
    alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(alone / "wal-ingest.toml", 2, "[server]", 'data_dir = "/var/lib/there"')
    assert directory_of(None, data_dir=None) == Path("/var/lib/there")
    assert capsys.readouterr().err == "settings: wal-ingest.toml\n"
    monkeypatch.setenv("WAL_INGEST_SERVER__DATA_DIR", "there")
    assert directory_of(None, data_dir=None) == Path("there")
    (alone / "wal-ingest.toml").write_text("[flusher]\nno_such_key = 1\n")
    assert directory_of(None, data_dir="here") == Path("here")
    assert capsys.readouterr().err == ""


def test_a_stopped_node_is_found_by_every_command_from_its_settings_file(tmp_path: Path) -> None:
    open_store(tmp_path / "data").close()
    file = write_settings(tmp_path / "node.toml", 2, "[server]", f'data_dir = "{tmp_path / "data"}"')
    env = environment({}) | {"WAL_INGEST_CONFIG": str(file)}
    for words in (("wal", "status"), ("sink", "status"), ("dead-letters", "list"), ("wal", "verify")):
        ran = run_command(*words, env=env)
        assert ran.returncode == 0, (words, ran.stderr)
