"""The good lines of a body are taken although others are bad: all of them, in bulk, in bounded time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wal_ingest.errors import PointError
from wal_ingest.points import Lines, Precision, line_protocol, reading
from wal_ingest.points.engine import ENGINES, Engine
from wal_ingest.points.exact import Misfit, parse_lines, scan_next
from wal_ingest.points.grammar import Grammar
from wal_ingest.points.line_protocol import (
    SLICE_BYTES,
    LineProtocol,
    accept_good_lines,
    accept_line_protocol,
)
from wal_ingest.points.reading import REFUSED_LINES_MAX, GoodLines

NOW = 1_763_800_000_000_000_000
LIMIT = 64 * 1024
TIME = b" 1763800000000000000\n"

BAD = {
    "a number that is none": b"cpu,host=a v=NaN" + TIME,
    "no fields": b"cpu,host=a" + TIME,
    "a quote that is not closed": b'log,host=a msg="open' + TIME,
    "a quote that is not closed, the last one": b'log,host=a ok=1,msg="' + TIME,
    "a tag key twice": b"cpu,host=a,host=b v=1" + TIME,
    "an empty tag value": b"cpu,host= v=1" + TIME,
    "too long": b"cpu,host=" + b"x" * LIMIT + b" v=1" + TIME,
    "a bad time": b"cpu,host=a v=1 12:30\n",
    "a record of two lines": b'log msg="a\nb",v=x' + TIME,
}

# Of two quotes that are not closed, the second one closes the first one's string.
ONE_BY_ONE = [line for what, line in BAD.items() if "the last one" not in what]


def telegraf(lines: int) -> list[bytes]:
    """Lines as Telegraf sends them, with several lists of tags, and strings that hold line protocol."""
    kinds = (
        b"cpu,cpu=cpu%d,host=web usage_user=1.5,usage_idle=97i" + TIME,
        b"disk,device=sda%d,fstype=ext4,host=web,mode=rw,path=/var free=1u,ok=true" + TIME,
        b'system,host=web%d uptime_format=" 3 days, 4:05"' + TIME,
        b'log,host=web%d msg=", user=x, cpu v=1 1",level=3i' + TIME,
        b'log,host=web%d level="",msg="said \\"no\\" = yes"' + TIME,
        b"net,host=we\\ b%d bytes=1i" + TIME,
    )
    return [kinds[n % len(kinds)] % n for n in range(lines)]


def good(body: bytes, limit: int = LIMIT) -> GoodLines:
    return accept_good_lines(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=limit)


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def protocol(request: pytest.FixtureRequest) -> LineProtocol:
    engine: Engine = request.param
    return LineProtocol(engine)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("place", [0, 1, 2, 3, 500, 998, 1000])
def test_one_bad_line_costs_itself_and_none_of_the_thousand_others(bad: bytes, place: int) -> None:
    lines = telegraf(1000)
    taken = good(b"".join([*lines[:place], bad, *lines[place:]]))
    assert taken.lines == Lines(b"".join(lines), 1000)
    assert taken.dropped == 1
    (error,) = taken.refusals
    assert taken.starts == (sum(map(len, lines[:place])) + (bad.find(b"\n") + 1 if b"\n" in bad[:-1] else 0),)
    assert error.line == place + 1 + bad[:-1].count(b"\n")


def test_several_bad_lines_are_described_in_order_and_all_counted() -> None:
    lines = telegraf(300)
    bad = ONE_BY_ONE
    mixed = b"".join(line + bad[n % len(bad)] for n, line in enumerate(lines))
    taken = good(mixed)
    assert taken.lines == Lines(b"".join(lines), 300)
    assert taken.dropped == 300
    assert [error.line for error in taken.refusals] == [2, 4, 6, 8, 10]
    assert [mixed[start:].startswith(each) for start, each in zip(taken.starts, bad, strict=False)] == [
        True
    ] * 5


def test_blank_lines_comments_and_carriage_returns_are_no_points_and_no_refusals() -> None:
    taken = good(b"\r\n# a,b=1,b=2\r\n \t\r\ncpu v=1 1\r\nbad\r\n#\ncpu v=2 2\r\n\x00\r\ncpu v=3\r\n")
    assert taken.lines == Lines(b"cpu v=1 1\ncpu v=2 2\ncpu v=3 %d\n" % NOW, 3)
    assert [(error.line, error.column) for error in taken.refusals] == [(5, 5)]


@pytest.mark.parametrize(
    "after",
    [b'log msg="p" 2\n', b'log msg=" p" 2\n', b'log msg=",p=1 " 2\n', b'log,t=x a=1,msg="" 2\n'],
)
def test_a_quote_that_is_not_closed_costs_its_own_line_whatever_the_next_string_begins_with(
    after: bytes,
) -> None:
    others = [b"a v=1 1\n", b"b v=1 2\n", after, b"c v=1 3\n"]
    taken = good(others[0] + b'bad s="open 1\n' + b"".join(others[1:]))
    assert taken.lines == Lines(b"".join(others), 4)
    assert taken.dropped == 1
    assert [str(error) for error in taken.refusals] == [
        "line 2, column 7: the quoted string has no closing quote"
    ]
    with pytest.raises(PointError, match="line 2, column 7: the quoted string has no closing quote"):
        accept_line_protocol(
            others[0] + b'bad s="open 1\n' + b"".join(others[1:]),
            precision=Precision.NS,
            now_ns=NOW,
            line_bytes_max=LIMIT,
        )


@pytest.mark.parametrize(
    "body",
    [
        b'm s="x\nfake v=1 1\ny",u=oops\nn v=1 3\n',
        b'm s="x\nfake v=1 1\n",u=oops\nn v=1 3\n',
        b'm s="x\nfake v=1 1\n# ",u=oops\nn v=1 3\n',
        b'm s="x\nfake v=1 1\nfake s=",t="z\nfake v=1 1\n",u=oops\nn v=1 3\n',
        b'm s="' + b"x\nfake v=1 1\n" * 10_000 + b'" 5\nn v=1 3\n',
    ],
    ids=["text after", "nothing after", "a comment", "two strings", "too long"],
)
def test_what_a_refused_record_holds_in_its_strings_is_never_taken_for_points(body: bytes) -> None:
    taken = good(body)
    assert taken.lines == Lines(b"n v=1 3\n", 1)
    assert taken.dropped == 1


def test_a_body_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(PointError, match="line 2, column 3: invalid UTF-8"):
        good(b"a v=1 1\nd,\xff=t v=1\n")


def test_a_body_of_nothing_but_bad_lines_is_refused_whole() -> None:
    with pytest.raises(PointError, match=f"more than {REFUSED_LINES_MAX} bad lines"):
        good(b"x\n" * (REFUSED_LINES_MAX + 1))


PIECES = st.sampled_from(
    [
        *telegraf(6),
        b"cpu v=1\n",
        b"cpu,a=b,c=d v=1\r\n",
        b"# a,b=c,b=d\n",
        b"\n",
        b" \t\r\n",
        b"cpu  v=1  7 \n",
        rb"cpu,p=C:\\ x v=1 7" + b"\n",
        b'log s="a\nb" 7\n',
        b'log s="a\r\n# b\n\nm v=1",t="\n" 7\n',
        b'log s="open\n',
        b'"\n',
        b'b" 7\n',
        b"cpu,a=b,a=c v=1 7\n",
        b"cpu,a=b,c=d,a=c v=1\n",
        b"bad\n",
        b"cpu v=x\n",
        b"cpu,host=" + b"x" * 100 + b" v=1 7\n",
        b"cpu v=1 7",
    ]
)


@settings(deadline=None)
@given(body=st.lists(PIECES, max_size=12).map(b"".join), precision=st.sampled_from(Precision))
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
def test_leaps_take_and_refuse_what_the_exact_parser_does(
    engine: Engine, body: bytes, precision: Precision
) -> None:
    """In bulk, and line by line without any bulk operation, also after tag keys were learned."""
    refused = reading.Refused(body, 5)
    lines, start, now = [], 0, NOW - NOW % precision.value
    while True:
        try:
            line, start = scan_next(body, start, unit_ns=precision.value, now_ns=now, line_bytes_max=99)
        except Misfit as exc:
            start = refused.add(exc)
            continue
        if line is None:
            break
        lines.append(line)
    expected = refused.result(Lines(b"".join(lines), len(lines)))
    protocol = LineProtocol(engine)
    for _ in range(3):
        found = protocol.accept_good(body, precision=precision, now_ns=now, line_bytes_max=99, refusals_max=5)
        assert (found.lines, found.dropped, found.starts) == (
            expected.lines,
            expected.dropped,
            expected.starts,
        )
        assert [str(error) for error in found.refusals] == [str(error) for error in expected.refusals]
    if not expected.dropped:
        assert protocol.accept(body, precision=precision, now_ns=now, line_bytes_max=99) == expected.lines
        assert parse_lines(body, unit_ns=precision.value, now_ns=now) == expected.lines


class Counted:
    """How many times the exact parser and the patterns were called, and how many bytes the exact parser read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scans = self.bytes_read = self.leaps = 0
        leap = Grammar.end_of_good_lines

        def scan(body: bytes, start: int, **kwargs: int) -> tuple[bytes | None, int]:
            self.scans += 1
            try:
                line, end = scan_next(body, start, **kwargs)
            except Misfit as exc:
                self.bytes_read += max(exc.read_to, exc.line_end) - start
                raise
            self.bytes_read += end - start
            return line, end

        def counted_leap(grammar: Grammar, body: bytes, start: int, until: int, precision: Precision) -> int:
            self.leaps += 1
            return leap(grammar, body, start, until, precision)

        monkeypatch.setattr(line_protocol, "scan_next", scan)
        monkeypatch.setattr(Grammar, "end_of_good_lines", counted_leap)


