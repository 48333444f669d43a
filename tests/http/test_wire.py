"""A connection's socket without the layers above it."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator

import pytest
import trio

from wal_ingest.http.hypercorn_mends.wire import Wire

DATA = b"0123456789" * 1_000


class Owner:
    """One end of a pair of sockets that take little, as a connection would hold it."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        near.setblocking(False)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        self.send_lock = trio.Lock()
        self.asked = 0

    def send_unsent(self) -> None:
        self.asked += 1


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    pair = Owner()
    yield pair
    pair.far.close()
    pair.stream.socket.close()


def fill(wire: Wire) -> int:
    """Writes until the socket has no room; returns how many bytes it took."""
    count = 0
    while wire.write_now(DATA):
        count += len(DATA) - len(wire.unsent)
    return count


async def test_what_is_written_is_on_its_way_at_once(owner: Owner) -> None:
    assert Wire(owner).write_now(b"hello")
    assert owner.far.recv(10) == b"hello"


async def test_a_socket_without_room_takes_nothing_and_what_it_took_a_part_of_is_sent_first(
    owner: Owner,
) -> None:
    wire = Wire(owner)
    count = fill(wire)
    assert owner.asked == bool(wire.unsent)
    assert not wire.write_now(b"more")
    owner.far.setblocking(False)
    got = b""
    while len(got) < count:
        got += owner.far.recv(1 << 20)
    assert got + wire.unsent == DATA * (count // len(DATA) + bool(wire.unsent))
    # There is room now, but the rest of what was begun comes first.
    assert wire.write_now(b"more") == (not wire.unsent)


async def test_a_part_that_was_not_taken_is_kept(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(owner)
    monkeypatch.setattr("wal_ingest.http.hypercorn_mends.wire.os.write", lambda _fd, data: len(data) - 3)
    assert wire.write_now(b"123456")
    assert (wire.unsent, owner.asked) == (b"456", 1)
    assert not wire.write_now(b"789")
    assert wire.unsent == b"456"


async def test_nothing_is_written_into_what_others_send(owner: Owner) -> None:
    await owner.send_lock.acquire()
    assert not Wire(owner).write_now(b"hello")
    owner.far.setblocking(False)
    with pytest.raises(BlockingIOError):
        owner.far.recv(1)


async def test_a_socket_that_is_gone_takes_all_there_is(owner: Owner) -> None:
    owner.far.close()
    assert Wire(owner).write_now(b"hello")
    owner.stream.socket.close()
    assert Wire(owner).write_now(b"hello")


async def test_what_the_kernel_has_no_memory_for_is_sent_behind(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOBUFS, "no buffer space")

    wire = Wire(owner)
    monkeypatch.setattr("wal_ingest.http.hypercorn_mends.wire.os.write", no_memory)
    assert wire.write_now(b"hello")
    assert (wire.unsent, owner.asked) == (b"hello", 1)


@pytest.mark.parametrize("how", ["closed by the peer", "reset", "closed here"])
async def test_the_end_of_a_connection_is_read_as_nothing(owner: Owner, how: str) -> None:
    if how == "reset":
        owner.stream.socket.close()
        listener = socket.create_server(("127.0.0.1", 0))
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        listener.close()
        near.setblocking(False)
        owner.stream = trio.SocketStream(trio.socket.from_stdlib_socket(near))
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
    elif how == "closed here":
        owner.stream.socket.close()
    else:
        owner.far.close()
    assert await Wire(owner).read() == b""


async def test_reading_waits_for_what_comes(owner: Owner) -> None:
    got: list[bytes] = []

    async def read() -> None:
        got.append(await Wire(owner).read())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        owner.far.send(b"hello")
    assert got == [b"hello"]


async def test_a_socket_that_was_closed_while_its_reader_was_woken_is_not_read_by_its_number(
    owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = owner.stream.socket
    number, wait_readable = sock.fileno(), trio.lowlevel.wait_readable
    others: list[socket.socket] = []

    async def wait_and_lose(waited_for: object) -> None:
        await wait_readable(sock)
        # What other tasks may do between the reader's waking and its turn.
        sock.close()
        others.extend(socket.socketpair())
        others[1].send(b"another's")

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_and_lose)
    owner.far.send(b"mine")
    got = await Wire(owner).read()
    assert others[0].fileno() == number
    found = others[0].recv(100)
    for other in others:
        other.close()
    assert (got, found) == (b"", b"another's")
