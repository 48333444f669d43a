"""One point as a line: whatever it takes, the parsers take too."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.points.decoder import decode
from wal_ingest.errors import PointError
from wal_ingest.points import Precision
from wal_ingest.points.line import line
from wal_ingest.points.line_protocol import accept_line_protocol

NOW_NS = 1_700_000_000_000_000_000


def accepted(text: str) -> bytes:
    body = text.encode()
    lines = accept_line_protocol(body, precision=Precision.NS, now_ns=NOW_NS, line_bytes_max=1 << 20)
    assert lines.points == 1
    return lines.data


def test_a_point_is_written_escaped_with_the_type_of_each_field() -> None:
    text = line(
        "cpu load",
        {"host name": "web,17", "dc": "a=b"},
        {"f": 0.5, "n": 3, "big": 2**63, "ok": True, "s x": 'say "hi" \\o/'},
        7,
    )
    assert text == (
        r"cpu\ load,host\ name=web\,17,dc=a\=b "
        r'f=0.5,n=3i,big=9223372036854775808u,ok=true,s\ x="say \"hi\" \\o/" 7'
    )


def test_without_a_time_the_line_has_none() -> None:
    assert line("m", {}, {"f": 1.0}) == "m f=1.0"


class Celsius(float):
    """As numpy's floats are: floats, but written otherwise."""

    def __repr__(self) -> str:
        return f"{float(self)} °C"


def test_a_float_of_another_class_is_written_as_a_number() -> None:
    assert line("m", {}, {"f": Celsius(1.5)}) == "m f=1.5"


@pytest.mark.parametrize(
    ("measurement", "tags", "fields", "time_ns", "reason"),
    [
        ("", {}, {"f": 1}, None, "an empty measurement"),
        ("#m", {}, {"f": 1}, None, "comment"),
        ("m", {"": "v"}, {"f": 1}, None, "an empty tag key"),
        ("m", {"k": ""}, {"f": 1}, None, "an empty tag value"),
        ("m", {"k": "a\nb"}, {"f": 1}, None, "a line feed in the tag value"),
        ("m", {"k\\ b": '"x'}, {"f": 1}, None, "InfluxDB would take the lines that follow"),
        ("m\\ x", {}, {"f": 1}, None, "InfluxDB would read another name"),
        ("m", {}, {"\tf": 1}, None, "a tab or NUL at the beginning of the field key"),
        ("m", {"k": "a\\"}, {"f": 1}, None, "backslash"),
        ("m", {}, {}, None, "no fields"),
        ("m", {}, {"f": float("nan")}, None, "nan"),
        ("m", {}, {"f": float("inf")}, None, "inf"),
        ("m", {}, {"f": 2**64}, None, "out of range"),
        ("m", {}, {"f": -(2**63) - 1}, None, "out of range"),
        ("m", {}, {"f": None}, None, "NoneType"),
        ("m", {}, {"f": 1}, 2**63, "time is out of range"),
    ],
)
def test_what_a_line_cannot_carry_is_refused_by_name(
    measurement: str, tags: Any, fields: Any, time_ns: int | None, reason: str
) -> None:
    with pytest.raises(PointError, match=reason):
        line(measurement, tags, fields, time_ns)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
values = st.one_of(st.floats(), st.integers(-(2**65), 2**65), st.booleans(), names)


@given(
    names,
    st.dictionaries(names, names, max_size=3),
    st.dictionaries(names, values, max_size=3),
    st.integers(),
)
def test_whatever_is_written_is_accepted_as_it_is(
    measurement: str, tags: dict[str, str], fields: dict[str, Any], time_ns: int
) -> None:
    try:
        text = line(measurement, tags, fields, time_ns)
    except PointError:
        return
    assert accepted(text) == text.encode() + b"\n"


def test_windows_paths_and_control_characters_in_tags_are_carried() -> None:
    tags = {"p": "C:\\ x", "q": "a\tb\x00\x1b\r\x7f", "r\\,": "\\\\= y"}
    text = line("m", tags, {"f": 1.0}, 7)
    (point,) = decode(accepted(text))
    assert dict(point.tags) == tags


def test_line_feeds_in_strings_are_carried() -> None:
    text = line("m", {"k": "C:\\ x"}, {"f": 1.0}, 7), line("m", {"k": "v"}, {"s": 'a\n"b"\r\n'}, 7)
    assert [decode(accepted(each))[0].fields[0][0] for each in text] == ["f", "s"]
