"""What an SRE reads of a connection that failed: the cause, and no class of a library."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import urllib3

from wal_ingest.flusher.sinks.transport_words import transport_reason


@contextmanager
def server(answer: bytes | None, *, end: bytes = b"\r\n\r\nx") -> Iterator[int]:
    """Answers one request, up to its end, with some bytes, and closes; None: it never answers."""
    done = threading.Event()

    def serve() -> None:
        connection, _address = listener.accept()
        with connection:
            read = b""
            while not (read and read.endswith(end)) and (more := connection.recv(65536)):
                read += more  # closing with bytes unread would reset the connection
            if answer is None:
                done.wait(10)
            else:
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            done.set()
            thread.join()


def failure(url: str) -> BaseException:
    pool = urllib3.PoolManager()
    with pytest.raises((urllib3.exceptions.HTTPError, OSError)) as caught:  # noqa: PT012
        answer = pool.urlopen("POST", url, body=b"x", retries=False, timeout=0.3, preload_content=False)
        answer.read(65536, decode_content=True)
    pool.clear()
    return caught.value


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the connection was closed without an answer"),
        (b"SSH-2.0-OpenSSH\r\n", "the answer is no HTTP"),
        (b"\x15\x03\x01\x00\x02", "the answer is no HTTP"),
        (b"HTTP/1.1 " + b"a" * 70_000, "the answer is no HTTP"),
        (HEAD + b"Content-Length: 100\r\n\r\nabc", "the answer was cut short"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "the answer was cut short"),
        (
            HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            "the answer cannot be decompressed",
        ),
        (None, "nothing came in time"),
    ],
)
def test_an_answer_that_is_none_is_called_what_it_is(answer: bytes | None, words: str) -> None:
    with server(answer) as port:
        assert transport_reason(failure(f"http://127.0.0.1:{port}/")) == words


def test_a_server_that_speaks_no_tls_is_called_that() -> None:
    with server(b"HTTP/1.1 400 Bad Request\r\n\r\n", end=b"") as port:
        assert transport_reason(failure(f"https://127.0.0.1:{port}/")) == "TLS failed: wrong version number"


def test_a_system_that_has_words_of_its_own_is_quoted() -> None:
    assert transport_reason(failure("http://127.0.0.1:9/")) == "Connection refused"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ssl.SSLCertVerificationError("self-signed"), "the certificate is not trusted: ('self-signed',)"),
        (ssl.SSLError(), "TLS failed: no reason is known"),
        (urllib3.exceptions.HTTPError("as nobody has seen it"), "the connection failed"),
    ],
)
def test_what_says_little_about_itself_still_has_words(error: Exception, words: str) -> None:
    assert transport_reason(error).endswith(words)
