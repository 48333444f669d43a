"""The order "data synced, then answered", read off the system calls of the running server.

Each way to acknowledge is a row: 202 of the native endpoint, 204 of InfluxDB's two, the ack of a stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.rigs.fleet import MS, Plan, Shape
from tests.rigs.load import Load
from tests.rigs.no_sync import no_sync_environment
from tests.rigs.service import Service
from tests.rigs.syscalls import TRACED, Verdict, judge, parse
from wal_ingest.client.stream import open_stream

REQUESTS = 25
CLIENTS = 4


def _post(*shapes: Shape) -> Callable[[Service], int]:
    """Clients that send one request after the other; returns how many were acknowledged."""

    def send(service: Service) -> int:
        plan = Plan("traced", time.time_ns() // MS * MS, points=5, shapes=shapes)
        with Load(service.port, plan, clients=CLIENTS, requests=REQUESTS) as load:
            load.wait(s_max=60)
        return len(load.acked)

    return send


def _stream(service: Service) -> int:
    """Streams with one frame unanswered at a time: then each ack answers the last frame that was read before it."""
    acked = 0

    async def one(client: int) -> None:
        nonlocal acked
        url = service.url.replace("http", "ws")
        async with open_stream(url, client_id=f"traced-{client}") as stream:
            for number in range(1, REQUESTS + 1):
                await stream.send(number, b"traced,client=%d v=%di %d\n" % (client, number, number))
                await stream.receive()
                acked += 1

    async def all_of_them() -> None:
        async with trio.open_nursery() as nursery:
            for client in range(CLIENTS):
                nursery.start_soon(one, client)

    trio.run(all_of_them)
    return acked


@dataclass(frozen=True, slots=True)
class Way:
    """One way to acknowledge: what the answer holds as the trace shows it, and who asks for it."""

    answer: str
    send: Callable[[Service], int]


WAYS = {
    "202": Way(
        "HTTP/1.1 202",
        _post(Shape("lines", gzip=False, timed=True), Shape("general", gzip=True, timed=False)),
    ),
    "204": Way(
        "HTTP/1.1 204", _post(Shape("v2", gzip=True, timed=True), Shape("v1", gzip=False, timed=False))
    ),
    "ack": Way(r"{\"type\":\"ack\"", _stream),
}


def _trace(tmp_path: Path, way: Way, env: Mapping[str, str]) -> Verdict:
    trace = tmp_path / "trace"
    strace: list[str | Path] = [
        "strace",
        "-f",
        "-y",
        "-s",
        "64",
        "-e",
        f"trace={TRACED}",
        "-e",
        "signal=none",
        "-o",
        trace,
    ]
    if env:
        strace += [f"--env={name}={value}" for name, value in env.items()]
    data_dir = tmp_path / "data"
    with Service(data_dir, logs=tmp_path, under=strace) as service:
        assert way.send(service) == CLIENTS * REQUESTS
        service.stop(s_max=30)
    with trace.open(errors="replace") as lines:
        return judge(parse(lines), wal_dir=str(data_dir / "wal"), answer=way.answer)


@pytest.mark.needs("strace")
@pytest.mark.parametrize("way", WAYS)
def test_every_answer_is_written_after_its_commit_was_synced(tmp_path: Path, way: str) -> None:
    verdict = _trace(tmp_path, WAYS[way], env={})

    assert verdict.answers == CLIENTS * REQUESTS
    assert verdict.early == []
    assert verdict.commits > 0


@pytest.mark.needs("strace", "cc")
@pytest.mark.parametrize("way", WAYS)
def test_the_trace_of_a_server_without_syncs_is_found_out(tmp_path: Path, way: str) -> None:
    verdict = _trace(tmp_path, WAYS[way], env=no_sync_environment(tmp_path))

    assert verdict.answers == CLIENTS * REQUESTS
    assert len(verdict.early) == verdict.answers
