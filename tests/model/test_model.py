"""The promise, tried by a random hand: the real WAL, state and deliveries against a model of what they owe.

`make test` runs a fixed set of stories; `make proof` runs many more, other ones each time. A story that fails is
printed as a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import StoreMachine
from wal_ingest.errors import StorageFailed
from wal_ingest.flusher.outcome import Confirmed
from wal_ingest.flusher.piece import Piece
from wal_ingest.flusher.writing import SinkWriter
from wal_ingest.wal.checkpoint import Checkpoint, Through
from wal_ingest.wal.cursor import Cursor, DeadLetter
from wal_ingest.wal.entry import NewEntry
from wal_ingest.wal.log import Appended, Wal
from wal_ingest.wal.required import Requirement
from wal_ingest.wal.store import Store
from wal_ingest.wal.streams import Positions

_CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
_FEW = settings(
    max_examples=80,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=_CHECKS,
    database=None,
)
# A mutant is to be found, not to be explained: nothing is shrunk.
_UNTIL_FOUND = settings(
    _FEW, max_examples=2000, phases=[Phase.generate], report_multiple_bugs=False, verbosity=Verbosity.quiet
)
_MANY = settings(
    max_examples=1500, stateful_step_count=60, deadline=None, suppress_health_check=_CHECKS, print_blob=True
)


def stories_that_keep_the_promise(how: settings) -> int:
    """Runs random stories; how many came to their end. Raises what the first one that broke the promise raised."""
    ended = 0

    class Story(StoreMachine):
        def teardown(self) -> None:
            nonlocal ended
            super().teardown()
            ended += 1

    run_state_machine_as_test(Story, settings=how)
    return ended


def test_whatever_happens_nothing_accepted_is_lost() -> None:
    assert stories_that_keep_the_promise(_FEW) >= _FEW.max_examples


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_whatever_happens_in_many_more_stories_nothing_accepted_is_lost() -> None:
    assert stories_that_keep_the_promise(_MANY) >= _MANY.max_examples


def test_a_stream_that_had_to_go_and_came_back_is_known_from_there_on() -> None:
    """A story that was found once in many, and the model did not know."""
    machine = StoreMachine()
    machine.begin(first=False, second=False)
    for client_id in ("web-4", "web-3", "web-1", "web-2", "web-4"):
        machine.append(groups=[(client_id, [(1, 0, 0)])])
        machine.check()
    position = machine.alive.wal.positions.of("web-4")
    assert position is not None
    assert [frame.number for frame in position.stored] == [5]
    machine.teardown()


def test_frames_in_a_segment_that_was_set_aside_need_not_be_known() -> None:
    """A story that the model did not know: all of the segment can be read, and its frames are confirmed no more."""
    machine = StoreMachine()
    machine.begin(first=False, second=False)
    machine.append(groups=[("web-1", [(1, 0, 0)])])
    machine.check()
    machine.damage(at=0, what="byte changed", which=0)
    machine.check()
    assert machine.alive.wal.positions.of("web-1") is None
    assert [entry.seq for entry in machine.alive.wal.read(0, bytes_max=1 << 20)] == [1]
    machine.teardown()


# -- the harness can fail ----------------------------------------------------------------------------------

_commit, _truncate, _open = Wal.commit, Wal.truncate, Wal.open


def _acknowledged_too_much(wal: Wal, groups: Sequence[Sequence[NewEntry]]) -> list[Appended]:
    """Every group but the first is acknowledged and never written."""
    told = _commit(wal, groups[:1])
    for group in groups[1:]:
        told.append(Appended(told[-1].last_seq + 1, told[-1].last_seq + len(group)))
    return told


def _truncated_up_to_the_end(wal: Wal, confirmed_seq: int) -> int:
    return _truncate(wal, wal.last_seq)


async def _decided_without_a_write(_writer: SinkWriter, _piece: Piece, **_options: object) -> Confirmed:
    await trio.lowlevel.checkpoint()
    return Confirmed()


def _numbering_from_the_start(*args: Any, **options: Any) -> Wal:
    wal = _open(*args, **options)
    wal._next_seq = 1
    return wal


def _damage_is_passed_over(wal: Wal, path: Path, reason: str) -> None:
    with wal._segments_mutex:
        wal._segments = [segment for segment in wal._segments if segment.path != path]


def _letters_are_forgotten(
    store: Store, sink: str, cursor: Cursor, letters: Sequence[DeadLetter] = ()
) -> None:
    store.state.commit_cursor(sink, cursor, ())


def _nothing_is_read_at_a_start(_checkpoint: Checkpoint, _through: Through) -> None:
    """The streams of the life before are unknown."""


def _lost_frames_are_still_claimed(_positions: Positions, _ranges: Sequence[tuple[int, int]]) -> None:
    """What was set aside as damaged is durable nevertheless."""


def _nothing_is_kept_for_an_absent_sink(_store: Store) -> dict[str, Requirement]:
    return {}


MUTATIONS: dict[str, tuple[type, str, Callable[..., Any]]] = {
    "an entry is acknowledged and not written": (Wal, "commit", _acknowledged_too_much),
    "truncation does not look at the cursors": (Wal, "truncate", _truncated_up_to_the_end),
    "a cursor moves without a write": (SinkWriter, "decide", _decided_without_a_write),
    "a cursor moves and its dead letters do not": (Store, "commit_cursor", _letters_are_forgotten),
    "seqs begin again after a restart": (Wal, "open", _numbering_from_the_start),
    "damage is passed over": (Wal, "set_aside", _damage_is_passed_over),
    "streams are forgotten at a start": (Checkpoint, "_restore", _nothing_is_read_at_a_start),
    "an absent sink holds nothing": (Store, "absent_sinks", _nothing_is_kept_for_an_absent_sink),
    "frames in a damaged segment are claimed": (Positions, "forget_entries", _lost_frames_are_still_claimed),
}


# Those that the machine takes longest to find.
_LONG = (
    "an absent sink holds nothing",
    "damage is passed over",
    "frames in a damaged segment are claimed",
    "truncation does not look at the cursors",
)


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, id=name, marks=[pytest.mark.slow] if name in _LONG else [])
        for name, mutation in MUTATIONS.items()
    ],
)
def test_a_store_that_breaks_the_promise_is_found_out(
    mutation: tuple[type, str, Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, broken = mutation
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, BaseExceptionGroup, StorageFailed)):
        stories_that_keep_the_promise(_UNTIL_FOUND)
