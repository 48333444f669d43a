"""What `wal-ingest replay` says: figures on the way on standard error, counts and the summary on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import trio

from wal_ingest.cli.output import bytes_text, print_json
from wal_ingest.cli.ranges import lost_text
from wal_ingest.cli.times import time_text
from wal_ingest.flusher.replay.run import Moment, Replay
from wal_ingest.flusher.status import SinkState

if TYPE_CHECKING:
    from wal_ingest.flusher.replay.places import Source
    from wal_ingest.flusher.replay.plan import Counted
    from wal_ingest.flusher.replay.record import Saved
    from wal_ingest.settings import InfluxDBSettings
    from wal_ingest.wal.lost import Lost

# How fast a replay is reckoned to be when no --rate is given: VictoriaMetrics on the same two cores took 0.5 to 0.6
# million points a second, and most databases take less.
ASSUMED_POINTS_PER_S = 300_000
_LOOK_S = 0.2
_LINE_S = 10.0


def said(text: str) -> None:
    """One line for the person who watches."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


async def follow(replay: Replay, stderr: TextIO) -> None:
    """Shows the progress until it is cancelled: a bar on a terminal, else a line every ten seconds."""
    if stderr.isatty():
        await _bar(replay)
    else:
        await _lines(replay)


async def _lines(replay: Replay) -> None:
    began_s = said_s = trio.current_time()
    before = replay.moment()
    while True:
        await trio.sleep(_LOOK_S)
        now, now_s = replay.moment(), trio.current_time()
        if now_s - said_s < _LINE_S and now.state is before.state:
            continue
        settled = now.confirmed + now.rejected
        per_s = settled / (now_s - began_s)
        said(f"{_figures(now)}, {per_s:,.0f} points/s, {_eta_text(now, now_s - began_s)}{trouble_words(now)}")
        before, said_s = now, now_s


async def _bar(replay: Replay) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    began_s = trio.current_time()
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        task = progress.add_task("")
        while True:
            now, passed_s = replay.moment(), max(trio.current_time() - began_s, 0.001)
            per_s = (now.confirmed + now.rejected) / passed_s
            words = f"{_figures(now)}, {per_s:,.0f} points/s, {_eta_text(now, passed_s)}{trouble_words(now)}"
            progress.update(
                task, total=max(now.expected, now.settled, 1), completed=now.settled, description=words
            )
            await trio.sleep(_LOOK_S)


def _figures(now: Moment) -> str:
    rejected = f", {now.rejected:,} rejected" if now.rejected else ""
    return f"{now.confirmed:,} points confirmed{rejected}"


def _eta_text(now: Moment, passed_s: float) -> str:
    left = max(0, now.expected - now.settled)
    if not now.settled:
        return "time left unknown"
    return f"about {duration_text(left * passed_s / now.settled)} left"


def trouble_words(now: Moment) -> str:
    """What keeps the sink from taking points, in words; empty when nothing does."""
    if now.state is SinkState.HOLDING:
        return f"; holding until it is put right: {now.last_error}"
    if now.state is SinkState.RETRYING:
        return f"; retrying: {now.last_error}"
    return ""


def duration_text(seconds: float) -> str:
    """A duration for people: 4 s, 12 min, 3.5 h; never nothing."""
    if seconds < 120:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show_counts(
    counted: Sequence[Counted],
    *,
    target: InfluxDBSettings,
    rate: float | None,
    warnings: Sequence[str],
    json: bool,
) -> None:
    """What a dry run found."""
    points = sum(each.points for each in counted)
    per_s = rate or ASSUMED_POINTS_PER_S
    if json:
        print_json(
            {
                "dry_run": True,
                "to": {"url": target.url, "org": target.org, "bucket": target.bucket},
                "points": points,
                "estimated_s": points / per_s,
                "estimated_at_points_per_s": per_s,
                "warnings": list(warnings),
                "sources": [_source_row(each) for each in counted],
            }
        )
        return
    for each in counted:
        passed = each.passed
        print(f"{each.words}: {passed.points:,} points in {passed.entries:,} {_parts_word(each.source)}")
        if passed.entries:
            print(f"  accepted {time_text(passed.first_ns)} to {time_text(passed.last_ns)}")
            print(f"  {bytes_text(passed.stored_bytes)} compressed, {bytes_text(passed.raw_bytes)} of lines")
        for lost in each.lost:
            print(f"  {_lost_words(lost)}")
    how = "as --rate says" if rate else "a guess; your database decides"
    print(f"{points:,} points would be written to {target.url}, bucket {target.bucket or '(none)'}")
    print(f"about {duration_text(points / per_s)} at {per_s:,.0f} points/s ({how})")


def _parts_word(source: str) -> str:
    return "entries" if source == "wal" else "gzip members"


def _source_row(each: Counted) -> dict[str, object]:
    passed = each.passed
    return {
        "source": each.source,
        "reads": each.words,
        "entries": passed.entries,
        "points": passed.points,
        "points_chosen": each.points,
        "stored_bytes": passed.stored_bytes,
        "raw_bytes": passed.raw_bytes,
        "first_accepted": time_text(passed.first_ns) if passed.entries else None,
        "last_accepted": time_text(passed.last_ns) if passed.entries else None,
        "lost": list(each.lost),
    }


def show_summary(
    saved: Saved,
    target: InfluxDBSettings,
    sources: Sequence[Source],
    warnings: Sequence[str],
    *,
    state: str,
    json: bool,
    this_run: tuple[int, float] = (0, 0.0),
) -> None:
    """What came of a replay, all its runs together; the rate is this run's."""
    points, seconds = this_run
    per_s = points / seconds if seconds > 0 else 0.0
    if json:
        print_json(
            {
                "dry_run": False,
                "id": saved.id,
                "state": state,
                "to": {"url": target.url, "org": target.org, "bucket": target.bucket},
                "sources": [{"source": source.name, "reads": source.describe()} for source in sources],
                "warnings": list(warnings),
                "points": saved.confirmed + saved.rejected,
                "confirmed": saved.confirmed,
                "rejected": saved.rejected,
                "rejected_file": saved.rejected_file or None,
                "lost": saved.lost,
                "seconds": saved.seconds,
                "points_per_s": per_s,
            }
        )
        return
    print(f"{state}: {saved.confirmed + saved.rejected:,} points read")
    print(f"confirmed  {saved.confirmed:,}")
    print(f"rejected   {saved.rejected:,}" + (f" (in {saved.rejected_file})" if saved.rejected else ""))
    print(f"lost       {_lost_count(saved)}")
    for lost in saved.lost:
        print(f"  {_lost_words(lost)}")
    print(f"took       {saved.seconds:.1f} s" + (f", {per_s:,.0f} points/s" if points else ""), flush=True)


def _lost_count(saved: Saved) -> str:
    points = sum(lost.points or 0 for lost in saved.lost)
    more = any(lost.points is None for lost in saved.lost)
    return f"{points:,}" + (" and what cannot be told" if more else "")


def _lost_words(lost: Lost) -> str:
    """One lost range in words; the archive keeps no seqs."""
    if lost.first_seq:
        return f"lost: {lost_text(lost)}"
    return f"lost: {lost.file} at byte {lost.offset}: {lost.reason}"
