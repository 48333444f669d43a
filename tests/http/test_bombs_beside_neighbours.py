"""Bodies and frames that are small on the wire and costly to take apart hold up no neighbour, nor take much memory."""

from __future__ import annotations

import functools
import gzip
import http.client
import socket
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import pytest
import zstandard

from tests.http.stream.rig import BINARY, NO_MASK, message, upgrade, ws
from tests.rigs.neighbour import assert_neighbour_is_served
from tests.rigs.service import Service

MIB = 1 << 20
# Below `server.body_bytes_max`, which counts what comes out.
SIZE = 32 * MIB - 64
# Good points take their time, in a thread; these are enough to see whether they hold anybody up.
GOOD_SIZE = 4 * MIB

# What may hold everybody up is a copy of 32 MiB, which takes some times longer on a busy machine. The fault that this
# looks for took seconds.
LEAST_S = 0.25

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("node")
    with Service(
        root / "data", logs=root, settings={"log.level": "error", "archive.enabled": "on"}
    ) as service:
        yield service


def repeated(head: bytes, element: bytes, tail: bytes, size: int = SIZE) -> bytes:
    """A body of as many elements as fit below a size."""
    count = (size - len(head) - len(tail)) // len(element)
    body = head + element * count
    return body.removesuffix(b",") + tail


def most_slow(names: Iterable[str], quick: Collection[str]) -> list[object]:
    """All of the names; those that are not quick are left to `make proof`."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in sorted(names)]


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "an array of empty objects": ("json", lambda: repeated(b"[", b"{},", b"]")),
    "an array of good points and an empty object": (
        "json",
        lambda: repeated(b"[", b'{"serverId":"a","cpu":1,"ram":1},', b",{}]", GOOD_SIZE),
    ),
    "the general shape": (
        "json",
        lambda: repeated(b"[", b'{"measurement":"m","fields":{"a":1}},', b",{}]", GOOD_SIZE),
    ),
    "the general shape, empty": ("json", lambda: repeated(b"[", b'{"measurement":"m","fields":{}},', b"]")),
    "one point of many fields": (
        "json",
        lambda: repeated(b'{"measurement":"m","fields":{', b'"a":1,', b"}}"),
    ),
    "Telegraf's batch, empty": ("json", lambda: repeated(b'{"metrics":[', b"{},", b"]}")),
    "Telegraf's batch": (
        "json",
        lambda: repeated(
            b'{"metrics":[', b'{"name":"m","fields":{"a":1},"tags":{},"timestamp":1},', b",{}]}", GOOD_SIZE
        ),
    ),
    "NDJSON of empty objects": ("ndjson", lambda: repeated(b"", b"{}\n", b"")),
    "NDJSON of good points and an empty object": (
        "ndjson",
        lambda: repeated(b"", b'{"serverId":"a","cpu":1,"ram":1}\n', b"{}\n", GOOD_SIZE),
    ),
    "blanks": ("json", lambda: b" " * SIZE),
}


@functools.cache
def packed(name: str) -> bytes:
    return gzip.compress(BOMBS[name][1](), 6, mtime=0)


def post(port: int, body: bytes, content_type: str, encoding: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"Content-Type": content_type, "Content-Encoding": encoding}
        connection.request("POST", "/metrics", body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def send_frames(port: int, body: bytes, count: int = 1, **header: str) -> list[bytes]:
    """Frames on a stream of their own; their answers, each of which must be an error."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        peer.sendall(upgrade())
        heard = b""
        while heard.count(b'"type"') < 1:  # the welcome
            heard += peer.recv(65_536)
        peer.sendall(
            b"".join(
                ws(BINARY, message(number, body, **header), mask=NO_MASK) for number in range(1, count + 1)
            )
        )
        while heard.count(b'"type"') < 1 + count:
            more = peer.recv(65_536)
            assert more, heard
            heard += more
    return heard.split(b'"type"')[2:]


def twice_at_once(work: Callable[[], object]) -> list[object]:
    done: list[object] = []
    threads = [threading.Thread(target=lambda: done.append(work())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    return done


@pytest.mark.parametrize("name", most_slow(BOMBS, {"an array of empty objects", "one point of many fields"}))
def test_two_bombs_at_once_hold_up_no_neighbour_and_take_little_memory(service: Service, name: str) -> None:
    form, _ = BOMBS[name]
    body = packed(name)

    def bodies() -> None:
        work = functools.partial(
            post, service.port, body, f"application/{'x-' * (form == 'ndjson')}{form}", "gzip"
        )
        assert set(twice_at_once(work)) <= {400, 413}

    assert_neighbour_is_served(service, bodies, least_s=LEAST_S)


@pytest.mark.parametrize(
    "name",
    most_slow(
        ["an array of empty objects", "Telegraf's batch", "NDJSON of empty objects"],
        {"NDJSON of empty objects"},
    ),
)
def test_two_bombs_at_once_as_frames_of_streams_hold_up_no_neighbour(service: Service, name: str) -> None:
    form, _ = BOMBS[name]
    body = packed(name)

    def frames() -> None:
        work = functools.partial(send_frames, service.port, body, format=form, encoding="gzip")
        for told in twice_at_once(work):
            assert isinstance(told, list)
            assert b"error" in told[0]

    assert_neighbour_is_served(service, frames, least_s=LEAST_S)


# Members that hold nothing: each costs a decoder, and 20 bytes of gzip or 9 of zstd on the wire.
MEMBERS = 9_990
EMPTY = {
    "gzip": gzip.compress(b"", mtime=0) * MEMBERS,
    "zstd": zstandard.ZstdCompressor().compress(b"") * MEMBERS,
    "zstd after a frame with its size": zstandard.ZstdCompressor().compress(b"m v=1\n")
    + zstandard.ZstdCompressor().compress(b"") * MEMBERS,
    "zstd, frames to be skipped": (b"\x50\x2a\x4d\x18" + bytes(4)) * MEMBERS,
    "deflate": zlib.compress(b"") * MEMBERS,
}


@pytest.mark.parametrize("name", most_slow(EMPTY, {"gzip", "zstd"}))
def test_bodies_of_thousands_of_empty_members_hold_up_no_neighbour(service: Service, name: str) -> None:
    encoding = name.split(maxsplit=1)[0].rstrip(",")
    body = EMPTY[name]

    def bodies() -> None:
        work = functools.partial(post, service.port, body, "text/plain", encoding)
        for _ in range(5):
            assert set(twice_at_once(work)) <= {202, 400}

    assert_neighbour_is_served(service, bodies, grown_mib_max=64)


@pytest.mark.parametrize("name", most_slow(EMPTY.keys() - {"deflate"}, {"zstd"}))
def test_frames_of_thousands_of_empty_members_hold_up_no_neighbour(service: Service, name: str) -> None:
    encoding = name.split(maxsplit=1)[0].rstrip(",")
    body = EMPTY[name]

    def frames() -> None:
        twice_at_once(lambda: send_frames(service.port, body, 5, encoding=encoding))

    assert_neighbour_is_served(service, frames, grown_mib_max=64)


def test_the_server_is_as_well_as_before(service: Service) -> None:
    assert service.post("/metrics", b"m v=1", {"Content-Type": "text/plain"}) == 202
    assert service.process.running
    assert "Traceback" not in service.process.log.read_text()
    Path(service.process.log).unlink(missing_ok=True)
