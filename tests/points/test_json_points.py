"""JSON: both shapes, arrays, NDJSON, refusals with their index or line, nesting, and what becomes of numbers."""

from __future__ import annotations

import json
import struct
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.points.decoder import Point, decode, field
from wal_ingest.errors import BadRequest, PointError, RequestError
from wal_ingest.points.engine import ENGINES
from wal_ingest.points.json_depth import deeper_than
from wal_ingest.points.json_points import accept_json, accept_ndjson
from wal_ingest.points.line_protocol import LineProtocol
from wal_ingest.points.lines import Lines, Precision

NOW = 1_763_800_000_123_456_789
DEPTH_MAX = 16

FLEET = {"serverId": "web-17", "cpu": 0.42, "ram": 0.61, "timestamp": 1_763_800_000_000}
GENERAL = {"measurement": "m", "tags": {"k": "v"}, "fields": {"f": 1.5}, "timestamp": 5}
FLEET_LINE = b"server_metrics,server_id=web-17 cpu=0.42,ram=0.61 1763800000000000000\n"
GENERAL_LINE = b"m,k=v f=1.5 5000000\n"


def accept(value: Any, **more: Any) -> Lines:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return accept_json(body, now_ns=NOW, depth_max=DEPTH_MAX, **more)


def fleet(**changed: Any) -> dict[str, Any]:
    return FLEET | changed


def general(**changed: Any) -> dict[str, Any]:
    return GENERAL | changed


def test_one_fleet_point_becomes_a_line() -> None:
    assert accept(FLEET) == Lines(FLEET_LINE, 1)


def test_one_general_point_becomes_a_line() -> None:
    assert accept(GENERAL) == Lines(GENERAL_LINE, 1)


def test_an_array_may_mix_both_shapes() -> None:
    assert accept([FLEET, GENERAL, FLEET]) == Lines(FLEET_LINE + GENERAL_LINE + FLEET_LINE, 3)
    assert accept([GENERAL, FLEET]) == Lines(GENERAL_LINE + FLEET_LINE, 2)


def test_an_empty_array_gives_no_points() -> None:
    assert accept(b" [ ] ") == Lines(b"", 0)


def test_ndjson_holds_a_point_a_line() -> None:
    body = b"\n" + json.dumps(FLEET).encode() + b"\r\n\n  " + json.dumps(GENERAL).encode() + b"  \n"
    assert accept_ndjson(body, now_ns=NOW, depth_max=DEPTH_MAX) == Lines(FLEET_LINE + GENERAL_LINE, 2)
    assert accept_ndjson(b"", now_ns=NOW, depth_max=DEPTH_MAX) == Lines(b"", 0)
    one = json.dumps(FLEET).encode()
    for body in (one, one + b"\n"):
        assert accept_ndjson(body, now_ns=NOW, depth_max=DEPTH_MAX) == Lines(FLEET_LINE, 1)


@pytest.mark.parametrize(
    "point", [{"serverId": "a", "cpu": 1, "ram": 2}, {"measurement": "m", "fields": {"f": 1}}]
)
def test_a_point_without_a_timestamp_or_with_null_gets_the_time_of_acceptance(point: dict[str, Any]) -> None:
    for value in (point, point | {"timestamp": None}):
        assert accept(value).data.endswith(b" %d\n" % NOW)
    mixed = accept([point | {"timestamp": 7}, point]).data.split(b"\n")
    assert [line.split(b" ")[-1] for line in mixed] == [b"7000000", b"%d" % NOW, b""]


def test_zero_and_negative_timestamps_are_times_like_any_other() -> None:
    assert accept([fleet(timestamp=0), fleet(timestamp=-1)]).data.count(b" 0\n") == 1
    assert accept(general(timestamp=0)).data.endswith(b" 0\n")
    assert accept(general(timestamp=-1)).data.endswith(b" -1000000\n")


def test_the_unit_of_timestamps_can_be_said() -> None:
    assert accept(general(timestamp=7), precision=Precision.S).data.endswith(b" 7000000000\n")
    assert accept(fleet(timestamp=7), precision=Precision.NS).data.endswith(b" 7\n")
    assert accept(fleet(timestamp=1), precision=Precision.H).data.endswith(b" 3600000000000\n")


