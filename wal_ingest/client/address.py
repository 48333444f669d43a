"""Where the node is: what a URL given by a person means for the stream and for HTTP. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from wal_ingest.errors import ConfigError

_CLIENT_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to, and what to ask for there. `target` is path and query."""

    host: str
    port: int
    tls: bool
    target: str

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them; the port is left out where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        # Without the query: somebody may have put a token there.
        return f"{self.authority}{self.target.partition('?')[0]}"


def stream_address(
    url: str, *, client_id: str = "", org: str = "", bucket: str = "", precision: str = ""
) -> Address:
    """The address of the stream at `url`, ws:// or wss://, with or without the path `/stream`.

    What is empty is not asked for; a query that the URL has is kept. Raises ConfigError for a URL that is none, and
    for a `client_id` that is not 1 to 128 characters of printable ASCII without spaces.
    """
    if client_id and not _CLIENT_ID.fullmatch(client_id):
        raise ConfigError("a client_id is 1 to 128 characters of printable ASCII without spaces")
    asked = {"client_id": client_id, "org": org, "bucket": bucket, "precision": precision}
    return _address(url, ("ws", "wss"), "/stream", asked)


def write_address(url: str, *, org: str = "", bucket: str = "") -> Address:
    """The address of `POST /metrics` at `url`, http:// or https://, or of InfluxDB's endpoints where it ends with one.

    Raises ConfigError as `stream_address` does.
    """
    path = "/write" if url.partition("?")[0].rstrip("/").endswith("/write") else "/metrics"
    return _address(url, ("http", "https"), path, {"org": org, "bucket": bucket, "precision": "ns"})


def _address(url: str, schemes: tuple[str, str], path: str, asked: dict[str, str]) -> Address:
    parts, port = _split(url)
    tls = parts.scheme == schemes[1]
    if not tls and parts.scheme != schemes[0]:
        raise ConfigError(f"the URL should begin with {schemes[0]}:// or {schemes[1]}://")
    base = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    query = "&".join(
        part
        for part in (parts.query, urlencode({name: said for name, said in asked.items() if said}))
        if part
    )
    target = (base if base.endswith(path) else base + path) + (f"?{query}" if query else "")
    if not target.isascii() or any(char <= " " for char in target):
        raise ConfigError("the URL's query must be percent-encoded")
    return Address(parts.hostname or "", port or (443 if tls else 80), tls, target)


def _split(url: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"the URL is not readable: {exc}") from None
    if not parts.hostname:
        raise ConfigError("the URL names no host", hint="such as ws://127.0.0.1:8400")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("a user or password in the URL is not used", hint="give the token as token=")
    return parts, port
