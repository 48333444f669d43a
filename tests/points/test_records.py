"""A line feed inside a quoted string: nothing that cuts, counts or picks points cuts within one."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from wal_ingest.client.frames import Write, cut_by_write, halve, seal
from wal_ingest.flusher.replay.archive import ArchiveSource
from wal_ingest.points import Lines, Precision, count_points, end_of_points, split_lines, split_points
from wal_ingest.points.json_points import accept_json
from wal_ingest.points.line import line
from wal_ingest.points.line_protocol import REFUSED_LINES_MAX, GoodLines, accept_good_lines
from wal_ingest.points.select import Measurements

NOW = 1_763_800_000_000_000_000
POINTS = [b'm s="a\nfake s=1 1\n\\"" 1\n', b"n f=1 2\n", b'fake s="\n" 3\n', b'm,t="x f="y" 4\n']
DATA = b"".join(POINTS)


def good(body: bytes) -> GoodLines:
    return accept_good_lines(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=64 * 1024)


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


def test_an_open_quote_costs_its_own_line_and_invalid_utf_8_too() -> None:
    body = b'a v=1 1\nb v="o 1\nc v="p" 2\nd,t=\xff v=1\ne v=1 3\n'
    taken = good(body)
    assert taken.lines == Lines(b'a v=1 1\nc v="p" 2\ne v=1 3\n', 3)
    assert taken.dropped == 2
    assert taken.refusals[1].line == 4
    assert taken.refusals[1].reason == "invalid UTF-8"


def test_what_a_refused_record_holds_in_its_strings_is_never_taken_for_points() -> None:
    taken = good(b'm s="x\nfake v=1 1\ny",u=oops\nn v=1 3\n')
    assert taken.lines == Lines(b"n v=1 3\n", 1)
    assert taken.dropped == 1


def test_a_long_line_costs_itself_only() -> None:
    taken = good(b"a v=1 1\nb,t=" + b"x" * 70_000 + b" v=1 2\nc v=1 3\n")
    assert (taken.lines.points, taken.dropped) == (2, 1)
    assert "server.line_bytes_max" in taken.refusals[0].reason


@pytest.mark.parametrize("bad", [b"x\n", b'c v="o 1\n', b"a=\xff\n", b"b v=x\n"])
def test_bad_lines_cost_time_in_proportion(bad: bytes) -> None:
    """Ten times the lines take about ten times as long, not a hundred."""

    def cpu_s(count: int) -> float:
        began = time.thread_time()
        assert good(bad * count).dropped == count
        return time.thread_time() - began

    cpu_s(100)
    assert cpu_s(20_000) < 40 * cpu_s(2_000)


def test_a_body_of_nothing_but_bad_lines_is_refused_whole() -> None:
    from wal_ingest.errors import PointError

    with pytest.raises(PointError, match=f"more than {REFUSED_LINES_MAX} bad lines"):
        good(b"x\n" * (REFUSED_LINES_MAX + 1))
