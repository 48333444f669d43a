"""One stream: what is answered to its frames, in which order, and what is held back."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.rig import LINE, NOW_NS, Receipt, inline, until
from tests.http.stream.rig import (
    BINARY,
    CONTINUATION,
    FLOOD_BODY,
    NO_MASK,
    TEXT,
    Client,
    flood,
    message,
    node,
    ws,
)
from wal_ingest.errors import AppendQueueFull, ComeBackLater
from wal_ingest.http.appending import Appended, Appender
from wal_ingest.http.body import BodyBudget
from wal_ingest.http.checking import Checker
from wal_ingest.http.observer import Nobody
from wal_ingest.http.refusals import RefusalLog
from wal_ingest.http.stream.intake import Asked, Door
from wal_ingest.http.stream.pace import Pace
from wal_ingest.http.stream.session import Session
from wal_ingest.settings import KIB, MIB, ServerSettings
from wal_ingest.wal.entry import Destination, Mark, NewEntry

BAD = b"cpu usage\n"


def ack(number: int, *, points: int = 1, seq: int | None = None) -> dict[str, object]:
    return {"type": "ack", "number": number, "points": points, "seq": number if seq is None else seq}


async def test_a_frame_is_acked_only_after_its_append_returned() -> None:
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        heard: list[dict[str, object]] = []

        async def listen() -> None:
            heard.append(await client.next())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await wait_all_tasks_blocked(0.02)
            assert heard == []
            gate.set()
        assert heard == [ack(1)]
        assert whole.wal.lines == LINE


async def test_one_ack_answers_all_that_came_while_a_commit_was_under_way() -> None:
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        await client.send(2, 3, body=LINE * 2)
        await client.send(7)
        await wait_all_tasks_blocked(0.02)
        gate.set()
        assert await client.several(2) == [ack(1), ack(7, points=5, seq=4)]
        assert [len(entries) for entries in whole.wal.appends] == [1, 3]


async def test_frames_are_stored_in_their_order_one_append_at_a_time() -> None:
    lines = [b"m value=%d %d\n" % (number, NOW_NS) for number in range(500)]
    async with node() as whole:
        client = await whole.stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.acked, 500)
            for number, line in enumerate(lines, 1):
                await client.send(number, body=line)
        assert whole.wal.lines == b"".join(lines)
        assert whole.wal.under_way_max == 1


async def test_points_of_all_acks_add_up_and_seqs_are_those_of_the_last_entries() -> None:
    body = b"".join(b"m value=%d %d\n" % (number, NOW_NS) for number in range(2_500))
    async with node() as whole:
        client = await whole.stream()
        await client.send(1, 2, body=body)
        told = await client.acked(2)
        assert sum(each["points"] for each in told) == 5_000
        assert told[-1]["seq"] == 6
        assert [entry.points for entries in whole.wal.appends for entry in entries] == [1000, 1000, 500] * 2


async def test_a_refused_frame_says_why_is_told_before_any_ack_that_passes_it_and_ends_nothing() -> None:
    async with node() as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        await client.send(2)
        await client.send(3, body=LINE + BAD)
        await client.send(4)
        await wait_all_tasks_blocked(0.02)
        gate.set()
        first, refused, last = await client.several(3)
        assert first == ack(1)
        assert {key: refused[key] for key in ("type", "number", "status", "line", "column")} == {
            "type": "error",
            "number": 3,
            "status": 400,
            "line": 2,
            "column": 10,
        }
        assert refused["error"].startswith("line 2, column 10: ")
        assert last == ack(4, points=2, seq=3)
        assert whole.wal.lines == LINE * 3


async def test_a_refused_frame_is_answered_while_nothing_else_is_to_be_stored() -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.send(1, body=BAD)
        assert (await client.next())["number"] == 1
        assert whole.wal.tries == 0


@pytest.mark.parametrize(
    ("sent", "number", "status", "reason"),
    [
        (b'{"number":5}\n', 5, 400, "the body has no points"),
        (b'{"number":5}\n# nothing\n', 5, 400, "the body has no points"),
        (b'{"number":5,"encoding":"br"}\n' + LINE, 5, 415, "encoding 'br' is not known"),
        (b'{"number":5,"format":"xml"}\n' + LINE, 5, 415, "format 'xml' is not known"),
        (b'{"number":5,"encoding":"gzip"}\n' + LINE, 5, 400, "the body is not gzip"),
        (b'{"number":5,"encoding":"gzip"}\n' + gzip.compress(LINE, mtime=0)[:-1], 5, 400, "cut short"),
        (b'{"number":5,"encoding":"zstd"}\n' + LINE, 5, 400, "the body is not zstd"),
        (b'{"number":5,"compression":"gzip"}\n' + LINE, 5, 400, "the name 'compression' is not known here"),
        (b'{"number":5,"precision":"h"}\n' + LINE, 5, 400, "precision: 'h' is not known here"),
        (b'{"number":"5"}\n' + LINE, None, 400, "number: a string where an integer is needed"),
        (b'{"number":5,}\n' + LINE, None, 400, "the JSON is malformed: a comma where nothing follows"),
        (b'\xef\xbb\xbf{"number":0}\n' + LINE, 0, 400, "number 0 is not from 1 to 2^53-1"),
        (b'{"number":5}\n' + LINE.decode().encode("utf-16"), 5, 400, "UTF-16"),
        (b'{"number":5,"format":"json"}\n' + b"[" * 5_000, 5, 400, ""),
        (b'{"number":5,"format":"json"}\n' + LINE, 5, 400, ""),
        (b'{"number":0}\n' + LINE, 0, 400, "number 0 is not from 1 to 2^53-1"),
        (b'{"x":' + b"[" * 1_018 + b"\n" + LINE, None, 400, "is not known here"),
        (LINE, None, 400, "header line"),
        (b"", None, 400, "header line"),
    ],
    ids=map(str, range(1, 20)),
)
async def test_what_is_wrong_with_a_frame_is_said_and_the_stream_goes_on(
    sent: bytes, number: int | None, status: int, reason: str
) -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.raw(ws(BINARY, sent))
        told = await client.next()
        assert (told["type"], told["number"], told["status"]) == ("error", number, status)
        assert reason in told["error"]
        await client.send(5)  # what was refused used up no number
        assert await client.next() == ack(5, seq=1)


async def test_an_element_of_an_array_is_named_by_its_index() -> None:
    good = {"measurement": "m", "fields": {"v": 1}}
    async with node() as whole:
        client = await whole.stream()
        await client.send(1, body=json.dumps([good, good, {"measurement": ""}]).encode(), format="json")
        assert (await client.next())["index"] == 2


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (LINE, {}),
        (gzip.compress(LINE, mtime=0), {"encoding": "gzip"}),
        (zlib.compress(LINE), {"encoding": "deflate"}),
        (b"cpu,host=a usage=0.5 1763800000000000\n", {"precision": "us"}),
        (b"cpu,host=a usage=0.5 1763800000\n", {"precision": "s"}),
        (b'{"measurement":"cpu","fields":{"usage":0.5},"timestamp":1763800000000}', {"format": "json"}),
        (b'{"measurement":"cpu","fields":{"usage":0.5}}\n', {"format": "ndjson"}),
    ],
    ids=["as it is", "gzip", "deflate", "us", "s", "json", "ndjson"],
)
@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_every_format_encoding_and_precision_as_text_and_as_binary(
    body: bytes, header: dict[str, object], opcode: int
) -> None:
    if opcode == TEXT and not body.isascii():
        opcode = BINARY
    async with node() as whole:
        client = await whole.stream()
        await client.raw(ws(opcode, message(3, body, **header)))
        assert await client.next() == ack(3, seq=1)
        assert b"usage=0.5 1763800000" in whole.wal.lines


async def test_the_precision_and_the_destination_of_the_handshake_are_for_all_frames() -> None:
    async with node() as whole:
        client = await whole.stream("org=o&bucket=b&precision=s")
        await client.send(1, body=b"m v=1 1763800000\n")
        await client.send(2, body=b"m v=1 1763800000000\n", precision="ms")
        await client.acked(2)
        assert whole.wal.lines == b"m v=1 1763800000000000000\n" * 2
        entries = [entry for entries in whole.wal.appends for entry in entries]
        assert {entry.destination for entry in entries} == {Destination("o", "b")}
        assert {entry.source for entry in entries} == {"127.0.0.1"}


async def test_entries_carry_the_mark_of_their_frame_where_there_is_a_client_id() -> None:
    async with node() as whole:
        for query, mark in (("client_id=a", Mark("a", 9, zlib.crc32(LINE))), ("", None)):
            client = await whole.stream(query)
            await client.send(9, body=gzip.compress(LINE, mtime=0), encoding="gzip")
            await client.acked(9)
            assert whole.wal.appends[-1][0].mark == mark


async def test_one_stream_without_a_client_id_knows_nothing_of_another() -> None:
    async with node() as whole:
        for seq in (1, 2):
            client, welcome = await whole.welcomed()
            assert (welcome["durable"], welcome["stored"]) == (0, [])
            await client.send(1)
            assert await client.next() == ack(1, seq=seq)


async def test_a_client_that_comes_back_is_told_what_is_durable() -> None:
    async with node(ServerSettings(stream_window_frames_max=5)) as whole:
        client, welcome = await whole.welcomed("client_id=a")
        assert welcome == {
            "type": "welcome",
            "durable": 0,
            "seq": 0,
            "stored": [],
            "window_frames": 5,
            "frame_bytes_max": 32 * MIB,
        }
        await client.send(7, body=LINE * 1_500)
        await client.send(9)
        await client.acked(9)
        await client.hang_up()
        _, welcome = await whole.welcomed("client_id=a")
        assert (welcome["durable"], welcome["seq"]) == (9, 3)
        assert welcome["stored"] == [[7, 2, 1_500, zlib.crc32(LINE * 1_500)], [9, 3, 1, zlib.crc32(LINE)]]
        assert (await whole.welcomed("client_id=b"))[1]["durable"] == 0


async def test_a_frame_that_is_stored_is_not_stored_again_but_acked_with_the_seq_that_it_has() -> None:
    async with node() as whole:
        client = await whole.stream("client_id=a")
        await client.send(1)
        await client.send(2, body=LINE * 1_001)
        await client.acked(2)
        await client.hang_up()
        client = await whole.stream("client_id=a")
        appends = whole.wal.tries
        # The body counts after decompression, so it may come packed another way.
        await client.send(2, body=gzip.compress(LINE * 1_001, mtime=0), encoding="gzip")
        assert await client.next() == ack(2, points=1_001, seq=3)
        await client.send(1)
        assert await client.next() == ack(1)
        assert whole.wal.tries == appends
        # It goes on above the highest one.
        await client.send(3)
        assert await client.next() == ack(3, seq=4)
        await client.send(3)
        assert await client.next() == ack(3, seq=4)


async def test_resent_and_new_frames_share_an_ack_in_the_order_of_sending() -> None:
    async with node() as whole:
        client = await whole.stream("client_id=a")
        await client.send(1)
        await client.acked(1)
        gate = whole.wal.shut()
        await client.send(2)
        await whole.wal.waiting.wait()
        await client.send(3, 1)
        await wait_all_tasks_blocked(0.02)
        gate.set()
        assert await client.several(2) == [ack(2), ack(1, points=2, seq=1)]


@pytest.mark.parametrize("number", [4, 5])
async def test_a_number_of_another_body_or_of_none_that_is_remembered_is_a_409(number: int) -> None:
    async with node() as whole:
        client = await whole.stream("client_id=a")
        await client.send(5)
        await client.acked(5)
        for _ in range(2):
            await client.send(number, body=b"other value=1\n")
            told = await client.next()
            assert (told["type"], told["number"], told["status"]) == ("error", number, 409)
            assert "go on above 5" in told["error"]
            await client.hang_up()
            client = await whole.stream("client_id=a")
        await client.send(6)
        assert await client.next() == ack(6, seq=2)


class Refusals(Nobody):
    """The reasons that refusals were counted by."""

    def __init__(self) -> None:
        self.reasons: list[tuple[str, str]] = []

    def refused(self, route: str, reason: str, source: str, lines: int) -> None:
        self.reasons.append((route, reason))


@pytest.mark.parametrize("query", ["client_id=a", ""])
@pytest.mark.parametrize(
    ("last", "number", "reason"),
    [
        (0, 2**53 - 1, "number 9007199254740991 is too high to begin a stream with"),
        (0, 2**52 + 1, "send the frame again with one from 1 to 4503599627370496"),
        (7, 2**53 - 1, "number 9007199254740991 is too far above 7, the last one of this stream"),
        (7, 8 + 2**32, "send the frame again with one from 8 to 4294967303"),
    ],
)
async def test_a_number_that_would_use_the_stream_up_is_refused_and_stores_nothing(
    query: str, last: int, number: int, reason: str
) -> None:
    seen = Refusals()
    async with node(observer=seen) as whole:
        client = await whole.stream(query)
        if last:
            await client.send(last)
            await client.acked(last)
        before = whole.wal.lines
        await client.send(number)
        told = await client.next()
        assert (told["type"], told["number"], told["status"]) == ("error", number, 409)
        assert reason in told["error"]
        assert seen.reasons == [("/stream", "number")]
        assert whole.wal.lines == before
        # The stream goes on, and the bound counts from what was used.
        await client.send(last + 1)
        assert await client.next() == ack(last + 1, seq=2 if last else 1)


@pytest.mark.parametrize(("last", "number"), [(0, 2**52), (7, 7 + 2**32), (2**53 - 2, 2**53 - 1)])
async def test_gaps_up_to_the_bound_are_fine_also_after_the_stream_was_forgotten(
    last: int, number: int
) -> None:
    async with node() as whole:
        if last:
            # As a directory of before the bound may hold it.
            whole.wal.positions.apply(Mark("a", last, 1), 1, 1, NOW_NS)
        client, told = await whole.welcomed("client_id=a")
        assert told["durable"] == last
        await client.send(number)
        assert await client.next() == ack(number, seq=1)


async def test_a_frame_too_old_to_be_remembered_is_a_409() -> None:
    async with node() as whole:
        client = await whole.stream("client_id=a")
        for number in range(1, 67):
            await client.send(number)
            await client.acked(number)
        await client.send(2)
        assert (await client.next())["status"] == 409
        await client.send(3)
        assert await client.next() == ack(3)


async def test_without_a_client_id_numbers_rise_too() -> None:
    async with node() as whole:
        client = await whole.stream()
        await client.send(5)
        await client.acked(5)
        await client.send(5)
        assert (await client.next())["status"] == 409


async def test_a_frame_in_pieces_is_one_frame() -> None:
    async with node() as whole:
        client = await whole.stream()
        data = message(1, LINE * 3)
        for at, byte in enumerate(data):
            last = at == len(data) - 1
            await client.raw(ws(CONTINUATION if at else TEXT, bytes([byte]), fin=last))
        assert await client.next() == ack(1, points=3, seq=1)


async def test_a_full_append_queue_is_waited_out() -> None:
    async with node() as whole:
        client = await whole.stream()
        whole.wal.error = AppendQueueFull("the disk is slow")
        await client.send(1)
        await until(lambda: whole.wal.tries >= 3)
        whole.wal.error = None
        assert await client.next() == ack(1)


def noting(checked: list[int]) -> Callable[[], int]:
    """The clock of a node, which is asked once for each frame that is checked."""

    def now_ns() -> int:
        checked.append(1)
        return NOW_NS

    return now_ns


async def reads_no_further(client: Client, checked: list[int], frames: int) -> None:
    """Sends many frames, and sees that so many are taken and no more."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.raw, flood())
        await until(lambda: len(checked) >= frames)
        await wait_all_tasks_blocked(0.05)
        assert len(checked) == frames
        nursery.cancel_scope.cancel()


