"""What `wal-ingest replay` does once its options are understood: count, or write and remember, and tell."""

from __future__ import annotations

import logging
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import trio

from wal_ingest.cli.output import DONE, FAILED
from wal_ingest.cli.replay.output import follow, said, show_counts, show_summary
from wal_ingest.cli.times import time_text
from wal_ingest.errors import WalIngestError
from wal_ingest.flusher.replay.places import Range, Select
from wal_ingest.flusher.replay.plan import Hole, Plan, count, make_plan
from wal_ingest.flusher.replay.record import Record, Saved, Step, replay_id
from wal_ingest.flusher.replay.run import Replay
from wal_ingest.flusher.replay.wal import last_seq_of
from wal_ingest.flusher.sinks.influxdb import InfluxDBSink
from wal_ingest.settings import InfluxDBSettings, Settings
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.reading import WalReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A replay as it was asked for. `relative` says that the range moves with the clock."""

    data_dir: Path
    reader: WalReader | None
    span: Range
    relative: bool
    source: str
    target: InfluxDBSettings
    settings: Settings
    asked: dict[str, str]
    select: Select | None
    points_max: int
    rate: float | None
    now_ns: int
    restart: bool
    state_dir: Path
    rejected: Path | None
    json: bool


def dry_run_of(job: Job) -> int:
    """Counts what would be written and shows it; the exit code."""
    plan = _plan(job, job.span, None)
    warnings = _warnings(job, plan, job.span)
    for warning in warnings:
        said(f"warning: {warning}")
    counted = [count(source) for source in plan.sources]
    show_counts(counted, target=job.target, rate=job.rate, warnings=warnings, json=job.json)
    return FAILED if plan.hole or any(each.lost for each in counted) else DONE


def run_job(job: Job) -> int:
    """Replays, and shows the summary; the exit code."""
    name = replay_id(job.asked)
    record = Record(job.state_dir, name)
    try:
        saved = _begin(job, record, name)
        if saved.finished_ns:
            said(
                f"already done on {time_text(saved.finished_ns)}: {saved.confirmed:,} points confirmed, "
                f"{saved.rejected:,} rejected; --restart to do it again"
            )
            show_summary(saved, job.target, [], [], state="already done", json=job.json)
            return FAILED if saved.rejected or saved.lost else DONE
        return _replay(job, record, saved)
    finally:
        record.close()


def _begin(job: Job, record: Record, name: str) -> Saved:
    """What an earlier run remembered, or a beginning, with the range fixed."""
    if job.restart:
        record.begin_anew()
    saved = record.load()
    if saved is not None and saved.finished_ns and job.relative:
        record.begin_anew()  # the same words, but another range by now
        saved = None
    if job.rejected is not None:
        record.rejected_path = job.rejected
    if saved is not None:
        return saved
    last_seq = job.span.last_seq
    if job.reader is not None:
        end_seq = last_seq_of(job.reader)
        last_seq = end_seq if last_seq is None else min(last_seq, end_seq)
    return Saved(
        id=name,
        asked=job.asked,
        since_ns=job.span.since_ns,
        until_ns=job.span.until_ns,
        first_seq=job.span.first_seq,
        last_seq=last_seq,
        started_ns=job.now_ns,
        updated_ns=job.now_ns,
    )


def _replay(job: Job, record: Record, saved: Saved) -> int:
    span = Range(saved.since_ns, saved.until_ns, saved.first_seq, saved.last_seq)
    plan = _plan(job, span, saved)
    warnings = _warnings(job, plan, span)
    for warning in warnings:
        said(f"warning: {warning}")
    words = " and ".join(source.describe() for source in plan.sources)
    if saved.place is not None:
        said(
            f"going on with the replay of {time_text(saved.started_ns)}: {saved.confirmed:,} points are confirmed, "
            f"{saved.rejected:,} rejected"
        )
    said(f"replaying {words} to {job.target.url}, bucket {job.target.bucket or '(none)'}")
    keeper = _Keeper(record, saved, time.monotonic())
    finished = trio.run(_run, job, plan, keeper)
    saved = keeper.saved
    complete = finished and not (saved.rejected or saved.lost or plan.hole)
    show_summary(
        saved,
        job.target,
        plan.sources,
        warnings,
        state="done" if finished else "interrupted",
        json=job.json,
        this_run=keeper.this_run(),
    )
    if not finished:
        said("the same command goes on from here")
    elif job.relative and saved.started_ns != job.now_ns:
        said(
            f"that was the range as it was asked for on {time_text(saved.started_ns)}; "
            "run the same command again for the range as of now"
        )
    return DONE if complete else FAILED


class _Keeper:
    """Adds what this process settles to what was remembered, and remembers it."""

    def __init__(self, record: Record, saved: Saved, began_s: float) -> None:
        self._record = record
        self._before = saved
        self._began_s = began_s
        self.saved = saved

    def this_run(self) -> tuple[int, float]:
        """Points settled by this process, and the seconds it took."""
        now, before = self.saved, self._before
        return now.confirmed + now.rejected - before.confirmed - before.rejected, now.seconds - before.seconds

    def remember(self, step: Step, letters: Sequence[DeadLetter]) -> None:
        """To disk, then to memory. Blocks; runs in a thread. Raises StorageFailed."""
        before, now_ns = self._before, time.time_ns()
        # A place lies before what was lost behind it: that is met once more when it goes on.
        lost = dict.fromkeys([*before.lost, *step.lost])
        rejected = before.rejected + step.rejected
        saved = msgspec.structs.replace(
            before,
            place=step.place,
            confirmed=before.confirmed + step.confirmed,
            rejected=rejected,
            rejected_file=str(self._record.rejected_path) if rejected else "",
            lost=list(lost),
            updated_ns=now_ns,
            finished_ns=now_ns if step.finished else 0,
            seconds=before.seconds + time.monotonic() - self._began_s,
        )
        self._record.save(saved, letters)
        self.saved = saved


async def _run(job: Job, plan: Plan, keeper: _Keeper) -> bool:
    """True when nothing is left; false when a signal came first."""
    # The sink's troubles are shown in words beside the figures, once; its log lines would say them again.
    logging.basicConfig(handlers=[logging.NullHandler()])
    replay = Replay(
        plan.sources,
        InfluxDBSink(job.target, run_sync=trio.to_thread.run_sync, now_ns=time.time_ns),
        keeper.remember,
        job.settings.flusher,
        points_max=job.points_max,
        rate=job.rate,
        run_sync=trio.to_thread.run_sync,
        now_ns=time.time_ns,
        rng=random.Random(),
        after=keeper.saved.place,
    )
    finished, failure = False, None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, replay)
        nursery.start_soon(follow, replay, sys.stderr)
        try:
            finished = await replay.run()
        except WalIngestError as exc:
            failure = exc  # raised behind the nursery, which would wrap it
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return finished


async def _stop_on_signal(replay: Replay) -> None:
    """The first signal stops in order; a second one finds Python's own handlers, and ends the process at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            replay.stop()
            said("stopping: writes under way are finished first; once more ends it at once")
            break


def _plan(job: Job, span: Range, saved: Saved | None) -> Plan:
    return make_plan(
        job.data_dir,
        job.reader,
        replace(span),
        source=job.source,
        now_ns=job.now_ns if saved is None else saved.started_ns,
        points_max=job.points_max,
        select=job.select,
        after=None if saved is None else saved.place,
    )


def _warnings(job: Job, plan: Plan, span: Range) -> list[str]:
    found = []
    if plan.hole is not None:
        found.append(_hole_words(plan.hole, span))
    if plan.whole_hours:
        found.append("the archive is kept by the hour of acceptance: whole hours are replayed")
        if job.target.destination == "request":
            found.append(
                f"the archive does not keep the senders' buckets: its points go to {job.target.bucket or '(none)'}"
            )
    return found


def _hole_words(hole: Hole, span: Range) -> str:
    asked = f"seq {span.first_seq:,}" if span.since_ns is None else time_text(span.since_ns)
    if hole.from_ns is None:
        return f"nothing is kept of what was accepted since {asked}"
    begins = time_text(hole.from_ns) + (f" (seq {hole.from_seq:,})" if hole.from_seq else "")
    return f"the range begins at {asked}, but what is kept begins at {begins}: points before that are not replayed"
