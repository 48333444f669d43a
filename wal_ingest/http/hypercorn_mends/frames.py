"""The frames of a WebSocket, as far as the common one is recognised at a glance. Pure.

The common frame is a whole message: masked, in one piece, and all there. It is taken here, at a fifth of what wsproto's
state machine needs for it. Every other frame (in pieces, cut by a read, of control, or wrong) is wsproto's to judge: it
is given to it whole and in its turn, so that wsproto always stands between two frames when one is taken here.

Layout: RFC 6455 §5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsproto.frame_protocol import XorMaskerSimple


def masked_by_wsproto(data: bytes, mask: bytes) -> bytes:
    """`data` with the four bytes of `mask` laid over it, again and again: 40 µs for 16 KiB."""
    return bytes(XorMaskerSimple(mask).process(data))  # type: ignore[arg-type]  # any buffer does


try:  # takes one
    from websockets.speedups import apply_mask as apply_mask
except ImportError:  # pragma: no cover - a platform without a wheel
    apply_mask = masked_by_wsproto  # type: ignore[assignment]


class Masker(XorMaskerSimple):
    """wsproto's, for a payload that comes in parts, with `apply_mask`: 512 KiB took it 2 ms."""

    def process(self, data: bytearray) -> bytearray:
        key = bytes(self._masking_key)
        turn = len(data) % 4
        self._masking_key = key[turn:] + key[:turn]
        return bytearray(apply_mask(data, key))


_FIN, _MASKED = 0x80, 0x80
_OPCODE, _LENGTH = 0x0F, 0x7F
_CONTINUATION, _TEXT, _BINARY = 0, 1, 2
_NO_MASK = b"\0\0\0\0"


@dataclass(slots=True)
class _Frame:
    first: int
    masked: bool
    start: int
    """Where the payload begins, behind the mask."""
    length: int
    is_shortest: bool
    """Whether the length is said in as few bytes as it can be, which the protocol asks for."""

    @property
    def is_whole_message(self) -> bool:
        return self.first in (_FIN | _BINARY, _FIN | _TEXT)

    @property
    def is_data(self) -> bool:
        return self.first & _OPCODE in (_CONTINUATION, _TEXT, _BINARY)


def _head(data: bytes, at: int) -> _Frame | None:
    """The frame that begins at `at`; None when its head is not all there."""
    if len(data) - at < 2:
        return None
    second = data[at + 1]
    length, start, least = second & _LENGTH, at + 2, 0
    if length == 126:
        start, least = at + 4, 126
    elif length == 127:
        start, least = at + 10, 1 << 16
    if least:
        length = int.from_bytes(data[at + 2 : start], "big")
    masked = bool(second & _MASKED)
    if masked:
        start += 4
    if start > len(data):
        return None
    return _Frame(data[at], masked, start, length, length >= least)


def _payload(data: bytes, frame: _Frame) -> bytes | None:
    """The payload of a whole message; None when it is for wsproto to say what is wrong with it."""
    if not frame.is_shortest:
        return None
    mask = data[frame.start - 4 : frame.start]
    payload = data[frame.start : frame.start + frame.length]
    if mask != _NO_MASK:
        payload = apply_mask(payload, mask)
    if frame.first & _OPCODE == _TEXT and not _is_utf8(payload):
        return None
    return payload


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Skimmer:
    """Goes over what is read of one connection, frame by frame.

    `next` gives a whole message's payload, or bytes that are wsproto's, in the order in which they came.
    """

    def __init__(self) -> None:
        # A head that was cut by the end of a read.
        self._kept = b""
        # Bytes of a frame that wsproto has begun.
        self._left = 0
        # wsproto has begun a message of several frames.
        self._in_message = False
        self._data = b""
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Takes what was read; `next` has been called until it gave None."""
        self._data = self._kept + data if self._kept else data
        self._kept = b""
        self._at = 0

    def next(self, frames_max: int) -> tuple[bytes, bool] | None:
        """What comes next, after at most so many frames: bytes, and whether they are a message; None at the end."""
        data, begin = self._data, self._at
        at = begin
        if self._left:
            at = min(begin + self._left, len(data))
            self._left -= at - begin
        for _ in range(frames_max):
            frame = _head(data, at)
            if frame is None:
                break
            end = frame.start + frame.length
            if frame.is_whole_message and frame.masked and end <= len(data) and not self._in_message:
                payload = _payload(data, frame)
                if payload is not None:
                    if begin < at:
                        break  # first what stands before it
                    self._at = end
                    return payload, True
            if frame.is_data:
                self._in_message = not frame.first & _FIN
            at = end
            if end > len(data):
                self._left, at = end - len(data), len(data)
        else:
            self._at = at
            return data[begin:at], False
        if begin < at:
            self._at = at
            return data[begin:at], False
        self._kept = data[at:]
        self._data, self._at = b"", 0
        return None