async def test_beyond_the_window_nothing_more_is_read() -> None:
    checked: list[int] = []
    settings = ServerSettings(stream_window_frames_max=4, stop_s_max=1.0)
    async with node(settings, now_ns=noting(checked)) as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1)
        await whole.wal.waiting.wait()
        await reads_no_further(client, checked, 4)
        assert whole.budget.held_bytes == len(message(1)) + 3 * len(message(2, FLOOD_BODY))
        gate.set()
        assert await client.next() == ack(1)
        assert (await client.next())["number"] == 4


async def test_beyond_the_bytes_of_a_window_nothing_more_is_read_but_one_frame_may_be_larger() -> None:
    checked: list[int] = []
    settings = ServerSettings(stream_window_bytes_max=64 * KIB, stop_s_max=1.0)
    async with node(settings, now_ns=noting(checked)) as whole:
        client = await whole.stream()
        gate = whole.wal.shut()
        await client.send(1, body=LINE * 5_000)
        await whole.wal.waiting.wait()
        await reads_no_further(client, checked, 1)
        gate.set()
        assert await client.next() == ack(1, points=5_000, seq=5)


async def test_while_half_of_the_memory_of_all_bodies_is_taken_no_stream_begins_a_frame() -> None:
    settings = ServerSettings(bodies_bytes_max=MIB, stop_s_max=1.0)
    async with node(settings) as whole:
        client = await whole.stream()
        await wait_all_tasks_blocked(0.02)
        whole.budget.held_bytes += 600 * KIB
        await client.send(1)  # the first was waited for already
        assert await client.next() == ack(1)
        await client.send(2)
        await wait_all_tasks_blocked(0.02)
        assert len(whole.wal.appends) == 1
        whole.budget.give_back(600 * KIB)
        assert await client.next() == ack(2)


