"""What a URL means."""

from __future__ import annotations

import pytest

from wal_ingest.client.address import Address, stream_address, write_address
from wal_ingest.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ws://node", Address("node", 80, False, "/stream")),
        ("wss://node/", Address("node", 443, True, "/stream")),
        ("ws://node:8400/stream", Address("node", 8400, False, "/stream")),
        ("wss://node/a/b/", Address("node", 443, True, "/a/b/stream")),
        ("ws://[::1]:8400", Address("::1", 8400, False, "/stream")),
        ("ws://node?org=o%20p", Address("node", 80, False, "/stream?org=o%20p")),
    ],
)
def test_a_stream_is_at_stream(url: str, address: Address) -> None:
    assert stream_address(url) == address


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://node", "/metrics?precision=ns"),
        ("https://node/base", "/base/metrics?precision=ns"),
        ("http://node/metrics", "/metrics?precision=ns"),
        ("http://node/api/v2/write", "/api/v2/write?precision=ns"),
        ("http://node/write?db=a", "/write?db=a&precision=ns"),
    ],
)
def test_points_are_posted_to_metrics_or_where_the_url_says(url: str, target: str) -> None:
    assert write_address(url).target == target


def test_what_is_asked_for_is_escaped() -> None:
    address = stream_address("ws://node?x=1", client_id="a&b=c", org="ö", bucket="b")
    assert address.target == "/stream?x=1&client_id=a%26b%3Dc&org=%C3%B6&bucket=b"


@pytest.mark.parametrize(
    ("address", "authority"),
    [
        (Address("node", 80, False, "/"), "node"),
        (Address("node", 443, True, "/"), "node"),
        (Address("node", 443, False, "/"), "node:443"),
        (Address("::1", 8400, False, "/"), "[::1]:8400"),
    ],
)
def test_a_host_header_leaves_out_the_schemes_own_port(address: Address, authority: str) -> None:
    assert address.authority == authority


def test_an_address_in_words_has_no_query_where_a_token_may_be() -> None:
    assert str(stream_address("ws://node:1/a?token=secret")) == "node:1/a/stream"


@pytest.mark.parametrize(
    "url", ["http://node", "ws://", "ws://a:b", "ws://u@h", "ws://h/?a=b c", "ws://h/?ä", "node"]
)
def test_what_is_no_url_of_a_stream_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        stream_address(url)
