"""Patience: tries never end, the node's wishes count, and a state is told of once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from wal_ingest.agent.courier import Courier, is_misconfigured
from wal_ingest.agent.over_stream import OtherNumbers
from wal_ingest.agent.patience import HOLD_S, RETRY_S_FIRST, RETRY_S_MAX, RETRY_S_MIN
from wal_ingest.client.errors import StreamClosed, Unreachable
from wal_ingest.errors import ComeBackLater, StorageFailed


class Scripted:
    """A way that fails as it is told to, and notes when it was tried. None: it connects, and then breaks."""

    def __init__(self, courier: Courier, script: Sequence[ComeBackLater | None]) -> None:
        self._courier = courier
        self._script = list(script)
        self.tried_s: list[float] = []
        self.done = trio.Event()

    async def deliver(self) -> None:
        self.tried_s.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if not self._script:
            self.done.set()
            await trio.sleep_forever()
        exc = self._script.pop(0)
        if exc is None:
            self._courier.connected()
            exc = StreamClosed(1006, "the connection broke")
        raise exc


async def played(script: Sequence[ComeBackLater | None], *, seed: int = 7) -> tuple[list[float], list[str]]:
    """The waits between the tries, and what was logged."""
    courier = Courier(rng=Random(seed))
    way = Scripted(courier, script)
    with structlog.testing.capture_logs() as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(courier.run, way)
            await way.done.wait()
            nursery.cancel_scope.cancel()
    waits = [later - earlier for earlier, later in itertools.pairwise(way.tried_s)]
    return waits, [f"{entry['log_level']}: {entry['event']}" for entry in told]


AWAY = Unreachable("node:8400: Connection refused")


async def test_waits_grow_to_a_minute_and_never_end(autojump_clock: MockClock) -> None:
    waits, told = await played([AWAY] * 200)
    limits = [min(RETRY_S_MAX, RETRY_S_FIRST * 2.0**n) for n in range(200)]
    assert all(RETRY_S_MIN <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    assert max(waits[10:]) > RETRY_S_MAX / 2
    assert told == ["warning: not delivering; everything is kept"]


async def test_agents_that_lost_their_node_in_one_instant_do_not_come_back_in_one(
    autojump_clock: MockClock,
) -> None:
    firsts = sorted([(await played([None], seed=seed))[0][0] for seed in range(100)])
    assert firsts[0] < 1
    assert firsts[-1] > 4
    assert max(later - earlier for earlier, later in itertools.pairwise(firsts)) < 0.5


async def test_a_connection_begins_the_waits_anew_and_is_told_of(autojump_clock: MockClock) -> None:
    waits, told = await played([*[AWAY] * 20, None, AWAY])
    assert waits[-2] <= RETRY_S_FIRST
    assert told == [
        "warning: not delivering; everything is kept",
        "info: delivering",
        "warning: not delivering; everything is kept",
        # The connection that broke, and then could not be made again.
        "warning: not delivering; everything is kept",
    ]


@pytest.mark.parametrize(
    "exc",
    [
        StreamClosed(1013, "retry after 40 s: the WAL is full"),
        Unreachable("answered 503", status=503, retry_after_s=40),
        Unreachable("answered 429", status=429, retry_after_s=40),
    ],
)
async def test_a_node_that_names_a_wait_is_left_alone_for_it(
    autojump_clock: MockClock, exc: ComeBackLater
) -> None:
    waits, _ = await played([exc] * 20)
    assert all(40 <= wait <= 60 for wait in waits)
    assert max(waits) - min(waits) > 5


async def test_a_retry_after_of_an_hour_is_obeyed_for_minutes(autojump_clock: MockClock) -> None:
    waits, _ = await played([Unreachable("maintenance", status=503, retry_after_s=3_600)] * 20)
    assert all(300 <= wait <= 450 for wait in waits)


@pytest.mark.parametrize(
    ("exc", "wrong"),
    [
        (StreamClosed(1008, "the token is not the node's"), True),
        (Unreachable("", status=401), True),
        (Unreachable("", status=404), True),
        (Unreachable("", status=301), True),
        (Unreachable("", status=503), False),
        (Unreachable("", status=0), False),
        (StreamClosed(1012, "stopping"), False),
        (StreamClosed(4001, "replaced"), False),
        (OtherNumbers("copied"), False),
    ],
)
async def test_what_only_a_person_can_mend_is_an_error_and_tried_slowly(
    autojump_clock: MockClock, exc: ComeBackLater, wrong: bool
) -> None:
    assert is_misconfigured(exc) is wrong
    waits, told = await played([exc] * 3)
    assert told == [
        "error: not delivering, a person must look; everything is kept"
        if wrong
        else "warning: not delivering; everything is kept"
    ]
    if wrong:
        assert all(HOLD_S / 2 <= wait <= HOLD_S for wait in waits)


async def test_a_disk_that_fails_ends_the_delivery(autojump_clock: MockClock) -> None:
    class Broken:
        async def deliver(self) -> None:
            await trio.lowlevel.checkpoint()
            raise StorageFailed(Path("state.lmdb"), "Input/output error")

    with pytest.raises(StorageFailed):
        await Courier(rng=Random(7)).run(Broken())