async def test_a_large_frame_is_counted_while_it_comes_and_let_go_of_when_it_is_durable() -> None:
    async with node() as whole:
        client = await whole.stream()
        body = LINE * 20_000
        data = ws(BINARY, message(1, body), mask=NO_MASK)
        await client.raw(data[:-1])
        await until(lambda: whole.budget.held_bytes >= len(body))
        await client.raw(data[-1:])
        assert (await client.next())["points"] == 20_000
        assert whole.budget.held_bytes == 0


@pytest.mark.parametrize("query", ["", "client_id=a"])
async def test_plain_mode_answers_each_message_in_its_order_under_numbers_of_our_own(query: str) -> None:
    async with node() as whole:
        client = await whole.open(query, subprotocol="")
        assert "sec-websocket-protocol" not in client.headers
        json_body = b' [{"measurement":"m","fields":{"v":1}},{"measurement":"m","fields":{"v":2}}]'
        for body in (LINE, BAD, json_body, b"", LINE * 1_001):
            await client.raw(ws(TEXT, body))
        told = await client.several(5)
        assert [each["type"] for each in told] == ["ack", "error", "ack", "error", "ack"]
        assert [each["number"] for each in told] == [1, 2, 3, 4, 5]
        assert [each.get("seq") for each in told] == [1, None, 2, None, 4]
        assert [each.get("points") for each in told] == [1, None, 2, None, 1_001]
        assert all(entry.mark is None for entries in whole.wal.appends for entry in entries)


