"""What is said on a stream, both ways, without a stream."""

from __future__ import annotations

import json
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.rig import LINE
from tests.http.stream.rig import message
from wal_ingest.errors import BadRequest, PointError, UnsupportedMedia, WalFull
from wal_ingest.http.answers import problem_of
from wal_ingest.http.requests import Format
from wal_ingest.http.stream import protocol
from wal_ingest.http.stream.protocol import BadHeader, Frame, read_frame
from wal_ingest.points import Precision
from wal_ingest.wal.entry import Mark
from wal_ingest.wal.streams import Position, Positions


def position(*frames: tuple[int, int]) -> Position:
    """A stream's position after frames of so many points each, at the seqs from 101 on."""
    table = Positions(clients_max=1, mutex=threading.Lock())
    for seq, (number, points) in enumerate(frames, 101):
        table.apply(Mark("a", number, number * 7), seq, points, 0)
    found = table.of("a")
    assert found is not None
    return found


def test_a_header_that_says_only_its_number_is_line_protocol_as_it_is() -> None:
    assert read_frame(b'{"number":7}\n' + LINE) == Frame(7, LINE, "", Format.LINE_PROTOCOL, None)


def test_every_key_of_a_header_is_understood() -> None:
    read = read_frame(message(9, b"[]", format="json", encoding="gzip", precision="us"))
    assert read == Frame(9, b"[]", "gzip", Format.JSON, Precision.US)


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate", "zstd"])
def test_encodings(encoding: str) -> None:
    assert read_frame(message(1, encoding=encoding)).encoding == ("" if encoding == "identity" else encoding)


@pytest.mark.parametrize(
    ("name", "written"),
    [("lines", Format.LINE_PROTOCOL), ("json", Format.JSON), ("ndjson", Format.NDJSON)],
)
def test_formats(name: str, written: Format) -> None:
    assert read_frame(message(1, format=name)).written is written


@pytest.mark.parametrize("name", ["ns", "us", "ms", "s"])
def test_precisions(name: str) -> None:
    assert read_frame(message(1, precision=name)).precision is Precision[name.upper()]


def test_the_body_begins_behind_the_first_line_feed_and_may_hold_more_of_them_or_nothing() -> None:
    assert read_frame(b'{"number":1}\n\n\n').body == b"\n\n"
    assert read_frame(b'{"number":1}\n').body == b""
    assert read_frame(b'{"number":1}\r\nx').body == b"x"


@pytest.mark.parametrize("number", [1, 2**53 - 1])
def test_numbers_reach_as_far_as_they_are_exact_everywhere(number: int) -> None:
    assert read_frame(message(number)).number == number


@pytest.mark.parametrize(
    ("line", "number", "status"),
    [
        (b'{"number":0}', 0, 400),
        (b'{"number":-1}', -1, 400),
        (b'{"number":9007199254740992}', 2**53, 400),
        (b'{"number":99999999999999999999999999}', None, 400),
        (b'{"number":7.0}', None, 400),
        (b'{"number":"7"}', None, 400),
        (b'{"number":true}', None, 400),
        (b'{"number":null}', None, 400),
        (b"{}", None, 400),
        (b"", None, 400),
        (b"7", None, 400),
        (b"null", None, 400),
        (b'[{"number":7}]', None, 400),
        (b'{"number":7', None, 400),
        (b'{"number":7} {"number":8}', None, 400),
        (b'{"number":7,"format":"lines\xff"}', 7, 400),
        (b"\xff\xfe", None, 400),
        (b"\0", None, 400),
        (b"cpu usage=1", None, 400),
        (b'{"number":7,"nubmer":8}', 7, 400),
        (b'{"nubmer":8,"number":7}', 7, 400),
        (b'{"number":7,"precision":"m"}', 7, 400),
        (b'{"number":7,"precision":1}', 7, 400),
        (b'{"number":7,"encoding":1}', 7, 400),
        (b'{"number":7,"format":null}', 7, 400),
        (b'{"number":7,"format":"xml"}', 7, 415),
        (b'{"number":7,"encoding":"br"}', 7, 415),
        (b'{"number":7,"encoding":"GZIP"}', 7, 415),
        (b'{"number":0,"encoding":"br"}', 0, 400),
        (b'{"x":' + b"[" * 1_018, None, 400),
        (b'{"x":' + b"[" * 500 + b"]" * 500 + b',"number":7}', 7, 400),
        (b'{"number":' + b"[" * 1_000, None, 400),
    ],
)
def test_a_header_that_cannot_be_read_says_which_frame_it_was_as_far_as_that_is_known(
    line: bytes, number: int | None, status: int
) -> None:
    with pytest.raises(BadHeader, match="the frame's header line: ") as caught:
        read_frame(line + b"\n" + LINE)
    assert (caught.value.number, caught.value.status) == (number, status)


