"""Files are cut alike wherever one begins again; what is no point is found before it is sent."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.cli.infile import UnreadableFile
from wal_ingest.cli.send import cutting
from wal_ingest.cli.send.cutting import Place
from wal_ingest.cli.send.formats import Format, format_of, named_format
from wal_ingest.cli.send.options import how_of
from wal_ingest.cli.send.pieces import How, Piece
from wal_ingest.cli.send.sources import Source
from wal_ingest.cli.sifting import Refused
from wal_ingest.errors import ConfigError

NOW = 1_763_800_000 * 10**9


def how(**changed: Any) -> How:
    asked: dict[str, Any] = {
        "form": None,
        "precision": "",
        "batch_points": 3,
        "measurement": "m",
        "measurement_column": "",
        "tags": [],
        "fields": [],
        "time": "",
        "delimiter": "",
        "columns": "",
    }
    return how_of(**{**asked, **changed})


def source(path: Path, *, skips: bool = False, whole: bool = True, **changed: Any) -> Source:
    return Source(str(path), how(**changed), file=0, skips=skips, whole=whole, now_ns=lambda: NOW)


def contents(pieces: Iterator[Piece]) -> list[tuple[Place, Place, bytes, int]]:
    return [(piece.start, piece.end, piece.body, piece.points) for piece in pieces]


LINES = [b"m v=%d %d\n" % (n, n) for n in range(8)]
CSV = b'host,v,note\na,1,x\nb,2,"two\nlines, one ""cell"""\n\nc,3,\nd,4,5" pipe\ne,5,"y\n\n\nz"\nf,6,\n'
ARRAY = json.dumps(
    [{"measurement": "m", "fields": {"v": n}, "timestamp": n} for n in range(8)], indent=1
).encode()
FILES = {
    "a.lp": b"# comment\n\n" + b"".join(LINES),
    "a.json": ARRAY,
    "a.ndjson": b"\n".join(json.dumps(each).encode() for each in json.loads(ARRAY)),
    "a.csv": CSV.replace(b"two\nlines, one", b"two lines, one").replace(b"y\n\n\nz", b"yz"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_cut_alike_from_every_place_where_a_piece_began(
    name: str, packed: bool, tmp_path: Path
) -> None:
    path = tmp_path / (name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(FILES[name]) if packed else FILES[name])
    whole = contents(source(path).pieces(Place()))
    assert len(whole) >= 3
    assert sum(points for *_rest, points in whole) in (6, 8)
    for at, (start, *_rest) in enumerate(whole):
        assert contents(source(path).pieces(start)) == whole[at:]
    assert contents(source(path).pieces(whole[-1][1])) == []


@given(
    st.lists(
        st.sampled_from(["a", "b,1", '"q"', '"x\ny"', '"""', "", "é", '"\n', '5" pipe', '5" pipe,"x\ny"']),
        max_size=12,
    )
)
def test_csv_is_cut_alike_whatever_is_quoted(cells: list[str]) -> None:
    text = "".join(f"{cell},1\n" for cell in cells).encode()

    class Text:
        name = "t"
        is_pipe = False

        def __init__(self) -> None:
            self.rest = text

        def seek(self, position: int) -> None:
            self.rest = text[position:]

        def read_soon(self, size: int, wait_s: float) -> bytes:
            data, self.rest = self.rest[:5], self.rest[5:]
            return data

    def cut(start: Place) -> list[cutting.Run]:
        return list(cutting.cut_csv(Text(), start, delimiter=",", lines_max=2))  # type: ignore[arg-type]

    try:
        runs = cut(Place())
    except UnreadableFile:
        with pytest.raises(csv.Error):
            list(csv.reader(io.StringIO(text.decode(), newline=""), strict=True))
        return
    assert b"".join(record for run in runs for record in run.records) == text
    for at, run in enumerate(runs):
        assert cut(run.start) == runs[at:]


def test_a_quoted_cell_that_does_not_end_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'a,b\n1,2\n3,"4\n5,6\n')
    with pytest.raises(UnreadableFile, match="line 3: a quoted cell that begins here does not end"):
        list(source(tmp_path / "a.csv").pieces(Place()))


def test_rows_of_csv_have_the_lines_that_they_begin_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    pieces = list(source(tmp_path / "a.csv", fields=["v", "note:string"], skips=True).pieces(Place()))
    assert [number for piece in pieces for number in piece.numbers] == [2, 3, 6, 7, 8, 12]
    assert [record for piece in pieces for record in piece.records][1] == (
        b'm v=2,note="two\nlines, one \\"cell\\""\n'
    )
    assert not [each for piece in pieces for each in piece.rejected]


def test_large_lines_end_a_piece_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "RUN_BYTES_MAX", 2 * len(LINES[0]))
    (tmp_path / "a.lp").write_bytes(b"".join(LINES[:5]))
    assert [piece.points for piece in source(tmp_path / "a.lp").pieces(Place())] == [2, 2, 1]


