"""The archive: what is on disk after a write, a crash at each step, a full disk, a failed sync."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flusher.twins import START_NS, MemoryLog, lines_of, run_inline
from wal_ingest.errors import ArchiveBroken, OperatorNeeded
from wal_ingest.flusher.batches import Batch, Batcher
from wal_ingest.flusher.outcome import Confirmed, Misconfigured, Unavailable
from wal_ingest.flusher.replay.archive import ArchiveSource
from wal_ingest.flusher.replay.places import Unit
from wal_ingest.flusher.sinks.archive import ArchiveSink
from wal_ingest.flusher.sinks.archive_position import (
    FILES_MAX,
    ArchivePosition,
    ConfirmedFile,
    file_of_hour,
    hour_and_part,
    hour_of_ns,
)
from wal_ingest.settings import ArchiveSettings
from wal_ingest.wal.entry import Destination
from wal_ingest.wal.gzip_codec import compress

HOUR_NS = 3_600_000_000_000
HOUR = hour_of_ns(START_NS)


def batch_of(seq: int, *, hours: int = 0, points: int = 20) -> Batch:
    lines = lines_of(seq, points)
    return Batch(
        first_seq=seq,
        last_seq=seq,
        points=points,
        points_after=seq * points,
        accepted_ns=START_NS + hours * HOUR_NS,
        destination=Destination(),
        body=compress(lines),
        raw_bytes=len(lines),
    )


def sink_in(data_dir: Path) -> ArchiveSink:
    return ArchiveSink(data_dir, ArchiveSettings(), run_sync=run_inline)


def file_in(data_dir: Path, hours: int = 0, part: int = 0) -> Path:
    return data_dir / "archive" / file_of_hour(HOUR + hours, part)


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def zcat(data_dir: Path) -> bytes:
    """What `zcat archive/*/*.lp.gz` prints: nothing behind a damaged member of a file can be read."""
    read = b""
    for path in sorted(data_dir.glob("archive/*/*.lp.gz")):
        try:
            with gzip.open(path) as file:
                while chunk := file.read(1):
                    read += chunk
        except (EOFError, OSError, zlib.error):
            continue
    return read


def aside(data_dir: Path) -> dict[str, bytes]:
    folder = data_dir / "archive" / "set-aside"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


async def write(data_dir: Path, *batches: Batch, position: bytes | None = None) -> list[bytes | None]:
    """One process: opens with a position, writes, closes; gives the positions it confirmed."""
    sink = sink_in(data_dir)
    await sink.open(position)
    positions = []
    for batch in batches:
        outcome = await sink.write(batch)
        assert isinstance(outcome, Confirmed)
        positions.append(outcome.position)
    await sink.aclose()
    return positions


async def test_points_are_in_the_file_of_the_hour_of_their_acceptance(tmp_path: Path) -> None:
    await write(tmp_path, batch_of(1), batch_of(2), batch_of(3, hours=1))
    assert content(tmp_path / "archive" / "2025-11-22" / "08.lp.gz") == lines_of(1, 20) + lines_of(2, 20)
    assert content(file_in(tmp_path, 1)) == lines_of(3, 20)


async def test_a_restart_goes_on_where_the_position_says(tmp_path: Path) -> None:
    (position,) = await write(tmp_path, batch_of(1))
    await write(tmp_path, batch_of(2), position=position)
    assert content(file_in(tmp_path)) == lines_of(1, 20) + lines_of(2, 20)
    assert aside(tmp_path) == {}


async def test_bytes_that_were_never_confirmed_are_set_aside_and_written_again_once(tmp_path: Path) -> None:
    first, _ = await write(tmp_path, batch_of(1), batch_of(2))  # the second cursor was never committed
    await write(tmp_path, batch_of(2), position=first)
    assert content(file_in(tmp_path)) == lines_of(1, 20) + lines_of(2, 20)
    name = f"2025-11-22T08.lp.gz.from-{len(batch_of(1).body)}.0"
    assert aside(tmp_path) == {name: batch_of(2).body}


@pytest.mark.parametrize("kept", [1, 10, 50])
async def test_a_torn_append_is_set_aside(tmp_path: Path, kept: int) -> None:
    (position,) = await write(tmp_path, batch_of(1))
    with file_in(tmp_path).open("ab") as file:
        file.write(batch_of(2).body[:kept])
    await write(tmp_path, batch_of(2), position=position)
    assert content(file_in(tmp_path)) == lines_of(1, 20) + lines_of(2, 20)
    assert list(aside(tmp_path).values()) == [batch_of(2).body[:kept]]


async def test_two_crashes_at_the_same_length_keep_both_tails(tmp_path: Path) -> None:
    (position,) = await write(tmp_path, batch_of(1))
    for tail in (b"one", b"two"):
        with file_in(tmp_path).open("ab") as file:
            file.write(tail)
        await write(tmp_path, position=position)
    assert sorted(aside(tmp_path).values()) == [b"one", b"two"]


async def test_points_with_line_feeds_in_strings_come_back_one_by_one(tmp_path: Path) -> None:
    texts = ["a\nb", "\n", "a\nm n=1i 1\n# no comment\n", "plain", '\\"\n\\"', "\r\n\n"]
    points = [f'log,n={n} text="{text}" {START_NS + n}\n'.encode() for n, text in enumerate(texts * 40)]
    log = MemoryLog()
    # A small entry is not compressed yet when it comes to the archive, a large one is.
    for part in (points[:4], points[4:200], points[200:]):
        log.append(len(part), lines=b"".join(part))
    sink = sink_in(tmp_path)
    batcher = Batcher(sink.group, points_max=100_000)
    await write(tmp_path, *batcher.add(log.entries), *batcher.flush())
    source = ArchiveSource(tmp_path / "archive", HOUR, HOUR, points_max=1)
    assert [unit.entry.lines() for unit in source.items() if isinstance(unit, Unit)] == points


async def test_a_file_of_a_later_hour_that_was_never_confirmed_is_moved_aside(tmp_path: Path) -> None:
    first, _ = await write(tmp_path, batch_of(1), batch_of(2, hours=1))
    await write(tmp_path, batch_of(2, hours=1), position=first)
    assert content(file_in(tmp_path, 1)) == lines_of(2, 20)
    assert aside(tmp_path) == {"2025-11-22T09.lp.gz.whole.0": batch_of(2).body}


async def test_a_confirmed_later_hour_stays_when_an_earlier_one_was_written_last(tmp_path: Path) -> None:
    *_, position = await write(tmp_path, batch_of(1, hours=1), batch_of(2))
    await write(tmp_path, position=position)
    assert content(file_in(tmp_path, 1)) == lines_of(1, 20)
    assert content(file_in(tmp_path)) == lines_of(2, 20)
    assert aside(tmp_path) == {}


async def test_a_lost_state_touches_nothing_and_goes_on_in_a_new_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await write(tmp_path, batch_of(1), batch_of(2, hours=1))
    await write(tmp_path, batch_of(1), position=None)
    assert content(file_in(tmp_path)) == lines_of(1, 20)
    assert content(file_in(tmp_path, part=1)) == lines_of(1, 20)
    assert content(file_in(tmp_path, 1)) == lines_of(2, 20)
    assert aside(tmp_path) == {}
    assert "nothing is remembered" in caplog.text


async def test_behind_half_a_member_of_a_lost_state_nothing_is_written(tmp_path: Path) -> None:
    file_in(tmp_path).parent.mkdir(parents=True)
    file_in(tmp_path).write_bytes(batch_of(1).body[:-9])
    (position,) = await write(tmp_path, batch_of(2), position=None)
    await write(tmp_path, batch_of(3), position=position)
    assert lines_of(2, 20) + lines_of(3, 20) in zcat(tmp_path)
    assert file_in(tmp_path).read_bytes() == batch_of(1).body[:-9]


async def test_behind_half_a_member_of_a_forgotten_hour_nothing_is_written(tmp_path: Path) -> None:
    (ahead,) = await write(tmp_path, batch_of(1, hours=5))  # the clock was ahead once
    file_in(tmp_path).parent.mkdir(parents=True, exist_ok=True)
    file_in(tmp_path).write_bytes(batch_of(2).body[:-9])  # a write that the crash cut short
    (position,) = await write(tmp_path, batch_of(2), position=ahead)
    await write(tmp_path, batch_of(3), position=position)
    assert lines_of(2, 20) + lines_of(3, 20) in zcat(tmp_path)
    assert file_in(tmp_path).read_bytes() == batch_of(2).body[:-9]


async def test_an_operator_may_move_a_file_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (position,) = await write(tmp_path, batch_of(1))
    file_in(tmp_path).unlink()
    await write(tmp_path, batch_of(2), position=position)
    assert zcat(tmp_path) == lines_of(2, 20)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_follows_a_file_that_was_moved_away_is_never_cut_to_its_length(tmp_path: Path) -> None:
    (position,) = await write(tmp_path, batch_of(1))
    file_in(tmp_path).unlink()
    await write(tmp_path, batch_of(2, points=60), position=position)  # its cursor was never committed
    (position,) = await write(tmp_path, batch_of(2, points=60), position=position)
    await write(tmp_path, batch_of(3), position=position)
    assert zcat(tmp_path) == lines_of(2, 60) + lines_of(3, 20)
    assert list(aside(tmp_path).values()) == [batch_of(2, points=60).body]


@pytest.mark.parametrize("lost", [1, 9, 100])
async def test_a_file_shorter_than_confirmed_is_reported_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: int
) -> None:
    position = (await write(tmp_path, batch_of(1), batch_of(2)))[-1]
    left = file_in(tmp_path).read_bytes()[:-lost]
    file_in(tmp_path).write_bytes(left)
    await write(tmp_path, batch_of(3), position=position)
    assert lines_of(3, 20) in zcat(tmp_path)
    assert file_in(tmp_path).read_bytes() == left
    assert "were confirmed" in caplog.text


@pytest.mark.parametrize("opened", ["by its first write", "by a second one"])
@pytest.mark.parametrize("taken", ["moved", "unlinked", "replaced"])
async def test_a_file_taken_away_between_writes_is_not_written_to(
    tmp_path: Path, taken: str, opened: str
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    await sink.write(batch_of(1))
    if opened == "by a second one":
        await sink.write(batch_of(2, hours=1))
        await sink.write(batch_of(3))
    take_away(file_in(tmp_path), taken)
    outcome = await sink.write(batch_of(4))
    await sink.aclose()
    assert isinstance(outcome, Confirmed)
    assert lines_of(4, 20) in zcat(tmp_path)
    await write(tmp_path, batch_of(5), position=outcome.position)
    assert lines_of(4, 20) + lines_of(5, 20) in zcat(tmp_path)


@pytest.mark.parametrize("taken", ["moved", "unlinked", "replaced"])
async def test_points_on_their_way_into_a_file_that_is_taken_away_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    await sink.write(batch_of(1))
    during(monkeypatch, "fdatasync", lambda: take_away(file_in(tmp_path), taken))
    assert isinstance(await sink.write(batch_of(2)), Confirmed)
    await sink.aclose()
    assert lines_of(2, 20) in zcat(tmp_path)


async def test_a_file_that_is_taken_away_time_and_again_is_tried_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    real = os.fdatasync

    def taking(fd: int) -> None:
        real(fd)
        Path(f"/proc/self/fd/{fd}").readlink().unlink()

    monkeypatch.setattr(os, "fdatasync", taking)
    assert isinstance(await sink.write(batch_of(1)), Unavailable)
    monkeypatch.undo()
    assert isinstance(await sink.write(batch_of(1)), Confirmed)
    await sink.aclose()
    assert zcat(tmp_path) == lines_of(1, 20)


async def test_a_file_that_something_else_wrote_to_is_left_to_it(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    await sink.write(batch_of(1))
    with file_in(tmp_path).open("ab") as file:
        file.write(b"half a memb")
    assert isinstance(await sink.write(batch_of(2)), Confirmed)
    await sink.aclose()
    assert content(file_in(tmp_path, part=1)) == lines_of(2, 20)


async def test_a_crash_before_the_first_cursor_leaves_no_doubles(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    begun = await sink.open(None)
    await sink.write(batch_of(1))  # the crash: its cursor was never committed, the opening position was
    await sink.aclose()
    assert begun is not None
    await write(tmp_path, batch_of(1), position=begun)
    assert zcat(tmp_path) == lines_of(1, 20)
    assert list(aside(tmp_path).values()) == [batch_of(1).body]


async def test_files_found_without_a_position_stay_in_their_place_after_the_next_start_too(
    tmp_path: Path,
) -> None:
    await write(tmp_path, batch_of(1), batch_of(2, hours=1))
    sink = sink_in(tmp_path)
    begun = await sink.open(None)
    await sink.aclose()
    await write(tmp_path, position=begun)
    assert zcat(tmp_path) == lines_of(1, 20) + lines_of(2, 20)
    assert aside(tmp_path) == {}


async def test_with_a_position_there_is_none_to_begin_with(tmp_path: Path) -> None:
    (position,) = await write(tmp_path, batch_of(1))
    sink = sink_in(tmp_path)
    assert await sink.open(position) is None
    await sink.aclose()


async def test_a_position_of_the_first_version_is_understood(tmp_path: Path) -> None:
    await write(tmp_path, batch_of(1))
    length = len(batch_of(1).body)
    stored = json.dumps({"version": 1, "hour_max": HOUR, "lengths": [[HOUR, length]]}).encode()
    await write(tmp_path, batch_of(2), position=stored)
    assert content(file_in(tmp_path)) == lines_of(1, 20) + lines_of(2, 20)


def take_away(path: Path, how: str) -> None:
    """What an operator, or rsync and logrotate, do to a file."""
    if how == "moved":
        path.rename(path.parent.parent.parent / path.name)
    else:
        path.unlink()
    if how == "replaced":
        path.write_bytes(compress(b"m n=1i 1\n"))


def during(monkeypatch: pytest.MonkeyPatch, call: str, act: Callable[[], None]) -> None:
    """Acts once, right after the next call."""
    real = getattr(os, call)
    left = [act]

    def with_act(fd: int) -> None:
        real(fd)
        if left:
            left.pop()()

    monkeypatch.setattr(os, call, with_act)


@pytest.mark.parametrize(
    "position",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"version": 2}',
        b'{"version":3,"hour_max":1,"files":[]}',
        b'{"version":1,"hour_max":1,"lengths":[[1,-5]]}',
        b'{"version":2,"hour_max":1,"files":[[1,0]]}',
    ],
)
async def test_a_position_that_cannot_be_read_needs_an_operator(tmp_path: Path, position: bytes) -> None:
    await write(tmp_path, batch_of(1))
    with pytest.raises(OperatorNeeded, match="position"):
        await sink_in(tmp_path).open(position)
    assert content(file_in(tmp_path)) == lines_of(1, 20)


async def test_a_full_disk_cuts_the_torn_append_and_asks_for_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    await sink.write(batch_of(1))
    real_write = os.write

    def full(fd: int, data: memoryview) -> int:
        if len(data) < 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    outcome = await sink.write(batch_of(2))
    assert isinstance(outcome, Unavailable)
    assert "No space left" in outcome.reason
    assert content(file_in(tmp_path)) == lines_of(1, 20)
    monkeypatch.undo()
    assert isinstance(await sink.write(batch_of(2)), Confirmed)
    await sink.aclose()
    assert content(file_in(tmp_path)) == lines_of(1, 20) + lines_of(2, 20)


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_failed_sync_is_final_and_confirms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    calls = []

    def broken(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(ArchiveBroken, match="sync failed"):
        await sink.write(batch_of(1))
    assert len(calls) == 1
    await sink.aclose()


async def test_a_failed_write_other_than_for_space_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)

    def broken(fd: int, data: memoryview) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(ArchiveBroken, match="cannot be written"):
        await sink.write(batch_of(1))
    await sink.aclose()


async def test_a_file_that_cannot_be_opened_is_an_operators_matter(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    day = file_in(tmp_path).parent
    day.write_text("in the way")
    outcome = await sink.write(batch_of(1))
    assert isinstance(outcome, Misconfigured)
    day.unlink()
    assert isinstance(await sink.write(batch_of(1)), Confirmed)
    await sink.aclose()


async def test_file_and_directories_are_synced_before_the_first_confirmation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)
    synced: list[Path] = []
    for call in ("fsync", "fdatasync"):
        real = getattr(os, call)

        def noting(fd: int, real: object = real) -> None:
            synced.append(Path(f"/proc/self/fd/{fd}").readlink())
            assert callable(real)
            real(fd)

        monkeypatch.setattr(os, call, noting)
    await sink.write(batch_of(1))
    path = file_in(tmp_path)
    assert synced == [path.parent, path.parent.parent, tmp_path, path]
    synced.clear()
    await sink.write(batch_of(2))
    await sink.aclose()
    assert synced == [path]


def test_the_position_remembers_the_files_written_last_and_the_latest_hour() -> None:
    position = ArchivePosition()
    for hour in [*range(100, 100 + FILES_MAX + 2), 101]:
        position = position.grown(ConfirmedFile(hour, 0, hour * 2))
    assert position.hour_max == 100 + FILES_MAX + 1
    assert position.files[-1] == (101, 0, 202)
    assert len(position.files) == FILES_MAX
    assert ArchivePosition.decode(position.encode(), where=Path("archive")) == position


@pytest.mark.parametrize("part", [0, 1, 12])
def test_a_files_name_tells_its_hour_and_part(part: int) -> None:
    assert hour_and_part(Path("archive") / file_of_hour(HOUR, part)) == (HOUR, part)


@pytest.mark.parametrize(
    "name", ["08.part0.lp.gz", "08.part.lp.gz", "8.lp.gz", "25.lp.gz", "08.1.lp.gz", "a.lp.gz"]
)
def test_other_names_are_no_files_of_the_archive(name: str) -> None:
    assert hour_and_part(Path("2025-11-22") / name) is None


def test_the_parts_of_an_hour_are_read_in_their_order() -> None:
    names = [file_of_hour(HOUR, part) for part in range(4)] + [file_of_hour(HOUR + 1)]
    assert sorted(names) == names


async def test_an_archive_directory_that_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("a file where a folder should be")
    with pytest.raises(ArchiveBroken, match="cannot be used: File exists"):
        await sink_in(tmp_path).open(None)


async def test_a_file_that_was_begun_and_never_appended_to_is_used(tmp_path: Path) -> None:
    file_in(tmp_path).parent.mkdir(parents=True)
    file_in(tmp_path).touch()
    await write(tmp_path, batch_of(1))
    assert content(file_in(tmp_path)) == lines_of(1, 20)
    assert not file_in(tmp_path, part=1).exists()


async def test_files_of_other_names_are_left_alone(tmp_path: Path) -> None:
    notes = file_in(tmp_path).with_name("notes.lp.gz")
    [position] = await write(tmp_path, batch_of(1))
    notes.write_bytes(b"an operator's own")
    await write(tmp_path, batch_of(2), position=position)
    assert notes.read_bytes() == b"an operator's own"
    assert content(file_in(tmp_path)) == lines_of(1, 20) + lines_of(2, 20)


async def test_a_torn_append_that_cannot_be_cut_off_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = sink_in(tmp_path)
    await sink.open(None)

    def full(_fd: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(_fd: int, _length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "ftruncate", broken)
    with pytest.raises(ArchiveBroken, match="cannot be cut back: Input/output error"):
        await sink.write(batch_of(1))
    await sink.aclose()
