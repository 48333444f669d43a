"""CSV: which column becomes what, how values are written, and rows that are no points."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.points.decoder import decode, field
from wal_ingest.errors import ConfigError
from wal_ingest.points.csv_columns import FieldType, guess_type, time_texts
from wal_ingest.points.csv_points import BadRow, CsvField, CsvMapping, CsvWriter
from wal_ingest.points.line_protocol import accept_line_protocol
from wal_ingest.points.lines import Precision

COLUMNS = ["at", "host", "cpu", "up", "note"]
ROW = ["1763800000", "web-17", "0.5", "true", "fine"]


def writer(**mapping: Any) -> CsvWriter:
    made = CsvMapping(
        **{
            "measurement": "m",
            "tags": (("host", "host"),),
            "time": "at",
            "unit": Precision.S,
            **mapping,
        }
    )
    return CsvWriter(COLUMNS, made, first_rows=[ROW])


def test_columns_become_tags_fields_and_the_time() -> None:
    made = writer().lines([ROW])
    assert made.lines == b'm,host=web-17 cpu=0.5,up=true,note="fine" 1763800000000000000\n'
    assert (list(made.kept), made.bad) == ([0], [])


def test_fields_may_be_chosen_renamed_and_typed() -> None:
    fields = (CsvField("cpu", "usage", FieldType.STRING), CsvField("up", "up", FieldType.INT))
    made = writer(fields=fields).lines([["1", "a", "0.5", "7", "x"]])
    assert made.lines == b'm,host=a usage="0.5",up=7i 1000000000\n'


def test_the_measurement_may_be_a_column() -> None:
    made = writer(measurement="", measurement_column="note", tags=()).lines(
        [["1", "a", "2", "f", "my disk"], ["1", "a", "2", "f", ""]]
    )
    assert made.lines == b'my\\ disk host="a",cpu=2,up=false 1000000000\n'
    assert made.bad == [BadRow(1, "note", "an empty measurement")]


def test_an_empty_cell_is_left_out() -> None:
    made = writer().lines([["1", "", "", "t", ""], ["1", "a", "3", "", ""], ["1", "a", "", "", ""]])
    assert made.lines == b"m up=true 1000000000\nm,host=a cpu=3 1000000000\n"
    assert made.bad == [BadRow(2, "", "no field has a value")]
    assert list(made.kept) == [0, 1]


def test_what_a_line_gives_a_meaning_to_is_escaped() -> None:
    made = writer(tags=(("host", "my host"),)).lines([["1", "a b,c=d", "1", "t", 'say "hi" \\ there']])
    expected = b'm,my\\ host=a\\ b\\,c\\=d cpu=1,up=true,note="say \\"hi\\" \\\\ there" 1000000000\n'
    assert made.lines == expected


@pytest.mark.parametrize(
    ("changed", "column", "words"),
    [
        ({2: "lots"}, "cpu", "'lots' is no number"),
        ({2: "NaN"}, "cpu", "'NaN' is no number"),
        ({2: "1,5"}, "cpu", "'1,5' is no number"),
        ({2: "1\n2"}, "cpu", "'1\\n2' is no number"),
        ({3: "maybe"}, "up", "neither true nor false"),
        ({1: "two\nlines"}, "host", "a line feed in the tag value"),
        ({0: ""}, "at", "no time"),
        ({0: "tomorrow"}, "at", "'tomorrow' is no time"),
    ],
)
def test_a_bad_cell_is_told_with_its_column_and_costs_its_row_only(
    changed: dict[int, str], column: str, words: str
) -> None:
    bad = [changed.get(at, cell) for at, cell in enumerate(ROW)]
    made = writer().lines([ROW, bad, ROW])
    [row] = made.bad
    assert (row.row, row.column) == (1, column)
    assert words in row.reason
    assert list(made.kept) == [0, 2]
    assert made.lines.count(b"\n") == 2


def test_a_row_of_another_width_is_told() -> None:
    made = writer().lines([ROW[:-1], ROW, [*ROW, "more"]])
    assert [(row.row, row.reason) for row in made.bad] == [
        (0, "the row has 4 cells, and the header has 5"),
        (2, "the row has 6 cells, and the header has 5"),
    ]
    assert list(made.kept) == [1]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2"], FieldType.FLOAT),
        (["1", "n/a"], FieldType.FLOAT),
        (["", " "], FieldType.FLOAT),
        (["True", "false", ""], FieldType.BOOL),
        (["a", "true"], FieldType.STRING),
        (["0", "1"], FieldType.FLOAT),
    ],
)
def test_a_type_is_guessed_with_care(cells: list[str], kind: FieldType) -> None:
    assert guess_type(cells) is kind


@pytest.mark.parametrize(
    ("cell", "unit", "time_ns"),
    [
        ("17", Precision.S, 17_000_000_000),
        ("-17", Precision.MS, -17_000_000),
        ("17", Precision.NS, 17),
        ("1763800000.123456789", Precision.S, 1_763_800_000_123_456_789),
        ("2026-11-22T21:00:00Z", None, 1_795_381_200_000_000_000),
        ("2026-11-22T21:00:00Z", Precision.S, 1_795_381_200_000_000_000),
        ("2026-11-22 21:00:00", None, 1_795_381_200_000_000_000),
        ("2026-11-22T22:00:00.123456789+01:00", None, 1_795_381_200_123_456_789),
        ("1969-12-31T23:59:59.5Z", None, -500_000_000),
    ],
)
def test_times_are_numbers_of_a_unit_or_iso(cell: str, unit: Precision | None, time_ns: int) -> None:
    assert time_texts([cell], unit) == ([str(time_ns)], {})


def test_numbers_are_no_times_without_a_unit() -> None:
    assert "nobody said of what unit" in time_texts(["17"], None)[1][0]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"time": "when"}, "no column 'when'"),
        ({"measurement": ""}, "needs a measurement"),
        ({"measurement_column": "note"}, "needs a measurement"),
        ({"fields": (CsvField("x", "x"),)}, "no column 'x'"),
        ({"tags": tuple((name, name) for name in COLUMNS[1:])}, "no column is left"),
        ({"tags": (("host", "a\nb"),)}, "cannot be a tag key"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(mapping: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        writer(**mapping)


def test_a_header_that_names_a_column_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice: a"):
        CsvWriter(["a", "b", "a"], CsvMapping(measurement="m"), first_rows=[])


CELL = st.one_of(
    st.text(max_size=6), st.from_regex(r"-?[0-9]{1,4}(\.[0-9]{1,3})?", fullmatch=True), st.just("")
)


@given(st.lists(st.tuples(CELL, CELL, CELL).map(list), min_size=1, max_size=8))
def test_rows_that_are_kept_are_points_with_the_values_that_they_had(rows: list[list[str]]) -> None:
    mapping = CsvMapping(
        measurement="m",
        tags=(("t", "t"),),
        fields=(CsvField("s", "s", FieldType.STRING), CsvField("f", "f", FieldType.FLOAT)),
    )
    made = CsvWriter(["t", "s", "f"], mapping, first_rows=[]).lines(rows)
    assert len(made.kept) + len(made.bad) == len(rows)
    assert sorted([*made.kept, *(bad.row for bad in made.bad)]) == list(range(len(rows)))
    lines = accept_line_protocol(made.lines, precision=Precision.NS, now_ns=10**18, line_bytes_max=1 << 16)
    assert lines.points == len(made.kept)
    for point, at in zip(decode(lines.data), made.kept, strict=True):
        tag, text, number = rows[at]
        assert point.tags == ((("t", tag),) if tag else ())
        expected = [field("s", "string", text)] if text else []
        expected += [field("f", "float", float(number))] if number.strip() else []
        assert list(point.fields) == expected
