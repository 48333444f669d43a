"""Large JSON in slices: what is counted, what is skipped, and how little is built of it."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wal_ingest.errors import BadRequest, PointError
from wal_ingest.points.json_points import accept_json
from wal_ingest.points.json_slices import SLICE_BYTES, array_slices, first_character_at, has_too_many_names

KIB, MIB = 1 << 10, 1 << 20
NOW_NS = 1_700_000_000_000_000_000


def accept(body: bytes) -> int:
    return accept_json(body, now_ns=NOW_NS, depth_max=64, line_bytes_max=2 * MIB).points


def fields(*names: str, value: object = 1) -> bytes:
    return json.dumps({"measurement": "m", "fields": dict.fromkeys(names, value)}).encode()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"measurement":"m","fields":{' + b'"a":1,' * (8 * MIB // 6), "2097152 bytes as a line"),
        (b"[" * (8 * MIB), "nested in more than 64 levels"),
        (b"[" + b"[]," * (8 * MIB // 3) + b"1]", "an array where an object is needed"),
        (b'["' + b"a" * (8 * MIB) + b'"]', "a string where an object is needed"),
        (b" " * (8 * MIB), "the body is empty"),
        (b"[" + b" " * (8 * MIB) + b"1]", "an integer where an object is needed"),
    ],
    ids=["names", "brackets", "arrays", "a string", "blanks", "blanks within"],
)
def test_a_costly_body_is_refused_and_no_more_than_two_of_it_is_made(body: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((BadRequest, PointError)) as caught:
            accept(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reason in str(caught.value)
    # And what the look at the first MiB takes, which decides what the refusal says.
    assert peak < 2 * len(body) + (32 if b'"a":' in body else 2) * MIB


def test_names_are_counted_outside_of_strings_alone() -> None:
    many = [f"f{number}" for number in range(20_000)]
    assert has_too_many_names(fields(*many), 64 * KIB)
    assert not has_too_many_names(fields(*many), 256 * KIB)
    # Colons in values and names, escaped quotes before them.
    colons = fields('a\\"":', value=':"\\":' * 20_000)
    assert len(colons) > SLICE_BYTES
    assert not has_too_many_names(colons, 64 * KIB)
    assert not has_too_many_names(fields(*many[:5_000]), 64 * KIB), "a small one is left to the decoder"


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text(st.sampled_from('a:"\\{}[], '), max_size=6), min_size=8, max_size=30),
    st.text(st.sampled_from('a:"\\ '), max_size=9),
)
def test_what_counts_names_agrees_with_a_parser(names: list[str], value: str) -> None:
    repeated = {f"{name}{number}-{at}": value for number in range(900) for at, name in enumerate(names)}
    body = json.dumps({"fields": repeated}).encode()
    assert len(body) > SLICE_BYTES
    # It counts by the thousand.
    there = len(repeated) + 1
    assert has_too_many_names(body, 4 * (there // 1_000 * 1_000 - 17))
    assert not has_too_many_names(body, 4 * there)


@pytest.mark.parametrize("blanks", [0, 1, SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES])
def test_the_first_character_is_found_after_any_blanks(blanks: int) -> None:
    space = (b" \t\r\n" * blanks)[:blanks]
    assert first_character_at(space + b"[1]") == blanks
    assert first_character_at(space) == blanks
    assert accept(space + b'[{"serverId":"a","cpu":1,"ram":1}]' + space) == 1
    batch = b'{"metrics":[{"name":"m","fields":{"a":1},"tags":{}}]}'
    assert accept(space + batch.replace(b":[", b":" + space[:SLICE_BYTES] + b"[") + space) == 1


@pytest.mark.parametrize("is_closed", [True, False])
def test_an_array_that_is_not_closed_is_not_closed_for_the_decoder_either(is_closed: bool) -> None:
    small = b"[1,2"
    assert list(array_slices(small, 1, len(small), is_closed=is_closed)) == [b"[1,2]" if is_closed else small]
    body = b"[" + b'{"a":1},' * SLICE_BYTES + b"{}"
    slices = list(array_slices(body, 1, len(body), is_closed=is_closed))
    assert len(slices) > 2
    assert all(each.startswith(b"[{") and each.endswith(b"}]") for each in slices)
    assert b",".join(each[1:-1] for each in slices) == body[1:]
