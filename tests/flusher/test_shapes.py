"""What points have in common, and which of them a database's words may mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wal_ingest.flusher.outcome import LineRefused, LinesRefused, Named
from wal_ingest.flusher.shapes import (
    Shaped,
    _is_named,
    divided,
    reasons_by_place,
    selected,
    shape_of,
    shapes_of,
)

_NAMES = st.sampled_from(["m", "v", "mv", "w", "a,b", "a b", "a=b", "v1", "\\\\"])
_VALUES = st.sampled_from(
    ['"x"', '"m v=1i,"', '"x,v=\\"y"', '"two\nlines"', "1", "-1.5e3", "7i", "-7i", "7u", "t", "false", "+.5"]
)


def escaped(name: str) -> str:
    return "".join(f"\\{each}" if each in ",= " else each for each in name)


@st.composite
def _line(draw: st.DrawFn) -> bytes:
    series = "".join(
        f",{escaped(draw(_NAMES))}={escaped(draw(_NAMES))}" for _ in range(draw(st.integers(0, 3)))
    )
    fields = ",".join(f"{escaped(draw(_NAMES))}={draw(_VALUES)}" for _ in range(draw(st.integers(1, 4))))
    return f"{escaped(draw(_NAMES))}{series} {fields} {draw(st.integers(0, 99))}\n".encode()


@given(
    lines=st.lists(_line(), max_size=12),
    measurement=_NAMES,
    name=_NAMES,
    given_type=st.sampled_from(["", "string", "boolean", "integer", "unsigned", "float", "unheard-of"]),
    tag=st.booleans(),
)
def test_the_quick_search_finds_what_reading_each_line_finds(
    lines: list[bytes], measurement: str, name: str, given_type: str, tag: bool
) -> None:
    hint = Named(measurement, tag=name) if tag else Named(measurement, field=name, given=given_type)
    expected = [
        place
        for place, line in enumerate(lines)
        if _is_named(line, measurement.encode(), name.encode(), hint)
    ]
    assert selected(lines, hint) == expected


@settings(deadline=None)  # patterns are made once: the first call takes longer
@given(lines=st.lists(_line(), min_size=1, max_size=4), order=st.lists(st.integers(0, 3), max_size=60))
def test_shapes_of_many_lines_are_those_of_each_line(lines: list[bytes], order: list[int]) -> None:
    """So often that patterns are made, which must mean no line of another shape."""
    many = [lines[0]] * 20 + [lines[place % len(lines)] for place in order] + lines * 20
    assert list(shapes_of(many)) == list(map(shape_of, many))


@given(lines=st.lists(_line(), min_size=1, max_size=12))
def test_a_shape_means_lines_of_that_shape_only(lines: list[bytes]) -> None:
    shape = shape_of(lines[0])
    of_that_shape = [place for place, line in enumerate(lines) if shape_of(line) == shape]
    assert set(selected(lines, Shaped(shape))) <= set(of_that_shape)


def test_a_shape_means_each_line_of_ordinary_writing() -> None:
    lines = [b'm,a=1,b=2 v=1.5,s="x y",n=-3i 1\n', b"m,a=1 v=1 1\n", b'm,a=m\\,a,b=7 v=-1e3,s="",n=4i 2\n']
    assert selected(lines, Shaped(shape_of(lines[0]))) == [0, 2]
    assert selected([b"n v=1 1\n", *lines], Shaped(shape_of(b"n v=2 1\n"))) == [0]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'm,t=1 a=1,v="x" 1\n', True),
        (b'm v="x" 1\n', True),
        (b'm,v="x" a=1 1\n', False),  # a tag
        (b'n,t=m a="m v=",v="x" 1\n', False),  # another measurement
        (b'm a="v=\\"x" 1\n', False),  # within another field's text
        (b'm a="\n",v="x" 1\n', True),  # a line feed within a string
    ],
)
def test_a_field_of_a_type_is_found_where_it_is_one(line: bytes, found: bool) -> None:
    lines = [b"m v=1 1\n", line, b"m v=1 2\n"]
    assert selected(lines, Named("m", field="v", given="string")) == ([1] if found else [])


def test_a_measurement_alone_means_each_of_its_lines() -> None:
    assert selected([b"m v=1 1\n", b"n v=1 1\n", b"m,a=b v=1 1\n"], Named("m")) == [0, 2]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1, 1], 1),
        ([3, 1], 3),
        ([1, 3], 1),
        ([2, 2, 2], 2),
        ([1, 1, 1, 3], 3),
        ([9, 1, 1], 9),
        ([5], 3),
        ([1], 1),
    ],
)
def test_about_half_is_the_first_shapes_that_are_no_more_than_half_together(
    sizes: list[int], expected: int
) -> None:
    lines = [b"m%d v=1 %d\n" % (shape, n) for shape, size in enumerate(sizes) for n in range(size)]
    assert divided(lines) == list(range(expected))


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ((LineRefused("why", number=2),), {1: "why"}),
        ((LineRefused("why", number=2, line="m v"),), {1: "why"}),
        ((LineRefused("why", number=2, line="x"),), {}),  # lines are counted in another way
        ((LineRefused("why", number=0), LineRefused("why", number=4)), {}),  # no line has that number
        ((LineRefused("why", line="m v=2 2"), LineRefused("other", line="n")), {1: "why"}),
    ],
)
def test_a_listed_line_is_found_by_its_number_or_its_text_or_not_at_all(
    refused: tuple[LineRefused, ...], expected: dict[int, str]
) -> None:
    assert reasons_by_place([b"m v=1 1\n", b"m v=2 2\n", b"m v=3 3\n"], LinesRefused(refused)) == expected
