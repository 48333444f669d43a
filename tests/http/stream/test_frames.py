"""The glance at frames beside wsproto: what it takes itself is what wsproto would have made of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Event, Message, Ping, Pong
from wsproto.frame_protocol import XorMaskerSimple

from tests.http.stream.rig import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, masked, ws
from wal_ingest.http.hypercorn_mends.frames import Masker, Skimmer, apply_mask, masked_by_wsproto

Told = list[tuple[str, object]]


class Listener:
    """What a peer said, whatever it was cut into: messages, pings and pongs, and the close."""

    def __init__(self) -> None:
        self.told: Told = []
        self._message = b""

    @property
    def is_over(self) -> bool:
        return bool(self.told) and self.told[-1][0] == "close"

    def piece(self, data: bytes, *, is_last: bool) -> None:
        self._message += data
        if is_last:
            self.told.append(("message", self._message))
            self._message = b""

    def events(self, connection: Connection) -> None:
        for event in connection.events():
            self.event(event)
            if self.is_over:
                return

    def event(self, event: Event) -> None:
        if isinstance(event, Message):
            data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
            self.piece(data, is_last=event.message_finished)
        elif isinstance(event, Ping | Pong):
            self.told.append((type(event).__name__, bytes(event.payload)))
        elif isinstance(event, CloseConnection):
            self.told.append(("close", event.code))


def by_wsproto(reads: Sequence[bytes]) -> Told:
    connection, listener = Connection(ConnectionType.SERVER), Listener()
    for data in reads:
        if listener.is_over:
            break
        connection.receive_data(data)
        listener.events(connection)
    return listener.told


def at_a_glance(reads: Sequence[bytes], frames_max: int = 64) -> tuple[Told, int]:
    """What is said, and how many of the messages wsproto never saw."""
    connection, listener, skimmer, taken = Connection(ConnectionType.SERVER), Listener(), Skimmer(), 0
    for data in reads:
        skimmer.feed(data)
        while not listener.is_over and (part := skimmer.next(frames_max)) is not None:
            data, is_message = part
            if is_message:
                assert connection.state is ConnectionState.OPEN
                listener.piece(data, is_last=True)
                taken += 1
            else:
                connection.receive_data(data)
                listener.events(connection)
    return listener.told, taken


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    ends = sorted({min(each, len(data)) for each in at} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\x01\x02\x03\x04"])
def test_a_whole_message_is_taken_whatever_its_length(opcode: int, size: int, mask: bytes) -> None:
    payload = (b"abcdefg" * (size // 7 + 1))[:size]
    told, taken = at_a_glance([ws(opcode, payload, mask=mask)])
    assert told == [("message", payload)]
    assert taken == 1


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (ws(TEXT, b"\xff"), "text that is not UTF-8"),
        (ws(BINARY, b"a", mask=None), "unmasked"),
        (ws(BINARY, b"a", reserved=4), "a reserved bit"),
        (b"\x82\xfe\x00\x01\0\0\0\0a", "a short length in two bytes"),
        (b"\x82\xff\0\0\0\0\0\0\xff\xff\0\0\0\0" + bytes(65535), "a medium length in eight bytes"),
        (ws(CONTINUATION, b"a"), "a continuation of nothing"),
        (ws(BINARY, b"a", fin=False) + ws(BINARY, b"b"), "a message within a message"),
        (ws(3), "an unknown opcode"),
        (ws(PING, b"a", fin=False), "a ping in pieces"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_for_wsproto_to_say(frame: bytes, what: str) -> None:
    good = ws(BINARY, b"good")
    told, taken = at_a_glance([good + frame + good])
    assert told == by_wsproto([good + frame + good]), what
    assert told[0] == ("message", b"good")
    assert told[-1][0] == "close"
    assert taken == 1


def test_in_the_middle_of_a_message_a_ping_is_told_and_nothing_else_is_taken() -> None:
    reads = [ws(TEXT, b"a", fin=False) + ws(PING, b"p") + ws(CONTINUATION, b"b") + ws(TEXT, b"c")]
    assert at_a_glance(reads) == (
        [("Ping", b"p"), ("message", b"ab"), ("message", b"c")],
        1,
    )


def test_a_head_that_is_cut_is_put_together() -> None:
    data = ws(BINARY, bytes(300))
    for at in range(1, 8):
        assert at_a_glance([data[:at], data[at:]]) == ([("message", bytes(300))], 1)


def test_no_more_frames_are_looked_at_in_one_go_than_was_asked() -> None:
    skimmer = Skimmer()
    skimmer.feed(ws(PING) * 10)
    sizes = []
    while (part := skimmer.next(4)) is not None:
        sizes.append(len(part[0]) // len(ws(PING)))
    assert sizes == [4, 4, 2]


FRAMES = st.one_of(
    st.builds(
        ws,
        st.sampled_from([TEXT, BINARY, CONTINUATION, PING, PONG]),
        st.binary(max_size=140) | st.text(max_size=60).map(str.encode),
        fin=st.booleans(),
    ),
    st.builds(ws, st.sampled_from([TEXT, BINARY]), st.text(max_size=60).map(str.encode)),
    st.builds(ws, st.integers(0, 15), st.binary(max_size=10), reserved=st.integers(0, 7)),
    st.just(ws(CLOSE, b"\x03\xe8")),
    st.binary(max_size=20),
)


@given(
    st.lists(FRAMES, max_size=12).map(b"".join), st.lists(st.integers(0, 600), max_size=8), st.integers(1, 5)
)
@example(ws(TEXT, b"\xc3", fin=False) + ws(CONTINUATION, b"\xa9"), [7], 1)
def test_whatever_comes_and_however_it_is_cut_the_same_is_told(
    data: bytes, at: list[int], frames_max: int
) -> None:
    # A head that is not all there is judged when it is: here, at the latest, by what comes last.
    reads = [*cut(data, at), bytes(14)]
    assert at_a_glance(reads, frames_max)[0] == by_wsproto(reads)


def test_masks_of_the_tests_are_those_of_the_protocol() -> None:
    assert masked(masked(b"hello")) == b"hello"


@given(st.binary(max_size=100), st.binary(min_size=4, max_size=4))
def test_both_ways_to_take_a_mask_off_agree(data: bytes, mask: bytes) -> None:
    assert apply_mask(data, mask) == masked_by_wsproto(data, mask)
    assert apply_mask(apply_mask(data, mask), mask) == data


def test_a_payload_in_parts_is_unmasked_as_wsproto_does_it() -> None:
    ours, theirs = Masker(b"\x01\x80\xfe\x33"), XorMaskerSimple(b"\x01\x80\xfe\x33")
    for size in (1, 3, 0, 7, 4_096, 5, 2):
        part = bytearray(random.Random(size).randbytes(size))
        assert ours.process(part) == theirs.process(part)
