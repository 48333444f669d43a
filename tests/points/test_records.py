"""A line feed inside a quoted string: nothing that cuts, counts or picks points cuts within one."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from wal_ingest.client.frames import Write, cut_by_write, halve, seal
from wal_ingest.flusher.replay.archive import ArchiveSource
from wal_ingest.points import Lines, count_points, end_of_points, split_lines, split_points
from wal_ingest.points.json_points import accept_json
from wal_ingest.points.line import line
from wal_ingest.points.select import Measurements

NOW = 1_763_800_000_000_000_000
POINTS = [b'm s="a\nfake s=1 1\n\\"" 1\n', b"n f=1 2\n", b'fake s="\n" 3\n', b'm,t="x f="y" 4\n']
DATA = b"".join(POINTS)


def test_points_are_cut_and_counted_by_their_quotes() -> None:
    assert split_points(DATA, 4) == POINTS
    assert count_points(DATA) == 4
    assert [each.data for each in split_lines(Lines(DATA, 4), 1)] == POINTS
    assert end_of_points(DATA[:-3]) == len(DATA) - len(POINTS[3])
    with pytest.raises(ValueError, match="4 points, 5 expected"):
        split_points(DATA, 5)


def test_a_measurement_is_picked_with_all_lines_of_its_points() -> None:
    assert Measurements(["m"]).of(DATA) == Lines(POINTS[0] + POINTS[3], 2)
    assert Measurements(["fake"]).of(DATA) == Lines(POINTS[2], 1)


def test_frames_are_cut_between_points() -> None:
    first, second = Write(1, 1), Write(2, 3)
    frame = seal([(first, Lines(POINTS[0], 1)), (second, Lines(b"".join(POINTS[1:]), 3))])
    assert [each.lines() for each in cut_by_write(frame)] == [POINTS[0], b"".join(POINTS[1:])]
    halves = halve(cut_by_write(frame)[1])
    assert [each.lines() for each in halves] == [POINTS[1], POINTS[2] + POINTS[3]]


def test_a_replay_of_the_archive_has_units_of_whole_points(tmp_path: Path) -> None:
    folder = tmp_path / "2026-11-22"
    folder.mkdir()
    (folder / "21.lp.gz").write_bytes(gzip.compress(DATA))
    source = ArchiveSource(tmp_path, 0, 10**9, points_max=1)
    units = [unit for unit in source.items() if hasattr(unit, "entry")]
    assert [unit.entry.lines() for unit in units] == POINTS


def test_json_and_the_client_write_line_feeds_in_strings() -> None:
    made = accept_json(
        b'[{"measurement":"m","fields":{"s":"a\\nb"}},{"measurement":"n","fields":{"f":1}}]',
        now_ns=NOW,
        depth_max=5,
    )
    assert made.points == 2
    assert split_points(made.data, 2)[0] == b'm s="a\nb" %d\n' % NOW
    assert line("m", {}, {"s": "a\nb"}, 1) == 'm s="a\nb" 1'
