"""The archive: what is on disk after a write, a crash at each step, a full disk, a failed sync."""

from __future__ import annotations

import errno
import gzip
import json
import logging
import os
from pathlib import Path

import pytest

from tests.flusher.twins import START_NS, lines_of, run_inline
from wal_ingest.errors import ArchiveBroken, OperatorNeeded
from wal_ingest.flusher.batches import Batch
from wal_ingest.flusher.outcome import Confirmed, Misconfigured, Unavailable
from wal_ingest.flusher.sinks.archive import ArchiveSink
from wal_ingest.flusher.sinks.archive_position import FILES_MAX, ArchivePosition, file_of_hour, hour_of_ns
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


def file_in(data_dir: Path, hours: int = 0) -> Path:
    return data_dir / "archive" / file_of_hour(HOUR + hours)


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


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


async def test_a_lost_state_touches_nothing_and_appends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await write(tmp_path, batch_of(1), batch_of(2, hours=1))
    await write(tmp_path, batch_of(1), position=None)
    assert content(file_in(tmp_path)) == lines_of(1, 20) * 2
    assert content(file_in(tmp_path, 1)) == lines_of(2, 20)
    assert aside(tmp_path) == {}
    assert "nothing is remembered" in caplog.text


async def test_an_operator_may_move_a_file_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (position,) = await write(tmp_path, batch_of(1))
    file_in(tmp_path).unlink()
    await write(tmp_path, batch_of(2), position=position)
    assert content(file_in(tmp_path)) == lines_of(2, 20)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_file_shorter_than_confirmed_is_reported_and_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    position = (await write(tmp_path, batch_of(1), batch_of(2)))[-1]
    os.truncate(file_in(tmp_path), len(batch_of(1).body))
    await write(tmp_path, batch_of(3), position=position)
    assert content(file_in(tmp_path)) == lines_of(1, 20) + lines_of(3, 20)
    assert "were confirmed" in caplog.text


@pytest.mark.parametrize(
    "position", [b"", b"nonsense", b"[]", b'{"version": 2}', b'{"version":1,"hour_max":1,"lengths":[[1,-5]]}']
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
        position = position.grown(hour, hour * 2)
    assert position.hour_max == 100 + FILES_MAX + 1
    assert position.lengths[-1] == (101, 202)
    assert len(position.lengths) == FILES_MAX
    assert ArchivePosition.decode(position.encode(), where=Path("archive")) == position
    assert json.loads(position.encode())["version"] == 1
