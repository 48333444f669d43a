"""FORMAT.md says what the program does: its examples are decoded, and its tables are compared with the codec."""

from __future__ import annotations

import dataclasses
import re
import struct
import uuid
from pathlib import Path

import wal_ingest.wal
from wal_ingest.wal import checkpoint, entry, letter_blocks, letter_store, segment, state, streams
from wal_ingest.wal.cursor import Cursor, DeadLetter, Trouble
from wal_ingest.wal.entry import Destination, Mark, decode, encode
from wal_ingest.wal.gzip_codec import crc32, decompress
from wal_ingest.wal.letters import StoredLetter
from wal_ingest.wal.segment import SegmentHeader
from wal_ingest.wal.streams import Position, Stored

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


def test_the_example_of_a_marked_entry_is_what_the_page_says_and_what_the_program_writes() -> None:
    line = b"cpu,host=web-17 usage=0.42 1763800000000000000\n"
    mark = Mark("web-17", 7, 0x4670E4EA)
    decoded = decode(example("marked-entry"), seq=43)
    assert (decoded.lines(), decoded.mark, decoded.points_before) == (line, mark, 41001)
    assert (decoded.source, decoded.destination) == ("10.0.0.7", Destination("acme", "metrics"))
    assert decode(example("entry"), seq=42).mark is None
    assert crc32(line) == mark.crc
    new = entry.NewEntry(line, 1, 1763800000123456789, "10.0.0.7", Destination("acme", "metrics"), mark)
    assert encode(new, seq=43, points_before=41001) == example("marked-entry")


def test_the_example_of_a_position_is_what_the_page_says_and_what_the_program_writes() -> None:
    position = Position.decode("web-17", example("position"))
    assert position is not None
    assert (position.last_ns, position.last_seq) == (1763800000123456789, 43)
    assert position.stored == (Stored(6, 41, 1000, 0x12345678), Stored(7, 43, 1, 0x4670E4EA))
    assert position.encode() == example("position")


def test_the_example_segment_header_is_what_the_page_says() -> None:
    header = SegmentHeader(uuid.UUID("6f1c2a52-7b0e-4b7e-9d3a-1c5f00aa1234"), 42, 41000, 1763800000000000000)
    assert SegmentHeader.decode(example("segment-header"), Path("example")) == header
    assert header.encode() == example("segment-header")


def test_the_example_of_a_block_of_dead_letters_is_what_the_page_says_and_what_the_program_writes() -> None:
    wal_id, data = uuid.UUID("6f1c2a52-7b0e-4b7e-9d3a-1c5f00aa1234"), example("letter-block")
    letters = [
        DeadLetter(
            "influxdb",
            seq,
            line,
            "type conflict",
            400,
            1763800000123456789,
            Destination("acme", "metrics"),
            number,
        )
        for number, seq, line in (
            (7, 42, b"temp value=1i 1763800000000000000\n"),
            (8, 43, b"temp value=2i 1763800000000000001\n"),
        )
    ]
    record = letter_blocks.BlockRecord(1, 0, len(data), 2, 8, "type conflict", 1763800000123456789)
    assert letter_blocks.decode_block(data, wal_id, letter_blocks.Block("influxdb", 7, record)) == letters
    content = decompress(data[88:], bytes_max=1_000)
    table, _, lines = content.partition(b"\n")
    assert lines == b"".join(letter.line for letter in letters)
    assert f"`{table.decode()}`" in PAGE
    # igzip and zlib compress differently; what is in them is the same.
    [made] = letter_blocks.make_blocks(wal_id, "influxdb", letters)
    assert made.data[:10] == data[:10]
    assert decompress(made.data[88:], bytes_max=1_000) == content


def test_the_tables_leave_no_gap_and_match_the_codecs() -> None:
    for heading, header_bytes, layout in (
        ("Segment", 56, segment._HEADER),
        ("Entry", entry.HEADER_BYTES, entry._HEADER),
        ("Dead letters", 80, letter_blocks._HEADER),
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
    assert (entry.VERSION, entry.VERSION_MARKED, segment.VERSION, state._VERSION) == (1, 2, 1, b"1")
    assert state._VERSIONS == (b"1", b"2")
    assert letter_blocks.VERSION == 1
    assert f"| 0 | 1 | version: {entry.VERSION}, or {entry.VERSION_MARKED} with a mark |" in PAGE
    assert f"up to {streams.STORED_MAX}, rising by number" in PAGE


def test_the_state_records_have_the_fields_that_the_page_names() -> None:
    for key, fields in (
        ("cursor/<sink>", [field.name for field in dataclasses.fields(Cursor)]),
        ("letter/<sink>/<number, 20 digits>", list(StoredLetter.__struct_fields__)),
        (
            "letter_block/<sink>/<first number, 20 digits>",
            list(letter_blocks.BlockRecord.__struct_fields__),
        ),
        ("letter_file/<number, 20 digits>", list(letter_store._File.__struct_fields__)),
        ("trouble/<sink>", [field.name for field in dataclasses.fields(Trouble)]),
        ("pause/<sink>", list(state._Pause.__struct_fields__)),
        ("streams", list(checkpoint.Through.__struct_fields__)),
    ):
        [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |")]
        assert re.findall(r'"([a-z_]+)"', row) == fields
