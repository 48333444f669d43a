"""Listening sockets.

They are opened before anything else that takes time: `serve` imports its libraries and recovers the log while the
kernel already completes connections. A sender then waits a second after a restart, and is not refused.
"""

from __future__ import annotations

import errno
import socket

from wal_ingest.addresses import parse_bind
from wal_ingest.errors import ConfigError

# Connections that the kernel completes before we accept them: a fleet reconnects all at once after a restart.
# The kernel's own limit (net.core.somaxconn, 4096 by default) caps it.
BACKLOG_CONNECTIONS = 4096


def open_sockets(bind: str, *, reuse_port: bool = False) -> list[socket.socket]:
    """Listening sockets for `HOST:PORT`: one for each address that the host's name has.

    `reuse_port` lets several processes listen on the same port, and the kernel spread connections over them.
    Raises ConfigError when the address is malformed, unknown, not ours, forbidden or in use.
    """
    host, port = parse_bind(bind)
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError) as exc:
        raise ConfigError(
            f"server.bind: the host of {bind!r} is not known", hint="name an address of this machine"
        ) from exc
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            # With port 0 the second address takes the port that the first one was given.
            chosen = sockets[0].getsockname()[1] if sockets else port
            sockets.append(_listen(family, (address[0], chosen, *address[2:]), reuse_port=reuse_port))
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise ConfigError(f"server.bind: cannot listen on {bind}: {exc.strerror}", hint=_hint(exc)) from exc
    return sockets


def _listen(family: int, address: tuple[object, ...], *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # Else [::] takes the IPv4 port too, and the second socket of a dual-stack name cannot bind.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG_CONNECTIONS)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _hint(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "stop what listens there, or choose another port with --bind"
    if exc.errno == errno.EACCES:
        return "ports below 1024 need a privilege: choose a higher one with --bind"
    return "name an address of this machine with --bind"