def test_every_number_becomes_a_float_and_strings_and_booleans_keep_their_type() -> None:
    fields = {
        "a": 1,
        "b": 1.5,
        "c": -0.0,
        "d": 1e300,
        "e": 10.0**30,
        "s": 'x"\\y',
        "t": True,
        "f": False,
        "u": "",
        "z": 5e-324,
    }
    line = accept(general(fields=fields)).data
    kinds = {key: kind for key, kind, _ in decode(line)[0].fields}
    assert kinds == dict.fromkeys("abcdez", "float") | {
        "s": "string",
        "u": "string",
        "t": "bool",
        "f": "bool",
    }
    assert b'a=1.0,b=1.5,c=-0.0,d=1e+300,e=1e+30,s="x\\"\\\\y",t=true,f=false,u=""' in line


def test_names_are_escaped() -> None:
    point = general(measurement="a b,c=d", tags={"k =,": "v =,", "#": "\\x"}, fields={"f ,=": "a ,="})
    expected = rb'a\ b\,c=d,k\ \=\,=v\ \=\,,#=\x f\ \,\=="a ,=" 5000000' + b"\n"
    assert accept(point).data == expected
    assert accept(fleet(serverId="web 17,a=b")).data.startswith(
        rb"server_metrics,server_id=web\ 17\,a\=b cpu="
    )


REFUSED: list[tuple[Any, str]] = [
    (fleet(serverId=""), "an empty serverId"),
    (fleet(serverId="a\nb"), "a line feed in the serverId"),
    (fleet(serverId="a\\"), "a backslash at the end of the serverId"),
    (fleet(serverId=5), "an integer where a string is needed at serverId"),
    (fleet(cpu="1"), "a string where an integer or a number is needed at cpu"),
    (fleet(cpu=True), "a boolean where an integer or a number is needed at cpu"),
    (fleet(cpu=None), "null where an integer or a number is needed at cpu"),
    ({"serverId": "a", "cpu": 1}, "missing: ram"),
    ({}, "missing: serverId, cpu, ram"),
    (fleet(disk=1), "the name 'disk' is not known here"),
    (fleet(timestamp=1.5), "a number where an integer or null is needed at timestamp"),
    (fleet(timestamp=True), "a boolean where an integer or null is needed at timestamp"),
    (fleet(timestamp="5"), "a string where an integer or null is needed at timestamp"),
    (fleet(timestamp=9_223_372_036_855), "the timestamp is out of range"),
    (fleet(timestamp=-9_223_372_036_855), "the timestamp is out of range"),
    (fleet(timestamp=10**40), "the timestamp is out of range"),
    (general(timestamp=10**16), "the timestamp is out of range"),
    (general(measurement=""), "an empty measurement"),
    (general(measurement="#m"), "a measurement that begins with '#'"),
    (general(measurement="m\\"), "a backslash at the end of the measurement"),
    (general(measurement="m\\ x"), "a backslash before a space, comma or '=' in the measurement"),
    (general(measurement="m\n"), "a line feed in the measurement"),
    (general(measurement="\tm"), "a tab or NUL at the beginning of the measurement"),
    (general(tags={"": "v"}), "an empty tag key"),
    (general(tags={"k": ""}), "an empty tag value"),
    (general(tags={"k": "v\\"}), "a backslash at the end of the tag value"),
    (
        general(tags={"k\\ b": '"x'}),
        "a backslash before a space, comma or '=' in a tag, and a quote after it",
    ),
    (general(tags={"k\n": "v"}), "a line feed in the tag key"),
    (general(tags={"k": 5}), "an integer where a string is needed at tags[...]"),
    (general(tags={"k": None}), "null where a string is needed at tags[...]"),
    (general(fields={}), "no fields"),
    (general(fields={"": 1}), "an empty field key"),
    (general(fields={"f\\": 1}), "a backslash at the end of the field key"),
    (general(fields={"f\\ x": 1}), "a backslash before a space, comma or '=' in the field key"),
    (
        general(fields={"f": None}),
        "null where a boolean, an integer, a number or a string is needed at fields[...]",
    ),
    (
        general(fields={"f": [1]}),
        "an array where a boolean, an integer, a number or a string is needed at fields[...]",
    ),
    (
        general(fields={"f": {"g": 1}}),
        "an object where a boolean, an integer, a number or a string is needed at fields[...]",
    ),
    ({"measurement": "m", "tags": {"a": "b"}}, "no fields"),
    ({"fields": {"f": 1}}, "missing: measurement"),
    (general(cpu=1), "keys of both shapes"),
    (general(time=1), "the name 'time' is not known here"),
    ([1], "an array where an object is needed"),
    ("point", "a string where an object is needed"),
    (None, "null where an object is needed"),
]


