"""What a refusal names may be true of only some points that have it: each of those is found, no other parked."""

from __future__ import annotations

import pytest
import trio.testing
from msgspec import structs

from tests.flusher.rig import SETTINGS, DeliveryRig
from tests.flusher.twins import START_NS
from wal_ingest.flusher.learnt import Pattern
from wal_ingest.flusher.outcome import (
    BeyondRetention,
    Hint,
    LineRefused,
    LinesRefused,
    Named,
    Outcome,
    Rejected,
)
from wal_ingest.flusher.shapes import Shaped, shape_of

FIELD = Named("m", field="n", given="integer")


def refuse(rig: DeliveryRig, numbers: set[int], hint: Hint) -> None:
    """Refuses a write with any line `n=<number>i` of some, in words that would fit all of them."""
    needles = [b" n=%di " % number for number in numbers]

    def answer(lines: list[bytes]) -> Outcome | None:
        dropped = sum(any(needle in line for needle in needles) for line in lines)
        return Rejected("refused", 422, dropped=dropped, hint=hint) if dropped else None

    rig.sink.answer = answer


@pytest.mark.parametrize(
    ("points", "refused", "hint"),
    [
        pytest.param(10, {1, 4, 5, 6, 7}, FIELD, id="a field that only some shards have as another type"),
        pytest.param(2, {1}, FIELD, id="the field of the second of two"),
        pytest.param(2, {0}, FIELD, id="the field of the first of two"),
        pytest.param(10, {3}, Named("other", field="n"), id="a measurement that none has"),
        pytest.param(
            10, {3}, LinesRefused((LineRefused("bad", line="elsewhere"),)), id="a line that is none of them"
        ),
        pytest.param(
            10, {3}, LinesRefused((LineRefused("bad", number=11),)), id="a number behind the last line"
        ),
        pytest.param(
            10, {3}, LinesRefused((LineRefused("bad", number=1, line="x"),)), id="lines counted differently"
        ),
    ],
)
async def test_words_that_fit_all_points_or_none_park_only_those_that_are_refused_alone(
    autojump_clock: trio.testing.MockClock, points: int, refused: set[int], hint: Hint
) -> None:
    rig = DeliveryRig()
    refuse(rig, refused, hint)
    rig.log.append(points)
    lines = rig.log.all_lines()
    with trio.fail_after(3600):
        await rig.deliver_all()
    assert sorted(letter.line for letter in rig.state.letters) == [
        lines[number] for number in sorted(refused)
    ]
    assert sorted(set(rig.sink.confirmed)) == [line for n, line in enumerate(lines) if n not in refused]
    assert all(lines for _, lines in rig.sink.writes)


async def test_a_count_that_would_need_many_samples_leads_to_halves(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig(settings=structs.replace(SETTINGS, batch_points_max=60))
    refuse(rig, set(range(30)), FIELD)
    rig.log.append(60)
    await rig.deliver_all()
    assert [len(lines) for _, lines in rig.sink.writes] == [60, 30, 30]
    assert [letter.line for letter in rig.state.letters] == rig.log.all_lines()[:30]


async def test_points_refused_as_too_old_that_then_pass_are_all_confirmed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    answers = iter([Rejected("beyond retention", 422, hint=BeyondRetention())])
    rig.sink.answer = lambda _lines: next(answers, None)
    rig.log.append(10)
    await rig.deliver_all()
    assert rig.state.letters == []
    assert sorted(rig.sink.confirmed) == sorted(rig.log.all_lines())


async def test_good_points_of_a_batch_that_was_under_way_when_its_shape_was_learnt_wait_for_none_of_the_bad_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rig = DeliveryRig()
    bad = [f'log,host=h{n} message="x" {START_NS + n}\n'.encode() for n in range(5)]
    good = [f"m,host=h{n} v={n} {START_NS + n}\n".encode() for n in range(5)]
    async with rig.running() as delivery:

        def answer(lines: list[bytes]) -> Outcome | None:
            if not set(bad) & set(lines):
                return None
            if len(lines) == 10:  # another batch teaches meanwhile
                pattern = Pattern(rig.sink.group(rig.log.read(0, bytes_max=1)[0]), Shaped(shape_of(bad[0])))
                delivery._writer.learnt.learn(
                    pattern, "refused", 400, now_s=trio.current_time(), now_ns=START_NS
                )
            return Rejected("refused", 400)

        rig.sink.answer = answer
        rig.log.append(10, lines=b"".join(bad + good))
        await rig.state.reached(1)
    assert [lines for _, lines in rig.sink.writes][:3] == [bad + good, good, bad]
    assert sorted(letter.line for letter in rig.state.letters) == bad
