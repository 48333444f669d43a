"""What a failed connection says about the other end: what waiting does not help is told apart from what it does."""

from __future__ import annotations

import http.client
import ssl

import pytest
import trio

from wal_ingest.client import peer
from wal_ingest.client.errors import Unreachable


def certificate(code: int, message: str = "self-signed certificate") -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def no_tls() -> ssl.SSLError:
    error = ssl.SSLError(1, "wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


def wrapped(cause: BaseException) -> BaseException:
    """As Trio gives it: within an error of its own."""
    error = trio.BrokenResourceError("broken")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("wrap", [lambda exc: exc, wrapped])
@pytest.mark.parametrize(
    ("cause", "words", "hint"),
    [
        (certificate(18), "is not trusted: self-signed certificate", "SSL_CERT_FILE"),
        (certificate(9), "is not valid yet", "clock"),
        (certificate(10), "has expired", "renew"),
        (certificate(62), "is for other names", "name"),
        (certificate(64), "is for other addresses", "name"),
        (no_tls(), "is no TLS", "ws://"),
    ],
)
def test_what_only_a_person_mends_is_a_wrong_peer_with_the_remedy(
    wrap: type[BaseException], cause: BaseException, words: str, hint: str
) -> None:
    found = peer.unreachable("node:1", wrap(cause), tls=True)
    assert found.wrong_peer
    assert words in str(found)
    assert hint in found.hint


@pytest.mark.parametrize(
    "cause",
    [
        ConnectionRefusedError(111, "Connection refused"),
        TimeoutError(110, "timed out"),
        OSError(113, "No route to host"),
        ConnectionResetError(104, "Connection reset by peer"),
        http.client.RemoteDisconnected("Remote end closed connection without response"),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    ],
)
def test_a_node_that_is_away_is_waited_for(cause: Exception) -> None:
    assert not peer.failed_post("node:1", cause, tls=True, answered=False).wrong_peer


def test_a_connection_that_is_closed_without_an_answer_is_suspected_only_before_the_first_answer() -> None:
    reset = ConnectionResetError(104, "Connection reset by peer")
    assert peer.unreachable("node:1", reset, tls=False).hint == peer.CHECK_TLS
    assert peer.unreachable("node:1", reset, tls=True).hint == peer.CHECK_PLAIN
    assert peer.unreachable("node:1", reset, tls=False, answered=True).hint == ""


def _post_failed(beginning: bytes) -> Unreachable:
    exc = http.client.BadStatusLine(beginning.decode("latin-1"))
    return peer.failed_post("node:1", exc, tls=False, answered=False)


@pytest.mark.parametrize("judge", [lambda beginning: peer.not_http("node:1", beginning), _post_failed])
def test_an_answer_that_is_cut_off_at_any_byte_is_no_wrong_peer(judge: object) -> None:
    assert callable(judge)
    whole = b"HTTP/1.1 101 Switching Protocols\r\n"
    for length in range(1, len(whole) + 1):
        assert not judge(whole[:length]).wrong_peer, whole[:length]
    for other in (b"SSH-2.0-OpenSSH_9.6\r\n", b"220 mail ESMTP\r\n", b"\x15\x03\x01\x00\x02", b"HTML"):
        assert judge(other).wrong_peer, other
