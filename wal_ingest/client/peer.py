"""What a failed connection says about the other end, in words, with what to do about it. Pure.

| what happens | what it is | waiting helps |
|---|---|---|
| the certificate is not trusted, has expired, or is for another name | a certificate or an address to correct | no |
| TLS was spoken, and the answer is no TLS | a plain port: ws:// or http:// | no |
| no TLS was spoken, and the answer is TLS, or says that TLS is expected | a TLS port: wss:// or https:// | no |
| the answer is no HTTP | another program's port | no |
| closed or reset without an answer | a node that ends, or one of the above | perhaps: with a hint |
| refused, no route, timed out | a node that is away | yes |

Where waiting does not help, the error has `wrong_peer`: `wal-ingest send` ends with it, and the agent and the client
library say it once, keep everything, and try again slowly.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator

from wal_ingest.client.errors import Unreachable
from wal_ingest.confirmation import quoted

USE_TLS = "TLS is spoken there: begin the address with wss:// or https://"
USE_PLAIN = "no TLS is spoken there: begin the address with ws:// or http://, or give the TLS port"
CHECK_ADDRESS = "give the host and port of a wal-ingest node"
CHECK_TLS = "where that is a TLS port, begin the address with wss:// or https://"
CHECK_PLAIN = "where that is a port without TLS, begin the address with ws:// or http://"
_CA = (
    "name the file with the certificate (PEM) of the authority that signed it in SSL_CERT_FILE; in a program, "
    "with tls=ssl.create_default_context(cafile=...)"
)

# By OpenSSL's number of the reason (X509_V_ERR_*): what is wrong, and what to do. Any other is a matter of trust.
_CERTIFICATES = {
    9: ("its certificate is not valid yet", "set this machine's clock, or renew the certificate"),
    10: ("its certificate has expired", "renew it on the server; or set this machine's clock"),
    62: (
        "its certificate is for other names",
        "use a name that is in the certificate, or have this one added",
    ),
    64: (
        "its certificate is for other addresses",
        "use a name that is in the certificate, or have this one added",
    ),
}
# What OpenSSL calls an answer that is no TLS.
_NO_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNKNOWN_PROTOCOL",
    }
)
_HTTP = b"HTTP/"
# How a TLS alert begins: what a TLS server sends to a client that does not speak TLS.
_ALERT = b"\x15\x03"
# How servers say in HTTP that TLS is expected: nginx, Go's, Apache's.
_EXPECTS_TLS = (
    b"plain HTTP request was sent to HTTPS port",
    b"HTTP request to an HTTPS server",
    b"speaking plain HTTP to an SSL-enabled server port",
)


def unreachable(place: object, exc: BaseException, *, tls: bool, answered: bool = False) -> Unreachable:
    """The error for a connection that failed with `exc`; `place` is the address for people.

    `answered` says that an answer came over this connection before: then the address is right.
    """
    causes = list(_causes(exc))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            what, hint = _CERTIFICATES.get(
                cause.verify_code, (f"its certificate is not trusted: {cause.verify_message}", _CA)
            )
            return Unreachable(f"{place}: {what}", wrong_peer=True, hint=hint)
        if isinstance(cause, ssl.SSLError) and getattr(cause, "reason", None) in _NO_TLS:
            return Unreachable(f"{place}: the answer is no TLS", wrong_peer=True, hint=USE_PLAIN)
    hint = ""
    if not answered and any(
        isinstance(cause, EOFError | ConnectionResetError | ssl.SSLEOFError) for cause in causes
    ):
        hint = CHECK_PLAIN if tls else CHECK_TLS
    return Unreachable(f"{place}: {reason_of(causes)}", hint=hint)


def failed_post(place: object, exc: Exception, *, tls: bool, answered: bool) -> Unreachable:
    """`unreachable` for a request of the standard library's client."""
    if isinstance(exc, http.client.BadStatusLine) and not isinstance(exc, http.client.RemoteDisconnected):
        return not_http(place, str(exc.args[0]).encode("latin-1", errors="replace"))
    return unreachable(place, exc, tls=tls, answered=answered)


def not_http(place: object, beginning: bytes) -> Unreachable:
    """The error for an answer that is no HTTP, by its first bytes.

    A beginning of HTTP is an answer that was cut off: that may happen to a node too.
    """
    if beginning[: len(_HTTP)] == _HTTP[: len(beginning)]:
        return Unreachable(f"{place}: the answer was cut off")
    if beginning.startswith(_ALERT):
        return Unreachable(f"{place}: the answer is TLS", wrong_peer=True, hint=USE_TLS)
    return Unreachable(
        f"{place}: this is not a wal-ingest node: it answered {quoted(beginning)}, which is no HTTP",
        wrong_peer=True,
        hint=CHECK_ADDRESS,
    )


def no_http_by_words(place: object, words: str) -> Unreachable | None:
    """The error for an answer that h11 calls illegal; None for other words. Its message does not show the bytes."""
    if words == "illegal request line":
        # h11's error for a first byte that is a control character, in answers too: TLS begins with one.
        return Unreachable(f"{place}: the answer is TLS, or no HTTP", wrong_peer=True, hint=USE_TLS)
    if words.startswith("illegal "):
        what = f"{place}: this is not a wal-ingest node: its answer is no HTTP ({words})"
        return Unreachable(what, wrong_peer=True, hint=CHECK_ADDRESS)
    return None


def closed(place: object, words: str, *, tls: bool) -> Unreachable:
    """The error for a connection that was closed before anything was answered on it."""
    return Unreachable(f"{place}: {words}", hint="" if tls else CHECK_TLS)


def expects_tls(body: bytes) -> bool:
    """Whether an answer in HTTP says that its port is for TLS."""
    return any(words in body for words in _EXPECTS_TLS)


def reason_of(causes: list[BaseException]) -> str:
    """The operating system's words for it, where there are some."""
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return next((str(cause) for cause in causes if str(cause)), type(causes[0]).__name__)


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """The innermost first: libraries wrap the system's error. Of several attempts the first counts."""
    inner = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc.__cause__ or exc.__context__
    if inner is not None:
        yield from _causes(inner)
    yield exc
