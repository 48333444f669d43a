"""A large body is read a slice at a time: with the same outcome, and no single step takes long or much memory."""

from __future__ import annotations

import sys
import time
import tracemalloc
from typing import Any

import pytest

from wal_ingest.errors import PointError
from wal_ingest.points import Lines, Precision, split_lines
from wal_ingest.points.engine import ENGINES, Engine
from wal_ingest.points.exact import parse_lines
from wal_ingest.points.line_protocol import SLICE_BYTES, LineProtocol, accept_line_protocol
from wal_ingest.points.lines import iter_pieces, split_points

NOW = 1_763_800_000_000_000_000
LIMIT = 2 << 20

# What a slice may end in, with lines enough around it.
ODD = (
    b"m v=1\n",
    b"m,a=b v=1 5\n",
    b"\n",
    b"# a comment\n",
    b"m v=1\r\n",
    b"\xef\xbb\xbfm v=1\n",
    b"m  v=1\n",
    b'm s="x\ny z=1\n" 7\n',
    b'm s="' + b"v=1 5\n" * (SLICE_BYTES // 5) + b'"\n',
    b'm s="' + b"x" * (2 * SLICE_BYTES) + b'" 5\n',
    b"\n" * (2 * SLICE_BYTES),
)
USUAL = b"cpu,host=a,region=b usage=1.5,load=2i 1763800000000000000\n"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
@pytest.mark.parametrize("odd", ODD, ids=[repr(odd[:20]) for odd in ODD])
def test_the_outcome_is_that_of_the_exact_parser_whatever_a_slice_ends_in(engine: Engine, odd: bytes) -> None:
    acceptor = LineProtocol(engine)
    for before in range(SLICE_BYTES // len(USUAL) - 1, SLICE_BYTES // len(USUAL) + 1):
        body = b"m v=1\n" + USUAL * before + odd + USUAL * 1_200 + odd
        expected = parse_lines(body, unit_ns=1, now_ns=NOW, line_bytes_max=LIMIT)
        assert acceptor.accept(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=LIMIT) == expected
        good = acceptor.accept_good(
            body, precision=Precision.NS, now_ns=NOW, line_bytes_max=LIMIT, refusals_max=5
        )
        assert (good.lines, good.dropped) == (expected, 0)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_a_bad_line_in_a_later_slice_is_named_by_its_line(engine: Engine) -> None:
    body = USUAL * 3_000 + b"m v=\n" + USUAL
    with pytest.raises(PointError) as caught:
        LineProtocol(engine).accept(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=LIMIT)
    assert (caught.value.line, caught.value.column) == (3_001, 5)


def test_between_slices_the_caller_is_notified_how_much_was_made_and_may_end_it() -> None:
    told: list[int] = []

    def between(made_bytes: int) -> None:
        told.append(made_bytes)
        if len(told) == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        accept_line_protocol(
            USUAL * 10_000, precision=Precision.NS, now_ns=NOW, line_bytes_max=LIMIT, between=between
        )
    assert told == sorted(told)
    assert told[-1] < 4 * SLICE_BYTES


@pytest.mark.parametrize("end", [b"", b"m v=\n"])
def test_no_single_step_over_short_lines_takes_long_or_much_memory(end: bytes) -> None:
    body = b"m v=1\n" * (8 * 1024 * 1024 // 6) + end
    longest_s = began_s = 0.0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal began_s, longest_s
        if event == "c_call":
            began_s = time.thread_time()
        elif event in ("c_return", "c_exception"):
            longest_s = max(longest_s, time.thread_time() - began_s)

    sys.setprofile(note)
    try:
        lines = accept_line_protocol(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=LIMIT)
        split_lines(lines, 1_000)
    except PointError:
        assert end
    finally:
        sys.setprofile(None)
    # A single step over all of it took 400 ms.
    assert longest_s < 0.1
    tracemalloc.start()
    try:
        lines = accept_line_protocol(
            body.removesuffix(end) or body, precision=Precision.NS, now_ns=NOW, line_bytes_max=LIMIT
        )
        for _ in iter_pieces(lines, 1_000):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The lines are 37 MB; as objects of their own they took 150 more.
    assert peak < 2.5 * len(lines.data)


def test_pieces_are_whole_points_also_where_strings_have_line_feeds() -> None:
    for point in (b"m v=1 5\n", b'm s="a\nb" 5\n'):
        lines = Lines(point * 2_500, 2_500)
        pieces = split_lines(lines, 1_000)
        assert [piece.points for piece in pieces] == [1_000, 1_000, 500]
        assert b"".join(piece.data for piece in pieces) == lines.data
        assert all(len(split_points(piece.data, piece.points)) == piece.points for piece in pieces)
    with pytest.raises(ValueError, match="expected"):
        split_lines(Lines(b'm s="a\nb" 5\n' * 2_500, 2_400), 1_000)
    assert split_lines(Lines(b"", 0), 5) == []
