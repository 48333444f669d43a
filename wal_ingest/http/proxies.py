"""The address that a request came from, where trusted proxies name it. Pure.

Each proxy appends the address of its own peer to `X-Forwarded-For` (or `Forwarded`, RFC 7239). Only what trusted
proxies appended can be believed: from the right, the first address that is not one of theirs is the source.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from wal_ingest.errors import ConfigError
from wal_ingest.http.origins import words

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_FOR = re.compile(r'(?:^|[;,\s])for\s*=\s*("[^"]*"|[^;,\s]+)', re.IGNORECASE)
# More hops than any real chain has; the rest of a longer header is not read.
_HOPS_MAX = 32


class TrustedProxies:
    """The networks of the proxies that are believed; false when there are none.

    `cidrs` are separated by commas or blanks. Raises ConfigError when one is malformed.
    """

    def __init__(self, cidrs: str) -> None:
        self._networks: list[_Network] = []
        for text in words(cidrs):
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as exc:
                raise ConfigError(
                    f"server.trusted_proxies: {text!r} is not a network: {exc}",
                    hint="such as 10.0.0.0/8 or 127.0.0.1",
                ) from exc

    def __bool__(self) -> bool:
        return bool(self._networks)

    def source(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The source of a request from `peer`: `peer` itself unless it is trusted and names another address."""
        if not self._trusts(peer):
            return peer
        source = peer
        for hop in reversed(_hops(headers)):
            address = _address(hop)
            if address is None:
                break  # obfuscated or malformed: what stands before it was not checked either
            source = address
            if not self._trusts(address):
                break
        return source

    def _trusts(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(ipaddress.ip_address(address) in net for net in self._networks)


def _hops(headers: Iterable[tuple[bytes, bytes]]) -> Sequence[str]:
    """The addresses of a chain, nearest last. `X-Forwarded-For` is read before `Forwarded`."""
    x_forwarded, forwarded = [], []
    for name, value in headers:
        if name == b"x-forwarded-for":
            x_forwarded.append(value.decode("latin-1"))
        elif name == b"forwarded":
            forwarded.append(value.decode("latin-1"))
    if x_forwarded:
        return ",".join(x_forwarded).split(",")[-_HOPS_MAX:]
    return [found.strip('"') for found in _FOR.findall(",".join(forwarded))][-_HOPS_MAX:]


def _address(text: str) -> str | None:
    """The IP address in `ADDRESS`, `IPV4:PORT` or `[IPV6]:PORT`; None when there is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
