"""The worker process: what it is given and gives back, and how it begins and ends."""

from __future__ import annotations

import functools
import gzip
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest
import structlog
import trio

from tests.http.rig import LINE, NOW_NS, ask, front, inline, post, until, within
from tests.rigs.processes import wait_until
from tests.rigs.service import Service
from wal_ingest.errors import BadRequest, BodyTooLarge, PointError
from wal_ingest.http.body import BodyBudget, Hold
from wal_ingest.http.check import Check, Reading, check_whole
from wal_ingest.http.checking import INLINE_MEMBERS_MAX, LARGE_BYTES, Checker
from wal_ingest.http.requests import Format
from wal_ingest.http.worker import Worker, WorkerLost
from wal_ingest.points.encoding import TooManyMembers, decode_body
from wal_ingest.points.times import TimeOutsideWindow
from wal_ingest.settings import MIB, ServerSettings

T = TypeVar("T")

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def at_work(*, idle_s_max: float = 60.0) -> AsyncIterator[Worker]:
    worker = Worker(idle_s_max=idle_s_max)
    with within(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run)
            yield worker
            nursery.cancel_scope.cancel()


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than one that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def oom_score_adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_a_job_runs_in_one_other_process_that_gives_way_to_the_server() -> None:
    async with at_work() as worker:
        pid = await worker(os.getpid)
        assert pid == worker.pid != os.getpid()
        assert await worker(os.getpid) == pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert oom_score_adj(pid) == 500


async def test_large_bytes_arrive_as_they_are_both_ways() -> None:
    body = os.urandom(5 * MIB)
    async with at_work() as worker:
        assert (
            await worker(functools.partial(decode_body, gzip.compress(body, 1), "gzip", bytes_max=8 * MIB))
            == body
        )
        assert (
            await worker(functools.partial(bytes.join, b"", [body, b"", b"small", body]))
            == body + b"small" + body
        )


def check_of(body: bytes, *, partial: bool = False, settings: ServerSettings | None = None) -> Check:
    reading = Reading(Format.LINE_PROTOCOL, partial=partial)
    return Check(body, Format.LINE_PROTOCOL, reading, settings or ServerSettings(), NOW_NS)


async def test_lines_and_what_was_left_out_of_them_come_back() -> None:
    check = check_of(LINE * 5_000 + b"cpu usage=\n" + b"a,b=c d=1 5\n" + b"\xff v=1\n", partial=True)
    here = check_whole(check)
    async with at_work() as worker:
        there = await worker(functools.partial(check_whole, check))
    assert there.lines == here.lines
    assert there.pieces == here.pieces
    assert [piece.points for piece in there.pieces] == [1_000] * 5 + [2]
    assert there.odd == here.odd != ()
    assert [(line.text, str(line.error)) for line in there.refusals] == [
        (line.text, str(line.error)) for line in here.refusals
    ]
    assert there.dropped == 1


