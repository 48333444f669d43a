"""Streams come and go: handshakes, one client's second connection, and every way in which a stream ends."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.rig import LINE, get, post, until, within
from tests.http.stream.rig import (
    BINARY,
    NO_MASK,
    SUBPROTOCOL,
    TEXT,
    Client,
    Node,
    flood,
    frame,
    message,
    node,
    upgrade,
    ws,
)
from tests.http.stream.test_session import ack
from tests.http.test_hostile import reset
from wal_ingest.errors import AppendQueueFull, Stopping, WalBroken, WalFull
from wal_ingest.http.hypercorn_mends import EXTENSION
from wal_ingest.http.stream.session import Session
from wal_ingest.http.stream.streams import Streams
from wal_ingest.settings import KIB, MIB, ServerSettings

# -- handshakes -------------------------------------------------------------------------------------------


async def test_without_an_upgrade_the_route_says_what_it_wants() -> None:
    async with node() as whole:
        for request in (get("/stream"), post("/stream")):
            peer = await whole.server.connect()
            await peer.send(request)
            answer = await peer.answer()
            assert answer.status == 426
            assert answer.headers["upgrade"] == "websocket"
            assert b"wal-ingest.v1" in answer.body


@pytest.mark.parametrize("path", ["/other", "/metrics", "/"])
async def test_elsewhere_there_is_no_websocket(path: str) -> None:
    async with node() as whole:
        peer = await whole.server.connect()
        await peer.send(upgrade(path))
        answer = await peer.answer()
        assert (answer.status, answer.body) == (404, b'{"error": "there is no WebSocket here"}\n')
        assert await peer.end() == b""


@pytest.mark.parametrize("path", ["/stream/", "//stream", "//stream//"])
async def test_doubled_and_final_slashes_of_the_path_do_not_matter(path: str) -> None:
    async with node() as whole:
        client = await whole.open("client_id=a", path=path)
        assert (await client.next())["type"] == "welcome"
        await client.send(1)
        assert (await client.next())["type"] == "ack"
        assert whole.wal.lines == LINE
        await client.hang_up()


async def test_compression_of_the_connection_is_never_agreed_to() -> None:
    async with node() as whole:
        for offer in (
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits, x-webkit-deflate-frame",
        ):
            client = await whole.open("", f"Sec-WebSocket-Extensions: {offer}")
            assert "sec-websocket-extensions" not in client.headers
            await client.next()
            await client.send(1)
            assert (await client.next())["type"] == "ack"
            # Who compresses all the same breaks the protocol.
            await client.raw(ws(BINARY, message(2), reserved=4))
            assert (await client.closed()).code == 1002


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("client_id=", "client_id"),
        ("client_id=a%20b", "client_id"),
        ("client_id=a%00", "client_id"),
        ("client_id=" + "x" * 129, "client_id"),
        ("client_id=%C3%A4", "client_id"),
        ("precision=h", "precision 'h' is not known"),
        ("org=" + "x" * 1_025, "1024 bytes"),
        ("client_id=%FF", "the query is not readable"),
        ("&".join(f"a{n}=1" for n in range(33)), "at most 32 fields"),
    ],
)
async def test_bad_parameters_are_told_by_the_close(query: str, reason: str) -> None:
    async with node() as whole:
        closed = await (await whole.open(query)).closed()
        assert closed.code == 1008
        assert reason in closed.reason
        assert whole.streams.count == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Sec-WebSocket-Protocol", "wal-ingest.v1, \xff"),
        ("Sec-WebSocket-Extensions", "\xe4"),
        ("Connection", "Upgrade, \xe4"),
    ],
)
async def test_a_handshake_that_is_not_ascii_is_a_400(name: str, value: str) -> None:
    with structlog.testing.capture_logs() as lines:
        async with node() as whole:
            peer = await whole.server.connect()
            await peer.send(
                upgrade(subprotocol="").replace(b"\r\n\r\n", f"\r\n{name}: {value}\r\n\r\n".encode("latin-1"))
            )
            assert (await peer.answer()).status == 400
            assert await peer.end() == b""
            await whole.answers_others()
    assert [line for line in lines if line["event"] == "a connection was dropped"] == []


async def test_a_sub_protocol_that_is_not_known_is_told_by_the_close() -> None:
    async with node() as whole:
        closed = await (await whole.open(subprotocol="wal-ingest.v9")).closed()
        assert closed.code == 1008
        assert "use wal-ingest.v1" in closed.reason
        client = await whole.open(subprotocol="wal-ingest.v9, wal-ingest.v1")
        assert client.headers["sec-websocket-protocol"] == "wal-ingest.v1"
        assert (await client.next())["type"] == "welcome"


async def test_too_many_streams_are_told_to_come_back_and_one_that_ended_makes_room() -> None:
    async with node(ServerSettings(streams_max=2, stop_s_max=2.0)) as whole:
        first, _second = await whole.stream(), await whole.stream()
        closed = await (await whole.open()).closed()
        assert closed.code == 1013
        assert closed.reason.startswith("retry after 10 s: too many streams are open")
        assert whole.streams.count == 2
        await first.hang_up()
        await until(lambda: whole.streams.count == 1)
        await whole.stream()


async def test_streams_max_0_turns_all_away() -> None:
    async with node(ServerSettings(streams_max=0)) as whole:
        assert (await (await whole.open()).closed()).code == 1013


WITH_TOKEN = ServerSettings(write_token="s3cret+/=", stop_s_max=2.0)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("token=s3cret%2B%2F%3D", ()),
        ("client_id=a&token=s3cret%2B%2F%3D", ()),
        ("", ("Authorization: Bearer s3cret+/=",)),
        ("", ("Authorization: Token s3cret+/=",)),
        ("token=wrong", ("authorization: bearer s3cret+/=",)),
    ],
)
async def test_the_token_opens_a_stream(query: str, headers: tuple[str, ...]) -> None:
    async with node(WITH_TOKEN) as whole:
        client = await whole.stream(query, *headers)
        await client.send(1)
        assert await client.next() == ack(1)


@pytest.mark.parametrize("subprotocol", ["wal-ingest.v1", ""])
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("", ()),
        ("token=", ()),
        ("token=s3cret", ()),
        ("", ("Authorization: Bearer s3cret",)),
        ("", ("Authorization: Digest s3cret+/=",)),
        ("token=s3cret%2B%2F%3D", ("Authorization: Bearer wrong",)),
    ],
)
async def test_without_the_token_nothing_is_read(
    query: str, headers: tuple[str, ...], subprotocol: str
) -> None:
    async with node(WITH_TOKEN) as whole:
        client = await whole.open(query, *headers, subprotocol=subprotocol)
        await client.raw(ws(TEXT, LINE))
        closed = await client.closed()
        assert closed.code == 1008
        assert "token" in closed.reason
        assert "s3cret" not in closed.reason
        assert whole.wal.tries == 0


# -- the same client once more ----------------------------------------------------------------------------


async def test_a_second_connection_of_a_client_ends_the_first() -> None:
    async with node() as whole:
        first = await whole.stream("client_id=a")
        await first.send(1)
        await first.acked(1)
        second, welcome = await whole.welcomed("client_id=a")
        assert welcome["durable"] == 1
        closed = await first.closed()
        assert (closed.code, closed.reason) == (4001, "another connection came with the same client_id")
        await second.send(2)
        assert await second.next() == ack(2)
        await until(lambda: whole.streams.count == 1)
        # The end of the first has not taken the second's place away.
        third = await whole.stream("client_id=a")
        assert (await second.closed()).code == 4001
        await third.send(3)
        assert await third.next() == ack(3)


async def test_clients_of_other_names_or_none_are_left_alone() -> None:
    async with node() as whole:
        others = [await whole.stream(query) for query in ("client_id=b", "", "")]
        await whole.stream("client_id=a")
        await whole.stream("client_id=a")
        for client in others:
            await client.send(1)
            assert (await client.next())["type"] == "ack"


async def welcomes(clients: list[Client], told: dict[int, dict[str, object]], number: int) -> None:
    told[number] = await clients[number].next()


async def test_the_second_is_welcomed_only_when_the_append_under_way_has_ended() -> None:
    async with node() as whole:
        first = await whole.stream("client_id=a")
        gate = whole.wal.shut()
        await first.send(1)
        await whole.wal.waiting.wait()
        await first.send(2)  # stands in line, and is let go of
        second = await whole.open("client_id=a")
        told: dict[int, dict[str, object]] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(welcomes, [second], told, 0)
            await wait_all_tasks_blocked(0.02)
            assert told == {}
            gate.set()
        assert told[0]["durable"] == 1
        assert await first.next() == ack(1)
        assert (await first.closed()).code == 4001
        assert whole.wal.lines == LINE
        await second.send(2)
        assert await second.next() == ack(2)


async def test_a_third_waits_for_the_append_of_the_first_although_the_second_was_never_welcomed() -> None:
    async with node() as whole:
        first = await whole.stream("client_id=a")
        gate = whole.wal.shut()
        await first.send(1)
        await whole.wal.waiting.wait()
        clients = [await whole.open("client_id=a") for _ in range(3)]
        told: dict[int, dict[str, object]] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(welcomes, clients, told, 2)
            await wait_all_tasks_blocked(0.02)
            assert told == {}, "the first's frame is not durable yet, and will be"
            gate.set()
        assert told[2]["durable"] == 1
        for replaced in (clients[0], clients[1]):
            assert (await replaced.closed()).code == 4001
        await until(lambda: whole.streams.count == 1)


async def test_a_second_connection_that_gives_up_waiting_leaves_nothing_behind() -> None:
    async with node() as whole:
        first = await whole.stream("client_id=a")
        gate = whole.wal.shut()
        await first.send(1)
        await whole.wal.waiting.wait()
        second = await whole.open("client_id=a")
        await wait_all_tasks_blocked(0.02)
        await second.peer.stream.aclose()
        gate.set()
        await first.acked(1)
        await until(lambda: whole.is_empty)
        assert (await whole.welcomed("client_id=a"))[1]["durable"] == 1


async def test_the_first_is_ended_also_when_its_peer_reads_nothing_any_more() -> None:
    async with node() as whole:
        first = await whole.stream("client_id=a")
        await first.raw(b"".join(ws(TEXT, b"x" * 100) for _ in range(100)))
        second = await whole.stream("client_id=a")
        await second.send(1)
        assert await second.next() == ack(1)


# -- a WAL that takes nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [WalFull, WalBroken])
async def test_a_wal_that_takes_nothing_sends_the_client_away_for_a_while(error: type[WalFull]) -> None:
    async with node() as whole:
        client = await whole.stream("client_id=a")
        whole.wal.error = error("the WAL takes nothing", retry_after_s=7)
        await client.send(1, 2)
        told = await client.next()
        assert told == {
            "type": "error",
            "number": 1,
            "status": 503,
            "error": "the WAL takes nothing",
            "retry_after_s": 7,
        }
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1013, "retry after 7 s: the WAL takes nothing")
        await until(lambda: whole.is_empty)
        whole.wal.error = None
        client, welcome = await whole.welcomed("client_id=a")
        assert welcome["durable"] == 0
        await client.send(1)
        assert await client.next() == ack(1)


async def test_behind_a_frame_whose_append_failed_nothing_is_stored() -> None:
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        whole.wal.error = WalFull("full")
        await client.send(1)
        await whole.wal.waiting.wait()
        await client.send(2, 3)
        await wait_all_tasks_blocked(0.02)
        gate.set()
        while (await client.next())["status"] != 503:
            pass
        whole.wal.error = None
        assert (await client.closed()).code == 1013
        assert whole.wal.appends == []
        assert whole.wal.tries == 1


async def test_memory_that_all_bodies_have_taken_sends_the_client_away() -> None:
    settings = ServerSettings(bodies_bytes_max=MIB, stop_s_max=2.0)
    async with node(settings) as whole:
        client = await whole.stream()
        await client.raw(frame(1, LINE * 30_000))
        closed = await client.closed()
        assert closed.code == 1013
        assert closed.reason.startswith("retry after 1 s: too many bodies are being read")
        await until(lambda: whole.is_empty)
        await whole.answers_others()


async def test_a_frame_that_has_no_room_when_it_is_decompressed_gives_back_what_it_holds() -> None:
    async with node(ServerSettings(bodies_bytes_max=MIB, stop_s_max=2.0)) as whole:
        client = await whole.stream()
        await client.send(1, body=gzip.compress(LINE * 30_000), encoding="gzip")
        assert (await client.closed()).code == 1013
        await until(lambda: whole.is_empty)


async def test_a_failure_of_ours_is_a_1011_and_leaves_nothing_behind() -> None:
    async with node() as whole:
        client = await whole.stream()
        whole.wal.error = RuntimeError("a bug")
        await client.send(1, 2)
        assert (await client.closed()).code == 1011
        await until(lambda: whole.is_empty)
        whole.wal.error = None
        await whole.answers_others()


# -- a stop -----------------------------------------------------------------------------------------------


async def test_at_a_stop_what_was_read_is_stored_and_acked_before_the_close() -> None:
    async with node() as whole:
        client, idle = await whole.stream(), await whole.stream()
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        await client.send(2, 3)
        await wait_all_tasks_blocked(0.02)
        whole.streams.stop()
        assert (await idle.closed()).code == 1012
        gate.set()
        assert await client.several(2) == [ack(1), ack(3, points=2)]
        closed = await client.closed()
        assert (closed.code, closed.reason) == (1012, "the server is shutting down")
        assert whole.wal.lines == LINE * 3
        late = await whole.open()
        assert (await late.closed()).code == 1012


async def test_at_a_stop_a_frame_that_is_still_coming_is_let_go_of() -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.raw(frame(1, LINE * 10)[:-1])
        await until(lambda: whole.budget.held_bytes > 0)
        whole.streams.stop()
        assert (await client.closed()).code == 1012
        assert whole.wal.tries == 0


async def test_a_stop_while_a_second_connection_waits_for_the_first() -> None:
    async with node() as whole:
        first = await whole.stream("client_id=a")
        gate = whole.wal.shut()
        await first.send(1)
        await whole.wal.waiting.wait()
        second = await whole.open("client_id=a")
        await wait_all_tasks_blocked(0.02)
        whole.streams.stop()
        gate.set()
        assert await first.next() == ack(1)
        assert (await first.closed()).code == 4001
        assert (await second.closed()).code == 1012


async def test_whoever_was_sent_away_by_a_hanging_disk_is_welcomed_when_it_is_known_what_became_of_the_frame() -> (
    None
):
    async with node() as whole:
        whole.wal.disk_goes_on = disk_goes_on = trio.Event()
        first = await whole.stream("client_id=a")
        await first.send(1)
        assert (await first.next())["status"] == 503
        assert (await first.closed()).code == 1013
        for _ in range(2):
            early = await whole.open("client_id=a")
            closed = await early.closed()
            assert (closed.code, closed.reason) == (
                1013,
                "retry after 10 s: the disk has not finished with a frame of before",
            )
        assert (await whole.welcomed("client_id=b"))[1]["durable"] == 0
        disk_goes_on.set()
        await until(lambda: len(whole.wal.appends) == 1)
        whole.wal.disk_goes_on = None
        again, welcome = await whole.welcomed("client_id=a")
        assert welcome["durable"] == 1
        await again.send(1, 2)
        assert [told["number"] for told in await again.acked(2)] in ([2], [1, 2])
        assert len(whole.wal.appends) == 2


async def test_the_frames_of_clients_that_never_come_back_are_forgotten_when_they_have_landed() -> None:
    async with node(ServerSettings(streams_max=2, stop_s_max=2.0)) as whole:
        whole.wal.disk_goes_on = disk_goes_on = trio.Event()
        for number in range(5):
            client = await whole.stream(f"client_id={number}")
            await client.send(1)
            assert (await client.next())["status"] == 503
            assert (await client.closed()).code == 1013
        disk_goes_on.set()
        await until(lambda: len(whole.wal.appends) == 5)
        whole.wal.disk_goes_on = trio.Event()
        client = await whole.stream("client_id=last")
        await client.send(1)
        assert (await client.next())["status"] == 503
        assert (await client.closed()).code == 1013
        assert list(whole.streams._undecided) == ["last"]
        whole.wal.disk_goes_on.set()
        await until(lambda: len(whole.wal.appends) == 6)


class Spoken:
    """A WebSocket without a connection: what is said on it is kept, and nothing is read."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.listener: Session | None = None
        self.is_one_too_many = False

    def listen(self, listener: Session) -> None:
        self.listener = listener

    def say(self, text: str) -> bool:
        self.said.append({"type": "websocket.send", "text": text})
        return True

    async def send(self, message: dict[str, Any]) -> None:
        self.said.append(message)

    @property
    def welcome(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.said[1]["text"])
        assert told["type"] == "welcome"
        return told

    @property
    def close_code(self) -> int:
        code: int = self.said[-1]["code"]
        return code

    async def live(self, streams: Streams) -> None:
        """One stream of client a, from its handshake to its end."""

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        scope = {
            "type": "websocket",
            "headers": [],
            "query_string": b"client_id=a",
            "subprotocols": [SUBPROTOCOL],
            "client": ("127.0.0.1", 1),
            "extensions": {EXTENSION: self},
        }
        await streams(scope, receive, self.send)


