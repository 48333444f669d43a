"""How many gzip members and zstd frames are taken apart where the event loop waits for it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import zstandard

from tests.http.stream.rig import BINARY, NO_MASK, message, node, ws
from tests.http.stream.test_session import ack
from wal_ingest.errors import BadRequest
from wal_ingest.http.body import BodyBudget, Hold
from wal_ingest.http.checking import INLINE_MEMBERS_MAX, Checker
from wal_ingest.points import encoding as encodings
from wal_ingest.settings import MIB, ServerSettings

T = TypeVar("T")
POINT = b"m v=1\n"
ZSTD = zstandard.ZstdCompressor()


def gzip_of(count: int, data: bytes = b"") -> bytes:
    return gzip.compress(POINT, mtime=0) + gzip.compress(data, mtime=0) * (count - 1)


def zstd_of(count: int, data: bytes = b"") -> bytes:
    return ZSTD.compress(POINT) + ZSTD.compress(data) * (count - 1)


def zstd_without_sizes(count: int, data: bytes = b"") -> bytes:
    packer = zstandard.ZstdCompressor(write_content_size=False)
    return packer.compress(POINT) + packer.compress(data) * (count - 1)


def zstd_skipped(count: int, data: bytes = b"") -> bytes:
    frame = b"\x5f\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data
    return ZSTD.compress(POINT) + frame * (count - 1)


KINDS: dict[str, tuple[str, Callable[..., bytes]]] = {
    "gzip": ("gzip", gzip_of),
    "zstd": ("zstd", zstd_of),
    "zstd without sizes": ("zstd", zstd_without_sizes),
    "zstd with frames to be skipped": ("zstd", zstd_skipped),
}


class Watched:
    """Counts what is decoded here and in a thread: members of gzip, and the frames of each body given to zstd."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inline = 0
        self.in_threads = 0
        self._is_in_thread = False
        zlib: Any = vars(encodings)["_zlib"]
        inflater, zstd = zlib.decompressobj, encodings._unzstd

        def gzip_member(*args: Any) -> Any:
            self._add(1)
            return inflater(*args)

        def zstd_frames(body: bytes, *args: Any) -> bytes:
            self._add(encodings.frames_at_most(body, "zstd"))
            return zstd(body, *args)

        monkeypatch.setattr(zlib, "decompressobj", gzip_member)
        monkeypatch.setattr(encodings, "_unzstd", zstd_frames)

    def _add(self, members: int) -> None:
        if self._is_in_thread:
            self.in_threads += members
        else:
            self.inline += members

    async def in_thread(self, work: Callable[[], T], /) -> T:
        self._is_in_thread = True
        try:
            return work()
        finally:
            self._is_in_thread = False


@pytest.mark.parametrize("count", [1, INLINE_MEMBERS_MAX, INLINE_MEMBERS_MAX + 1, 9_990])
@pytest.mark.parametrize("kind", KINDS)
async def test_few_members_are_decoded_on_the_spot_and_many_in_a_thread(
    kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, packed = KINDS[kind]
    watched = Watched(monkeypatch)
    checker = Checker(ServerSettings(), watched.in_thread)
    assert await checker.decode(packed(count), encoding, Hold(BodyBudget(64 * MIB))) == POINT
    if count <= INLINE_MEMBERS_MAX:
        assert (watched.inline, watched.in_threads) == (count, 0)
    else:
        assert watched.inline <= INLINE_MEMBERS_MAX
        assert watched.in_threads == count


@pytest.mark.parametrize("kind", KINDS)
async def test_frames_of_streams_keep_to_the_same_bound(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, packed = KINDS[kind]
    body = packed(9_990)
    watched = Watched(monkeypatch)
    settings = ServerSettings(stop_s_max=2.0)
    async with node(settings, checker=Checker(settings, watched.in_thread)) as whole:
        client = await whole.stream()
        await client.raw(ws(BINARY, message(1, body, encoding=encoding), mask=NO_MASK))
        assert await client.next() == ack(1)
    assert watched.inline <= INLINE_MEMBERS_MAX
    assert watched.in_threads == 9_990


@pytest.mark.parametrize("kind", KINDS)
async def test_too_many_members_are_refused_wherever_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, packed = KINDS[kind]
    watched = Watched(monkeypatch)
    checker = Checker(ServerSettings(), watched.in_thread)
    with pytest.raises(BadRequest, match="more than 10000"):
        await checker.decode(packed(10_001), encoding, Hold(BodyBudget(64 * MIB)))
    assert watched.inline <= INLINE_MEMBERS_MAX


async def test_a_body_that_only_looks_as_if_it_had_many_frames_is_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes of a frame that cannot be compressed may hold the marks that frames begin with."""
    data = POINT + b"# \x28\xb5\x2f\xfd\x2a\x4d\x18\n" * 12
    frame = zstandard.ZstdCompressor(level=-100).compress(data)
    watched = Watched(monkeypatch)
    checker = Checker(ServerSettings(), watched.in_thread)
    assert await checker.decode(frame, "zstd", Hold(BodyBudget(64 * MIB))) == data
