"""Line protocol: stamping, precision, the canonical form, refusals, limits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest

from wal_ingest.errors import PointError
from wal_ingest.points.engine import ENGINES
from wal_ingest.points.grammar import Shape
from wal_ingest.points.line_protocol import LineProtocol, accept_line_protocol
from wal_ingest.points.lines import Lines, Precision, count_lines, split_points
from wal_ingest.points.tag_keys import MISSES_BEFORE_FORGETTING, key_lists_of

NOW = 1_763_800_000_123_456_789
LINE_BYTES_MAX = 64 * 1024

Accept = Callable[..., Lines]


@pytest.fixture(params=ENGINES, ids=lambda engine: str(engine.name))
def acceptor(request: pytest.FixtureRequest) -> LineProtocol:
    return LineProtocol(request.param)


@pytest.fixture
def accept(acceptor: LineProtocol) -> Accept:
    def call(body: bytes, precision: Precision = Precision.NS, line_bytes_max: int = LINE_BYTES_MAX) -> Lines:
        return acceptor.accept(body, precision=precision, now_ns=NOW, line_bytes_max=line_bytes_max)

    return call


def refusal(accept: Accept, body: bytes, precision: Precision = Precision.NS) -> PointError:
    with pytest.raises(PointError) as caught:
        accept(body, precision)
    return caught.value


def test_a_canonical_body_is_kept_as_it_is(accept: Accept) -> None:
    body = b'cpu,host=a u=1.5 1763800000000000000\nmem f=1i,s="a b",t=true -5\nm f=1 0\n'
    lines = accept(body)
    assert lines.data is body
    assert lines.points == 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"m f=1 5", b"m f=1 5\n"),
        (b"m f=1", b"m f=1 %d\n" % NOW),
        (b"m f=1\nm f=2\n", b"m f=1 %d\nm f=2 %d\n" % (NOW, NOW)),
        (
            b'm f=1 5\nm f="x 7"\nm f=t\nm a\\ 3=1\n',
            b'm f=1 5\nm f="x 7" %d\nm f=t %d\nm a\\ 3=1 %d\n' % (NOW, NOW, NOW),
        ),
        (b"m f=1\nm f=1 5", b"m f=1 %d\nm f=1 5\n" % NOW),
        (b"m f=1 5\r\nm f=2 6\r\n", b"m f=1 5\nm f=2 6\n"),
        (b"m f=1 5\r", b"m f=1 5\n"),
        (b"# a comment\n\n  \n \r\nm f=1 5\n  # another\nm f=2 6\n\n# last", b"m f=1 5\nm f=2 6\n"),
        (b"  m   f=1    5   \n", b"m f=1 5\n"),
        (b"m f=1  \n", b"m f=1 %d\n" % NOW),
        (b"m f=1 0005\nm f=1 -0\nm f=1 -007\n", b"m f=1 5\nm f=1 0\nm f=1 -7\n"),
        (b'm f="a\rb" 5\r\n', b'm f="a\rb" 5\n'),
        (b'm f="# no\\" comment" 5\n', b'm f="# no\\" comment" 5\n'),
        (b"m f=1 5\nm,t=\\ x f=1 6 \nm f=2 7\n", b"m f=1 5\nm,t=\\ x f=1 6\nm f=2 7\n"),
    ],
)
def test_a_legal_body_becomes_canonical(accept: Accept, body: bytes, expected: bytes) -> None:
    assert accept(body) == Lines(expected, expected.count(b"\n"))


@pytest.mark.parametrize("body", [b"", b"\n", b"\r\n", b"  ", b"# only\n#comments", b"\n\n\n", b"\r"])
def test_a_body_without_points_gives_none(accept: Accept, body: bytes) -> None:
    assert accept(body) == Lines(b"", 0)


@pytest.mark.parametrize(
    ("precision", "text", "expected_ns"),
    [
        (Precision.US, b"1763800000123456", 1_763_800_000_123_456_000),
        (Precision.MS, b"1763800000123", 1_763_800_000_123_000_000),
        (Precision.S, b"1763800000", 1_763_800_000_000_000_000),
        (Precision.M, b"29396666", 1_763_799_960_000_000_000),
        (Precision.H, b"489944", 1_763_798_400_000_000_000),
        (Precision.MS, b"0", 0),
        (Precision.MS, b"-1", -1_000_000),
        (Precision.S, b"9223372036", 9_223_372_036_000_000_000),
    ],
)
def test_times_are_turned_into_nanoseconds(
    accept: Accept, precision: Precision, text: bytes, expected_ns: int
) -> None:
    assert accept(b"m f=1 %b\n" % text, precision).data == b"m f=1 %d\n" % expected_ns


@pytest.mark.parametrize("precision", list(Precision))
def test_a_line_without_a_time_gets_the_time_of_acceptance_rounded_down_to_the_precision(
    accept: Accept, precision: Precision
) -> None:
    rounded = NOW - NOW % precision.value
    timed = b"m f=1 7\n"
    expected = b"m f=1 %d\n" % rounded
    assert accept(b"m f=1\n", precision).data == expected
    assert accept(timed + b"m f=1\n", precision).data == b"m f=1 %d\n" % (7 * precision.value) + expected


@pytest.mark.parametrize(
    ("precision", "most"),
    [
        (Precision.NS, 9_223_372_036_854_775_806),
        (Precision.US, 9_223_372_036_854_775),
        (Precision.MS, 9_223_372_036_854),
        (Precision.S, 9_223_372_036),
        (Precision.M, 153_722_867),
        (Precision.H, 2_562_047),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_last_time_in_range_is_taken_and_the_next_refused(
    accept: Accept, precision: Precision, most: int, sign: int
) -> None:
    assert accept(b"m f=1 %d" % (sign * most), precision).data == b"m f=1 %d\n" % (
        sign * most * precision.value
    )
    error = refusal(accept, b"m f=1 5\nm f=1 %d" % (sign * (most + 1)), precision)
    assert (error.reason, error.line, error.column) == ("the time is out of range", 2, 7)


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        (b"9223372036854775807i", True),
        (b"9223372036854775808i", False),
        (b"-9223372036854775808i", True),
        (b"-9223372036854775809i", False),
        (b"000009223372036854775807i", True),
        (b"18446744073709551615u", True),
        (b"18446744073709551616u", False),
        (b"-1u", False),
        (b"1.7976931348623157e308", True),
        (b"1.8e308", False),
        (b"-1e999", False),
        (b"1e-999", True),
        (b"1" * 309, True),
        (b"1" * 310, False),
        (b"9" * 60_000 + b"i", False),
        (b"5e-324", True),
        (b"1.", True),
        (b".5", True),
        (b"-.5E+3", True),
        (b".", False),
        (b"-", False),
        (b"1e", False),
        (b"+1", False),
        (b"0x1", False),
        (b"1_0", False),
        (b"NaN", False),
        (b"inf", False),
        (b"tRUE", False),
        (b"TRUE", True),
        (b"1i1", False),
        (b'""', True),
        (b'"a"b', False),
        (b"", False),
    ],
)
def test_field_values_are_checked_for_form_and_range(accept: Accept, value: bytes, fine: bool) -> None:
    body = b"m f=%b 5\n" % value
    if fine:
        assert accept(body).data == body
    else:
        error = refusal(accept, body)
        assert (error.line, error.column) == (1, 8 if value == b'"a"b' else 5)


@pytest.mark.parametrize(
    ("body", "line", "column", "reason"),
    [
        (b"ok f=1 5\ncpu", 2, 4, "the end of the body where a space and the fields should follow"),
        (b"cpu, a=b f=1", 1, 5, "a space where a tag key should begin"),
        (b"cpu,a f=1", 1, 6, "a space where '=' should follow the tag key"),
        (b"cpu,a= f=1", 1, 7, "a space where a tag value should begin (it cannot be empty)"),
        (b"cpu,a=b=c f=1", 1, 8, "'=' where a space and the fields should follow"),
        (b"cpu,a=1,b=2,a=3 f=1", 1, 13, "the tag key stands twice in this line"),
        (b"cpu f", 1, 6, "the end of the body where '=' should follow the field key"),
        (b"cpu f=1,\n", 1, 9, "the end of the line where a field key should begin"),
        (b"cpu f=1,=2", 1, 9, "'=' where a field key should begin"),
        (b"cpu f=1 12x", 1, 11, "'x' within the time, where the line should end"),
        (b"cpu f=1 12 13", 1, 12, "'1' behind the time, where the line should end"),
        (b"cpu f=1 x", 1, 9, "'x' where a time should begin"),
        (b"cpu f=1 -", 1, 9, "'-' where a time should begin"),
        (b"m f=1\n\x00m\x01, f=1", 2, 5, "a space where a tag key should begin"),
        (b'm f="a\nb" 5\nm f="a\nb"c 5', 3, 5, "the quoted string has no closing quote"),
        (b'm f="a\nb" 5\nm f="a\nb",c 5', 4, 5, "a space where '=' should follow the field key"),
        (b"m f=1\n\n\xffm f=1", 3, 1, "invalid UTF-8"),
        (
            "ü,ü=ü f=ü".encode(),
            1,
            12,
            "the field value is neither a number, nor a boolean, nor a quoted string",
        ),
        ("m ü".encode(), 1, 5, "the end of the body where '=' should follow the field key"),
        ('m f="a"ü'.encode(), 1, 8, "'ü' where the field value should end"),
        (b'm f="a', 1, 5, "the quoted string has no closing quote"),
    ],
)
def test_a_bad_line_is_refused_with_line_column_and_reason(
    accept: Accept, body: bytes, line: int, column: int, reason: str
) -> None:
    error = refusal(accept, body)
    assert (error.line, error.column, error.reason) == (line, column, reason)


def test_a_line_feed_inside_a_quoted_string_belongs_to_its_point(accept: Accept) -> None:
    lines = accept(b'm f=1 5\nm f="a\r\n# b\n\n" 5\r\n# c\nm f="\\\n"')
    assert split_points(lines.data, lines.points) == [
        b"m f=1 5\n",
        b'm f="a\r\n# b\n\n" 5\n',
        b'm f="\\\n" %d\n' % NOW,
    ]


@pytest.mark.parametrize(
    "body",
    [
        rb"m,t=a\\ b f=1 5",
        rb"m,t\\,u=x f=1 5",
        rb"m,p=C:\\ x,q=CN\=Smith\\\,\ John v=1 5",
        b'm,t=a\\\\ b f="x\ny" 5',
        rb'm,t=a\\ b,u="c" f=1 5',
    ],
)
def test_an_even_run_of_backslashes_in_a_name_is_kept(accept: Accept, body: bytes) -> None:
    assert accept(body + b"\n").data == body + b"\n"


@pytest.mark.parametrize("body", [rb'm,a\\ b="x f=1 5', b'm,a\\\\ b\\\\,c\\\\,d=e f="x\ny" 5'])
def test_a_line_that_would_swallow_the_next_one_in_influxdb_is_refused_by_name(
    accept: Accept, body: bytes
) -> None:
    error = refusal(accept, b"m f=1 5\n" + body)
    assert error.reason.startswith("an even number of backslashes before a space, comma or '=', and a quote")
    assert error.line == 2


def test_a_field_key_with_an_even_run_of_backslashes_is_refused_by_name(accept: Accept) -> None:
    assert "InfluxDB ends the key there" in refusal(accept, rb'm a\\="=1 5').reason


@pytest.mark.parametrize("body", [rb"m\\=x f=1 5", rb"m\\,x f=1 5", rb"m\\\\ x,t=u f=1 5"])
def test_a_measurement_with_an_even_run_of_backslashes_is_refused_by_name(
    accept: Accept, body: bytes
) -> None:
    error = refusal(accept, b"m f=1 5\n" + body)
    assert (error.line, error.column) == (2, 2)
    assert "in a measurement: InfluxDB would take the point, but no query would find it" in error.reason


@pytest.mark.parametrize("body", [rb"m\\\ x f=1 5", rb"m\\x f=1 5", rb'm\\"x f=1 5'])
def test_other_runs_in_a_measurement_are_taken_as_ever(accept: Accept, body: bytes) -> None:
    assert accept(body + b"\n").data == body + b"\n"


def test_control_characters_are_part_of_a_name_and_spaces_before_it(accept: Accept) -> None:
    body = b"\tcpu,h=\x1b[31m\x00,t=a\tb \x00f=1 \t5\n# \x01\n\x00\n\x00"
    assert accept(body) == Lines(b"cpu,h=\x1b[31m\x00,t=a\tb f=1 5\n", 1)


def test_a_byte_order_mark_is_dropped(accept: Accept) -> None:
    assert accept(b"\xef\xbb\xbfcpu f=1 5\n") == Lines(b"cpu f=1 5\n", 1)


def test_a_record_of_many_lines_is_as_long_as_all_of_them(accept: Accept) -> None:
    limit = 64 * 1024
    assert accept(b'm f=" \n' + b"x\n" * 1_000 + b'" 5').points == 1
    error = refusal(accept, b'm f=1 5\nm f="' + b"x\n" * limit + b'" 5')
    assert (error.line, error.column) == (2, 1)
    assert "server.line_bytes_max" in error.reason


@pytest.mark.parametrize(
    "body", [rb"m\ x,a\=\,=\\\ b\c\\d f\ \=\\\\g=1 5", rb"m\=x f=1 5", rb'm "a"=1,b\"="\\" 5']
)
def test_other_backslashes_are_kept_as_they_are(accept: Accept, body: bytes) -> None:
    assert accept(body + b"\n").data == body + b"\n"


def test_a_line_as_long_as_the_limit_is_taken_and_a_longer_one_refused_with_its_number(
    accept: Accept,
) -> None:
    fits = b"m f=1".ljust(99, b"1") + b"\n" + b"m f=1".ljust(100, b"1") + b"\n"
    assert accept(fits, line_bytes_max=100).points == 2
    for body in (fits + b"m f=1".ljust(101, b"1"), fits + b"m f=1".ljust(101, b"1") + b"\nm f=1\n"):
        with pytest.raises(PointError, match="longer than 100 bytes") as caught:
            accept(body, line_bytes_max=100)
        assert caught.value.line == 3


def test_a_duplicate_tag_key_is_refused_among_any_number_of_good_lines(accept: Accept) -> None:
    good = b"m,a=1,b=2 f=1 5\n" * 50
    for _ in range(4):  # before, while and after the lists of keys are learned
        assert accept(good).points == 50
        error = refusal(accept, good + b"m,a=1,b=2,a=1 f=1 5\n" + good)
        assert (error.line, error.column) == (51, 11)
    assert refusal(accept, rb"m,a\,=1,a\,=2 f=1 5").reason == "the tag key stands twice in this line"


def test_lists_of_tag_keys_are_learned_from_the_second_request_on(
    acceptor: LineProtocol, accept: Accept
) -> None:
    body = b"m,a=1,b\\ =2 f=1 5\nn,c=3,d=4,e=5 f=1 5\no f=1 5\n"
    known = []
    for _ in range(3):
        known.append(acceptor._tag_keys.grammar.matches(body, Shape.TIMED, Precision.NS))
        assert accept(body).data == body
    assert known == [False, False, True]


def test_a_stream_of_new_tag_keys_leaves_the_learned_ones_alone_and_memory_bounded(
    acceptor: LineProtocol, accept: Accept
) -> None:
    fleet = b"m,host=a,region=b f=1 5\n"
    for _ in range(2):
        accept(fleet)
    learned = acceptor._tag_keys
    for n in range(MISSES_BEFORE_FORGETTING // 2):
        body = b"m,x%d=1,y=2 f=1 5\n" % n
        learned.learn(key_lists_of(body))
        learned.learn(key_lists_of(body))
    assert learned.grammar.matches(fleet, Shape.TIMED, Precision.NS)
    assert len(learned._learned) <= acceptor._any_keys._engine.key_lists_max


def test_when_the_lists_of_tag_keys_have_changed_for_good_the_new_ones_are_learned(
    acceptor: LineProtocol,
) -> None:
    learned = acceptor._tag_keys
    for n in range(acceptor._any_keys._engine.key_lists_max):
        for _ in range(2):
            learned.learn({(b"old%d" % n, b"b")})
    new = b"m,new=1,b=2 f=1 5\n"
    known = []
    for _ in range(MISSES_BEFORE_FORGETTING + 1):
        learned.learn(key_lists_of(new))
        known.append(learned.grammar.matches(new, Shape.TIMED, Precision.NS))
    assert known.index(True) == MISSES_BEFORE_FORGETTING


def test_threads_share_one_acceptor(acceptor: LineProtocol) -> None:
    failures: list[object] = []

    def work(seed: int) -> None:
        for n in range(30):
            body = b"m,a%d=1,b=2 f=1 5\n" % ((n + seed) % 7) * 20
            lines = acceptor.accept(body, precision=Precision.NS, now_ns=NOW, line_bytes_max=LINE_BYTES_MAX)
            if lines != Lines(body, 20):
                failures.append(body)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_body_of_32_mib_takes_the_fast_path(acceptor: LineProtocol) -> None:
    line = b"cpu,host=web-17,region=eu usage_user=12.345,usage_system=0.5 1763800000000000000\n"
    body = line * (32 * 1024 * 1024 // len(line))
    for _ in range(2):
        acceptor.accept(line, precision=Precision.NS, now_ns=NOW, line_bytes_max=LINE_BYTES_MAX)
    lines = acceptor.accept_fast(body, precision=Precision.NS, now_ns=NOW)
    assert lines is not None
    assert lines.data is body
    assert lines.points == body.count(b"\n")


def seconds_to_refuse_or_take(accept: Accept, body: bytes) -> float:
    """Of this thread's own time: what else the machine does at that moment is not counted."""
    start = time.thread_time()
    with contextlib.suppress(PointError):
        accept(body)
    return time.thread_time() - start


