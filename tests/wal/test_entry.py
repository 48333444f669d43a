"""The entry codec: what goes in comes out, and nothing else passes for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_ingest.errors import BadRequest
from wal_ingest.wal.entry import (
    CODEC_GZIP,
    CODEC_RAW,
    HEADER_BYTES,
    Destination,
    EntryDamaged,
    EntryVersionUnknown,
    Mark,
    NewEntry,
    decode,
    encode,
    extent,
)
from wal_ingest.wal.gzip_codec import crc32

SMALL = NewEntry(b"cpu v=1 1\n", 1, 7, "10.0.0.1", Destination("acme", "metrics"))
LARGE = NewEntry(b"cpu,host=web-17 v=1 1763800000000000000\n" * 1000, 1000, 7, "10.0.0.1")

MARKED = replace(SMALL, mark=Mark("web-17", 7, 0xDEADBEEF))

names = st.text(max_size=40)
marks = st.builds(
    Mark,
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=128),
    st.integers(1, 2**53 - 1),
    st.integers(0, 2**32 - 1),
)


@given(
    lines=st.binary(max_size=3000),
    points=st.integers(0, 1000),
    accepted_ns=st.integers(0, 2**63),
    source=names,
    org=names,
    bucket=names,
    seq=st.integers(1, 2**64 - 1),
    points_before=st.integers(0, 2**63),
    mark=st.none() | marks,
)
def test_an_entry_comes_back_as_it_went_in(
    lines: bytes,
    points: int,
    accepted_ns: int,
    source: str,
    org: str,
    bucket: str,
    seq: int,
    points_before: int,
    mark: Mark | None,
) -> None:
    new = NewEntry(lines, points, accepted_ns, source, Destination(org, bucket), mark)
    entry = decode(encode(new, seq=seq, points_before=points_before), seq=seq)
    assert entry.lines() == lines
    assert (entry.seq, entry.points, entry.points_before) == (seq, points, points_before)
    assert (entry.accepted_ns, entry.source, entry.destination) == (
        accepted_ns,
        source,
        Destination(org, bucket),
    )
    assert entry.raw_bytes == len(lines)
    assert entry.mark == mark


def test_lines_are_stored_compressed_where_that_is_smaller() -> None:
    assert decode(encode(LARGE, seq=1, points_before=0), seq=1).codec == CODEC_GZIP
    assert decode(encode(SMALL, seq=1, points_before=0), seq=1).codec == CODEC_RAW


@pytest.mark.parametrize("entry", [SMALL, LARGE], ids=["raw", "gzip"])
def test_a_gzip_member_of_an_entry_holds_its_lines(entry: NewEntry) -> None:
    import gzip

    member = decode(encode(entry, seq=1, points_before=0), seq=1).gzip_member()
    assert gzip.decompress(member) == entry.lines


@pytest.mark.parametrize("entry", [SMALL, LARGE, MARKED], ids=["raw", "gzip", "marked"])
def test_any_flipped_bit_is_found(entry: NewEntry) -> None:
    value = encode(entry, seq=1, points_before=0)
    step = max(1, len(value) // 300)
    for position in [*range(HEADER_BYTES), *range(HEADER_BYTES, len(value), step)]:
        for bit in (0x01, 0x80):
            damaged = bytearray(value)
            damaged[position] ^= bit
            with pytest.raises(EntryDamaged):
                decode(bytes(damaged), seq=1)


@pytest.mark.parametrize("entry", [SMALL, MARKED], ids=["plain", "marked"])
def test_any_shortened_value_is_found(entry: NewEntry) -> None:
    value = encode(entry, seq=1, points_before=0)
    for length in range(len(value)):
        with pytest.raises(EntryDamaged):
            decode(value[:length], seq=1)


def test_an_entry_under_anothers_key_is_found() -> None:
    with pytest.raises(EntryDamaged, match="checksum"):
        decode(encode(SMALL, seq=1, points_before=0), seq=2)


def test_a_version_from_the_future_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.entry.VERSION", 9)
        value = encode(SMALL, seq=1, points_before=0)
    with pytest.raises(EntryVersionUnknown, match="version 9"):
        decode(value, seq=1)


def test_a_codec_from_the_future_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("wal_ingest.wal.entry.CODEC_RAW", 7)
        value = encode(SMALL, seq=1, points_before=0)
    with pytest.raises(EntryVersionUnknown, match="codec 7"):
        decode(value, seq=1)


def test_a_flipped_bit_in_the_version_is_damage_and_no_future() -> None:
    value = bytearray(encode(SMALL, seq=1, points_before=0))
    value[0] ^= 2
    with pytest.raises(EntryDamaged, match="checksum") as caught:
        decode(bytes(value), seq=1)
    assert not isinstance(caught.value, EntryVersionUnknown)


def test_a_name_longer_than_the_header_allows_is_the_senders_error() -> None:
    Destination("o" * 1024, "b" * 1024)
    with pytest.raises(BadRequest, match="bucket is longer than 1024 bytes"):
        Destination("o", "é" * 513)


def test_what_cannot_be_compressed_is_stored_as_it_is() -> None:
    noise = bytes(random.Random(1).randbytes(400))
    entry = decode(encode(NewEntry(noise, 1, 7), seq=1, points_before=0), seq=1)
    assert (entry.codec, entry.payload) == (CODEC_RAW, noise)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"payload": b"no gzip at all"}, "does not decompress"),
        ({"raw_bytes": 39}, "does not decompress"),
        ({"raw_bytes": 40_001}, "40000 bytes decompressed, 40001 expected"),
    ],
)
def test_a_payload_that_is_not_what_the_header_says_is_damage(change: dict[str, Any], reason: str) -> None:
    entry = decode(encode(LARGE, seq=1, points_before=0), seq=1)
    assert entry.lines() == LARGE.lines
    with pytest.raises(EntryDamaged, match=reason):
        replace(entry, **change).lines()


def sealed_again(value: bytearray, *, seq: int) -> bytes:
    """The value with a checksum that matches."""
    value[4:8] = crc32(value[8:], crc32(seq.to_bytes(8, "big") + value[:4])).to_bytes(4, "big")
    return bytes(value)


@pytest.mark.parametrize(
    ("at", "reason"),
    [(19, "lengths do not add up"), (37, "names do not fill its header")],
)
def test_lengths_that_do_not_add_up_are_damage_even_under_a_checksum(at: int, reason: str) -> None:
    value = bytearray(encode(SMALL, seq=1, points_before=0))
    value[at] += 1
    with pytest.raises(EntryDamaged, match=reason):
        decode(sealed_again(value, seq=1), seq=1)


# -- marks -------------------------------------------------------------------------------------------------


def test_an_entry_without_a_mark_is_stored_as_it_always_was() -> None:
    value = encode(SMALL, seq=1, points_before=0)
    assert value.hex() == (
        "0100003fa704663b000000010000000a0000000a000000000000000700000000000000000008000400070000"
        "31302e302e302e3161636d656d65747269637363707520763d3120310a"
    )
    marked = encode(MARKED, seq=1, points_before=0)
    assert (value[0], marked[0]) == (1, 2)
    assert len(marked) == len(value) + len("web-17") + 12


def test_how_long_a_marked_entry_is_can_be_told_from_its_header() -> None:
    for entry in (SMALL, LARGE, MARKED, replace(LARGE, mark=MARKED.mark)):
        value = encode(entry, seq=1, points_before=0)
        assert extent(value[:HEADER_BYTES]) == len(value)


@pytest.mark.parametrize("client_id", ["", "x" * 129, "with space", "tab\t", "é", "\x7f"])
def test_an_id_that_cannot_be_is_the_senders_error(client_id: str) -> None:
    with pytest.raises(BadRequest, match="1 to 128 characters of printable ASCII"):
        Mark(client_id, 1, 0)


@pytest.mark.parametrize("number", [-1, 0, 2**53])
def test_a_number_that_cannot_be_is_the_senders_error(number: int) -> None:
    with pytest.raises(BadRequest, match="from 1 to 9007199254740991"):
        Mark("x", number, 0)


def bent_mark(change: Callable[[bytearray], None]) -> bytes:
    """A marked entry that was changed behind the back of its checksum."""
    value = bytearray(encode(MARKED, seq=1, points_before=0))
    change(value)
    return sealed_again(value, seq=1)


def spoil_id(value: bytearray) -> None:
    value[value.index(b"web-17")] = 0xFF


def space_in_id(value: bytearray) -> None:
    value[value.index(b"web-17") + 3] = ord(" ")


def number_zero(value: bytearray) -> None:
    start = value.index(b"web-17") + 6
    value[start : start + 8] = bytes(8)


def longer_id(value: bytearray) -> None:
    value[43] += 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (spoil_id, "its mark cannot be"),
        (space_in_id, "its mark cannot be"),
        (number_zero, "its mark cannot be"),
        (longer_id, "names do not fill its header"),
    ],
)
def test_a_mark_that_cannot_be_is_damage_even_under_a_checksum(
    change: Callable[[bytearray], None], reason: str
) -> None:
    with pytest.raises(EntryDamaged, match=reason):
        decode(bent_mark(change), seq=1)


def test_the_versions_that_are_known_are_told_with_the_one_that_is_not() -> None:
    value = bytearray(encode(MARKED, seq=1, points_before=0))
    value[0] = 3
    with pytest.raises(EntryVersionUnknown, match=r"version 3 .* \(1 and 2 are\)"):
        decode(sealed_again(value, seq=1), seq=1)
