"""The clock that chaos sets: what the judge is told of it holds at every moment."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from ops.chaos import clock as module
from ops.chaos.clock import Clock


@pytest.mark.needs("cc")
def test_what_the_server_may_have_read_is_in_the_range_from_that_moment_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = itertools.count(1)
    read: list[tuple[int, int]] = []

    def look() -> int:
        """A moment, and what the server would read then."""
        (offset_ns,) = struct.unpack("=q", (tmp_path / "clock-offset").read_bytes())
        read.append((next(moments), offset_ns))
        return read[-1][0]

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=look))
    clock = Clock(tmp_path)
    for offset_ns in (-60, 5, 0):
        clock.set(offset_ns)

    for moment, offset_ns in read:
        lowest, highest = clock.range_ns(moment)
        assert lowest <= offset_ns <= highest, (moment, offset_ns)
    assert clock.range_ns(1) == (-60, 5)
    assert clock.range_ns(next(moments)) == (0, 0)