def test_a_header_line_of_1024_bytes_is_read_and_one_more_is_not() -> None:
    line = b'{"number":7}'.ljust(1_024)
    assert read_frame(line + b"\n" + LINE).body == LINE
    for longer in (line + b" \n", line + b" ", b"x" * 100_000, b'{"number":7}'):
        with pytest.raises(BadHeader, match="within 1024 bytes") as caught:
            read_frame(longer)
        assert caught.value.number is None


@given(st.binary(max_size=200))
def test_whatever_bytes_a_message_has_it_is_read_or_refused(data: bytes) -> None:
    try:
        read = read_frame(data)
    except BadHeader:
        return
    assert data.endswith(b"\n" + read.body)


# What is slow is the first draw on a busy machine.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["number", "format", "encoding", "precision", "x"]),
        st.one_of(st.integers(), st.text(max_size=8), st.none(), st.lists(st.integers(), max_size=3)),
    )
)
def test_whatever_a_header_says_it_is_read_or_refused(said: dict[str, object]) -> None:
    try:
        read = read_frame(json.dumps(said).encode() + b"\nbody")
    except BadHeader:
        return
    assert (read.number, read.body) == (said["number"], b"body")
    assert "x" not in said


@pytest.mark.parametrize("client_id", ["a", "x" * 128, "web-17:/~!", "-"])
def test_a_client_id_is_printable_ascii_without_spaces(client_id: str) -> None:
    assert protocol.check_client_id(client_id) == client_id


@pytest.mark.parametrize("client_id", ["", "x" * 129, "a b", "a\n", "a\0", "ä", "\x7f", "a\t"])
def test_anything_else_is_no_client_id(client_id: str) -> None:
    with pytest.raises(BadRequest, match="client_id"):
        protocol.check_client_id(client_id)


def test_the_sub_protocol_is_agreed_to_wherever_it_stands_and_none_is_the_plain_mode() -> None:
    assert protocol.check_subprotocols(["mqtt", "wal-ingest.v1"]) == "wal-ingest.v1"
    assert protocol.check_subprotocols([]) is None
    with pytest.raises(UnsupportedMedia, match=r"'wal-ingest\.v2' is not known here: use wal-ingest\.v1"):
        protocol.check_subprotocols(["wal-ingest.v2"])


def test_a_welcome_without_a_past() -> None:
    assert json.loads(protocol.welcome(None, window_frames=32, frame_bytes_max=100)) == {
        "type": "welcome",
        "durable": 0,
        "seq": 0,
        "stored": [],
        "window_frames": 32,
        "frame_bytes_max": 100,
    }


def test_a_welcome_says_the_highest_durable_frame_and_the_recent_ones_oldest_first() -> None:
    told = json.loads(protocol.welcome(position((7, 10), (9, 20)), window_frames=1, frame_bytes_max=1))
    assert (told["durable"], told["seq"]) == (9, 102)
    assert told["stored"] == [[7, 101, 10, 49], [9, 102, 20, 63]]


def test_a_welcome_lists_at_most_64_frames() -> None:
    told = json.loads(
        protocol.welcome(position(*((n, 1) for n in range(1, 101))), window_frames=1, frame_bytes_max=1)
    )
    assert [each[0] for each in told["stored"]] == list(range(37, 101))


def test_an_ack() -> None:
    told = protocol.ack(9, points=2_000, seq=120)
    assert json.loads(told) == {"type": "ack", "number": 9, "points": 2_000, "seq": 120}


def test_an_error_says_where_it_is_and_leaves_out_what_it_does_not_know() -> None:
    lines = json.loads(protocol.error(8, problem_of(PointError("no fields", line=2, column=22))))
    assert lines == {
        "type": "error",
        "number": 8,
        "status": 400,
        "error": "line 2, column 22: no fields",
        "line": 2,
        "column": 22,
    }
    array = json.loads(protocol.error(8, problem_of(PointError("no fields", index=0))))
    assert array["index"] == 0
    assert "line" not in array
    full = json.loads(protocol.error(None, problem_of(WalFull("the WAL is full", retry_after_s=30))))
    assert full == {
        "type": "error",
        "number": None,
        "status": 503,
        "error": "the WAL is full",
        "retry_after_s": 30,
    }


@given(st.text(max_size=200))
def test_a_close_reason_fits_into_its_frame_and_is_whole_characters(text: str) -> None:
    reason = protocol.close_reason(text)
    assert len(reason.encode()) <= 123
    assert text.startswith(reason)
    assert reason == text or len(reason.encode()) > 119
