"""Lines that VictoriaMetrics reads as other points than InfluxDB: rewritten so that it reads the same, or refused."""

from __future__ import annotations

import pytest

from tests.points.decoder import decode
from wal_ingest.flusher.sinks.victoria_metrics import alike, reads_alike, rewrite
from wal_ingest.points.engine import ENGINES, Engine

TIME = b" 1763800000000000000"

# What both read alike stays as it is, byte for byte.
ALIKE = [
    rb"cpu\ x,host=C:\dir,a=b\,c\ d v=1" + TIME,
    b"cpu,host=a v=1,w=2.5,n=-3i,u=4u,b=t" + TIME,
    b'cpu,host=a s="a, b = c",v=1' + TIME,
    b'cpu,host="a" v=1' + TIME,
    b"cpu,host=a\tb\x00\x1b\x7f\rc v=1" + TIME,
    b'cpu,host=a s="a\rb"' + TIME,
    b"eq=m,host=web1.example.com v=1.5e-3" + TIME,
    "cpu,host=a\u2028b v=1".encode() + TIME,
    rb"a\=b,p=CN\=Smith\,\ John v\ w=1" + TIME,
    rb'a,_key=b v_=t,s="said \"no\" = yes. 5, .5 -1 0",t="C:\\" 5',
    b'm,p="a,q="b" v=1' + TIME,
    b"m a=-1.5E+3,b=2e9,c=-3i,d=0u" + TIME,
]

# What must be written for VictoriaMetrics, and whether InfluxDB reads that as another point.
REWRITTEN = [
    (b'm,p=a s="one\ntwo",v=1' + TIME, b'm,p=a s="one two",v=1' + TIME, True),
    (b'm,p=a v=1,s="x\nevil y=5 1\n"' + TIME, b'm,p=a v=1,s="x evil y=5 1 "' + TIME, True),
    (rb"m,p=C:\\ x v=1" + TIME, rb"m,p=C:\\\ x v=1" + TIME, True),
    (rb"m,p=C:\\\\\= v=1" + TIME, rb"m,p=C:\\\\\\\\\= v=1" + TIME, True),
    (rb"m,p\\q=C:\\dir v=1" + TIME, rb"m,p\\\\q=C:\\\\dir v=1" + TIME, True),
    (rb"a\"b,p=c\"d k\"\"=1" + TIME, rb'a"b,p=c\\"d k""=1' + TIME, True),
    (rb"a\\,b,p=c v=1" + TIME, rb"a\\\,b,p=c v=1" + TIME, True),
    (rb"m,p=c k\\\=w=1" + TIME, rb"m,p=c k\\\\\=w=1" + TIME, True),
    (b"m v=1 0", b"m v=1 1", True),
    (b"m v=1.,w=.5,x=-.5,y=1.e3,z=-2." + TIME, b"m v=1.0,w=0.5,x=-0.5,y=1.0e3,z=-2.0" + TIME, False),
    (b'm v=1.5E3,s=".5" -999999', b'm v=1.5E3,s=".5" -999999', False),
    (
        b'm,p=c v=1,s="' + b"x" * 300_000 + b'",t="",u="4"' + TIME,
        b'm,p=c v=1,s="(a long string)",t="",u="4"' + TIME,
        True,
    ),
    (b'm "v"=1,s="a,b"' + TIME, b'm "v"=1,s="a,b"' + TIME, False),
]

UNREADABLE = [
    (rb"m,p=a v\"w=1" + TIME, "a field key with an odd number of quotes"),
    (b'm,p=a v"w=1' + TIME, "a field key with an odd number of quotes"),
    (b"m,__name__=a v=1" + TIME, "a tag with the key __name__"),
    (b"m v=1 -1763800000000000000", "a time before 1970"),
    (b"m v=1 -1000000", "a time before 1970"),
    (b"m,p=" + b"x" * 300_000 + b" v=1" + TIME, "a line of more than 256 KiB"),
]


@pytest.mark.parametrize("line", ALIKE, ids=repr)
def test_a_line_that_both_read_alike_is_found_by_the_cheap_look_and_stays(line: bytes) -> None:
    assert reads_alike(line + b"\n")
    assert rewrite(line + b"\n", 1).lines == line + b"\n"


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_both_engines_see_the_same_lines_as_alike(engine: Engine) -> None:
    for line in ALIKE:
        assert alike(engine).fullmatch(line + b"\n"), line
    for line in [line for line, *_ in REWRITTEN] + [line for line, _ in UNREADABLE]:
        if len(line) < 1_000:
            assert not alike(engine).fullmatch(line + b"\n"), line


@pytest.mark.parametrize(
    ("line", "written", "special"), REWRITTEN, ids=[repr(row[0][:80]) for row in REWRITTEN]
)
def test_a_line_is_rewritten_and_said_to_be_special_where_influxdb_would_read_it_otherwise(
    line: bytes, written: bytes, special: bool
) -> None:
    assert not reads_alike(line + b"\n")
    found = rewrite(line + b"\n", 1)
    assert found.lines == written + b"\n"
    assert found.special == ((0,) if special else ())
    if b"\n" not in line:
        assert (decode(found.lines) != decode(line + b"\n")) == special


@pytest.mark.parametrize(("line", "why"), UNREADABLE, ids=[repr(line[:80]) for line, _ in UNREADABLE])
def test_a_point_that_no_line_makes_it_read_is_left_out_with_a_reason(line: bytes, why: str) -> None:
    assert not reads_alike(line + b"\n")
    good = b"cpu v=1" + TIME + b"\n"
    found = rewrite(good + line + b"\n" + good, 3)
    assert found.lines == good + good
    assert found.unreadable == {1: why}


def test_points_keep_their_order_and_are_named_by_their_places() -> None:
    text = b"m,p=a\\\\ b v=1 1\ncpu v=1 2\nm,__name__=x v=1 3\nm v=.5 0\n"
    found = rewrite(text, 4)
    assert found.lines == b"m,p=a\\\\\\ b v=1 1\ncpu v=1 2\nm v=0.5 1\n"
    assert found.special == (0, 3)
    assert list(found.unreadable) == [2]


def test_a_line_that_is_not_canonical_is_refused_with_a_reason() -> None:
    found = rewrite(b"m,p=a\\\\,q=1 v 1\n", 1)
    assert found.lines == b""
    assert "at byte" in found.unreadable[0]
