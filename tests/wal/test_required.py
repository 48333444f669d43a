"""Which sinks hold segments: also those that the settings do not name any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wal.factories import new_entry, open_store
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.required import Presence, Requirement, at_start
from wal_ingest.wal.state import read_state
from wal_ingest.wal.store import Store

NOW_NS = 77


def start(
    known: dict[str, Requirement],
    cursors: dict[str, int],
    present: dict[str, Presence],
    *,
    standby: frozenset[str] = frozenset(),
    first_seq: int = 1,
    last_seq: int = 20,
) -> dict[str, bool]:
    """Which absent sinks hold segments after a start."""
    found = {name: Cursor(seq, seq) for name, seq in cursors.items()}
    records = at_start(
        known,
        found,
        present,
        standby_names=standby,
        first_seq=first_seq,
        last_seq=last_seq,
        now_ns=NOW_NS,
    )
    assert all(name in records for name in present)
    return {name: record.holds(found[name].seq) for name, record in records.items() if name not in present}


AUTO = Requirement(True, standby=True)
ON = Presence(True)
ROWS: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {
    "a sink that was required": (start({"b": Requirement(True)}, {"a": 20, "b": 5}, {"a": ON}), {"b": True}),
    "also where it has everything so far": (
        start({"b": Requirement(True)}, {"a": 20, "b": 20}, {"a": ON}),
        {"b": True},
    ),
    "not one that was optional": (
        start({"b": Requirement(False)}, {"a": 20, "b": 5}, {"a": ON}),
        {"b": False},
    ),
    "one that has no record": (start({}, {"a": 20, "b": 5}, {"a": ON}), {"b": True}),
    "not one that was forgotten": (
        start({"b": Requirement(True, absent_since_ns=1, forgotten=True)}, {"a": 20, "b": 5}, {"a": ON}),
        {"b": False},
    ),
    "not a standby sink whose successor is to get the rest": (
        start({"b": AUTO}, {"a": 0, "b": 5}, {"a": ON}),
        {"b": False},
    ),
    "a standby sink without a successor for all of the rest": (
        start({"b": AUTO}, {"a": 12, "b": 5}, {"a": ON}),
        {"b": True},
    ),
    "a standby sink whose successor is optional": (
        start({"b": AUTO}, {"a": 0, "b": 5}, {"a": Presence(False)}),
        {"b": True},
    ),
    "not a standby sink that had everything": (
        start({"b": AUTO}, {"a": 20, "b": 20}, {"a": Presence(False)}),
        {"b": False},
    ),
    "not a standby sink without a record that an earlier version released": (
        start({}, {"a": 20, "b": 5}, {"a": ON}, standby=frozenset(["b"]), first_seq=11),
        {"b": False},
    ),
    "a standby sink without a record that still has its points": (
        start({}, {"a": 20, "b": 5}, {"a": ON}, standby=frozenset(["b"])),
        {"b": True},
    ),
}


@pytest.mark.parametrize(("holds", "expected"), ROWS.values(), ids=ROWS.keys())
def test_which_absent_sinks_hold_segments(holds: dict[str, bool], expected: dict[str, bool]) -> None:
    assert holds == expected


def test_an_absent_standby_sink_holds_what_was_accepted_before_and_nothing_newer() -> None:
    [record] = at_start(
        {"b": AUTO},
        {"b": Cursor(5, 5)},
        {},
        standby_names=frozenset(),
        first_seq=1,
        last_seq=20,
        now_ns=NOW_NS,
    ).values()
    assert record == Requirement(True, standby=True, absent_since_ns=NOW_NS, through_seq=20)
    assert record.holds(19)
    assert not record.holds(20)


def store_with(tmp_path: Path, *sinks: str) -> Store:
    """A store with three entries, of which the sinks have the first."""
    store = open_store(tmp_path)
    for number in (1, 2, 3):
        store.wal.commit([[new_entry(number)]])
    for sink in sinks:
        store.commit_cursor(sink, Cursor(1, 1, confirmed=1))
    return store


def read(store: Store, after_seq: int) -> list[Entry]:
    return store.read_past_damage(after_seq, bytes_max=1, seal=store.wal.seal, tell=lambda _moved: None)


def test_an_absent_sink_holds_over_starts_and_since_when_it_does_stays(tmp_path: Path) -> None:
    store = store_with(tmp_path, "a", "b")
    store.note_sinks({"a": ON, "b": ON}, standby_names=frozenset())
    assert store.absent_sinks() == {}
    for _start in range(2):
        store.note_sinks({"a": ON}, standby_names=frozenset())
        assert store.absent_sinks() == {"b": Requirement(True, absent_since_ns=1_700_000_000_000_000_000)}
        store.close()
        store = open_store(tmp_path)
    store.note_sinks({"a": ON, "b": ON}, standby_names=frozenset())
    assert store.absent_sinks() == {}
    store.close()


def test_a_sink_that_the_settings_make_optional_while_it_is_on_holds_nothing_later(tmp_path: Path) -> None:
    store = store_with(tmp_path, "a", "b")
    store.note_sinks({"a": ON, "b": Presence(False)}, standby_names=frozenset())
    store.note_sinks({"a": ON}, standby_names=frozenset())
    assert store.absent_sinks() == {}
    store.close()


def test_what_waits_for_a_forgotten_sink_is_expired_and_it_holds_nothing(tmp_path: Path) -> None:
    store = store_with(tmp_path, "a", "b")
    store.note_sinks({"a": ON}, standby_names=frozenset())
    cursor = store.forget_sink("b", read=lambda after_seq: read(store, after_seq))
    assert (cursor.seq, cursor.confirmed, cursor.expired, cursor.unaccounted) == (3, 1, 2, 0)
    assert store.absent_sinks() == {}
    store.close()
    assert read_state(tmp_path / "state.lmdb").requirements["b"].forgotten
    store = open_store(tmp_path)
    store.note_sinks({"a": ON}, standby_names=frozenset())
    assert store.absent_sinks() == {}
    # Configured again it is a sink as any other: it gets what comes from then on.
    store.note_sinks({"a": ON, "b": ON}, standby_names=frozenset())
    store.note_sinks({"a": ON}, standby_names=frozenset())
    assert list(store.absent_sinks()) == ["b"]
    store.close()