# -- the session by itself, where what a server does in one turn is done step by step -----------------------


class Peer:
    """A WebSocket that hears all that is said, and an appender that is told by hand."""

    def __init__(self, settings: ServerSettings | None = None) -> None:
        settings = settings if settings is not None else ServerSettings()
        self.said: list[str] = []
        self.submitted: list[list[NewEntry]] = []
        self.told: list[Callable[[Appended | ComeBackLater], None]] = []
        self.fails: Exception | None = None
        self.closed = trio.Event()
        self.budget = BodyBudget(settings.bodies_bytes_max)
        door = Door(
            cast("Appender", self),
            Checker(settings, inline),
            self.budget,
            settings,
            Nobody(),
            RefusalLog(monotonic_s=lambda: 0.0),
            lambda: NOW_NS,
            lambda: 0.0,
            lambda _client_id: None,
            Pace(lambda: 0.0),
        )
        self.session = Session(door, Asked("a", False, None, Destination(), "test"), self, self.send)

    def listen(self, listener: Session) -> None:
        pass

    def say(self, text: str) -> bool:
        self.said.append(text)
        return True

    async def send(self, message: dict[str, object]) -> None:
        if message["type"] == "websocket.close":
            self.closed.set()
        await trio.lowlevel.checkpoint()

    def submit(self, entries: Sequence[NewEntry], told: Callable[[Appended | ComeBackLater], None]) -> None:
        if self.fails is not None:
            raise self.fails
        self.submitted.append(list(entries))
        self.told.append(told)