NARROW = ServerSettings(time_window_past_s=1)


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (functools.partial(check_whole, check_of(LINE + b"cpu usage=\n")), PointError),
        (
            functools.partial(check_whole, check_of(b"cpu usage=1 1\n", settings=NARROW)),
            TimeOutsideWindow,
        ),
        (functools.partial(check_whole, check_of(b"m v=1\n" * 2_900_000)), BodyTooLarge),
        (functools.partial(decode_body, gzip.compress(bytes(MIB)), "gzip", bytes_max=1_000), BodyTooLarge),
        (
            functools.partial(decode_body, gzip.compress(b"") * 20, "gzip", bytes_max=1_000, members_max=16),
            TooManyMembers,
        ),
        (functools.partial(decode_body, b"no gzip", "gzip", bytes_max=1_000), BadRequest),
    ],
)
async def test_an_error_is_the_same_as_it_would_be_here(
    job: Callable[[], object], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as here:
        job()
    async with at_work() as worker:
        with pytest.raises(kind) as there:
            await worker(job)
    assert type(there.value) is type(here.value)
    assert str(there.value) == str(here.value)
    assert vars(there.value) == vars(here.value)


async def test_an_error_that_nobody_foresaw_says_where_it_was() -> None:
    async with at_work() as worker:
        with pytest.raises(ZeroDivisionError) as caught:
            await worker(functools.partial(divmod, 1, 0))
        assert "in the worker process:\nTraceback" in caught.value.__notes__[0]
        assert await worker(os.getpid), "and the process goes on"


async def test_a_job_whose_process_ends_is_to_be_sent_again_and_the_next_has_a_new_one() -> None:
    async with at_work() as worker:
        first = await worker(os.getpid)
        with pytest.raises(WorkerLost, match="ended in the middle"):
            await worker(functools.partial(os.kill, first, signal.SIGKILL))
        second = await worker(os.getpid)
        assert second != first
        os.kill(second, signal.SIGKILL)
        await until(lambda: not is_running(second))
        assert await worker(os.getpid) not in (first, second)


async def test_a_cancelled_job_ends_by_itself_before_the_next_begins(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with at_work() as worker:
        pid = await worker(os.getpid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker, functools.partial(Path.read_text, fifo))
            # Returns when the job has opened its end.
            writing = await trio.to_thread.run_sync(functools.partial(os.open, fifo, os.O_WRONLY))
            nursery.cancel_scope.cancel()
        with trio.move_on_after(0.05) as waited:
            await worker(os.getpid)
        assert waited.cancelled_caught
        os.close(writing)
        assert await worker(os.getpid) == pid


async def test_one_that_is_idle_ends_and_is_started_again_when_needed() -> None:
    async with at_work(idle_s_max=0.02) as worker:
        first = await worker(os.getpid)
        await until(lambda: worker.pid is None)
        assert not is_running(first)
        assert await worker(os.getpid) != first


async def test_it_ends_with_the_server_whatever_it_is_doing() -> None:
    async with at_work() as worker:
        pid = await worker(os.getpid)
        with trio.move_on_after(0.05):
            await worker(functools.partial(time.sleep, 3_600))
        assert is_running(pid)
    assert not is_running(pid)


async def test_signals_for_the_server_do_not_end_it() -> None:
    async with at_work() as worker:
        pid = await worker(os.getpid)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        assert await worker(os.getpid) == pid
        assert os.getpgid(pid) != os.getpgid(0)


class Counted:
    """A way into the worker process that counts who goes there, and does it on the spot."""

    def __init__(self) -> None:
        self.jobs = 0

    async def __call__(self, work: Callable[[], T], /) -> T:
        self.jobs += 1
        return work()


@pytest.mark.parametrize(
    ("body", "encoding", "jobs"),
    [
        (gzip.compress(LINE * (LARGE_BYTES // 2 // len(LINE))), "gzip", 0),
        (gzip.compress(LINE) * INLINE_MEMBERS_MAX, "gzip", 0),
        (LINE * (LARGE_BYTES // 2 // len(LINE)), "", 0),
        (gzip.compress(LINE * (2 * LARGE_BYTES // len(LINE))), "gzip", 1),
        (LINE * (2 * LARGE_BYTES // len(LINE)), "", 1),
        # However small they are once decoded.
        (gzip.compress(LINE) * (INLINE_MEMBERS_MAX + 1), "gzip", 1),
    ],
)
async def test_large_bodies_and_many_members_go_there_and_no_others(
    body: bytes, encoding: str, jobs: int
) -> None:
    counted = Counted()
    checker = Checker(ServerSettings(), inline, in_worker=counted)
    hold = Hold(BodyBudget(64 * MIB), "a")
    checked = await checker.take(body, encoding, Reading(None), now_ns=NOW_NS, hold=hold)
    pieces = await checker.cut(checked, hold)
    assert b"".join(piece.data for piece in pieces) == decode_body(body, encoding, bytes_max=4 * MIB)
    assert hold.bytes == (sum(len(piece.data) for piece in pieces) if encoding else 0), (
        "what came of it is counted"
    )
    assert counted.jobs == jobs


async def test_the_frames_of_a_stream_are_decoded_and_checked_there_in_two_jobs() -> None:
    counted = Counted()
    checker = Checker(ServerSettings(), inline, in_worker=counted)
    hold = Hold(BodyBudget(64 * MIB), "a")
    lines = LINE * (2 * LARGE_BYTES // len(LINE))
    decoded = await checker.decode(gzip.compress(lines), "gzip", hold)
    assert decoded == lines
    checked = await checker.check(decoded, Reading(None), now_ns=NOW_NS, hold=hold)
    assert b"".join(piece.data for piece in await checker.cut(checked, hold)) == lines
    assert counted.jobs == 2


BOMB = gzip.compress(b"[" + b"{}," * (8 * MIB) + b"{}]", 9)


def children(service: Service) -> list[int]:
    tasks = Path(f"/proc/{service.process.pid}/task").glob("*/children")
    return [int(pid) for listed in tasks for pid in listed.read_text().split()]


def answer_to_bomb(service: Service) -> bytes:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as peer:
        peer.sendall(post("/metrics", BOMB, "Content-Encoding: gzip", content_type="application/json"))
        return peer.recv(65_536)


def test_a_node_starts_it_for_the_first_large_body_and_takes_it_along_when_it_ends(tmp_path: Path) -> None:
    with Service(tmp_path / "data", logs=tmp_path, settings={"log.level": "error"}) as service:
        assert children(service) == []
        assert b"index 0: " in answer_to_bomb(service)
        (first,) = children(service)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not is_running(first), "it has ended")
        assert b"index 0: " in answer_to_bomb(service)
        (second,) = children(service)
        service.process.kill()
        wait_until(lambda: not is_running(second), "it ends without the node")


async def test_a_body_whose_process_ended_is_answered_503_and_no_other() -> None:
    async def lost(_work: Callable[[], object], /) -> NoReturn:
        raise WorkerLost("the process ended")

    whole = front(checker=Checker(ServerSettings(), inline, in_worker=lost))
    with structlog.testing.capture_logs():
        answer = await ask(whole.app, "POST", "/metrics", BOMB, {"content-encoding": "gzip"})
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert (await ask(whole.app, "POST", "/metrics", LINE)).status == 202
    assert whole.wal.lines == LINE
