"""Which web pages may use this node, and which addresses a browser may reach it by. Pure.

Invariants:

1. A request without the signs of a browser passes, whatever its `Host` is: agents, proxies and probes.
2. A request with an `Origin` passes when that is the node's own origin or is listed in `server.allowed_origins`.
3. A browser's request to a node on a loopback address passes only when its `Host` is known. Otherwise a page whose
   name was rebound to 127.0.0.1 would be of the same origin as the node, and could read and write everything.

An IP address is always known: rebinding needs a name. A node on another address has names that it cannot know, such
as those of a load balancer or of a container; there `server.allowed_hosts` turns the check on.

A page cannot hide that it is one: a browser always sends `Accept-Language`, and a page cannot remove it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from wal_ingest.errors import ConfigError, RequestError

# Headers that browsers send and programs do not.
_BROWSER_SIGNS = frozenset((b"origin", b"referer", b"accept-language", b"sec-fetch-site", b"sec-fetch-mode"))
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


# Any page may use the node.
ANY = "*"


class OriginRefused(RequestError):
    """A web page of another origin, or one with an unknown host, sent the request: list it in the settings."""

    status = 403


class Origins:
    """The origins and hosts that browsers may use. Raises ConfigError when a setting is malformed."""

    def __init__(self, *, bind_host: str, allowed_origins: str, allowed_hosts: str) -> None:
        self._allowed_origins = {_origin(text) for text in words(allowed_origins)}
        names = {host_of(text) for text in words(allowed_hosts)}
        self._checks_host = bool(names) or is_loopback(bind_host)
        self._hosts = names | {"", "localhost", bind_host.lower(), socket.gethostname().lower()}

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises OriginRefused when a browser sent the request (header names in lower case) for a foreign page."""
        sent = dict(headers)
        if _BROWSER_SIGNS.isdisjoint(sent) or _is_program(sent):
            return
        host = sent.get(b"host", b"").decode("latin-1").strip().lower()
        name = host_of(host)
        if self._checks_host and not self._knows(name):
            raise OriginRefused(
                f"the host {name[:100]!r} is not known: list it in server.allowed_hosts, or use an IP address"
            )
        if b"origin" in sent:
            self._check_origin(sent[b"origin"].decode("latin-1").strip().lower(), host)

    def _knows(self, name: str) -> bool:
        return name in self._hosts or name.endswith(".localhost") or _is_address(name)

    def _check_origin(self, origin: str, host: str) -> None:
        scheme, _, authority = origin.partition("://")
        # A proxy may terminate TLS: the scheme of the page is then not that of this connection.
        port = _DEFAULT_PORTS.get(scheme, "")
        if authority and authority.removesuffix(port) == host.removesuffix(port):
            return
        if ANY not in self._allowed_origins and origin not in self._allowed_origins:
            raise OriginRefused(
                f"pages of the origin {origin[:100]!r} may not use this node: list it in server.allowed_origins"
            )


def _is_program(sent: dict[bytes, bytes]) -> bool:
    """Whether a program sent the request that looks like a browser: the `fetch` of Node.js, which sends one of the two.

    A page can neither set nor remove headers that begin with `Sec-`.
    """
    return b"sec-fetch-mode" in sent and b"sec-fetch-site" not in sent and b"origin" not in sent


def words(setting: str) -> list[str]:
    """The items of a setting that is a list: separated by commas or blanks."""
    return setting.replace(",", " ").split()


def host_of(authority: str) -> str:
    """The host of `HOST`, `HOST:PORT` or `[IPV6]:PORT`, in lower case and without a final dot."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().removesuffix(".")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by a loopback address or the name `localhost`."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _origin(text: str) -> str:
    if text == ANY:
        return ANY
    scheme, mark, authority = text.lower().rstrip("/").partition("://")
    if not mark or not authority or "/" in authority:
        raise ConfigError(
            f"server.allowed_origins: {text!r} is not an origin", hint="such as https://metrics.example.org"
        )
    return f"{scheme}://{authority.removesuffix(_DEFAULT_PORTS.get(scheme, ':'))}"
