"""gzip members: readable by anyone, several in a row, never more than asked for."""

from __future__ import annotations

import gzip
import sys
import zlib
from types import ModuleType

import pytest

from wal_ingest.wal import gzip_codec


@pytest.fixture(params=["igzip", "zlib"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The codec with the accelerated library, and as it is where no wheel exists."""
    if request.param == "zlib":
        monkeypatch.setattr(gzip_codec, "_zlib", zlib)
    else:
        pytest.importorskip("isal")
    return gzip_codec


def test_members_are_plain_gzip(codec: ModuleType) -> None:
    assert gzip.decompress(codec.compress(b"cpu v=1 1\n" * 100)) == b"cpu v=1 1\n" * 100


def test_concatenated_members_decompress_to_one_body(codec: ModuleType) -> None:
    body = codec.compress(b"a\n") + codec.compress(b"") + codec.compress(b"b\n" * 5000)
    assert codec.decompress(body, bytes_max=10_002) == b"a\n" + b"b\n" * 5000


@pytest.mark.parametrize("cut", [1, 5, 12, 20])
def test_a_cut_member_is_an_error(codec: ModuleType, cut: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each library has words of its own
        codec.decompress(codec.compress(b"cpu v=1 1\n" * 10)[:-cut], bytes_max=1000)


def test_what_is_no_gzip_is_an_error(codec: ModuleType) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each library has words of its own
        codec.decompress(b"cpu v=1 1\n" * 10, bytes_max=1000)


def test_more_than_the_limit_is_an_error_and_not_in_memory(codec: ModuleType) -> None:
    bomb = codec.compress(bytes(1 << 24))
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        codec.decompress(bomb, bytes_max=1000)


def test_both_libraries_agree_on_checksums() -> None:
    assert gzip_codec.crc32(b"cpu v=1 1\n", 7) == zlib.crc32(b"cpu v=1 1\n", 7)


def test_without_igzip_the_standard_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    assert gzip_codec._igzip() is None
