"""When a piece that fails is divided: by what another one taught, or without evidence where nothing passes."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from tests.flusher.fake_sink import FakeSink
from tests.flusher.rig import SETTINGS
from tests.flusher.test_many_suspects import FAILED
from tests.flusher.twins import MemoryLog, now_ns, run_inline
from wal_ingest.flusher.batches import Batch, Batcher
from wal_ingest.flusher.evidence import SCOUT_AT_ONCE_MAX, Evidence
from wal_ingest.flusher.grace import Grace
from wal_ingest.flusher.learnt import Learnt, Pattern
from wal_ingest.flusher.outcome import Misconfigured
from wal_ingest.flusher.overtaking import UNPROVEN_MAX, Overtaking
from wal_ingest.flusher.piece import Convicted, Piece
from wal_ingest.flusher.shapes import Shaped, shape_of
from wal_ingest.flusher.status import Progress
from wal_ingest.flusher.suspicion import LEAVE_AFTER, Suspicion
from wal_ingest.flusher.writing import SinkWriter


def batch_of(lines: list[bytes]) -> Batch:
    log, batcher = MemoryLog(), Batcher(lambda _entry: "group", points_max=len(lines))
    log.append(len(lines), lines=b"".join(lines))
    return batcher.add(log.entries)[0]


def writer_to(sink: FakeSink) -> SinkWriter:
    return SinkWriter(
        sink,
        points_max=100,
        settings=SETTINGS,
        progress=Progress(now_ns()),
        grace=Grace(5.0),
        run_sync=run_inline,
        now_ns=now_ns,
        rng=Random(7),
        changed=lambda: None,
    )


async def test_a_piece_that_waits_is_divided_at_once_when_another_taught_of_some_of_its_points(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lines = [b"%b v=%d %d\n" % (shape, n, n) for shape in (b"bad", b"good", b"poor", b"fine") for n in (1, 2)]
    sink = FakeSink()
    sink.answer = lambda lines: FAILED if any(line[:4] in (b"bad ", b"poor") for line in lines) else None
    writer, batch, settled = writer_to(sink), batch_of(lines), list[bytes]()
    await writer.settle(batch_of([b"passes v=1 1\n"]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            writer.find, Piece(batch), Convicted("HTTP 500"), lambda part, _what: settled.extend(part.split())
        )
        await sink.wrote(3)  # both halves failed, and wait
        await trio.testing.wait_all_tasks_blocked()
        assert settled == []
        writer.learnt.learn(
            Pattern("group", Shaped(shape_of(lines[0]))),
            "HTTP 500",
            500,
            now_s=trio.current_time(),
            now_ns=now_ns(),
        )
        with trio.fail_after(SETTINGS.retry_s_min / 10):
            await sink.took(lines[2])
            await trio.testing.wait_all_tasks_blocked()
        assert settled == lines[2:4]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("status", "divided_before", "failures"),
    [(403, 0, 0), (403, SCOUT_AT_ONCE_MAX, LEAVE_AFTER), (401, 0, LEAVE_AFTER), (404, 0, LEAVE_AFTER)],
)
def test_a_denied_batch_is_divided_at_once_for_a_403_as_long_as_few_were(
    status: int, divided_before: int, failures: int
) -> None:
    evidence = Evidence(Learnt(), run_sync=run_inline, now_ns=now_ns)
    piece = Piece(batch_of([b"m v=1 1\n", b"m v=2 2\n"]))
    evidence.group(piece.batch).scouted_at_once = divided_before
    outcome = Misconfigured("denied", status, suspect=True)
    while not evidence.scouts_denied(piece, outcome):
        piece.suspicion.failures += 1
    assert piece.suspicion.failures == failures


async def test_where_many_are_investigated_no_piece_is_left_nor_takes_a_place_among_the_unproven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = writer_to(FakeSink())
    overtaking = Overtaking(writer, strict=False, settled=lambda _batch, _what: None)
    batch = batch_of([b"m v=1 1\n"])
    failed = [Piece(batch, Suspicion(failures=LEAVE_AFTER)) for _ in range(2 * UNPROVEN_MAX)]
    with monkeypatch.context() as crowded:
        crowded.setattr("wal_ingest.flusher.overtaking.INVESTIGATED_UNCONFIRMED_MAX", 0)
        assert not any(map(overtaking._may_leave, failed))
        assert overtaking._may_leave(failed[0], version=writer.learnt.version - 1)  # it is divided at once
    assert sum(map(overtaking._may_leave, failed)) == UNPROVEN_MAX
