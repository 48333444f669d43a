"""Dead letters that operators look at, retry and drop; pauses; and ranges that are given up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.wal.factories import new_entry, open_store
from tests.wal.test_damage import zero_tree
from wal_ingest.wal.accounts import disagreements
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.letters import (
    GROUPS_MAX,
    OTHER_REASONS,
    LetterGroup,
    LetterGroups,
    LetterId,
    id_of,
    reason_group,
)
from wal_ingest.wal.lmdb_file import LmdbFile
from wal_ingest.wal.state import State, read_dead_letters, read_state
from wal_ingest.wal.store import Store


def letter(number: int, reason: str = "refused", sink: str = "influxdb") -> DeadLetter:
    return DeadLetter(sink, number, b"m v=%d 1\n" % number, reason, 400, 1_000 + number, Destination())


def expire(store: Store, through_seq: int | None) -> Cursor:
    """As the service does it, without a writer."""
    return store.expire(
        "influxdb",
        through_seq,
        read=lambda after_seq: store.read_past_damage(
            after_seq, bytes_max=1, seal=store.wal.seal, tell=lambda _moved: None
        ),
    )


def state_with(directory: Path, *letters: DeadLetter, points: int = 100) -> State:
    """A state whose sink has passed so many points, and parked these among them."""
    state = State(directory, now_ns=1)
    cursor = Cursor(50, points, parked=len(letters), confirmed=points - len(letters))
    state.commit_cursor("influxdb", cursor, letters)
    return state


@pytest.mark.parametrize(
    ("reason", "group"),
    [
        ("HTTP 400: unable to parse 'cpu,host=a v=x 17': bad", "HTTP 400: unable to parse '…': bad"),
        (
            'field type conflict: input field "value" on measurement "m" is type float dropped=1',
            'field type conflict: input field "value" on measurement "m" is type float',
        ),
        ("time 1763800000000000000 outside, HTTP 422", "time N outside, HTTP 422"),
        ("points beyond -12345.75 of `a b`", "points beyond N of `…`"),
    ],
)
def test_a_group_of_reasons_leaves_out_what_differs_from_point_to_point(reason: str, group: str) -> None:
    assert reason_group(reason) == group


def beyond_retention(number: int) -> str:
    """What InfluxDB 2.8 says of old points: another series, time and count each time."""
    series = f"cpu,host=web-{number},path=C:\\ {number}"
    return (
        f"HTTP 422: failure writing points to database: partial write: dropped {number % 7 + 1} points outside "
        f"retention policy of duration 24h0m0s - oldest point {series} at 2025-11-{number % 28 + 1:02d}T08:26:40Z "
        f"dropped because it violates a Retention Policy Lower Bound at 2026-11-28T05:{number % 60:02d}:40.{number + 1}"
        f"Z, newest point {series} at 2025-11-30T08:26:{number % 60:02d}Z dropped because it violates a Retention "
        f"Policy Lower Bound at 2026-11-28T05:31:40.123Z dropped={number % 7 + 1}"
    )


RETENTION_GROUP = (
    "HTTP 422: failure writing points to database: partial write: dropped N points outside retention policy of "
    "duration 24h0m0s"
)
CAUSES: dict[str, tuple[Callable[[int], str], set[str]]] = {
    "beyond the retention": (beyond_retention, {f"{RETENTION_GROUP} (Retention Policy Lower Bound)"}),
    # Which bound it was is known only where the words reach so far.
    "beyond the retention, the words cut short anywhere": (
        lambda number: beyond_retention(number)[: 140 + number % 400] + "…",
        {RETENTION_GROUP, f"{RETENTION_GROUP} (Retention Policy Lower Bound)"},
    ),
    "beyond the retention, in the words of older versions": (
        lambda number: f"HTTP 400: partial write: points beyond retention policy dropped={number}",
        {"HTTP 400: partial write: points beyond retention policy"},
    ),
    "too many values of a tag": (
        lambda number: (
            f'partial write: max-values-per-tag limit exceeded (100000/100000): measurement="m" tag="id" '
            f'value="a"{number}" dropped=1'
        ),
        {'partial write: max-values-per-tag limit exceeded (N/N): measurement="m" tag="id" value="…"'},
    ),
    "a time in words": (
        lambda number: (
            f"refused: the newest time is 2026-11-{number % 28 + 1:02d} 10:00:00.{number + 1} +0000 UTC"
        ),
        {"refused: the newest time is TIME"},
    ),
    "a time with a zone": (
        lambda number: f"bad time 2026-11-{number % 28 + 1:02d}T10:00:00+01:00: too new",
        {"bad time TIME: too new"},
    ),
}


@pytest.mark.parametrize(("reason_of", "reasons"), CAUSES.values(), ids=CAUSES.keys())
def test_letters_of_one_cause_are_one_group_whatever_series_and_times_the_reason_names(
    reason_of: Callable[[int], str], reasons: set[str]
) -> None:
    groups = LetterGroups()
    groups.add(letter(number, reason_of(number)) for number in range(2_501))
    assert {each.reason for each in groups.listed()} == reasons
    assert sum(each.points for each in groups.listed()) == 2_501


def test_points_too_old_and_points_of_the_future_are_two_causes() -> None:
    old = beyond_retention(1)
    assert reason_group(old) != reason_group(old.replace("Lower", "Upper"))
    assert "Upper Bound" in reason_group(old.replace("Lower", "Upper"))
    assert reason_group(old.replace("24h0m0s", "72h0m0s")) != reason_group(old)


def test_letters_are_counted_by_reason() -> None:
    groups = LetterGroups()
    letters = [letter(1, "a 11111"), letter(2, "a 22222"), letter(3, "b")]
    groups.add(letters)
    assert groups.listed() == [
        LetterGroup("influxdb", "a N", 2, 1_002),
        LetterGroup("influxdb", "b", 1, 1_003),
    ]
    groups.add_counted("influxdb", "b", 7, 1_001)
    assert groups.listed()[0] == LetterGroup("influxdb", "b", 8, 1_003)


def test_the_number_of_reasons_is_bounded_and_nothing_is_lost_from_the_count() -> None:
    groups = LetterGroups()
    letters = [letter(number, f"reason {'x' * number}") for number in range(GROUPS_MAX + 5)]
    groups.add(letters)
    listed = groups.listed()
    assert len(listed) == GROUPS_MAX + 1
    assert listed[0] == LetterGroup("influxdb", OTHER_REASONS, 5, 1_000 + GROUPS_MAX + 4)


def test_letters_that_were_written_after_all_are_confirmed_and_dropped_ones_expired(tmp_path: Path) -> None:
    state = state_with(tmp_path, letter(1), letter(2), letter(3))
    stored = list(state.dead_letters("influxdb"))
    assert [each.number for each in stored] == [1, 2, 3]
    assert state.letter_groups() == [LetterGroup("influxdb", "refused", 3, 1_003)]
    assert state.remove_letters("influxdb", [id_of(stored[0])], written=True) == 1
    assert state.remove_letters("influxdb", [id_of(stored[2])], written=False) == 1
    cursor = state.cursor("influxdb")
    assert cursor == Cursor(50, 100, parked=1, confirmed=98, expired=1)
    assert cursor.unaccounted == 0
    assert state.letter_groups() == [LetterGroup("influxdb", "refused", 1, 1_002)]
    state.close()
    assert [each.seq for each in read_dead_letters(tmp_path / "state.lmdb", "influxdb")] == [2]
    assert read_state(tmp_path / "state.lmdb").cursors["influxdb"] == cursor


def test_only_the_letter_that_is_meant_is_removed(tmp_path: Path) -> None:
    state = state_with(tmp_path, letter(1))
    [stored] = state.dead_letters("influxdb")
    wrong = [LetterId(1, 9, stored.parked_ns), LetterId(1, 1, 9), LetterId(7, 1, stored.parked_ns)]
    assert state.remove_letters("influxdb", wrong, written=False) == 0
    assert state.cursor("influxdb") == Cursor(50, 100, parked=1, confirmed=99)
    assert state.remove_letters("influxdb", [id_of(stored), id_of(stored)][:1], written=False) == 1
    assert state.remove_letters("influxdb", [id_of(stored)], written=False) == 0
    state.close()


def test_new_letters_come_behind_those_that_are_left(tmp_path: Path) -> None:
    state = state_with(tmp_path, letter(1), letter(2), letter(3))
    first, second, third = state.dead_letters("influxdb")
    state.letter_groups()
    state.remove_letters("influxdb", [id_of(first), id_of(third)], written=False)
    state.close()
    state = State(tmp_path, now_ns=1)
    state.commit_cursor("influxdb", Cursor(51, 101, parked=2), [letter(4)])
    assert [each.seq for each in state.dead_letters("influxdb")] == [second.seq, 4]
    assert [group.points for group in state.letter_groups()] == [2]
    state.commit_cursor("influxdb", Cursor(52, 102, parked=3), [letter(5)])
    assert [group.points for group in state.letter_groups()] == [3]
    state.close()


def test_a_pause_outlives_the_process_until_it_is_taken_back(tmp_path: Path) -> None:
    state = state_with(tmp_path)
    assert state.paused_since_ns("influxdb") is None
    state.pause("influxdb", now_ns=7)
    state.pause("influxdb", now_ns=8)
    state.close()
    assert read_state(tmp_path / "state.lmdb").pauses == {"influxdb": 7}
    state = State(tmp_path, now_ns=1)
    assert state.paused_since_ns("influxdb") == 7
    state.resume("influxdb")
    state.resume("influxdb")
    assert state.paused_since_ns("influxdb") is None
    state.close()
    assert read_state(tmp_path / "state.lmdb").pauses == {}


@pytest.mark.parametrize(
    ("through_seq", "cursor"),
    [
        (2, Cursor(2, 20, expired=20)),
        (4, Cursor(4, 40, expired=40)),
        (99, Cursor(4, 40, expired=40)),
        (None, Cursor(4, 40, expired=40)),
    ],
)
def test_what_an_operator_gives_up_is_passed_and_accounted_for(
    tmp_path: Path, through_seq: int | None, cursor: Cursor
) -> None:
    store = open_store(tmp_path)
    for number in range(1, 5):
        store.wal.commit([[new_entry(number, points=10)]])
    assert expire(store, through_seq) == cursor
    assert store.cursor("influxdb") == cursor
    assert cursor.unaccounted == 0
    assert disagreements(store.state.cursors(), store.wal.segments()) == []
    store.close()


@pytest.mark.parametrize("lost", ["what stands behind", "all that stands behind"])
def test_what_is_given_up_in_front_of_damage_is_passed_all_the_same(tmp_path: Path, lost: str) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1, points=10)]])
    store.wal.seal()
    store.wal.commit([[new_entry(2, points=10)]])
    damaged = store.wal.segments()[-1].path
    store.wal.seal()
    if lost == "what stands behind":
        store.wal.commit([[new_entry(3, points=10)]])
    zero_tree(damaged)
    cursor = expire(store, 1)
    assert cursor == Cursor(2, 20, expired=20)
    assert disagreements({"influxdb": cursor}, store.wal.segments()) == []
    assert [moved.path.name for moved in store.wal.damaged] == [damaged.name]
    store.close()


def test_giving_up_what_is_behind_the_cursor_changes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.wal.commit([[new_entry(1)], [new_entry(2)]])
    store.commit_cursor("influxdb", Cursor(2, 2, confirmed=2, position=b"p"))
    assert expire(store, 1) == Cursor(2, 2, confirmed=2, position=b"p")
    store.close()


def test_a_batch_behind_a_given_up_range_goes_on_counting(tmp_path: Path) -> None:
    cursor = Cursor(5, 50, confirmed=50, position=b"p").expired_to(seq=7, points_after=70)
    after = cursor.passed(seq=8, points_after=80, points=10, parked=1, position=None)
    assert after == Cursor(8, 80, parked=1, position=b"p", confirmed=59, expired=20)
    assert after.unaccounted == 0


def test_a_letter_whose_bytes_make_no_sense_is_damage_and_not_a_traceback(tmp_path: Path) -> None:
    state_with(tmp_path, letter(1)).close()
    file = LmdbFile(tmp_path / "state.lmdb", map_bytes=1 << 20)
    file.write([(b"pause/influxdb", b"what")])
    file.close()
    with pytest.raises(Exception, match="a record cannot be read"):
        read_state(tmp_path / "state.lmdb")
