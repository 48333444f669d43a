"""Reading that sets damage aside on its way: `Store.read_past_damage`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wal.factories import new_entry, open_store
from tests.wal.test_damage import zero_tree
from wal_ingest.errors import UnknownFormatVersion, WalDamaged
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.recovery import SetAside
from wal_ingest.wal.store import Store


def read(store: Store, after_seq: int = 0) -> tuple[list[int], list[str]]:
    """The seqs that can be read behind one, and the files that were set aside meanwhile."""
    told: list[SetAside] = []
    entries = store.read_past_damage(after_seq, bytes_max=1, seal=store.wal.seal, tell=told.append)
    return [entry.seq for entry in entries], [moved.path.name for moved in told]


def test_the_damaged_segment_is_set_aside_and_reading_goes_on_behind_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    damaged = store.wal.segments()[-1].path
    store.wal.seal()
    store.wal.commit([[new_entry(2)]])
    zero_tree(damaged)
    assert read(store) == ([2], [damaged.name])
    assert read(store) == ([2], [])
    store.close()


def test_the_segment_that_is_written_to_is_sealed_before_it_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    active = store.wal.segments()[-1].path
    really_read = store.wal.read

    def damaged_while_it_is_there(after_seq: int, *, bytes_max: int) -> list[Entry]:
        if active.exists():
            raise WalDamaged(active, "a byte was flipped")
        return really_read(after_seq, bytes_max=bytes_max)

    monkeypatch.setattr(store.wal, "read", damaged_while_it_is_there)
    assert read(store) == ([1], [active.name])
    store.wal.commit([[new_entry(2)]])
    assert read(store, 1) == ([2], [])
    store.close()


def test_what_another_reader_has_set_aside_meanwhile_is_not_told_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    damaged = store.wal.segments()[-1].path
    store.wal.seal()
    zero_tree(damaged)
    really_set_aside = store.wal.set_aside

    def too_late(path: Path, reason: str) -> SetAside | None:
        really_set_aside(path, reason)  # the other one
        return really_set_aside(path, reason)

    monkeypatch.setattr(store.wal, "set_aside", too_late)
    assert read(store) == ([], [])
    assert [moved.path.name for moved in store.wal.damaged] == [damaged.name]
    store.close()


def test_a_file_from_the_future_is_refused_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)]])
    path = store.wal.segments()[-1].path

    def from_the_future(after_seq: int, *, bytes_max: int) -> list[Entry]:
        raise UnknownFormatVersion(path, "version 9 is not known")

    monkeypatch.setattr(store.wal, "read", from_the_future)
    with pytest.raises(UnknownFormatVersion, match="version 9"):
        read(store)
    assert path.exists()
    assert store.wal.damaged == []
    store.close()
