"""The client, over a stream and over HTTP: one contract, one fake node behind both."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.client.fake_node import FakeNode, HttpDoor, fake_node
from wal_ingest.client import (
    BufferFull,
    Client,
    Limits,
    NotDelivered,
    PointError,
    PointsRefused,
    Receipt,
    Replaced,
    State,
    line,
    open_client,
)
from wal_ingest.client.delivery import Connect
from wal_ingest.client.posting import open_posts
from wal_ingest.client.stream import open_stream
from wal_ingest.errors import BadRequest, ConfigError

NOW_NS = 1_700_000_000_000_000_000


class Rig:
    """A node, and how to open a client for it."""

    def __init__(self, node: FakeNode, face: str) -> None:
        self.node = node
        self.face = face
        self.door = HttpDoor(node)

    @property
    def tries(self) -> int:
        return len(self.door.requests) + self.node.dials

    def connect(self) -> Connect:
        if self.face == "http":
            return lambda _client_id: open_posts("http://node.example:8400", transport=self.door)
        return lambda client_id: open_stream(
            "ws://node.example:8400", client_id=client_id, dial=self.node.dial
        )

    def client(self, *, limits: Limits | None = None, **options: Any) -> AbstractAsyncContextManager[Client]:
        return open_client(
            "ws://node.example:8400",
            client_id="me",
            connect=self.connect(),
            limits=limits,
            now_ns=lambda: NOW_NS,
            rng=Random(1),
            **options,
        )


@asynccontextmanager
async def rigged(face: str) -> AsyncIterator[Rig]:
    async with fake_node() as node:
        yield Rig(node, face)


both = pytest.mark.parametrize("face", ["stream", "http"])


def refuses_bad(lines: bytes) -> dict[str, object] | None:
    return {"error": "line 1, column 3: bad", "line": 1} if b"bad" in lines else None


@both
async def test_a_write_returns_when_the_points_are_durable(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig, rig.client() as client:
        assert await client.write("m f=1 1\nm f=2 2") == Receipt(points=2, seq=1)
        assert rig.node.lines == [b"m f=1 1", b"m f=2 2"]
        assert client.status().state is State.CONNECTED
        assert (client.status().waiting_points, client.status().acked_points) == (0, 2)


@both
async def test_a_line_without_a_time_gets_the_moment_it_was_handed_over(
    face: str, autojump_clock: MockClock
) -> None:
    async with rigged(face) as rig, rig.client() as client:
        await client.write(line("m", {"host": "a b"}, {"f": 1.5, "n": 2}))
        assert rig.node.lines == [rb"m,host=a\ b f=1.5,n=2i %d" % NOW_NS]


@both
async def test_writes_of_many_tasks_share_a_frame(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig, rig.client() as client:
        async with trio.open_nursery() as nursery:
            for value in range(100):
                nursery.start_soon(client.write, f"m f={value} 1")
        assert len(rig.node.stored) == 1
        assert len(rig.node.lines) == 100
        assert trio.current_time() == pytest.approx(0.05, abs=0.01)


@both
async def test_a_refused_write_costs_only_itself(face: str, autojump_clock: MockClock) -> None:
    refused = []

    async def write(client: Client, text: str) -> None:
        try:
            await client.write(text)
        except PointsRefused as exc:
            refused.append(exc)

    async with rigged(face) as rig, rig.client() as client:
        rig.node.refuse = refuses_bad
        async with trio.open_nursery() as nursery:
            for text in ("m f=1 1", "bad f=2 2\nm f=0 0", "m f=3 3"):
                nursery.start_soon(write, client, text)
        assert sorted(rig.node.lines) == [b"m f=1 1", b"m f=3 3"]
        assert [(exc.lines, exc.status) for exc in refused] == [(b"bad f=2 2\nm f=0 0\n", 400)]
        assert "column 3: bad" in str(refused[0])
        assert client.status().refused_points == 2


@both
async def test_a_refusal_that_nobody_waits_for_is_told(face: str, autojump_clock: MockClock) -> None:
    told: list[PointsRefused] = []
    async with rigged(face) as rig, rig.client(on_refused=told.append) as client:
        rig.node.refuse = refuses_bad
        client.write_nowait("bad f=1 1")
        client.write_nowait("m f=1 1")
        await client.flush()
        assert [exc.lines for exc in told] == [b"bad f=1 1\n"]
        assert rig.node.lines == [b"m f=1 1"]


@both
async def test_a_refusal_is_logged_by_default(
    face: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with rigged(face) as rig, rig.client() as client:
        rig.node.refuse = refuses_bad
        client.write_nowait("bad f=1 1")
    assert "bad f=1 1" in caplog.text


@both
async def test_an_on_refused_that_fails_does_not_end_the_client(
    face: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: PointsRefused) -> None:
        raise RuntimeError("mine")

    async with rigged(face) as rig, rig.client(on_refused=fails) as client:
        rig.node.refuse = refuses_bad
        client.write_nowait("bad f=1 1")
        await client.flush()
        assert (await client.write("m f=1 1")).points == 1
    assert "on_refused failed" in caplog.text


@both
@pytest.mark.parametrize("text", ["m", "m f=1 1\nm f=x", "\ud800 f=1", "m f=1e999"])
async def test_a_malformed_line_raises_at_the_call_that_wrote_it(
    face: str, text: str, autojump_clock: MockClock
) -> None:
    async with rigged(face) as rig, rig.client() as client:
        with pytest.raises(PointError, match="line"):
            client.write_nowait(text)
        with pytest.raises(PointError):
            await client.write(text)
        assert client.status().waiting_points == 0


@both
async def test_no_points_are_durable_at_once(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig:
        rig.node.unreachable = True
        async with rig.client() as client:
            assert await client.write([]) == Receipt(0, None)
            client.write_nowait("# a comment\n")


@both
async def test_points_wait_while_the_node_is_away_and_go_when_it_is_back(
    face: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with rigged(face) as rig:
        rig.node.unreachable = True
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(300)
            status = client.status()
            assert (status.state, status.waiting_points, status.reconnects) == (State.WAITING, 1, 0)
            assert "Connection refused" in status.last_error
            # Full jitter up to 30 s: 15 s between two tries on the average.
            assert 10 < rig.tries < 60
            rig.node.unreachable = False
            await client.flush()
            assert rig.node.lines == [b"m f=1 1"]
            assert (client.status().state, client.status().last_error) == (State.CONNECTED, "")
    assert caplog.text.count("does not take points") == 1


@both
async def test_the_wait_that_a_node_asks_for_is_kept(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig:
        rig.node.reject = (503, {"Retry-After": "60"})
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(59)
            assert rig.tries == 1
            rig.node.reject = None
            await trio.sleep(32)
            assert rig.node.lines == [b"m f=1 1"]


@both
@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_wrong_token_or_address_holds_everything_and_says_so(
    face: str, status: int, autojump_clock: MockClock
) -> None:
    async with rigged(face) as rig:
        rig.node.reject = (status, {})
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(150)
            assert client.status().state in (State.MISCONFIGURED, State.CONNECTING)
            assert str(status) in client.status().last_error
            assert 7 <= rig.tries <= 11
            rig.node.reject = None
            await client.flush()
            assert rig.node.lines == [b"m f=1 1"]


@both
async def test_a_full_buffer_says_what_waits_and_why(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig:
        rig.node.unreachable = True
        async with rig.client(limits=Limits(buffer_points_max=5)) as client:
            client.write_nowait(["m f=1 1", "m f=2 2", "m f=3 3"])
            await trio.sleep(1)
            with pytest.raises(BufferFull, match=r"3 points .* Connection refused") as caught:
                client.write_nowait(["m f=4 4", "m f=5 5", "m f=6 6"])
            assert caught.value.waiting_points == 3
            client.write_nowait(["m f=4 4", "m f=5 5"])
            with pytest.raises(BadRequest, match="split it"):
                client.write_nowait([f"m f={value} 1" for value in range(6)])
            rig.node.unreachable = False


@both
async def test_a_write_waits_for_room_in_its_turn(face: str, autojump_clock: MockClock) -> None:
    order = []

    async def write(client: Client, name: str, points: int) -> None:
        await client.write([f"{name} f={value} 1" for value in range(points)])
        order.append(name)

    async with rigged(face) as rig:
        rig.node.unreachable = True
        async with rig.client(limits=Limits(buffer_points_max=5)) as client, trio.open_nursery() as nursery:
            for name, points in (("a", 4), ("b", 3), ("c", 1)):
                nursery.start_soon(write, client, name, points)
                await wait_all_tasks_blocked(0.001)
            assert client.status().waiting_points == 4
            rig.node.unreachable = False
    assert order[0] == "a"
    assert len(rig.node.lines) == 8


@both
async def test_a_cancelled_write_is_delivered_all_the_same(face: str, autojump_clock: MockClock) -> None:
    told: list[PointsRefused] = []
    async with rigged(face) as rig:
        rig.node.unreachable = True
        rig.node.refuse = refuses_bad
        async with rig.client(on_refused=told.append) as client:
            with trio.move_on_after(1):
                await client.write("m f=1 1")
            with trio.move_on_after(1):
                await client.write("bad f=1 1")
            rig.node.unreachable = False
    assert rig.node.lines == [b"m f=1 1"]
    assert [exc.lines for exc in told] == [b"bad f=1 1\n"]


@both
async def test_a_write_cancelled_while_it_waits_for_room_leaves_nothing(
    face: str, autojump_clock: MockClock
) -> None:
    async with rigged(face) as rig:
        rig.node.unreachable = True
        async with rig.client(limits=Limits(buffer_points_max=1)) as client:
            client.write_nowait("m f=1 1")
            with trio.move_on_after(1):
                await client.write("m f=2 2")
            rig.node.unreachable = False
    assert rig.node.lines == [b"m f=1 1"]


@both
async def test_leaving_waits_until_everything_is_durable(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig:
        async with rig.client() as client:
            for value in range(2_500):
                client.write_nowait(f"m f={value} 1")
        assert len(rig.node.lines) == 2_500
        assert len(rig.node.stored) == 3
        with pytest.raises(trio.ClosedResourceError):
            client.write_nowait("m f=1 1")


@both
async def test_leaving_gives_up_in_time_and_says_how_much(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig:
        rig.node.unreachable = True
        with pytest.raises(NotDelivered, match=r"2 points .* Connection refused") as caught:
            async with rig.client(limits=Limits(close_s_max=3)) as client:
                client.write_nowait("m f=1 1\nm f=2 2")
        assert caught.value.points == 2
        assert trio.current_time() == pytest.approx(3, abs=0.1)


@both
async def test_whoever_waits_for_a_receipt_is_told_when_the_client_is_left(
    face: str, autojump_clock: MockClock
) -> None:
    async with rigged(face) as rig, trio.open_nursery() as nursery:
        rig.node.unreachable = True
        errors = []

        async def wait(job: Any) -> None:
            with pytest.raises((NotDelivered, trio.ClosedResourceError)) as caught:
                await job()
            errors.append(type(caught.value))

        async def use() -> None:
            async with rig.client(limits=Limits(close_s_max=3, buffer_points_max=1)) as client:
                nursery.start_soon(wait, functools.partial(client.write, "m f=1 1"))
                await wait_all_tasks_blocked(0.001)
                nursery.start_soon(wait, functools.partial(client.write, "m f=2 2"))
                nursery.start_soon(wait, client.flush)
                await wait_all_tasks_blocked(0.001)

        with pytest.raises(NotDelivered):
            await use()
    assert sorted(error.__name__ for error in errors) == [
        "ClosedResourceError",
        "NotDelivered",
        "NotDelivered",
    ]


@both
async def test_cancellation_leaves_at_once(
    face: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with rigged(face) as rig:
        rig.node.unreachable = True
        with trio.move_on_after(1):
            async with rig.client() as client:
                client.write_nowait("m f=1 1")
                await trio.sleep_forever()
        assert trio.current_time() == pytest.approx(1)
    assert "left with 1 points" in caplog.text


@both
async def test_an_error_in_the_block_comes_out_after_everything_was_delivered(
    face: str, autojump_clock: MockClock
) -> None:
    async def use(rig: Rig) -> None:
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            raise KeyError("mine")

    async with rigged(face) as rig:
        with pytest.raises(KeyError):
            await use(rig)
        assert rig.node.lines == [b"m f=1 1"]


@both
async def test_a_node_that_does_not_answer_is_given_up_and_asked_again(
    face: str, autojump_clock: MockClock
) -> None:
    async with rigged(face) as rig:
        rig.node.store = False
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(29)
            assert rig.tries == 1
            await trio.sleep(10)
            assert rig.tries == 2
            assert "no answer from the node in 30 s" in client.status().last_error or face == "stream"
            rig.node.store = True
            await client.flush()
        assert rig.node.lines == [b"m f=1 1"]


@both
async def test_failures_count_until_an_answer_however_often_a_connection_opens(
    face: str, autojump_clock: MockClock
) -> None:
    async with rigged(face) as rig:
        rig.node.greeting = (1013, "busy")
        rig.node.reject = (503, {}) if face == "http" else None
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(300)
            assert 10 < rig.tries < 60
            rig.node.greeting = rig.node.reject = None


@both
async def test_flushing_does_not_wait_for_a_frame_to_fill(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig, rig.client() as client:
        client.write_nowait("m f=1 1")
        await client.flush()
        assert rig.node.lines == [b"m f=1 1"]
        assert trio.current_time() < 0.01


@both
async def test_after_an_answer_the_waits_begin_anew(face: str, autojump_clock: MockClock) -> None:
    async with rigged(face) as rig:
        rig.node.unreachable = True
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(300)
            rig.node.unreachable = False
            await client.flush()
            rig.node.unreachable = True
            await rig.node.drop()
            client.write_nowait("m f=2 2")
            await trio.sleep(0.3)
            assert client.status().state is State.WAITING
            rig.node.unreachable = False
            before_s = trio.current_time()
            await client.flush()
            assert trio.current_time() - before_s < 1


# -- the stream alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
async def test_a_closed_stream_is_opened_again_and_nothing_is_stored_twice(
    code: int, autojump_clock: MockClock
) -> None:
    async with rigged("stream") as rig, rig.client() as client:
        await client.write("m f=1 1")
        rig.node.store = False
        client.write_nowait("m f=2 2")
        await rig.node.received.wait()
        rig.node.store = True
        await rig.node.close(code)
        await client.flush()
        assert rig.node.lines == [b"m f=1 1", b"m f=2 2"]
        assert client.status().reconnects == 1
        assert trio.current_time() < 1


async def test_a_replaced_client_ends_and_says_so(autojump_clock: MockClock) -> None:
    async def use(rig: Rig) -> None:
        async with rig.client() as client:
            await client.write("m f=1 1")
            rig.node.store = False
            client.write_nowait("m f=2 2")
            await rig.node.received.wait()
            await rig.node.close(4001)
            await trio.sleep_forever()

    async with rigged("stream") as rig:
        with pytest.raises(Replaced, match="client_id 'me'; 1 points"):
            await use(rig)
        assert rig.tries == 1


async def test_a_wrong_token_is_a_misconfiguration_on_a_stream_too(autojump_clock: MockClock) -> None:
    async with rigged("stream") as rig:
        rig.node.greeting = (1008, "the token is wrong")
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(14)
            assert (client.status().state, rig.tries) == (State.MISCONFIGURED, 1)
            assert "the token is wrong" in client.status().last_error
            rig.node.greeting = None
            await client.flush()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_connection_cut_at_any_byte_loses_nothing_and_stores_nothing_twice(
    direction: str, autojump_clock: MockClock
) -> None:
    for cut in [*range(150, 750, 7)]:
        async with rigged("stream") as rig, rig.client() as client:
            rig.node.cut_after_bytes = (cut, 10**6) if direction == "up" else (10**6, cut)
            limits = [await client.write(f"m f={value} 1") for value in range(5)]
            assert [receipt.points for receipt in limits] == [1] * 5
            assert sorted(rig.node.lines) == [b"m f=%d 1" % value for value in range(5)], cut


async def test_numbers_go_on_where_an_earlier_process_stopped(autojump_clock: MockClock) -> None:
    async with rigged("stream") as rig:
        for value in range(3):
            async with rig.client() as client:
                await client.write(f"m f={value} 1")
        assert [stored.number for stored in rig.node.stored] == [1, 2, 3]


@pytest.mark.parametrize("durable", [2**53 - 1, 2**53 - 40])
async def test_a_stream_without_numbers_is_left_for_another_and_nothing_is_lost_or_stored_twice(
    durable: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with rigged("stream") as rig, rig.client(limits=Limits(frame_points_max=1)) as client:
        await client.write("m f=0 1")
        rig.node.store = False
        client.write_nowait("m f=1 1")
        client.write_nowait("m f=2 1")
        while rig.node.frames_read < 3:
            await rig.node.received.wait()
        # The node has the first of them; its answer is lost, and the last number of all is taken.
        rig.node.take(b"m f=1 1\n", client_id="me", number=2)
        rig.node.take(b"other f=1 1\n", client_id="me", number=durable)
        rig.node.store = True
        await rig.node.drop()
        await client.flush()
        await client.write("m f=3 1")
        await rig.node.drop()
        await client.write("m f=4 1")
    mine = [each for each in rig.node.stored if each.number != durable]
    assert [each.lines for each in mine] == [b"m f=%d 1\n" % value for value in range(5)]
    ids = {each.client_id for each in mine[2:]}
    assert [each.number for each in mine] == [1, 2, 1, 2, 3]
    assert len(ids) == 1
    assert re.fullmatch(r"me\.[0-9a-f]{8}", ids.pop())
    told = [record.getMessage() for record in caplog.records if "is left for" in record.getMessage()]
    assert len(told) == 1
    assert f"no numbers are left above {durable}" in told[0]


async def test_a_node_without_numbers_for_any_stream_is_not_asked_without_a_pause(
    autojump_clock: MockClock,
) -> None:
    async with rigged("stream") as rig:
        rig.node.greeting = (
            '{"type":"welcome","durable":9007199254740991,"seq":1,"stored":[],"window_frames":1,'
            '"frame_bytes_max":1000000}'
        )
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(60)
            assert rig.tries < 20
            rig.node.greeting = None
            await client.flush()
        assert rig.node.lines == [b"m f=1 1"]


async def test_no_more_frames_are_under_way_than_the_window_has(autojump_clock: MockClock) -> None:
    async with rigged("stream") as rig, rig.client(limits=Limits(frame_points_max=1)) as client:
        rig.node.window_frames = 4
        rig.node.store = False
        for value in range(10):
            client.write_nowait(f"m f={value} 1")
        await trio.sleep(1)
        assert rig.node.frames_read == 4
        rig.node.store = True
        await rig.node.drop()
        await client.flush()
        assert len(rig.node.lines) == 10


# -- HTTP alone --------------------------------------------------------------------------------------------


async def test_a_post_is_compressed_line_protocol_with_the_token(autojump_clock: MockClock) -> None:
    async with rigged("http") as rig:
        posts = functools.partial(
            open_posts, "http://node.example:8400", token="secret", org="o", transport=rig.door
        )
        async with open_client("http://node.example", connect=lambda _client_id: posts()) as client:
            await client.write([f"measurement f={value} 1" for value in range(50)])
        (request,) = rig.door.requests
        assert str(request.url) == "http://node.example:8400/metrics?org=o&precision=ns"
        assert request.headers["authorization"] == "Bearer secret"
        assert request.headers["content-encoding"] == "gzip"
        assert request.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_what_passes_by_itself_is_tried_again(status: int, autojump_clock: MockClock) -> None:
    async with rigged("http") as rig:
        rig.node.reject = (status, {"Retry-After": "3"})
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(2)
            assert client.status().state is State.WAITING
            assert f"answered {status}: not now" in client.status().last_error
            rig.node.reject = None
        assert rig.node.lines == [b"m f=1 1"]


async def test_an_answer_that_is_no_nodes_holds_everything(autojump_clock: MockClock) -> None:
    """Such as a captive portal's 200."""
    async with rigged("http") as rig:
        rig.node.reject = (200, {})
        async with rig.client() as client:
            client.write_nowait("m f=1 1")
            await trio.sleep(1)
            assert client.status().state is State.MISCONFIGURED
            rig.node.reject = None
            await client.flush()
        assert rig.node.lines == [b"m f=1 1"]


async def test_a_post_that_is_too_large_is_halved(autojump_clock: MockClock) -> None:
    async with rigged("http") as rig, rig.client() as client:
        rig.door.points_max = 30
        receipt = await client.write([f"m f={value} 1" for value in range(100)])
        assert (receipt.points, len(rig.node.lines)) == (100, 100)
        assert [stored.points for stored in rig.node.stored] == [25] * 4


# -- opening -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "ws://[", "http://[", "host:8400", "", "ws://", "http://u:p@host", "ws://host:99999"],
)
async def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError):
        async with open_client(url):
            pytest.fail("a client was opened")


async def test_a_client_opens_while_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    for url in ("ws://127.0.0.1:1", "http://127.0.0.1:1"):
        with pytest.raises(NotDelivered, match=r"refused|failed"):
            async with open_client(url, limits=Limits(close_s_max=0.3)) as client:
                client.write_nowait("m f=1 1")
