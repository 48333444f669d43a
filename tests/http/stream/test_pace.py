"""How much of the node one stream may take while others are calm."""

from __future__ import annotations

import pytest
import trio

from tests.http.rig import LINE
from tests.http.stream.rig import node
from wal_ingest.http.stream.pace import Pace, Share

FRAME_S = 0.0005


class Streams:
    """Streams on one clock, which stands still but for the work on frames."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pace = Pace(lambda: self.now_s)

    def open(self) -> Share:
        return Share(self.pace)

    def frame(self, share: Share, cost_s: float = FRAME_S) -> float:
        """Works on one frame; how long its stream should rest."""
        began_s = self.now_s
        self.now_s += cost_s
        return share.spend(began_s)

    def flood(self) -> Share:
        share = self.open()
        for _ in range(100):
            self.frame(share)
        return share


def test_a_stream_that_sends_now_and_then_never_rests() -> None:
    streams = Streams()
    other, share = streams.open(), streams.open()
    for _ in range(1_000):
        streams.now_s += 0.01
        streams.frame(other)
        assert streams.frame(share) == 0


def test_a_burst_is_still_calm() -> None:
    streams = Streams()
    streams.frame(streams.open())
    share = streams.open()
    assert [streams.frame(share) for _ in range(39)] == [0.0] * 39


def test_a_flood_takes_a_fifth_while_another_is_calm() -> None:
    streams = Streams()
    flood, calm = streams.flood(), streams.open()
    streams.frame(calm)
    assert streams.frame(flood) == pytest.approx(4 * FRAME_S)


def test_a_flood_alone_never_rests_not_even_behind_its_own_beginning() -> None:
    streams = Streams()
    share = streams.open()
    assert {streams.frame(share) for _ in range(1_000)} == {0.0}


def test_floods_among_themselves_do_not_rest_for_long() -> None:
    streams = Streams()
    floods = [streams.flood() for _ in range(3)]
    streams.now_s += 0.05
    for _ in range(100):
        assert [streams.frame(flood) for flood in floods] == [0.0] * 3


def test_a_calm_stream_that_has_gone_holds_nobody_up() -> None:
    streams = Streams()
    flood = streams.flood()
    streams.frame(streams.open())
    streams.now_s += 0.05
    assert streams.frame(flood) == 0


def test_a_flood_that_has_ended_is_calm_within_a_second() -> None:
    streams = Streams()
    flood = streams.flood()
    streams.now_s += 0.9
    streams.frame(streams.open())
    assert streams.frame(flood) == 0


def test_a_frame_that_waited_long_for_a_thread_is_no_reason_to_rest_as_long() -> None:
    streams = Streams()
    flood, calm = streams.flood(), streams.open()
    began_s = streams.now_s
    streams.now_s += 5
    streams.frame(calm)
    assert flood.spend(began_s) <= 0.2


async def test_one_that_rests_has_one_frame_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Share, "spend", lambda _self, _began_s: 0.001)
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(*range(1, 21))
        await whole.wal.waiting.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)
        gate.set()
        await client.acked(20)
        assert [len(entries) for entries in whole.wal.appends] == [1] * 20
        assert whole.wal.lines == LINE * 20


async def test_one_that_rests_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Share, "spend", lambda _self, _began_s: 1_000.0)
    async with node() as whole:
        client = await whole.stream()
        await client.send(1, 2)
        assert (await client.next())["number"] == 1
        whole.streams.stop()
        assert (await client.closed()).code == 1012
