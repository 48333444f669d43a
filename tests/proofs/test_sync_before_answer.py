"""The order "data synced, then answered", read off the system calls of the running server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.rigs.fleet import MS, Plan, Shape
from tests.rigs.load import Load
from tests.rigs.no_sync import no_sync_environment
from tests.rigs.service import Service
from tests.rigs.syscalls import TRACED, Verdict, judge, parse

SHAPES = (Shape("lines", gzip=False, timed=True), Shape("general", gzip=True, timed=False))
REQUESTS = 25
CLIENTS = 4


def _trace(tmp_path: Path, env: Mapping[str, str]) -> Verdict:
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
    plan = Plan("traced", time.time_ns() // MS * MS, points=5, shapes=SHAPES)
    data_dir = tmp_path / "data"
    with Service(data_dir, logs=tmp_path, under=strace) as service:
        with Load(service.port, plan, clients=CLIENTS, requests=REQUESTS) as load:
            load.wait(s_max=60)
        assert len(load.acked) == CLIENTS * REQUESTS
        service.stop(s_max=30)
    with trace.open(errors="replace") as lines:
        return judge(parse(lines), wal_dir=str(data_dir / "wal"), answer="HTTP/1.1 202")


@pytest.mark.needs("strace")
def test_every_answer_is_written_after_its_commit_was_synced(tmp_path: Path) -> None:
    verdict = _trace(tmp_path, env={})

    assert verdict.answers == CLIENTS * REQUESTS
    assert verdict.early == []
    assert verdict.commits > 0


@pytest.mark.needs("strace", "cc")
def test_the_trace_of_a_server_without_syncs_is_found_out(tmp_path: Path) -> None:
    verdict = _trace(tmp_path, env=no_sync_environment(tmp_path))

    assert verdict.answers == CLIENTS * REQUESTS
    assert len(verdict.early) == verdict.answers
