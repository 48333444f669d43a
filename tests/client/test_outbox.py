"""The buffer: what is batched, when; what a welcome, an acknowledgement and a refusal do to it."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from wal_ingest.client.frames import Frame, Write
from wal_ingest.client.messages import Ack, Refusal, StoredFrame, Welcome
from wal_ingest.client.outbox import Outbox, OutOfStep
from wal_ingest.errors import BadRequest, BodyTooLarge
from wal_ingest.points import Lines

FRESH = Welcome(0, 0, [], 32, 1 << 20)


def outbox(**limits: Any) -> Outbox:
    return Outbox(
        **{
            "frame_points_max": 3,
            "frame_bytes_max": 1 << 20,
            "frame_wait_s_max": 0.05,
            "buffer_points_max": 100,
            "buffer_bytes_max": 1 << 20,
            **limits,
        }
    )


def lines(*values: int) -> Lines:
    return Lines(b"".join(b"m f=%d 1\n" % value for value in values), len(values))


def send_all(box: Outbox, now_s: float = 100.0) -> list[Frame]:
    """Everything that may go out now; far behind the time that a batch waits."""
    out = []
    while (frame := box.next_frame(now_s)) is not None:
        out.append(frame)
    return out


def numbers(frames: list[Frame]) -> list[int]:
    return [frame.number for frame in frames]


def test_a_batch_goes_when_it_is_full() -> None:
    box = outbox()
    box.welcomed(FRESH)
    box.add(lines(1, 2), now_s=0)
    assert box.next_frame(0.04) is None
    box.add(lines(3), now_s=0.04)
    frame = box.next_frame(0.04)
    assert frame is not None
    assert (frame.number, frame.lines()) == (1, lines(1, 2, 3).data)


def test_a_batch_goes_when_its_oldest_point_waited_long_enough() -> None:
    box = outbox()
    box.welcomed(FRESH)
    box.add(lines(1), now_s=7)
    box.add(lines(2), now_s=7.04)
    assert box.due_s == 7.05
    assert numbers(send_all(box, 7.05)) == [1]
    assert box.due_s is None


def test_nothing_is_due_while_the_window_is_full() -> None:
    """Small frames made then would only be small: the batch goes on filling."""
    box = outbox()
    box.welcomed(Welcome(0, 0, [], 1, 1 << 20))
    box.add(lines(1, 2, 3), now_s=0)
    assert numbers(send_all(box)) == [1]
    box.add(lines(4), now_s=0)
    assert (box.due_s, box.next_frame(100)) == (None, None)
    box.acked(Ack(1, 3, 1))
    assert numbers(send_all(box)) == [2]


def test_a_write_larger_than_a_frame_is_settled_with_its_last_part() -> None:
    box = outbox()
    box.welcomed(FRESH)
    write = box.add(lines(1, 2, 3, 4, 5), now_s=0)
    assert [frame.points for frame in send_all(box)] == [3, 2]
    assert box.acked(Ack(1, 3, 10)) == []
    assert box.acked(Ack(2, 2, 11)) == [write]
    assert (write.points, write.seq, box.points, box.bytes) == (5, 11, 0, 0)


def test_frames_keep_to_their_bytes_too() -> None:
    box = outbox(frame_points_max=1_000, frame_bytes_max=20)
    box.welcomed(FRESH)
    box.add(lines(*range(5)), now_s=0)
    assert [frame.lines() for frame in send_all(box)] == [
        lines(0, 1).data,
        lines(2).data,
        lines(3, 4).data,
    ]


def test_one_acknowledgement_settles_all_that_went_before_it() -> None:
    box = outbox()
    box.welcomed(FRESH)
    writes = [box.add(lines(value, value, value), now_s=0) for value in range(3)]
    send_all(box)
    assert box.acked(Ack(2, 6, 8)) == writes[:2]
    assert (box.unanswered, box.acked_points, box.settled_up_to(2), box.settled_up_to(3)) == (
        1,
        6,
        True,
        False,
    )


def test_an_acknowledgement_of_what_was_never_sent_is_out_of_step() -> None:
    box = outbox()
    box.welcomed(FRESH)
    box.add(lines(1, 2, 3), now_s=0)
    send_all(box)
    with pytest.raises(OutOfStep):
        box.acked(Ack(2, 3, 1))


def test_a_refused_frame_of_several_writes_is_sent_again_write_by_write() -> None:
    box = outbox()
    box.welcomed(FRESH)
    first, bad = box.add(lines(1, 2), now_s=0), box.add(lines(3), now_s=0)
    send_all(box)
    assert box.refused(Refusal(1, 400, "line 3: no", line=3)) == []
    again = send_all(box)
    assert [(frame.number, frame.lines()) for frame in again] == [(2, lines(1, 2).data), (3, lines(3).data)]
    assert box.acked(Ack(2, 2, 1)) == [first]
    assert box.refused(Refusal(3, 400, "line 1: no", line=1)) == [bad]
    assert [(part.lines, part.points, part.reason) for part in bad.refused] == [
        (lines(3).data, 1, "line 1: no")
    ]
    assert (box.points, box.bytes, box.refused_points) == (0, 0, 1)


def test_a_frame_that_is_too_large_is_halved_down_to_single_points() -> None:
    box = outbox()
    box.welcomed(FRESH)
    write = box.add(lines(1, 2, 3), now_s=0)
    send_all(box)
    settled: list[Write] = box.refused(Refusal(1, 413, "too large"))
    while not settled:
        for frame in send_all(box):
            settled += box.refused(Refusal(frame.number, 413, "too large"))
    assert settled == [write]
    assert [part.lines for part in write.refused] == [lines(n).data for n in (1, 2, 3)]


def test_a_frame_larger_than_the_node_takes_is_halved_before_it_is_sent() -> None:
    box = outbox(frame_points_max=100)
    box.welcomed(Welcome(0, 0, [], 32, 1_024 + 25))
    box.add(Lines(b"".join(b"m%d f=%d 1\n" % (n, n * n) for n in range(16)), 16), now_s=0)
    sent = send_all(box)
    assert all(len(frame.body) <= 25 for frame in sent)
    assert sum(frame.points for frame in sent) == 16
    assert numbers(sent) == list(range(1, len(sent) + 1))


@pytest.mark.parametrize("status", [503, 500, 429, 408])
def test_an_error_that_is_no_verdict_keeps_the_points(status: int) -> None:
    box = outbox()
    box.welcomed(FRESH)
    box.add(lines(1, 2, 3), now_s=0)
    send_all(box)
    assert box.refused(Refusal(1, status, "later")) == []
    assert [(frame.number, frame.points) for frame in send_all(box)] == [(2, 3)]


def test_a_number_that_cannot_be_used_asks_for_a_new_welcome_and_another_number() -> None:
    box = outbox()
    box.welcomed(FRESH)
    box.add(lines(1, 2, 3), now_s=0)
    send_all(box)
    with pytest.raises(OutOfStep):
        box.refused(Refusal(1, 409, "used"))
    box.lost()
    box.welcomed(Welcome(40, 1, [], 32, 1 << 20))
    assert numbers(send_all(box)) == [41]


@pytest.mark.parametrize("number", [None, 9])
def test_a_refusal_of_nothing_that_was_sent_is_out_of_step(number: int | None) -> None:
    box = outbox()
    box.welcomed(FRESH)
    with pytest.raises(OutOfStep):
        box.refused(Refusal(number, 400, "what?"))


def test_a_welcome_settles_what_is_stored_and_the_rest_is_sent_again() -> None:
    """Four frames on the way when the connection broke: stored, refused unheard, stored, not arrived."""
    box = outbox()
    box.welcomed(FRESH)
    writes = [box.add(lines(value, value, value), now_s=0) for value in range(4)]
    send_all(box)
    box.lost()
    assert box.next_frame(100) is None
    stored = [
        StoredFrame(number, number + 100, 3, zlib.crc32(lines(*[number - 1] * 3).data)) for number in (1, 3)
    ]
    settled = box.welcomed(Welcome(3, 103, stored, 32, 1 << 20))
    assert settled == [writes[0], writes[2]]
    assert [write.seq for write in settled] == [101, 103]
    assert [(frame.number, frame.lines()) for frame in send_all(box)] == [
        (4, lines(3, 3, 3).data),
        (5, lines(1, 1, 1).data),
    ]


def narrowly_connected_again() -> Outbox:
    """Three frames went out, nobody knows of them, and only one of them has room on the new connection."""
    box = outbox()
    box.welcomed(FRESH)
    for value in range(3):
        box.add(lines(value, value, value), now_s=0)
    send_all(box)
    box.lost()
    box.welcomed(Welcome(0, 0, [], 1, 1 << 20))
    assert numbers(send_all(box)) == [1]
    return box


def test_numbers_stay_in_order_over_several_losses() -> None:
    box = narrowly_connected_again()
    box.lost()
    box.welcomed(FRESH)
    assert numbers(send_all(box)) == [1, 2, 3]


def test_what_needs_a_new_number_goes_behind_what_has_its_own() -> None:
    box = narrowly_connected_again()
    box.refused(Refusal(1, 503, "later"))
    out = []
    while (frame := box.next_frame(100)) is not None:
        out.append((frame.number, frame.lines()[:5]))
        box.acked(Ack(frame.number, 3, 1))
    assert out == [(2, b"m f=1"), (3, b"m f=2"), (4, b"m f=0")]


def test_a_stored_frame_with_another_checksum_is_somebody_elses() -> None:
    box = outbox()
    box.welcomed(FRESH)
    box.add(lines(1, 2, 3), now_s=0)
    send_all(box)
    box.lost()
    assert box.welcomed(Welcome(1, 1, [StoredFrame(1, 1, 3, 12345)], 32, 1 << 20)) == []
    assert numbers(send_all(box)) == [2]


def test_numbers_begin_above_what_an_earlier_process_sent() -> None:
    box = outbox()
    box.add(lines(1, 2, 3), now_s=0)
    box.welcomed(Welcome(77, 5, [], 32, 1 << 20))
    assert numbers(send_all(box)) == [78]


def test_no_more_is_unanswered_than_a_welcome_can_list() -> None:
    box = outbox(buffer_points_max=1_000)
    box.welcomed(Welcome(0, 0, [], 1_000, 1 << 20))
    for value in range(80):
        box.add(lines(value, value, value), now_s=0)
    assert len(send_all(box)) == 64


def test_frames_that_wait_are_held_compressed() -> None:
    box = outbox(frame_points_max=100)
    box.add(lines(*[1] * 100), now_s=0)
    assert 0 < box.bytes < 100
    assert box.points == 100


def test_what_does_not_fit_is_told_before_it_is_taken() -> None:
    box = outbox(buffer_points_max=5)
    box.add(lines(1, 2, 3), now_s=0)
    assert box.has_room(lines(4, 5))
    assert not box.has_room(lines(4, 5, 6))


def test_a_write_that_never_fits_is_told_apart() -> None:
    box = outbox(buffer_points_max=5, buffer_bytes_max=40)
    with pytest.raises(BadRequest, match="6 points"):
        box.check_size(Lines(b"m f=1\n" * 6, 6))
    with pytest.raises(BodyTooLarge, match="buffer_bytes_max"):
        box.check_size(Lines(b"m" * 41, 1))


@pytest.mark.parametrize(
    ("durable", "can"), [(0, True), (7, True), (2**52, True), (2**53 - 2**51, False), (2**53 - 1, False)]
)
def test_a_stream_is_left_before_its_numbers_are_used_up(durable: int, can: bool) -> None:
    box = outbox()
    welcome = Welcome(durable, 1, [], 32, 1 << 20)
    box.welcomed(welcome)
    assert box.can_go_on(welcome) is can


def test_a_stream_that_was_forgotten_goes_on_with_its_numbers_where_the_node_takes_them() -> None:
    for durable, can in ((1_000_000_000, True), (2**52, False)):
        box = outbox()
        box.welcomed(Welcome(durable, 1, [], 32, 1 << 20))
        box.add(lines(1, 2, 3), now_s=0)
        sent = send_all(box)
        box.lost()
        box.welcomed(FRESH)
        assert box.can_go_on(FRESH) is can
        if not can:
            box.begin_another_stream()
            box.welcomed(FRESH)
        again = send_all(box)
        assert [each.crc32 for each in again] == [each.crc32 for each in sent]
        assert numbers(again) == ([durable + 1] if can else [1])
