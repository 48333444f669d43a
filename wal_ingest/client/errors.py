"""What can go wrong on the sender's side, named for the remedy as everywhere (see `wal_ingest.errors`)."""

from __future__ import annotations

import re

from wal_ingest.errors import ComeBackLater, ConfigError, RequestError

# Close codes of RFC 6455, and one of ours.
GOING_AWAY = 1001
PROTOCOL_ERROR = 1002
ABNORMAL = 1006
POLICY_VIOLATION = 1008
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
REPLACED = 4001

_RETRY_AFTER = re.compile(r"retry after ([0-9]{1,9}) s: ")


class Unreachable(ComeBackLater):
    """The node cannot be reached, or something else answers there.

    Of a stream nothing was sent; of a POST it is *unknown* whether it was stored.

    `status` is the HTTP status that was answered, 0 when nothing was. `retry_after_s` is 0 when nobody named a wait.
    `wrong_peer` says that what answers there is no node: an operator must look, and waiting changes nothing. `hint`
    says what to do then.

    Unlike `StreamClosed`, which the node itself says, or which ends a stream that was open.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after_s: int = 0,
        wrong_peer: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status
        self.wrong_peer = wrong_peer
        self.hint = hint


class StreamClosed(ComeBackLater):
    """The stream is closed: what was sent and is not acknowledged is *unknown*, so send it again.

    `code` is the close code of RFC 6455 (1006: the connection broke, or the node fell silent), `reason` the words that
    came with it. `retry_after_s` is the wait that the node asked for, 0 when it asked for none. `REPLACED` (4001) means
    that somebody else streams with the same client_id: do not come back by yourself.
    """

    def __init__(self, code: int, reason: str) -> None:
        found = _RETRY_AFTER.match(reason)
        retry_after_s = int(found[1]) if found and code == TRY_AGAIN_LATER else 0
        super().__init__(
            f"the stream was closed ({code}): {reason or 'no reason given'}", retry_after_s=retry_after_s
        )
        self.code = code
        self.reason = reason


class PointsRefused(RequestError):
    """The node will never take these points: nothing of `lines` was stored.

    `lines` are canonical line protocol, `points` of them; `status` is HTTP's. A write that was larger than a frame may
    have been refused in part: then the rest of it is stored.

    Unlike `PointError`, which a write raises for what can be seen without the node.
    """

    def __init__(self, lines: bytes, *, points: int, status: int, reason: str) -> None:
        super().__init__(f"the node refused {points} point{'s' * (points != 1)} ({status}): {reason}")
        self.lines = lines
        self.points = points
        self.status = status
        self.reason = reason


class BufferFull(ComeBackLater):
    """There is no room for this write: the node is slower than the writers, or away. Nothing of it was taken.

    `waiting_points` and `waiting_bytes` are what waits; `last_error` is why the node is away, empty when it is not.

    Unlike `BodyTooLarge`, which says that the write would not fit into an empty buffer either.
    """

    def __init__(
        self,
        *,
        waiting_points: int,
        waiting_bytes: int,
        buffer_points_max: int,
        buffer_bytes_max: int,
        last_error: str,
    ) -> None:
        why = f"the node is away: {last_error}" if last_error else "the node is slower than the writers"
        super().__init__(
            f"the buffer is full: {waiting_points} points in {waiting_bytes} bytes wait (buffer_points_max "
            f"{buffer_points_max}, buffer_bytes_max {buffer_bytes_max}); {why}"
        )
        self.waiting_points = waiting_points
        self.waiting_bytes = waiting_bytes
        self.last_error = last_error


class NotDelivered(ComeBackLater):
    """The client was left before everything was durable: `points` of them are given up, most likely lost.

    The node may hold some of them, whose acknowledgement did not come back. `last_error` says why it took too long.
    """

    def __init__(self, points: int, *, last_error: str) -> None:
        why = f": {last_error}" if last_error else ""
        super().__init__(f"{points} points were not acknowledged before the client was left{why}")
        self.points = points
        self.last_error = last_error


class Replaced(ConfigError):
    """Somebody else streams with the same client_id: the node gave our place to them.

    Coming back by itself would only take the place away again. `points` are those that were not acknowledged.
    """

    def __init__(self, client_id: str, *, points: int) -> None:
        super().__init__(
            f"another connection came with the client_id {client_id!r}; {points} points were not acknowledged",
            hint="give every client an id of its own, or none",
        )
        self.client_id = client_id
        self.points = points
