"""The relay does what it says, over real sockets: a cut that does not strike proves nothing."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.rigs.relay import CUT_BITS_MAX, Relay

SENT = bytes(range(256)) * 1024


@contextmanager
def taker() -> Iterator[tuple[int, list[bytes]]]:
    """A server that takes connections one after another and keeps what each brought; its port, and that."""
    taken: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            while True:
                connection, _ = server.accept()
                with connection:
                    got = b""
                    try:
                        while data := connection.recv(65536):
                            got += data
                    except ConnectionResetError:
                        pass
                    taken.append(got)
                    if got == b"end":
                        return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        port: int = server.getsockname()[1]
        try:
            yield port, taken
        finally:
            send(port, b"end")
            thread.join(10)


def send(port: int, data: bytes) -> bool:
    """Sends bytes and hangs up; says whether nothing broke before that was noticed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(1) == b""
        except OSError as exc:
            # The last one is what a hanging up meets whose connection was cut just before.
            if exc.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise
            return False


def test_bytes_pass_as_they_are_and_go_where_the_port_says() -> None:
    with taker() as (first, at_first), taker() as (second, at_second), Relay(seed=1) as relay:
        relay.upstream_port = first
        assert send(relay.port, SENT)
        relay.upstream_port = second
        assert send(relay.port, b"hello")
        assert relay.cuts == 0
    assert at_first == [SENT, b"end"]
    assert at_second == [b"hello", b"end"]


def test_a_cut_lets_no_more_than_the_beginning_through_and_is_over_when_it_is_told_so() -> None:
    with taker() as (port, taken), Relay(seed=1) as relay:
        relay.upstream_port = port
        relay.cutting = True
        for _ in range(40):
            send(relay.port, SENT)
        assert relay.cuts == 40
        relay.cutting = False
        assert send(relay.port, SENT)
    assert all(SENT.startswith(got) and len(got) <= 2**CUT_BITS_MAX for got in taken[:40])
    assert len({len(got) for got in taken[:40]}) > 20, "they are cut at different bytes"
    assert taken[40:] == [SENT, b"end"]


def test_nobody_behind_it_is_a_connection_that_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        unused = server.getsockname()[1]
    with Relay(seed=1) as relay:
        relay.upstream_port = unused
        with socket.create_connection(("127.0.0.1", relay.port), timeout=10) as connection:
            assert connection.recv(1) == b""


def test_cuts_that_nobody_meets_are_an_error() -> None:
    with Relay(seed=1) as relay:
        with pytest.raises(AssertionError, match="2 connections are cut"):
            relay.cut(2, s_max=0.05)
        assert not relay.cutting