@pytest.mark.parametrize(("point", "reason"), REFUSED)
def test_a_bad_point_is_refused_with_its_index_or_line_and_the_reason(point: Any, reason: str) -> None:
    with pytest.raises(PointError) as caught:
        accept([FLEET, GENERAL, FLEET, point, FLEET])
    assert caught.value.index == 3
    assert caught.value.reason.startswith(reason)
    with pytest.raises(PointError) as caught:
        accept_ndjson(
            b"\n".join([json.dumps(FLEET).encode(), b"", json.dumps(point).encode(), b"{}"]),
            now_ns=NOW,
            depth_max=DEPTH_MAX,
        )
    assert caught.value.line == 3
    assert caught.value.reason.startswith(reason)
    if not isinstance(point, list):
        with pytest.raises(PointError) as caught:
            accept(point)
        assert caught.value.index == 0
        assert caught.value.reason.startswith(reason)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400])
def test_numbers_beyond_a_float_are_refused(number: str) -> None:
    for body in (
        f'{{"serverId":"a","cpu":1,"ram":{number}}}',
        f'{{"measurement":"m","fields":{{"f":{number}}}}}',
    ):
        with pytest.raises(PointError, match=r"number is out of range|beyond 2\^53"):
            accept(body.encode())


def test_an_integer_that_a_float_would_change_is_refused() -> None:
    kept = accept(general(fields={"f": 2**53, "g": -(2**53), "h": 3}))
    assert b" f=9007199254740992.0,g=-9007199254740992.0,h=3.0 " in kept.data
    for number in (2**53 + 1, -(2**53) - 1, 2**63, 10**400):
        with pytest.raises(PointError, match=r"beyond 2\^53") as caught:
            accept([general(), general(fields={"f": number})])
        assert caught.value.index == 1


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "01", "+1", ".5", "0x1"])
def test_what_is_no_json_number_is_refused(number: str) -> None:
    with pytest.raises(BadRequest, match="malformed"):
        accept(f'{{"serverId":"a","cpu":1,"ram":{number}}}'.encode())


@pytest.mark.parametrize(
    "body",
    [b"", b"  \n", b"{", b"[", b'[{"serverId":"a"', b"[{}] x", b"\xef\xbb\xbf{}",
     b'{"serverId":"\xff","cpu":1,"ram":1}', b'{"serverId":"\\ud800","cpu":1,"ram":1}', b"{'a':1}"],
)  # fmt: skip
def test_a_body_that_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        accept(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"serverId":"a","cpu":1,"ram":1} {"serverId":"a","cpu":1,"ram":1}',
        b'{"serverId":"a",\n"cpu":1,"ram":1}',
    ],
)
def test_an_object_of_ndjson_keeps_to_its_line(body: bytes) -> None:
    with pytest.raises(PointError) as caught:
        accept_ndjson(body, now_ns=NOW, depth_max=DEPTH_MAX)
    assert caught.value.line == 1


DEEP = {
    "an unknown key": b'{"x":' + b"[" * 100_000,
    "a known key": b'{"serverId":' + b'{"a":' * 100_000,
    "arrays": b"[" * 100_000 + b"]" * 100_000,
    "objects": b'{"fields":' * 100_000,
    "a field": b'{"measurement":"m","fields":{"f":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "just one level too many": b"[" * 17 + b"]" * 17,
}


@pytest.mark.parametrize("body", DEEP.values(), ids=DEEP.keys())
def test_deep_nesting_is_refused_by_name_and_never_recurses(body: bytes) -> None:
    with pytest.raises(BadRequest, match="nested in more than 16 levels"):
        accept(body)
    with pytest.raises(PointError, match="nested in more than 16 levels"):
        accept_ndjson(body, now_ns=NOW, depth_max=DEPTH_MAX)


def test_depth_is_counted_outside_strings_only() -> None:
    assert not deeper_than(b'{"a":"[[[[[\\"[[[[","b":[[]]}', 3)
    assert deeper_than(b'{"a":"[[[[","b":[[]]}', 2)
    assert not deeper_than(b"[{},{},[],[[]]]", 3)
    assert not deeper_than(b'["[[[[[[[[[[', 3)


@pytest.mark.parametrize(
    "body",
    [b"[]" * 1_000_000, b"[" * 2_000_000, b'{"a":' * 500_000, b"\n" * 4_000_000, b" " * 4_000_000, b'"' * 2_000_000,
     b'["' + b"\\" * 2_000_000, b"[}" * 1_000_000, b'{"serverId":"a","cpu":1,"ram":1}\n' * 50_000 + b"x"],
)  # fmt: skip
def test_a_hostile_body_is_refused_or_found_empty_in_linear_time(body: bytes) -> None:
    for function in (accept_json, accept_ndjson):
        start = time.perf_counter()
        refused = False
        try:
            refused = function(body, now_ns=NOW, depth_max=DEPTH_MAX) == Lines(b"", 0)
        except RequestError:
            refused = True
        assert refused
        assert time.perf_counter() - start < 3  # quadratic would be minutes