BAD = b"m v=1 1\nm v=2 2\nm v=3 3\nm v=4 4\nm v=lots 5\nm v=6 6\n"


def test_a_bad_line_ends_it_in_front_of_its_piece_or_of_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.lp"
    path.write_bytes(BAD)
    for whole, expected in ((True, 3), (False, 4)):
        pieces = source(path, whole=whole).pieces(Place())
        taken: list[Piece] = []
        with pytest.raises(Refused, match=r"a\.lp: line 5, column 5: the field value is neither"):
            taken.extend(pieces)
        assert sum(piece.points for piece in taken) == expected
        assert taken[-1].end.records == expected


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.lp", BAD, "line 5, column 5"),
        ("a.ndjson", b'{"measurement":"m","fields":{"v":1}}\n{"measurement":"m"}\n', "line 2"),
        ("a.json", b'[{"measurement":"m","fields":{"v":1}},\n{"fields":{"v":1}}]', "index 1"),
        ("a.csv", b"v,w\n1,2\n1,x\n1,2\n", "line 3, column w"),
        ("a.csv", b"v,w\n1,2\n1,\xff\n1,2\n", "line 3, column w"),
        ("a.csv", b"v,w\n1,2\n1,1e999\n1,2\n", "line 3"),
    ],
)
def test_what_is_no_point_is_left_out_with_its_place(
    name: str, text: bytes, place: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    pieces = list(source(path, skips=True).pieces(Place()))
    [rejected] = [each for piece in pieces for each in piece.rejected]
    assert f"{name}: {place}: " in str(rejected.why)
    assert all(piece.points == len(piece.records) == len(piece.numbers) for piece in pieces)
    with pytest.raises(Refused, match=place):
        list(source(path).pieces(Place()))


def test_text_that_is_no_utf_8_is_no_reason_to_refuse_a_row(tmp_path: Path) -> None:
    """The node reads it as Windows-1252, as spreadsheets write it."""
    path = tmp_path / "b.csv"
    path.write_bytes(b"v,w:\n1,a\n1,B\xfcro\n1,b\n")
    pieces = list(source(path).pieces(Place()))
    assert sum(piece.points for piece in pieces) == 3
    assert b'w:="B\xfcro"' in b"".join(piece.body for piece in pieces)


def test_lines_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.lp").write_bytes(b"".join(LINES))
    [*_, last] = source(tmp_path / "a.lp").pieces(Place(records=5))
    assert (last.body, last.end.records) == (b"".join(LINES[5:]), 8)
    (tmp_path / "a.csv").write_bytes(b"v\n1\n2\n3\n")
    pieces = source(tmp_path / "a.csv").pieces(Place(records=2))
    assert b"".join(piece.body for piece in pieces) == b"m v=2\nm v=3\n"


@pytest.mark.parametrize(
    ("name", "begin", "form"),
    [
        ("a.LP.gz", b"{", Format.LINES),
        ("a.tsv", b"", Format.CSV),
        ("a.jsonl", b"", Format.NDJSON),
        ("-", b"m v=1", Format.LINES),
        ("-", b" \n[{", Format.JSON),
        ("-", b'{"a": 1}\n{"a": 2}\n', Format.NDJSON),
        ("a.txt", b'{\n"a": 1}\n', Format.JSON),
    ],
)
def test_a_format_is_known_by_name_or_first_bytes(name: str, begin: bytes, form: Format) -> None:
    assert format_of(name, begin) is form


def test_json_that_is_none_says_what_to_try(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": 1}\n{"a": 2}\n')
    with pytest.raises(UnreadableFile) as caught:
        list(source(tmp_path / "a.json").pieces(Place()))
    assert "--format ndjson" in caught.value.hint


@pytest.mark.parametrize(
    "changed", [{"form": "xml"}, {"precision": "h"}, {"delimiter": ";;"}], ids=lambda each: next(iter(each))
)
def test_options_that_make_no_sense_are_usage_errors(changed: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        how(**changed)


def test_a_field_option_has_a_column_a_name_and_a_type() -> None:
    fields = how(fields=["cpu", "cpu=usage", "cpu:int", "a:b", "cpu=u:bool"]).mapping.fields
    told = [(each.column, each.name, each.kind.value if each.kind else "") for each in fields]
    assert told == [
        ("cpu", "cpu", ""),
        ("cpu", "usage", ""),
        ("cpu", "cpu", "int"),
        ("a:b", "a:b", ""),
        ("cpu", "u", "bool"),
    ]
    assert named_format("csv") is Format.CSV


NOTES = [b'm note="%s",n=%di %d\n' % (b"a\n" * (n % 4) + b"z", n, n) for n in range(12)]
NOTES[5] = b'm note="bad\n\n",n=x 5\n'


@pytest.mark.parametrize("lines_max", range(1, 9))
def test_strings_with_line_feeds_are_cut_into_whole_records(lines_max: int, tmp_path: Path) -> None:
    path = tmp_path / "a.lp"
    path.write_bytes(b"".join(NOTES))
    pieces = list(source(path, skips=True, batch_points=lines_max).pieces(Place()))
    assert [record for piece in pieces for record in piece.records] == NOTES[:5] + NOTES[6:]
    begins = [b"".join(NOTES[:at]).count(b"\n") + 1 for at in range(len(NOTES))]
    assert [number for piece in pieces for number in piece.numbers] == begins[:5] + begins[6:]
    [rejected] = [each for piece in pieces for each in piece.rejected]
    assert (rejected.record, rejected.why.number) == (NOTES[5], begins[5])
    for at, piece in enumerate(pieces):
        again = source(path, skips=True, batch_points=lines_max).pieces(piece.start)
        assert contents(again) == contents(iter(pieces[at:]))
    assert pieces[-1].end == Place(path.stat().st_size, b"".join(NOTES).count(b"\n"))


@pytest.mark.parametrize("lines_max", [1, 3, 100])
@pytest.mark.parametrize(
    "limit", [20, 1 << 20], ids=["longer than a record may be", "to the end of the file"]
)
def test_a_quote_that_is_not_closed_swallows_no_lines(
    limit: int, lines_max: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "_RECORD_BYTES_MAX", limit)
    path = tmp_path / "a.lp"
    path.write_bytes(LINES[0] + b'm s="open 1\n' + b"".join(LINES[1:]))
    pieces = list(source(path, skips=True, batch_points=lines_max).pieces(Place()))
    assert [record for piece in pieces for record in piece.records] == LINES
    [rejected] = [each for piece in pieces for each in piece.rejected]
    assert (rejected.record, rejected.why.number) == (b'm s="open 1\n', 2)
