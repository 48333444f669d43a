"""Delivery over HTTP: at least once, one entry a request."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
import trio

from tests.agent.rig import fill, open_spool, rounds, text_of
from wal_ingest.agent.courier import is_misconfigured
from wal_ingest.agent.over_http import Answer, HttpPost, OverHttp
from wal_ingest.agent.spool import Spool
from wal_ingest.client.address import write_address
from wal_ingest.client.errors import Unreachable
from wal_ingest.confirmation import protocol_of


def taken(points: int) -> Answer:
    """What a node answers when it stored the points."""
    return Answer(202, b'{"received": true, "points": %d, "seq": 1}' % points)


class Node:
    """Answers POSTs as it is told to, 202 otherwise, and keeps what it took."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.bodies: list[bytes] = []
        self.connected = 0

    async def post(self, body: bytes) -> Answer:
        await trio.lowlevel.checkpoint()
        lines = gzip.decompress(body)
        answer = self.answers.pop(0) if self.answers else taken(lines.count(b"\n"))
        if answer.status == 202:
            self.bodies.append(lines)
        return answer

    @property
    def lines(self) -> list[bytes]:
        return [line for body in self.bodies for line in body.splitlines()]

    def over(self, spool: Spool) -> OverHttp:
        def connected() -> None:
            self.connected += 1

        return OverHttp(spool, self.post, connected=connected)


async def test_every_round_is_a_request_and_settled_when_it_is_answered(tmp_path: Path) -> None:
    node = Node()
    async with open_spool(tmp_path) as spool, trio.open_nursery() as nursery:
        await fill(spool, 3)
        nursery.start_soon(node.over(spool).deliver)
        with trio.fail_after(20):
            await spool.wait_settled(3)
            await fill(spool, 1, first=4)
            await spool.wait_settled(4)
        nursery.cancel_scope.cancel()
    assert node.lines == text_of(rounds(4))
    assert (len(node.bodies), node.connected) == (4, 4)


async def test_a_refused_round_is_kept_with_the_reason_and_the_others_go_on(tmp_path: Path) -> None:
    node = Node()
    node.answers = [taken(len(rounds(1)[0])), Answer(413, b'{"error":"too large"}')]
    async with open_spool(tmp_path) as spool, trio.open_nursery() as nursery:
        await fill(spool, 3)
        with structlog.testing.capture_logs() as told, trio.fail_after(20):
            nursery.start_soon(node.over(spool).deliver)
            await spool.wait_settled(3)
            nursery.cancel_scope.cancel()
    assert [entry["reason"] for entry in told] == ['413: {"error":"too large"}']
    [kept] = (tmp_path / "refused").iterdir()
    assert gzip.decompress(kept.read_bytes()).splitlines()[1:] == text_of(rounds(1, first=2))
    assert node.lines == text_of([*rounds(1), *rounds(1, first=3)])


async def test_what_was_refused_in_an_earlier_life_is_not_sent_again(tmp_path: Path) -> None:
    node = Node()
    async with open_spool(tmp_path) as spool, trio.open_nursery() as nursery:
        await fill(spool, 2)
        spool.refused.keep((await spool.read(0))[0], "400: no")
        nursery.start_soon(node.over(spool).deliver)
        with trio.fail_after(20):
            await spool.wait_settled(2)
        nursery.cancel_scope.cancel()
    assert node.lines == text_of(rounds(1, first=2))


@pytest.mark.parametrize("status", [301, 401, 404, 408, 429, 500, 503])
async def test_any_other_answer_ends_the_delivery_and_settles_nothing(tmp_path: Path, status: int) -> None:
    node = Node()
    node.answers = [Answer(status, b"not now", 17)]
    async with open_spool(tmp_path) as spool:
        await fill(spool, 1)
        with pytest.raises(Unreachable, match=f"{status}.*not now") as caught:
            await node.over(spool).deliver()
        assert spool.settled_seq == 0
    assert (caught.value.status, caught.value.retry_after_s) == (status, 17)


FOREIGN_ANSWERS = [
    Answer(200, b"hello", content_type="text/plain"),
    Answer(200, b"<!doctype html><title>Login</title>"),
    Answer(202, b""),
    Answer(202, b'{"received": true, "points": 1, "seq": 1}'),
    Answer(204, b""),
    Answer(206, b""),
    Answer(400, b"<html><title>400 Bad Request</title>", content_type="text/html"),
    Answer(413, b"<html><title>413 Request Entity Too Large</title>"),
    Answer(422, b'{"message":"failure parsing"}'),
]


@pytest.mark.parametrize("answer", FOREIGN_ANSWERS, ids=lambda answer: f"{answer.status}-{answer.said[:12]}")
async def test_an_answer_that_no_node_gives_takes_nothing_off_the_spool(
    tmp_path: Path, answer: Answer
) -> None:
    node = Node()
    node.answers = [answer]
    async with open_spool(tmp_path) as spool:
        await fill(spool, 1)
        with pytest.raises(Unreachable) as caught:
            await node.over(spool).deliver()
        assert (spool.settled_seq, spool.refused.files, node.connected) == (0, 0, 0)
    assert caught.value.status == answer.status
    assert is_misconfigured(caught.value)
    assert caught.value.hint


async def test_an_influxdb_route_confirms_with_204(tmp_path: Path) -> None:
    node = Node()
    node.answers = [Answer(204, b""), taken(len(rounds(1)[0]))]
    async with open_spool(tmp_path) as spool:
        await fill(spool, 2)
        over = OverHttp(spool, node.post, connected=lambda: None, protocol=protocol_of("/api/v2/write?org=o"))
        with pytest.raises(Unreachable, match="HTTP 202"):
            await over.deliver()
        assert spool.settled_seq == 1


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    requests: list[tuple[str, dict[str, str], bytes]]
    connections: set[object]

    def do_POST(self) -> None:
        self.connections.add(self.client_address)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(503)
        self.send_header("Retry-After", "17")
        self.send_header("Content-Length", "15")
        self.end_headers()
        self.wfile.write(b"the WAL\nis full")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Nothing is said."""


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    Handler.requests, Handler.connections = [], set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_request_says_what_it_carries_and_who_asks_over_one_connection(
    server: http.server.ThreadingHTTPServer,
) -> None:
    post = HttpPost(write_address(f"http://127.0.0.1:{server.server_port}"), "secret")
    for _ in range(3):
        assert await post(b"body") == Answer(503, b"the WAL\nis full", 17)
    target, headers, body = Handler.requests[0]
    assert (target, body) == ("/metrics?precision=ns", b"body")
    assert headers["content-encoding"] == "gzip"
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["authorization"] == "Bearer secret"
    assert len(Handler.connections) == 1
    post.close()


async def test_a_node_that_is_not_there_is_told_in_the_systems_words(
    server: http.server.ThreadingHTTPServer,
) -> None:
    post = HttpPost(write_address("http://127.0.0.1:1"), "")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1/metrics: Connection refused"):
        await post(b"body")