HOSTILE = {
    "bad lines": b"x\n",
    "one quote each": b'c v="o 1\n',
    "one quote each that seems to close": b'c v=" 1\n',
    "two lines each": b'c v="\n",w=x 1\n',
    "an odd and an even number of quotes": b'c v=",a=1\nc,b=" v="",c=",d="e",f="\n',
    "quotes in tags": b'm,t=" x="a",y="\n',
    "escaped quotes": b'c v="\\" 1\nc \\"=1,v=\\"\n',
    "keys twice": b"m,a=b,a=c v=1 1\n",
    "keys twice between good lines": b"m,a=b,a=c v=1 1\nm,a=b v=1 1\n",
    "good and bad by turns": b"m,a=b,c=d v=1 1\nx\n",
    "odd lines": rb"m,p=C:\\ x v=1 1" + b"\n",
    "backslashes": b"m" + b"\\" * 20 + b"\n",
    "too long": b"m,t=" + b"x" * 1100 + b" v=1 1\n",
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_whatever_is_in_a_body_each_byte_is_read_a_bounded_number_of_times(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = min(40_000, 1_000_000 // len(line))
    body = line * count
    counted = Counted(monkeypatch)
    good(body, 1024)
    assert counted.bytes_read <= 3 * len(body)
    assert counted.scans <= 3 * body.count(b"\n") + 1
    assert counted.leaps <= 2 * body.count(b"\n") + 2


def test_an_unclosed_quote_before_a_long_body_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"cpu,host=a v=1 %d\n" % n for n in range(1, 50_000)]
    counted = Counted(monkeypatch)
    body = b'log msg="open 1\n' + b"".join(lines) + b"bad\n" * 100
    assert good(body).lines == Lines(b"".join(lines), len(lines))
    assert counted.bytes_read <= 2 * len(body)
    # And one for each slice of the body.
    assert counted.scans <= 103 + len(body) // SLICE_BYTES
    assert counted.leaps <= 60


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_thousand_lines_with_a_bad_one_take_few_steps(bad: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bulk work: the exact parser sees the bad line and the end of the body, whatever tags the others have."""
    lines = telegraf(1000)
    body = b"".join([*lines[:500], bad, *lines[500:]])
    good(body)
    counted = Counted(monkeypatch)
    assert good(body).lines.points == 1000
    assert counted.scans <= 4
    assert counted.leaps <= 8


def test_carriage_returns_comments_and_blank_lines_do_not_slow_it_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = telegraf(1000)
    body = b"\n# from Windows\n".join([*lines[:500], b"bad\n", *lines[500:]]).replace(b"\n", b"\r\n")
    good(body)
    counted = Counted(monkeypatch)
    assert good(body).lines == Lines(b"".join(lines), 1000)
    assert counted.scans <= 4
    assert counted.leaps <= 8


def test_what_lines_are_read_again_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it a record that may have an open quote is passed over as a whole."""
    body = b'bad s="open 1\nb v=1 2\nlog msg=" p" 2\nc v=1 3\n'
    assert good(body).lines.points == 3
    monkeypatch.setattr(reading, "_READ_AGAIN_TIMES_MAX", 0)
    assert good(body).lines == Lines(b"c v=1 3\n", 1)


def test_the_two_engines_take_the_same(protocol: LineProtocol) -> None:
    body = b"".join([*telegraf(50), *ONE_BY_ONE, *telegraf(50)])
    taken = protocol.accept_good(
        body, precision=Precision.NS, now_ns=NOW, line_bytes_max=LIMIT, refusals_max=99
    )
    assert (taken.lines.points, taken.dropped, len(taken.refusals)) == (100, len(ONE_BY_ONE), len(ONE_BY_ONE))