@pytest.mark.parametrize("second_comes", ["behind", "before and is cancelled too"])
@pytest.mark.parametrize("hangs", [False, True])
async def test_a_stream_that_was_cancelled_alone_keeps_the_next_away_until_its_append_is_decided(
    second_comes: str, hangs: bool
) -> None:
    async with node() as whole, trio.open_nursery() as nursery:
        gate = whole.wal.disk_goes_on = trio.Event()
        if not hangs:
            whole.wal.disk_goes_on, gate = None, whole.wal.shut()
        first, second, early, late = Spoken(), Spoken(), Spoken(), Spoken()
        scopes: list[trio.CancelScope] = []

        async def cancelled(spoken: Spoken) -> None:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                await spoken.live(whole.streams)

        nursery.start_soon(cancelled, first)
        await wait_all_tasks_blocked()
        assert first.listener is not None
        await first.listener.take([(message(1), True)])
        if second_comes != "behind":
            await wait_all_tasks_blocked()
            nursery.start_soon(cancelled, second)
        await wait_all_tasks_blocked()
        for scope in scopes:
            scope.cancel()
        await wait_all_tasks_blocked()
        await early.live(whole.streams)
        assert early.close_code == 1013
        gate.set()
        await until(lambda: len(whole.wal.appends) == 1)
        await wait_all_tasks_blocked()
        nursery.start_soon(late.live, whole.streams)
        await wait_all_tasks_blocked()
        assert late.welcome["durable"] == 1
        nursery.cancel_scope.cancel()


