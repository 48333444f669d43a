"""FORMAT.md says what the program does: its examples are decoded, and its tables are compared with the codec."""

from __future__ import annotations

import dataclasses
import re
import struct
import uuid
from pathlib import Path

import wal_ingest.wal
from wal_ingest.wal import entry, segment, state
from wal_ingest.wal.cursor import Cursor, Trouble
from wal_ingest.wal.entry import Destination, decode, encode
from wal_ingest.wal.letters import StoredLetter
from wal_ingest.wal.segment import SegmentHeader

PAGE = (Path(wal_ingest.wal.__file__).parent / "FORMAT.md").read_text()


def example(name: str) -> bytes:
    """The bytes of a hex dump on the page."""
    found = re.search(rf"```hex {name}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    dump = "".join(line[4:] for line in found[1].splitlines())
    return bytes.fromhex(dump)


def field_table(heading: str) -> list[tuple[int, int]]:
    """Offset and length of every field with a fixed place in the first such table behind a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1]
    rows = re.findall(r"^\| (\d+) \| (\d+) \|", section.split("\nExample")[0], re.MULTILINE)
    return [(int(offset), int(length)) for offset, length in rows]


def test_the_example_entry_decodes_to_what_the_page_says() -> None:
    decoded = decode(example("entry"), seq=42)
    assert decoded.lines() == b"cpu,host=web-17 usage=0.42 1763800000000000000\n"
    assert (decoded.points, decoded.points_before, decoded.codec) == (1, 41000, entry.CODEC_RAW)
    assert (decoded.raw_bytes, len(decoded.payload)) == (47, 47)
    assert decoded.accepted_ns == 1763800000123456789
    assert (decoded.source, decoded.destination) == ("10.0.0.7", Destination("acme", "metrics"))


def test_the_example_entry_is_what_the_program_writes() -> None:
    new = entry.NewEntry(
        b"cpu,host=web-17 usage=0.42 1763800000000000000\n",
        1,
        1763800000123456789,
        "10.0.0.7",
        Destination("acme", "metrics"),
    )
    assert encode(new, seq=42, points_before=41000) == example("entry")


def test_the_example_segment_header_is_what_the_page_says() -> None:
    header = SegmentHeader(uuid.UUID("6f1c2a52-7b0e-4b7e-9d3a-1c5f00aa1234"), 42, 41000, 1763800000000000000)
    assert SegmentHeader.decode(example("segment-header"), Path("example")) == header
    assert header.encode() == example("segment-header")


def test_the_tables_leave_no_gap_and_match_the_codecs() -> None:
    for heading, header_bytes, layout in (
        ("Segment", 56, segment._HEADER),
        ("Entry", entry.HEADER_BYTES, entry._HEADER),
    ):
        fields = field_table(heading)
        end = 0
        for offset, length in fields:
            assert offset == end
            end = offset + length
        assert end == header_bytes
        sizes = [struct.calcsize(">" + code) for code in re.findall(r"\d*[a-zA-Z]", layout.format[1:])]
        assert [length for _, length in fields][: len(sizes)] == sizes


def test_the_page_names_every_version() -> None:
    assert {entry.VERSION, segment.VERSION} == {1}
    assert "## Version 1" in PAGE


def test_the_state_records_have_the_fields_that_the_page_names() -> None:
    for key, fields in (
        ("cursor/<sink>", [field.name for field in dataclasses.fields(Cursor)]),
        ("letter/<sink>/<number, 20 digits>", list(StoredLetter.__struct_fields__)),
        ("trouble/<sink>", [field.name for field in dataclasses.fields(Trouble)]),
        ("pause/<sink>", list(state._Pause.__struct_fields__)),
    ):
        [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |")]
        assert re.findall(r'"([a-z_]+)"', row) == fields
