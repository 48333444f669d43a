"""What is learnt of shapes that fail without a word, and when another point needs less evidence because of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.flusher.convictions import CALM_S, PARKED_MIN, Convictions
from wal_ingest.flusher.learnt import LEARNT_S, PATTERNS_MAX, Learnt, Pattern
from wal_ingest.flusher.outcome import BeyondRetention, Named
from wal_ingest.flusher.shapes import Shape, Shaped, common_shape, selected, shape_of
from wal_ingest.flusher.suspicion import Neighbours, Suspicion

GROUP = ("org", "bucket")
OLD = Shape(b"old", (b"kind",), ((b"v", "float"),))
OTHER = Shape(b"other", (), ((b"v", "integer"),))
PATTERN = Pattern(GROUP, Shaped(OLD))


def convictions_of(shape: Shape | None, *, times: int = 1, reason: str = "HTTP 500") -> Convictions:
    convictions = Convictions(Learnt())
    for _ in range(times):
        convictions.parked(GROUP, reason, 500, shape=shape, now_s=0.0, now_ns=0)
    return convictions


def alike(
    convictions: Convictions,
    shape: Shape | None,
    *,
    reason: str = "HTTP 500",
    now_s: float = 1.0,
    control_failed_s: float = -1e9,
) -> bool:
    neighbours = Neighbours(control_failed_s=control_failed_s)
    return convictions.alike(GROUP, shape, reason, 500, neighbours, now_s=now_s)


def test_a_point_of_a_parked_ones_shape_needs_less_in_the_same_words_only() -> None:
    convictions = convictions_of(OLD, reason="HTTP 500: series 17 is broken")
    assert alike(convictions, OLD, reason="HTTP 500: series 4 is broken")
    assert not alike(convictions, OLD, reason="HTTP 500: out of memory")
    assert not alike(convictions, OTHER, reason="HTTP 500: series 4 is broken")
    assert not alike(convictions, None, reason="HTTP 500: series 4 is broken")


def test_after_several_points_the_words_alone_are_enough_for_a_quarter_of_an_hour() -> None:
    assert not alike(convictions_of(None, times=PARKED_MIN - 1), OTHER)
    convictions = convictions_of(None, times=PARKED_MIN)
    assert alike(convictions, OTHER)
    assert alike(convictions, None)
    assert not alike(convictions, OTHER, now_s=LEARNT_S + 1)


def test_while_controls_fail_every_point_needs_all_evidence() -> None:
    convictions = convictions_of(OLD, times=PARKED_MIN)
    assert not alike(convictions, OLD, now_s=CALM_S, control_failed_s=1.0)
    assert alike(convictions, OLD, now_s=CALM_S + 2, control_failed_s=1.0)


def test_different_words_are_remembered_up_to_a_limit() -> None:
    convictions = convictions_of(None, times=PARKED_MIN)
    for number in range(100):
        reason = "x" * (number + 1)
        convictions.parked(GROUP, reason, 500, shape=None, now_s=0.0, now_ns=0)
    assert not alike(convictions, OTHER)


# -- what is kept ---------------------------------------------------------------------------------------


def test_a_shape_that_fails_survives_a_restart_with_whether_it_was_proven() -> None:
    learnt = Learnt()
    learnt.learn(PATTERN, "HTTP 500", 500, now_s=0.0, now_ns=7)
    learnt.learn(Pattern(GROUP, Shaped(OTHER)), "HTTP 500", 500, now_s=0.0, now_ns=7, proven=False)
    learnt.learn(Pattern(GROUP, Named("m", field="v")), "conflict", 400, now_s=0.0, now_ns=7)
    learnt.learn(Pattern(GROUP, BeyondRetention(9)), "too old", 422, now_s=0.0, now_ns=7)
    again = Learnt(learnt.encode())
    known = again.patterns(GROUP, now_s=0.0)
    assert set(known) == set(learnt.patterns(GROUP, now_s=0.0))
    assert again.proven(PATTERN) == ("HTTP 500", 500)
    assert again.proven(Pattern(GROUP, Shaped(OTHER))) is None


def test_what_was_kept_before_there_were_shapes_is_understood() -> None:
    learnt = Learnt('[["(\'org\', \'bucket\')","conflict",400,7,"m","v","string",null]]')
    assert learnt.patterns(GROUP, now_s=0.0) == [Pattern(GROUP, Named("m", field="v", given="string"))]


def test_what_was_proven_is_not_unproven_by_a_suspicion() -> None:
    learnt = Learnt()
    learnt.learn(PATTERN, "HTTP 500", 500, now_s=0.0, now_ns=0)
    learnt.learn(PATTERN, "HTTP 500", 500, now_s=0.0, now_ns=0, proven=False)
    assert learnt.proven(PATTERN) is not None


def test_a_shape_of_which_a_point_passed_is_not_set_apart_again_for_a_while() -> None:
    learnt = Learnt()
    for now_s in (0.0, 1.0):
        learnt.learn(PATTERN, "HTTP 500", 500, now_s=now_s, now_ns=0)
        assert bool(learnt.patterns(GROUP, now_s=now_s)) is (now_s == 0.0)
        learnt.forget(PATTERN, now_s=now_s)
    learnt.learn(PATTERN, "HTTP 500", 500, now_s=LEARNT_S + 2, now_ns=0)
    assert learnt.patterns(GROUP, now_s=LEARNT_S + 2) == [PATTERN]


def test_shapes_that_passed_are_remembered_up_to_a_limit() -> None:
    learnt = Learnt()
    for number in range(PATTERNS_MAX + 1):
        pattern = Pattern(GROUP, Shaped(OLD._replace(measurement=b"m%d" % number)))
        learnt.learn(pattern, "HTTP 500", 500, now_s=0.0, now_ns=0)
        learnt.forget(pattern, now_s=0.0)
    first = Pattern(GROUP, Shaped(OLD._replace(measurement=b"m0")))
    learnt.learn(first, "HTTP 500", 500, now_s=1.0, now_ns=0)
    assert learnt.patterns(GROUP, now_s=1.0) == [first]


def test_patterns_are_kept_up_to_a_limit_for_a_while_and_as_far_as_they_can_be_read() -> None:
    learnt = Learnt()
    patterns = [Pattern(GROUP, Named(f"m{number}", field="v")) for number in range(PATTERNS_MAX + 1)]
    for pattern in patterns:
        learnt.learn(pattern, "conflict", 400, now_s=0.0, now_ns=0)
    assert learnt.patterns(GROUP, now_s=1.0) == patterns[1:]
    learnt.renew(patterns[0], now_s=9.0)  # not known any more
    learnt.renew(patterns[7], now_s=9.0)
    assert learnt.patterns(GROUP, now_s=LEARNT_S + 1) == [patterns[7]]
    assert Learnt("[[7]]").patterns(GROUP, now_s=0.0) == []
    assert Learnt("[").patterns(GROUP, now_s=0.0) == []


# -- shapes ---------------------------------------------------------------------------------------------

_LINES = st.sampled_from(
    [
        b"old,kind=a v=1 1\n",
        b"old,kind=a\\ b v=-1.5e3 2\n",
        b"old,kind=a v=1i 1\n",
        b"old,kind=a v=7u 1\n",
        b"old v=1 1\n",
        b"old,kind=a,x=1 v=1 1\n",
        b"old,kind=a v=t 1\n",
        b"old,kind=a v=FALSE 1\n",
        b'old,kind=a v="1, v=2" 1\n',
        b'old,kind=a v="a\\"b\nc" 1\n',
        b"old\\,kind=a v=1 1\n",
        b"old,kind=a v=1,w=2 1\n",
    ]
)


@given(lines=st.lists(_LINES, min_size=1, max_size=12))
def test_a_shape_means_its_lines_and_no_others(lines: list[bytes]) -> None:
    for shape in set(map(shape_of, lines)):
        expected = [place for place, line in enumerate(lines) if shape_of(line) == shape]
        assert selected(lines, Shaped(shape)) == expected
    shapes = set(map(shape_of, lines))
    assert common_shape(lines) == (shapes.pop() if len(shapes) == 1 else None)


# -- evidence -------------------------------------------------------------------------------------------


def test_other_suspects_do_not_matter_to_one_that_is_investigated() -> None:
    neighbours, suspicions = Neighbours(), [Suspicion(left=True) for _ in range(40)]
    for _ in range(3):
        for suspicion in suspicions:
            suspicion.failed(neighbours, suspect=True)
        neighbours.controls_passed += 1
    assert {suspicion.counted for suspicion in suspicions} == {3}


def test_a_control_that_fails_takes_back_what_was_counted() -> None:
    neighbours, suspicion = Neighbours(), Suspicion(left=True)
    for _ in range(5):
        suspicion.failed(neighbours, suspect=True)
        neighbours.controls_passed += 1
    assert suspicion.counted == 5
    neighbours.controls_failed += 1
    suspicion.failed(neighbours, suspect=True)
    assert suspicion.counted == 1


@pytest.mark.parametrize("left", [True, False])
def test_where_nothing_passes_nothing_counts(left: bool) -> None:
    neighbours, suspicion = Neighbours(), Suspicion(left=left)
    for _ in range(100):
        suspicion.failed(neighbours, suspect=True)
    assert suspicion.counted == 1
    assert suspicion.may_scout(neighbours) is left
    neighbours.passed += 1
    assert not suspicion.may_scout(neighbours)
