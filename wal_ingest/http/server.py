"""The listener and its end: sockets, serving, a graceful stop, and the deadline behind it.

What happens at a stop: the listening sockets close; connections without a request are closed; requests under
way are answered, and their connections closed behind the answer; at the deadline everything that is left is
cancelled, and the shields around sends are cut, so that a peer that never reads cannot hold it off.
What was appended but not answered then is in the WAL, and its sender sends it again: that is harmless.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import trio

from wal_ingest.errors import ConfigError
from wal_ingest.http.hypercorn_mends import (
    AsgiApp,
    Crowd,
    OnUnparsed,
    ServerConfig,
    Shields,
    connections_max,
    run_hypercorn,
)
from wal_ingest.settings import ServerSettings

# Connections that the kernel completes before we accept them: a fleet reconnects all at once after a restart.
# The kernel's own limit (net.core.somaxconn, 4096 by default) caps it.
BACKLOG_CONNECTIONS = 4096

# The parts of `stop_s_max`: until the first, requests under way may be answered, and then they are cut; what is
# still there at the second is cancelled whole. The rest is for the WAL to commit and close.
_ANSWERING_PART_OF_STOP = 0.8
_HTTP_PART_OF_STOP = 0.9


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


def parse_bind(bind: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[IPV6]:PORT` or `:PORT` (all addresses). Raises ConfigError."""
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


async def serve(
    app: AsgiApp,
    *,
    settings: ServerSettings,
    shutdown: trio.Event,
    sockets: Sequence[socket.socket] | None = None,
    on_unparsed: OnUnparsed = lambda _refused: None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves `app` until `shutdown` is set, then answers what is under way, within 0.9 × `stop_s_max` seconds.

    `sockets` listen already (see `open_sockets`) and are closed by this function; without them
    `settings.bind` is opened. `on_unparsed` is called for each request that the HTTP parser refuses.
    `task_status` is given the addresses, such as `["http://127.0.0.1:8400"]`.
    Raises ConfigError when it cannot listen, or on a hypercorn that it does not know.
    Cancellation: as the deadline: everything is dropped at once, also sends that are shielded.
    """
    listening = list(open_sockets(settings.bind) if sockets is None else sockets)
    shields = Shields()
    config = ServerConfig(
        header_bytes_max=settings.header_bytes_max,
        keep_alive_s=settings.keep_alive_s,
        answer_s_max=settings.answer_s_max,
        stop_s_max=settings.stop_s_max * _ANSWERING_PART_OF_STOP,
        ping_s=settings.stream_ping_s,
        shields=shields,
        on_unparsed=on_unparsed,
        crowd=Crowd(connections_max(settings.connections_max)),
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_in_time, shields, shutdown, settings.stop_s_max, nursery.cancel_scope)
            await run_hypercorn(app, config, listening, shutdown=shutdown, task_status=task_status)
            nursery.cancel_scope.cancel()
    finally:
        for sock in listening:
            sock.close()


async def _end_in_time(
    shields: Shields, shutdown: trio.Event, stop_s_max: float, everything: trio.CancelScope
) -> None:
    try:
        await shutdown.wait()
        everything.deadline = trio.current_time() + stop_s_max * _HTTP_PART_OF_STOP
        await trio.sleep(stop_s_max * _ANSWERING_PART_OF_STOP)
    finally:
        # Also when the caller cancels: a shield would hold that off too.
        shields.cut()
