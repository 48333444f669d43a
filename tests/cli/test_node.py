"""What a command does to a data directory that no node has open."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.wal.factories import open_store
from wal_ingest.cli.appending import DirectDoor
from wal_ingest.cli.node import operate
from wal_ingest.errors import ConfigError
from wal_ingest.settings import ServerSettings, Settings
from wal_ingest.wal.cursor import Cursor

SOMEBODY = 61_234


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A stopped node's directory with one sink."""
    store = open_store(tmp_path)
    store.commit_cursor("influxdb", Cursor())
    store.close()
    return tmp_path


def as_root(data_dir: Path, monkeypatch: pytest.MonkeyPatch, *, owner: int) -> None:
    """The directory is `owner`'s, and this is root."""
    whole = Path.stat

    def stat(path: Path, **how: bool) -> os.stat_result:
        found = whole(path, **how)
        return os.stat_result((*found[:4], owner, *found[5:])) if path.parent == data_dir else found

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.parametrize("known", [True, False])
def test_root_leaves_nothing_in_another_users_directory_that_would_keep_the_node_from_starting(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    def somebody(_uid: int) -> pwd.struct_passwd:
        if not known:
            raise KeyError
        return pwd.struct_passwd(("telemetry", "x", SOMEBODY, 1, "", "/", "/bin/false"))

    before = sorted(data_dir.rglob("*"))
    settings = Settings(server=ServerSettings(data_dir=str(data_dir)))
    as_root(data_dir, monkeypatch, owner=SOMEBODY)
    monkeypatch.setattr(pwd, "getpwuid", somebody)
    name = "telemetry" if known else f"#{SOMEBODY}"
    for act in (lambda: operate(settings, "sink.pause", sink="influxdb"), lambda: DirectDoor(settings)):
        with pytest.raises(ConfigError, match=f"belongs to {name}") as told:
            act()
        assert f"sudo -u '{name}'" in told.value.hint
    assert sorted(data_dir.rglob("*")) == before


def test_a_directory_of_roots_own_is_roots_to_open(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(server=ServerSettings(data_dir=str(data_dir)))
    as_root(data_dir, monkeypatch, owner=0)
    assert operate(settings, "sink.pause", sink="influxdb") == {}
