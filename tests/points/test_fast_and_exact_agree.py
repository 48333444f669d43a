"""Whatever the fast path takes, the exact parser takes with the same bytes; whatever it leaves, they settle alike."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.points.decoder import decode
from wal_ingest.errors import PointError
from wal_ingest.points.engine import ENGINES
from wal_ingest.points.exact import parse_lines
from wal_ingest.points.line_protocol import LineProtocol, check_lines
from wal_ingest.points.lines import Lines, Precision, split_points
from wal_ingest.points.records import ends_as_one_record

NOW = 1_763_800_000_123_456_789
LINE_BYTES_MAX = 300

ACCEPTORS = {engine.name: LineProtocol(engine) for engine in ENGINES}

# Pieces from which legal and nearly legal lines come about often.
TOKENS = [
    b"m", b"cpu", b"a", b"b", b"=", b",", b" ", b"  ", b"\n", b"\r\n", b"\r", b"#", b"\\", b"\\\\", b"\\ ", b"\\,",
    b"\\=", b'"', b'\\"', b'"x"', b"1", b"0", b"-", b".", b"e", b"e5", b"i", b"u", b"t", b"true", b"False", b"f=1",
    b" f=1 ", b",a=b", b",a=c", b",b=d", b" 5\n", b" 1763800000000000000\n", b"\x00", b"\x7f", b"\t", b"\xff",
    "ü".encode(), b"9223372036854775807", b"999999999999999999", b"m f=1\n", b"m,a=1,b=2 f=1i 5\n", b"# c\n", b"\n\n",
    b'm f="a b" 7\n',
]  # fmt: skip
soup = st.lists(st.sampled_from(TOKENS), max_size=25).map(b"".join)

names = st.text(st.sampled_from('ab\\ ,=#"ü1'), min_size=1, max_size=4).map(
    lambda text: text.replace(" ", "\\ ").replace(",", "\\,").replace("=", "\\=")
)
values = st.one_of(
    st.integers(-(2**64), 2**65).flatmap(lambda n: st.sampled_from([f"{n}i", f"{n}u", f"{n}", f"{n}e3"])),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["t", "T", "true", "False", "FALSE", "tRue", ".5", "5.", "-.5e9", "1e308", "1e309", "-0"]
    ),
    st.text(st.sampled_from('ab\\" ,=\nü#'), max_size=5).map(
        lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    ),
)
pairs = st.tuples(names, values).map("=".join)
tags = st.lists(st.tuples(names, names).map("=".join), max_size=3)
gaps = st.sampled_from([" ", " ", " ", "  "])
times = st.one_of(st.just(""), st.integers(-(2**64), 2**64).map(str), st.integers(0, 2 * 10**18).map(str))
ends = st.sampled_from(["\n", "\n", "\n", "\r\n", " \n", "\n\n", "\n# c\n"])


@st.composite
def written_lines(draw: st.DrawFn) -> bytes:
    fields = ",".join(draw(st.lists(pairs, min_size=1, max_size=3)))
    head = ",".join([draw(names), *draw(tags)])
    when = draw(times)
    return (head + draw(gaps) + fields + (draw(gaps) + when if when else "") + draw(ends)).encode()


written = st.lists(written_lines(), max_size=4).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    body = draw(written)
    at = draw(st.integers(0, len(body)))
    return body[:at] + draw(st.sampled_from([*TOKENS, b""])) + body[at + draw(st.integers(0, 2)) :]


def outcome(accept: object, body: bytes, precision: Precision) -> Lines | tuple[int | None, int | None, str]:
    try:
        if isinstance(accept, LineProtocol):
            return accept.accept(body, precision=precision, now_ns=NOW, line_bytes_max=LINE_BYTES_MAX)
        check_lines(body, LINE_BYTES_MAX)
        return parse_lines(
            body.removeprefix(b"\xef\xbb\xbf"),
            unit_ns=precision.value,
            now_ns=NOW,
            line_bytes_max=LINE_BYTES_MAX,
        )
    except PointError as exc:
        return exc.line, exc.column, exc.reason


@pytest.mark.parametrize("engine", ACCEPTORS)
@given(body=st.one_of(soup, written, mutated()), precision=st.sampled_from(list(Precision)))
@example(body=b"m,a=1,a=2 f=1 5\n", precision=Precision.NS)
@example(body=b'm f="a\n# c"\n', precision=Precision.NS)
@example(body=b'm f="a\r\n" 5\n', precision=Precision.NS)
@example(body=b'm f="a\n \nb" 5\nm f=1\n', precision=Precision.NS)
@example(body=b'm,a\\\\ b=c"d f="x\ny" 5\n', precision=Precision.NS)
@example(body=b"\tm,a=b\x00\tc \x00f=1 \t5\n\x00", precision=Precision.NS)
@example(body=b"m f=1 999999999999999999\nm f=1\n", precision=Precision.MS)
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_both_parsers_give_the_same_lines_or_the_same_refusal(
    engine: str, body: bytes, precision: Precision
) -> None:
    exact = outcome(None, body, precision)
    assert outcome(ACCEPTORS[engine], body, precision) == exact
    if isinstance(exact, Lines):
        assert len(decode(exact.data)) == exact.points
        points = split_points(exact.data, exact.points)
        assert b"".join(points) == exact.data
        assert all(ends_as_one_record(point) for point in points)
        # Canonical lines are taken again unchanged; a time may have made them longer than what came.
        again = ACCEPTORS[engine].accept(exact.data, precision=Precision.NS, now_ns=7, line_bytes_max=10_000)
        assert again == exact
