"""From a body as it was sent to canonical lines: on the spot what is small or goes in bulk, the rest in a thread.

The way into a thread and back costs more than checking a usual body does, so most bodies are checked where their
request runs; what would hold up everybody else's goes to a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

from wal_ingest.errors import BodyTooLarge
from wal_ingest.http.body import Hold
from wal_ingest.http.requests import Format, sniff
from wal_ingest.points import Lines, Precision
from wal_ingest.points.encoding import decode_body
from wal_ingest.points.json_points import accept_json, accept_ndjson
from wal_ingest.points.line_protocol import accept_line_protocol, accept_line_protocol_fast
from wal_ingest.settings import ServerSettings

T = TypeVar("T")

# A body of up to this many bytes, after decompression, is checked without going to a thread.
INLINE_BYTES_MAX = 256 * 1024

# JSON takes five to fifty times as long as line protocol that goes in bulk, and a body that needs the exact parser
# a hundred times: larger ones go to a thread, so that one sender's mistakes do not make everybody wait.
JSON_INLINE_BYTES_MAX = 64 * 1024
SLOW_INLINE_BYTES_MAX = 4 * 1024

# Bodies that are checked in threads at one time: each may take `body_bytes_max` more than the budget counts.
CHECKING_THREADS_MAX = 2


class ThreadDoor(Protocol):
    """Runs a function in a thread and awaits it; tests use a twin that runs it on the spot."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


def thread_door(threads_max: int = CHECKING_THREADS_MAX) -> ThreadDoor:
    """The real way into a thread, for `threads_max` at one time.

    Cancellation: the thread finishes by itself and its result is dropped; the work must be pure.
    """
    limiter = trio.CapacityLimiter(threads_max)

    async def run(work: Callable[[], T], /) -> T:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    return run


class Checker:
    """Decodes and validates bodies under the limits of the settings; both doors share one."""

    def __init__(self, settings: ServerSettings, in_thread: ThreadDoor | None = None) -> None:
        self._settings = settings
        self._in_thread = in_thread if in_thread is not None else thread_door()

    async def decode(self, body: bytes, encoding: str, hold: Hold) -> bytes:
        """The body without its encoding, counted in `hold`: decompressed on the spot when what comes out is small.

        Raises what `decode_body` raises, and TooManyBodies. Cancellation: nothing is left behind but the hold.
        """
        bytes_max = self._settings.body_bytes_max
        if not encoding:
            return decode_body(body, encoding, bytes_max=bytes_max)
        decoded = None
        if len(body) <= INLINE_BYTES_MAX:
            try:
                decoded = decode_body(body, encoding, bytes_max=min(INLINE_BYTES_MAX, bytes_max))
            except BodyTooLarge:
                if bytes_max <= INLINE_BYTES_MAX:
                    raise
        if decoded is None:
            decoded = await self._in_thread(lambda: decode_body(body, encoding, bytes_max=bytes_max))
        hold.take(len(decoded))
        return decoded

    async def lines(
        self, body: bytes, *, written: Format | None, precision: Precision | None, now_ns: int
    ) -> Lines:
        """The canonical lines of a decoded body; `written` is None when the sender did not say how it is written.

        Raises PointError, BadRequest. Cancellation: nothing is left behind.
        """
        written = written if written is not None else sniff(body)
        inline_bytes_max = SLOW_INLINE_BYTES_MAX
        if written is Format.LINE_PROTOCOL and len(body) <= INLINE_BYTES_MAX:
            lines = accept_line_protocol_fast(
                body,
                precision=precision or Precision.NS,
                now_ns=now_ns,
                line_bytes_max=self._settings.line_bytes_max,
            )
            if lines is not None:
                return lines
        elif written is not Format.LINE_PROTOCOL:
            inline_bytes_max = JSON_INLINE_BYTES_MAX
        if len(body) <= inline_bytes_max:
            return self._validate(body, written, precision, now_ns)
        return await self._in_thread(lambda: self._validate(body, written, precision, now_ns))

    def _validate(self, body: bytes, written: Format, precision: Precision | None, now_ns: int) -> Lines:
        """The whole of it, however slow: line by line where it must be."""
        settings = self._settings
        if written is Format.LINE_PROTOCOL:
            return accept_line_protocol(
                body,
                precision=precision or Precision.NS,
                now_ns=now_ns,
                line_bytes_max=settings.line_bytes_max,
            )
        accept = accept_json if written is Format.JSON else accept_ndjson
        return accept(
            body,
            now_ns=now_ns,
            precision=precision or Precision.MS,
            depth_max=settings.json_depth_max,
            line_bytes_max=settings.line_bytes_max,
        )
