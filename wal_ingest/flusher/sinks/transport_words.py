"""Why a request got no answer, in our words: those of urllib3 and `http.client` name their classes, not the cause."""

from __future__ import annotations

import http.client
import ssl
import zlib
from collections.abc import Iterator

# The first row that fits the innermost error counts; urllib3's own errors about an answer that ends early are
# `http.client`'s as well.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (http.client.RemoteDisconnected, "the connection was closed without an answer"),
    (http.client.IncompleteRead, "the answer was cut short"),
    (http.client.HTTPException, "the answer is no HTTP"),
    (TimeoutError, "nothing came in time"),
    (zlib.error, "the answer cannot be decompressed"),
)


def transport_reason(exc: BaseException) -> str:
    """What ended a request of urllib3: the operating system's words where there are some."""
    for cause in _causes(exc):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not trusted: {getattr(cause, 'verify_message', '') or cause}"
        if isinstance(cause, ssl.SSLError):
            why = getattr(cause, "reason", "") or "no reason is known"
            return f"TLS failed: {why.replace('_', ' ').lower()}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        for kind, words in _WORDS:
            if isinstance(cause, kind):
                return words
    return "the connection failed"


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The innermost first. urllib3 gives the error that it wraps as an argument, too."""
    inner = next((each for each in reversed(exc.args) if isinstance(each, BaseException)), None)
    inner = inner or exc.__cause__ or exc.__context__
    if inner is not None:
        yield from _causes(inner)
    yield exc
