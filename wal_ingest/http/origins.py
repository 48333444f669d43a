"""Which web pages may talk to this node. Pure.

A browser lets any page send a POST or open a WebSocket to any address, the machine's own loopback among them, and a
page whose name an attacker points to that address (DNS rebinding) may read the answers too. So:

* A request with an `Origin` comes from a page. It is refused (403) unless the page is this node's own status page, or
  its origin is in `server.allowed_origins`. Agents and libraries send no `Origin`.
* The routes of the status page answer only to a `Host` that names this machine: an IP address, a loopback name, the
  host of `server.bind`, the machine's own name, or one in `server.allowed_hosts`. A page's own requests carry no
  `Origin` when they only read, so nothing else tells a rebound name apart.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from wal_ingest.addresses import parse_bind
from wal_ingest.errors import RequestError

Headers = Iterable[tuple[bytes, bytes]]

_DEFAULT_PORTS = {"http": 80, "https": 443}
ANY = "*"


class ForeignOrigin(RequestError):
    """The request comes from a web page that may not send to this node."""

    status = 403


class UnknownHost(RequestError):
    """The request names a host that this node does not know as its own."""

    status = 421


class Origins:
    """The rules for one node; `bind`, `allowed_origins` and `allowed_hosts` are its settings."""

    def __init__(self, bind: str, *, allowed_origins: str = "", allowed_hosts: str = "") -> None:
        self._allowed = frozenset(_words(allowed_origins))
        name = socket.gethostname().lower()
        self._hosts = frozenset(
            {parse_bind(bind)[0].lower(), name, name.partition(".")[0], *_words(allowed_hosts)}
        )
        # A fleet of browsers shows few of them.
        self._is_known = lru_cache(maxsize=256)(self._names_this_machine)

    def check_origin(self, headers: Headers) -> None:
        """Raises ForeignOrigin when the request comes from a page that may not send to this node."""
        origin = host = b""
        for name, value in headers:
            if name == b"origin":
                origin = value
            elif name == b"host":
                host = value
        if not origin:
            return
        shown = origin.decode("latin-1").lower()
        if ANY in self._allowed or shown in self._allowed:
            return
        own = host.decode("latin-1").lower()
        scheme = shown.partition("://")[0]
        is_own = scheme in _DEFAULT_PORTS and _authority(shown) == _authority(f"{scheme}://{own}")
        if not is_own or not self._is_known(own):
            raise ForeignOrigin(
                f"pages of {shown[:100]!r} may not send to this node: if they should, add it to server.allowed_origins"
            )

    def check_host(self, headers: Headers) -> None:
        """Raises UnknownHost when a request for the status page names a host that is not known as this node's."""
        host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1").lower()
        if host and not self._is_known(host):
            raise UnknownHost(
                f"the host {host[:100]!r} is not known as this node's: open it by its address, or add the name to "
                "server.allowed_hosts"
            )

    def _names_this_machine(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        name = name.rstrip(".")
        if ANY in self._hosts or name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return bool(name)
        try:
            # No page can make a browser send an address that is not the one it connects to.
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _words(text: str) -> list[str]:
    return [word.strip().rstrip("/").lower() for word in text.split(",") if word.strip()]


def _authority(url: str) -> tuple[str, int | None]:
    """Host and port of a URL, the scheme's port where it names none."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return "", None