def test_a_point_that_makes_too_long_a_line_is_refused_with_its_index() -> None:
    long = fleet(serverId="x" * 100)
    with pytest.raises(PointError, match="more than 100 bytes") as caught:
        accept([FLEET, long], line_bytes_max=100)
    assert caught.value.index == 1


def test_where_a_key_stands_twice_the_last_one_counts() -> None:
    assert accept(b'{"measurement":"m","fields":{"f":1,"f":2},"timestamp":0}').data == b"m f=2.0 0\n"


texts = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from('\\ ,="#\n\r\x00é')), max_size=8
)
numbers = st.one_of(st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False))
timestamps = st.one_of(st.none(), st.just(0), st.integers(-(10**13), 10**13))
fleet_points = st.fixed_dictionaries(
    {"serverId": texts, "cpu": numbers, "ram": numbers}, optional={"timestamp": timestamps}
)
general_points = st.fixed_dictionaries(
    {
        "measurement": texts,
        "fields": st.dictionaries(texts, st.one_of(numbers, texts, st.booleans()), max_size=3),
    },
    optional={"timestamp": timestamps, "tags": st.dictionaries(texts, texts, max_size=3)},
)
ACCEPTORS = [LineProtocol(engine) for engine in ENGINES]


def accept_or_index(points: list[dict[str, Any]]) -> tuple[Lines | None, int]:
    try:
        return accept(points), -1
    except PointError as exc:
        return None, -1 if exc.index is None else exc.index


def meant(point: dict[str, Any]) -> Point:
    """The point that a JSON object means."""
    time_ms = point.get("timestamp")
    time_ns = NOW if time_ms is None else time_ms * 1_000_000
    if "serverId" in point:
        fields: dict[str, Any] = {"cpu": point["cpu"], "ram": point["ram"]}
        tags, name = {"server_id": point["serverId"]}, "server_metrics"
    else:
        fields, tags, name = point["fields"], point.get("tags", {}), point["measurement"]
    kinds = {bool: "bool", str: "string", int: "float", float: "float"}
    return Point(
        name,
        tuple(sorted(tags.items(), key=lambda tag: tag[0].encode())),
        tuple(field(key, kinds[type(value)], value) for key, value in fields.items()),
        time_ns,
    )


@given(
    st.one_of(
        st.lists(fleet_points, max_size=3), st.lists(st.one_of(fleet_points, general_points), max_size=3)
    )
)
@settings(max_examples=400, deadline=None)
def test_what_json_produces_means_the_same_and_is_canonical(points: list[dict[str, Any]]) -> None:
    lines, refused = accept_or_index(points)
    if lines is None:
        with pytest.raises(PointError):
            accept([points[refused]])
        assert accept(points[:refused]).points == refused
        return
    assert decode(lines.data) == [meant(point) for point in points]
    for acceptor in ACCEPTORS:
        assert acceptor.accept(lines.data, precision=Precision.NS, now_ns=1, line_bytes_max=65_536) == lines
    body = b"\n".join(json.dumps(point).encode() for point in points)
    assert accept_ndjson(body, now_ns=NOW, depth_max=DEPTH_MAX) == lines


def test_of_two_bad_points_the_first_is_named_whatever_is_wrong_with_it() -> None:
    points = [fleet(), fleet(timestamp=2**62), fleet(serverId=""), fleet(cpu=2**60)]
    assert accept_or_index(points)[1] == 1
    assert accept_or_index([*points[:1], *reversed(points)])[1] == 1


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=300, deadline=None)
def test_every_float_comes_through_bit_by_bit(value: float) -> None:
    for data in (accept(fleet(cpu=value)).data, accept(general(fields={"cpu": value})).data):
        text = data.split(b"cpu=")[1].split(b",")[0].split(b" ")[0]
        assert struct.pack(">d", float(text)) == struct.pack(">d", value)


def test_the_first_bad_point_is_named_whatever_column_it_is_wrong_in() -> None:
    late = {"serverId": "a", "cpu": 0, "ram": 0, "timestamp": 9_223_372_036_855}
    with pytest.raises(PointError, match="out of range") as caught:
        accept([late, {"serverId": "", "cpu": 0, "ram": 0}])
    assert caught.value.index == 0