@pytest.mark.parametrize(
    "repeat",
    [
        b"\\", b"a\\", b'"', b" ", b",", b"=", b"m,a=b,", b"\r", b"\n", b"\n ", b"#\n", b"m f=1 \n", b'm f="\\',
        b"m,a=1,b=2", b"m f=1e", b"1", b"\xff", "ü".encode(), b"m f=1,", b"m,a=1,a=1 f=1\n", b"m f=1 5\nm f=1 5 \n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [b"", b'm f="', b"m,a=", b"m f=1", b"m f=1 "])
def test_a_hostile_body_costs_linear_time(accept: Accept, before: bytes, repeat: bytes) -> None:
    # One line may have 64 KiB; within that and over many lines four times the body may not cost sixteen times.
    small, large = (before + repeat * (size // len(repeat)) for size in (16 * 1024, 64 * 1024 - 16))
    seconds_to_refuse_or_take(accept, small)
    once = min(seconds_to_refuse_or_take(accept, small) for _ in range(2))
    four_times = min(seconds_to_refuse_or_take(accept, large) for _ in range(2))
    assert four_times < 10 * once + 0.02


def test_the_module_function_uses_the_best_engine() -> None:
    lines = accept_line_protocol(b"m f=1", precision=Precision.S, now_ns=NOW, line_bytes_max=LINE_BYTES_MAX)
    assert lines == Lines(b"m f=1 1763800000000000000\n", 1)


def test_a_clock_that_gives_what_no_database_takes_is_a_programming_error(accept: Accept) -> None:
    with pytest.raises(ValueError, match="now_ns"):
        accept_line_protocol(b"m f=1", precision=Precision.NS, now_ns=2**63, line_bytes_max=LINE_BYTES_MAX)


@pytest.mark.parametrize("line_bytes", [1, 2, 31, 32, 33, 80])
@pytest.mark.parametrize("lines", [0, 1, 2, 1000])
def test_lines_are_counted_whether_short_or_long(line_bytes: int, lines: int) -> None:
    text = (b"m" * (line_bytes - 1) + b"\n") * lines
    assert count_lines(text) == lines
    assert count_lines(text + b"m") == lines
