"""What can go wrong on the sender's side, named for the remedy as everywhere (see `wal_ingest.errors`)."""

from __future__ import annotations

import re

from wal_ingest.errors import ComeBackLater

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
    """The node cannot be reached, or something else answers there: no stream was opened, nothing was sent.

    `status` is the HTTP status that the opening was answered with, 0 when it was not answered at all.
    `retry_after_s` is 0 when nobody named a wait.

    Unlike `StreamClosed`, which the node itself says, or which ends a stream that was open.
    """

    def __init__(self, message: str, *, status: int = 0, retry_after_s: int = 0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.status = status


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
