"""Lines are chosen by measurement as people say its name, in bulk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.points import Lines, Precision
from wal_ingest.points.line_protocol import accept_line_protocol
from wal_ingest.points.select import Measurements

LINES = (
    b"cpu,host=a v=1 1\n"
    b"cpu2 v=1 2\n"
    b'mem,host=a v="\\"cpu v=1" 3\n'
    b"my\\ disk,host=a v=1 4\n"
    b"a\\,b v=1 5\n"
    b"C:\\dir v=1 6\n"
    b"cpu v=2 7\n"
    b"x=y v=1 8\n"
)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["cpu"], [1, 7]),
        (["cpu2"], [2]),
        (["cp"], []),
        (["my disk"], [4]),
        (["a,b"], [5]),
        (["a"], []),
        (["C:\\dir"], [6]),
        (["x=y"], [8]),
        (["c.u"], []),
        (["mem", "cpu"], [1, 3, 7]),
    ],
)
def test_lines_are_chosen_by_the_name_that_people_say(names: list[str], numbers: list[int]) -> None:
    chosen = Measurements(names).of(LINES)
    assert chosen.points == len(numbers)
    assert [int(line.rsplit(b" ", 1)[1]) for line in chosen.data.splitlines()] == numbers
    assert not chosen.data or chosen.data.endswith(b"\n")


def test_nothing_is_chosen_from_nothing() -> None:
    assert Measurements(["cpu"]).of(b"") == Lines(b"", 0)


@given(st.lists(st.sampled_from(["cpu", "my disk", "a,b", "mémoire", "[x]"]), min_size=1, max_size=30))
def test_every_line_is_in_exactly_one_choice(names: list[str]) -> None:
    body = "".join(
        f"{name.replace(' ', chr(92) + ' ').replace(',', chr(92) + ',')},t=1 v={n} {n + 1}\n"
        for n, name in enumerate(names)
    ).encode()
    lines = accept_line_protocol(body, precision=Precision.NS, now_ns=10**18, line_bytes_max=1000)
    chosen = {name: Measurements([name]).of(lines.data) for name in set(names)}
    assert {name: each.points for name, each in chosen.items()} == {name: names.count(name) for name in names}
    assert Measurements(sorted(set(names))).of(lines.data) == lines