async def test_a_wal_that_stops_closes_as_a_stop_does() -> None:
    async with node() as whole:
        client = await whole.stream()
        whole.wal.error = Stopping("the node is shutting down")
        await client.send(1)
        with pytest.raises(AssertionError, match="503"):
            await client.closed()
        assert (await client.closed()).code == 1012


async def test_a_stop_ends_the_wait_for_room_in_the_append_queue_at_its_deadline() -> None:
    async with node(ServerSettings(stop_s_max=1.0)) as whole:
        client = await whole.stream()
        whole.wal.error = AppendQueueFull("the disk is slow")
        await client.send(1)
        await until(lambda: whole.wal.tries > 1)
        whole.streams.stop()
        whole.server.shutdown.set()
        with within(1.5):
            await whole.server.stopped.wait()
        assert whole.is_empty
        assert whole.wal.appends == []


# -- limits -----------------------------------------------------------------------------------------------

SMALL = ServerSettings(body_bytes_max=16 * KIB, stop_s_max=2.0)


def too_big(opcode: int, pieces: int) -> bytes:
    """A message over the limit of `SMALL` in so many frames."""
    data = message(2, b"x" * (18 * KIB))
    size = len(data) // pieces + 1
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(
        ws(0 if at else opcode, part, fin=at == len(parts) - 1, mask=NO_MASK) for at, part in enumerate(parts)
    )