async def test_a_frame_that_comes_behind_the_end_is_not_submitted() -> None:
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.session.run)
        await wait_all_tasks_blocked()
        peer.session.end(1012, "a stop")
        await peer.closed.wait()
        await peer.session.take([(message(1), True)])
    assert peer.session.settled.is_set()
    assert peer.submitted == []
    assert peer.budget.held_bytes == 0


@pytest.mark.parametrize("ends", ["ended", "replaced"])
async def test_a_reader_that_cannot_be_cancelled_just_then_submits_nothing_behind_the_end(ends: str) -> None:
    peer, go = Peer(), trio.Event()

    async def more(_bytes_max: int) -> list[tuple[bytes, bool]]:
        with trio.CancelScope(shield=True):
            await go.wait()
        return [(message(1), True)]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.session.run)
        await wait_all_tasks_blocked()
        nursery.start_soon(peer.session.read, more)
        await wait_all_tasks_blocked()
        if ends == "ended":
            peer.session.ended()
        else:
            peer.session.end(4001, "another came", drop=True)
        go.set()
    assert peer.submitted == []
    assert peer.budget.held_bytes == 0


async def test_a_stream_is_not_settled_while_an_append_is_under_way_whatever_broke() -> None:
    peer = Peer()

    async def more(_bytes_max: int) -> list[tuple[bytes, bool]]:
        raise OSError("a bug")

    async def run() -> None:
        with pytest.raises(OSError, match="a bug"):
            await peer.session.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        await peer.session.take([(message(1), True)])
        await peer.session.read(more)
        await wait_all_tasks_blocked()
        assert not peer.session.settled.is_set()
        peer.told[0](Receipt(1, 1))
    assert peer.session.settled.is_set()
    assert peer.said == ['{"type":"ack","number":1,"points":1,"seq":1}']


async def test_what_a_failure_of_ours_held_is_given_back() -> None:
    peer = Peer()

    def fail(text: str) -> bool:
        raise OSError(f"a bug: {text}")

    async def run() -> None:
        with pytest.raises(OSError, match="a bug"):
            await peer.session.run()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        await peer.session.take([(message(1), True), (message(2), True)])
        peer.say = fail  # type: ignore[method-assign]
        peer.told[0](Receipt(1, 1))
    assert peer.budget.held_bytes == 0
    assert len(peer.submitted) == 1
