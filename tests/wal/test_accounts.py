"""The account at a start: cursors and log are compared, and what disagrees is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wal.factories import new_entry, open_store
from wal_ingest.wal.accounts import account_of, disagreements
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.store import Store


def twenty_points(directory: Path) -> Store:
    """Two segments of one entry each, with ten points each."""
    store = open_store(directory)
    store.wal.commit([[new_entry(1, points=10)]])
    store.wal.seal()
    store.wal.commit([[new_entry(2, points=10)]])
    return store


@pytest.mark.parametrize(
    ("cursor", "said"),
    [
        (Cursor(0, 0), []),
        (Cursor(1, 10, confirmed=10), []),
        (Cursor(2, 20, parked=3, confirmed=10, skipped=5, since=2), []),
        (Cursor(1, 10, confirmed=9), ["1 of the 10 points it has passed are unaccounted for"]),
        (Cursor(1, 11, confirmed=11), ["it counts 11 points up to seq 1, the log counts 10"]),
        (Cursor(0, 5, confirmed=5), ["it counts 5 points up to seq 0, the log counts 0"]),
        (Cursor(7, 70, confirmed=70), ["its cursor is at seq 7, and the log's last entry is 2"]),
    ],
)
def test_what_disagrees_is_said(tmp_path: Path, cursor: Cursor, said: list[str]) -> None:
    store = twenty_points(tmp_path)
    found = disagreements({"influxdb": cursor}, store.wal.segments())
    assert found == [f"influxdb: {what}" for what in said]
    store.close()


def test_an_entry_that_cannot_be_read_is_no_disagreement(tmp_path: Path) -> None:
    store = twenty_points(tmp_path)
    segments = store.wal.segments()
    segments[0].path.write_bytes(b"damaged" * 4000)
    assert disagreements({"influxdb": Cursor(1, 99, confirmed=99)}, segments) == []
    segments[0].path.unlink()
    assert disagreements({"influxdb": Cursor(1, 99, confirmed=99)}, segments) == []
    store.close()


def test_nothing_is_kept_of_what_was_truncated(tmp_path: Path) -> None:
    store = twenty_points(tmp_path)
    store.wal.seal()
    store.wal.truncate(2)
    assert disagreements({"influxdb": Cursor(2, 20, confirmed=20)}, store.wal.segments()) == []
    assert disagreements({"influxdb": Cursor(1, 10, confirmed=10)}, []) == []
    store.close()


def test_an_entry_that_is_not_where_it_should_be_is_looked_for_further_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = twenty_points(tmp_path)
    monkeypatch.setattr("wal_ingest.wal.accounts.read_entry", lambda _path, _seq: None)
    assert disagreements({"influxdb": Cursor(1, 99, confirmed=99)}, store.wal.segments()) == []
    store.close()


# What may happen to a sink's cursor, each with a number of points.
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["accept", "confirm", "park", "damage", "expire", "retry", "drop"]),
        st.integers(0, 50),
    ),
    max_size=40,
)


@given(st.integers(0, 100), ACTS)
def test_the_account_adds_up_whatever_happens_to_the_cursor(since: int, acts: list[tuple[str, int]]) -> None:
    cursor, total = Cursor(points=since, since=since), since
    for seq, (act, number) in enumerate(acts, start=1):
        left = total - cursor.points
        points = min(number, left)
        if act == "accept":
            total += number
        elif act in ("confirm", "park", "damage"):
            # After damage the batch is not the next one: what lies between cannot be read.
            missing = left - points if act == "damage" else 0
            cursor = cursor.passed(
                seq=seq,
                points_after=cursor.points + missing + points,
                points=points,
                parked=points if act == "park" else 0,
                position=None,
            )
        elif act == "expire":
            cursor = cursor.expired_to(seq=seq, points_after=cursor.points + points)
        else:
            cursor = cursor.without_letters(min(number, cursor.parked), written=act == "retry")
        account = account_of(cursor, total)
        assert account.unaccounted == 0
        assert account.accepted == total - since
        assert account.accepted == account.delivered + account.waiting + account.parked + account.given_up
        assert min(account.as_json().values()) >= 0


def test_points_that_went_no_known_way_show_as_unaccounted() -> None:
    account = account_of(Cursor(points=10, confirmed=7), 12)
    assert account.as_json() == {
        "accepted": 12,
        "delivered": 7,
        "waiting": 2,
        "parked": 0,
        "given_up": 0,
        "unaccounted": 3,
    }


def test_a_log_whose_segments_are_gone_ends_where_the_cursor_is() -> None:
    account = account_of(Cursor(points=10, confirmed=10), 0)
    assert (account.accepted, account.waiting, account.unaccounted) == (10, 0, 0)
