"""`wal-ingest stream` against real nodes, running and stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.cli.test_sink import Node
from tests.rigs.processes import wait_until
from tests.wal.test_checkpoint import marked
from wal_ingest.client import Limits, open_client
from wal_ingest.client.errors import StreamClosed
from wal_ingest.client.messages import Ack, Refusal
from wal_ingest.client.stream import open_stream
from wal_ingest.settings import WalSettings
from wal_ingest.wal.store import Store

# Frames are numbered here as an earlier client may have done it: the node took any number then.
WEDGED = 2**53 - 1


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path, {"log.level": "warning"}) as node:
        yield node


def streams(node: Node) -> dict[str, dict[str, Any]]:
    return {each["client_id"]: each for each in json.loads(node.run("stream", "list", "--json"))}


async def sent(node: Node, client_id: str, *numbers: int, lines: bytes = b"m f=1 1\nm f=2 2\n") -> list[int]:
    """Frames on a connection of their own; the numbers that were acked."""
    acked = []
    async with open_stream(node.service.url.replace("http", "ws"), client_id=client_id) as stream:
        for number in numbers:
            await stream.send(number, lines)
            answer = await stream.receive()
            assert isinstance(answer, Ack), answer
            acked.append(answer.number)
    return acked


async def durable(node: Node, client_id: str) -> int:
    async with open_stream(node.service.url.replace("http", "ws"), client_id=client_id) as stream:
        return stream.welcome.durable


def test_streams_are_listed_by_a_node_at_work_after_a_kill_and_after_a_stop(node: Node) -> None:
    assert "no stream is remembered" in node.run("stream", "list")
    assert streams(node) == {}
    trio.run(sent, node, "web-1", 1, 2)
    trio.run(sent, node, "[bold]web-2", 7)
    for end in (lambda: None, node.service.kill, node.service.stop):
        if end == node.service.stop:
            node.service.start()
        end()
        told = streams(node)
        assert list(told) == ["[bold]web-2", "web-1"], "those heard last first"
        first = told["web-1"]
        assert {key: first[key] for key in first if key not in ("last_at", "silent_s")} == {
            "client_id": "web-1",
            "connected": False,
            "last_number": 2,
            "last_seq": 2,
            "frames_remembered": 2,
            "points_remembered": 4,
            "has_numbers_left": True,
        }
        assert 0 <= first["silent_s"] < 60
        assert first["last_at"].endswith("Z")
        heading, *rows = node.run("stream", "list").splitlines()
        assert heading.split() == [
            "stream",
            "connected",
            "last",
            "frame",
            "last",
            "seq",
            "heard",
            "frames",
            "points",
        ]
        assert rows[0].split()[:4] == ["[bold]web-2", "no", "7", "3"]
    (last,) = json.loads(node.run("stream", "list", "--json", "--limit", "1"))
    assert last["client_id"] == "[bold]web-2"


async def test_a_connected_stream_shows_and_is_closed_with_the_reason_when_it_is_forgotten(
    node: Node,
) -> None:
    url = node.service.url.replace("http", "ws")
    async with open_stream(url, client_id="web-1") as stream:
        await stream.send(5, b"m f=1 1\n")
        assert isinstance(await stream.receive(), Ack)
        told = await trio.to_thread.run_sync(streams, node)
        assert told["web-1"]["connected"] is True
        out = await trio.to_thread.run_sync(lambda: node.run("stream", "forget", "web-1", "--yes"))
        assert "web-1: forgotten; its connection was closed" in out
        with pytest.raises(StreamClosed, match="an operator had this stream forgotten") as closed:
            await stream.receive()
        assert (closed.value.code, closed.value.retry_after_s) == (1013, 1)
    assert await durable(node, "web-1") == 0
    # Its client may go on with the numbers that it has.
    assert await sent(node, "web-1", 6) == [6]
    assert await trio.to_thread.run_sync(lambda: node.service.status()["points_accepted"]) == 3
    log = node.service.process.log_tail()
    assert "an operator's command" in log
    assert "'command': 'stream.forget'" in log or '"command": "stream.forget"' in log
    events = json.loads(await trio.to_thread.run_sync(node.service.get, "/status.json"))["events"]
    assert any("stream forget (client_id=web-1) by " in each["message"] for each in events)


@pytest.mark.parametrize("running", [True, False])
def test_what_is_forgotten_stays_forgotten_and_no_point_goes(node: Node, running: bool) -> None:
    trio.run(sent, node, "web-1", 1, 2)
    trio.run(sent, node, "web-2", 9)
    if not running:
        node.service.kill()
    refused = node.run("stream", "forget", "web-1", code=2)
    assert "web-1: its last frame is 2, in seq 2" in refused
    assert "say --yes" in refused
    assert streams(node)["web-1"]["last_number"] == 2
    assert "web-1: forgotten" in node.run("stream", "forget", "web-1", "--yes")
    assert list(streams(node)) == ["web-2"]
    if running:
        node.service.kill()
    node.service.start()
    assert trio.run(durable, node, "web-1") == 0
    assert trio.run(durable, node, "web-2") == 9
    assert node.service.status()["points_accepted"] == 6


def test_a_stream_that_is_not_known_is_reported_with_what_to_do(node: Node) -> None:
    told = node.run("stream", "forget", "web-9", "--yes", code=2)
    assert "no stream is called 'web-9'" in told
    assert "try: wal-ingest stream list" in told


async def test_our_client_leaves_a_stream_without_numbers_and_the_operator_sees_which(tmp_path: Path) -> None:
    """A directory in which a stream has used the last number up, as the versions before the bound let it."""
    data = tmp_path / "data"
    store = Store(data, WalSettings(), now_ns=lambda: 10**18)
    store.wal.commit([marked("web-1", WEDGED)])
    store.close()
    settings = {"log.level": "warning", "wal.stream_keep_s": 10**9}
    with Node(tmp_path, settings) as node:
        assert await durable(node, "web-1") == WEDGED
        shown = await trio.to_thread.run_sync(lambda: node.run("stream", "list"))
        assert "web-1: few numbers are left above its last frame" in shown
        url = node.service.url.replace("http", "ws")
        limits = Limits(frame_points_max=1, retry_s_min=0.01, retry_s_max=0.05)
        async with open_client(url, client_id="web-1", limits=limits) as client:
            for value in range(20):
                client.write_nowait(f"mine f={value} 1")
            with trio.fail_after(20):
                await client.flush()
        told = await trio.to_thread.run_sync(streams, node)
        (other,) = [each for name, each in told.items() if name != "web-1"]
        assert other["client_id"].startswith("web-1.")
        assert (other["last_number"], told["web-1"]["last_number"]) == (20, WEDGED)
        lines = await trio.to_thread.run_sync(lambda: node.run("wal", "cat"))
        assert sorted(line for line in lines.splitlines() if line.startswith("mine")) == sorted(
            f"mine f={value} 1" for value in range(20)
        )
        await trio.to_thread.run_sync(lambda: node.run("stream", "forget", "web-1", "--yes"))
        assert await sent(node, "web-1", 1) == [1]


async def test_a_number_that_would_wedge_a_stream_is_refused_by_a_real_node_and_counted(node: Node) -> None:
    async with open_stream(node.service.url.replace("http", "ws"), client_id="web-1") as stream:
        await stream.send(WEDGED, b"m f=1 1\n")
        answer = await stream.receive()
        assert isinstance(answer, Refusal)
        assert (answer.number, answer.status) == (WEDGED, 409)
    scrape = await trio.to_thread.run_sync(node.service.get, "/metrics")
    assert 'wal_ingest_ingest_refusals_total{reason="number",route="/stream"} 1.0' in scrape
    assert await durable(node, "web-1") == 0
    assert await trio.to_thread.run_sync(lambda: node.service.status()["points_accepted"]) == 0


def test_list_beside_a_node_that_takes_no_commands_tells_what_is_on_disk(node: Node) -> None:
    trio.run(sent, node, "web-1", 3)
    wait_until((node.data_dir / "control.sock").exists, "the node takes commands")
    (node.data_dir / "control.sock").unlink()
    told = streams(node)["web-1"]
    assert (told["connected"], told["last_number"]) == (None, 3)
    assert node.run("stream", "list").splitlines()[1].split()[:3] == ["web-1", "-", "3"]
