"""Addresses in settings: what they must look like, and how one is shown without its password."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from wal_ingest.errors import ConfigError

_PASSWORD = re.compile(r"(?P<before>[a-z][a-z0-9+.-]*://[^/?#\s@:]*:)[^/?#\s@]*(?=@)", re.IGNORECASE)


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[IPV6]:PORT` or `:PORT` (all addresses). Raises `ConfigError`."""
    host, colon, port = bind.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if (
        not colon
        or not (port.isascii() and port.isdigit())
        or int(port) > 65535
        or (":" in host) != bracketed
    ):
        raise ConfigError(
            f"server.bind: {bind!r} is not HOST:PORT",
            hint="such as 127.0.0.1:8400, [::1]:8400 or 0.0.0.0:8400",
        )
    return (host[1:-1] if bracketed else host), int(port)


def check_database_url(name: str, url: str) -> None:
    """Raises `ConfigError` unless the setting `name` holds an http(s) address without a password in it."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"{name} = {without_password(url)!r}: it must begin with http:// or https://",
            hint="for instance http://localhost:8086",
        )
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(
            f"{name} = {without_password(url)!r}: {exc}", hint="for instance http://localhost:8086"
        ) from exc
    if not host:
        raise ConfigError(
            f"{name} = {without_password(url)!r}: it names no host", hint="for instance http://localhost:8086"
        )
    if "@" in parts.netloc:
        raise ConfigError(
            f"{name} holds a user and password, which would end up in logs",
            hint="put them in influxdb.token, as USER:PASSWORD for InfluxDB 1.8",
        )


def without_password(text: str) -> str:
    """The text with the password of every URL in it masked."""
    return _PASSWORD.sub(r"\g<before>********", text)