@pytest.mark.parametrize("pieces", [1, 7, 1_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_a_message_over_the_limit_ends_the_stream_behind_what_came_before(
    opcode: int, pieces: int
) -> None:
    async with node(SMALL) as whole:
        client = await whole.stream()
        await client.raw(frame(1) + too_big(opcode, pieces))
        assert await client.next() == ack(1)
        closed = await client.closed()
        assert closed.code == 1009
        assert "limit of 16384 bytes (server.body_bytes_max)" in closed.reason


async def test_a_message_that_only_says_it_is_too_large_is_refused_when_it_gets_there() -> None:
    async with node(SMALL) as whole:
        client = await whole.stream()
        await client.raw(ws(BINARY, b"x" * 17_409, mask=NO_MASK, length=2**62))
        assert (await client.closed()).code == 1009


@pytest.mark.parametrize("subprotocol", ["wal-ingest.v1", ""])
async def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_a_413(subprotocol: str) -> None:
    body = LINE * (16 * KIB // len(LINE))
    body = body.ljust(16 * KIB - 1, b"\n") + b"\n"
    async with node(SMALL) as whole:
        client = await whole.open(subprotocol=subprotocol)
        if subprotocol:
            await client.next()
        for number, sent in enumerate((body, body + b"\n", body), 1):
            await client.raw(ws(BINARY, message(number, sent) if subprotocol else sent, mask=NO_MASK))
        told = await client.acked(3)
        refused = [each for each in told if each["type"] == "error"]
        assert [(each["number"], each["status"]) for each in refused] == [(2, 413)]
        assert "limit of 16384 bytes" in refused[0]["error"]
        assert sum(each.get("points", 0) for each in told) == 2 * body.count(LINE)


async def test_a_frame_that_does_not_come_to_its_end_is_given_up() -> None:
    async with node(ServerSettings(body_s_max=0.2)) as whole:
        client = await whole.stream()
        await client.raw(frame(1) + frame(2)[:-1])
        assert await client.next() == ack(1)
        closed = await client.closed()
        assert closed.code == 1008
        assert closed.reason == "the frame did not arrive within 0.2 seconds (server.body_s_max)"


async def drips(client: Client, data: bytes) -> None:
    """Sends data byte by byte, slowly, for as long as there is somebody who takes it."""
    try:
        for byte in data:
            await client.raw(bytes([byte]))
            await trio.sleep(0.02)
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize(
    "data",
    [frame(1, LINE * 20), b"".join(ws(0 if at else TEXT, fin=False) for at in range(200))],
    ids=["a byte at a time", "empty pieces"],
)
async def test_a_frame_that_comes_too_slowly_is_given_up_although_it_never_stalls(data: bytes) -> None:
    async with node(ServerSettings(body_s_max=0.2)) as whole:
        client = await whole.stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drips, client, data)
            with within(2):
                assert (await client.closed()).code == 1008
            nursery.cancel_scope.cancel()


async def test_a_stream_may_be_silent_between_frames_for_longer_than_a_frame_may_take() -> None:
    async with node(ServerSettings(body_s_max=0.05)) as whole:
        client = await whole.stream()
        for number in (1, 2):
            await client.send(number)
            assert await client.next() == ack(number)
            await trio.sleep(0.15)


async def test_the_time_in_which_we_do_not_read_is_not_counted() -> None:
    async with node(ServerSettings(body_s_max=0.1, stream_window_frames_max=1)) as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.raw(frame(1) + frame(2)[:-1])
        await whole.wal.waiting.wait()
        await trio.sleep(0.3)
        gate.set()
        assert await client.next() == ack(1)
        await client.raw(frame(2)[-1:])
        assert await client.next() == ack(2)


# -- ends that the peer brings about ----------------------------------------------------------------------


async def test_a_close_by_the_peer_is_answered_and_what_it_sent_before_is_stored() -> None:
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        await client.send(2, 3)
        await client.hang_up()
        gate.set()
        await until(lambda: whole.is_empty)
        assert whole.wal.lines == LINE * 3


async def test_a_connection_that_just_ends_stores_what_was_whole() -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.raw(frame(1) + frame(2) + frame(3)[:-1])
        await client.acked(2)
        await client.peer.stream.aclose()
        await until(lambda: whole.is_empty)
        assert whole.wal.lines == LINE * 2


async def held_up(whole: Node, client: Client) -> trio.Event:
    """Fills the stream up to where nothing more is read of its connection, the first append still under way."""
    gate = whole.wal.shut()
    await client.send(1)
    await whole.wal.waiting.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.raw, flood())
        await wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()
    return gate


async def test_a_reset_while_nothing_is_read_is_noticed_after_the_append() -> None:
    async with node(ServerSettings(stream_window_frames_max=2, stop_s_max=2.0)) as whole:
        client = await whole.stream("client_id=a")
        gate = await held_up(whole, client)
        reset(client.peer)
        gate.set()
        with within(3):
            await until(lambda: whole.is_empty)
        stored = len(whole.wal.appends)
        await whole.answers_others()
        assert len(whole.wal.appends) == stored + 2
        assert whole.is_empty


async def test_a_held_up_stream_is_replaced_and_stopped_all_the_same() -> None:
    async with node(ServerSettings(stream_window_frames_max=2, stop_s_max=2.0)) as whole:
        client = await whole.stream("client_id=a")
        gate = await held_up(whole, client)
        second = await whole.open("client_id=a")
        await wait_all_tasks_blocked(0.02)
        gate.set()
        assert (await second.next())["durable"] == 1
        await until(lambda: whole.streams.count == 1)
        whole.streams.stop()
        assert (await second.closed()).code == 1012


async def test_frames_on_the_heels_of_the_handshake_leave_no_stream_behind() -> None:
    async with node() as whole:
        for _ in range(30):
            peer = await whole.server.connect()
            await peer.send(upgrade("/stream?client_id=a") + frame(1))
            assert (await peer.answer(head_only=True)).status in (101, 400)
            await peer.stream.aclose()
        await until(lambda: whole.is_empty)
        await whole.answers_others()
