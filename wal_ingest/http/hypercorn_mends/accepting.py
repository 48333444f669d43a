"""Accepting connections: several in one turn of the scheduler.

trio's own loop accepts one in each turn. Where turns are long because the node is busy, connections then queue up in
the kernel faster than they are accepted, and a good client's waits for all of a crowd's: for seconds.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NoReturn

import trio

from wal_ingest.http.hypercorn_mends.crowd import Crowd

# Connections of one listener that are accepted in one turn. Each costs half a millisecond before its first request.
# Near the limit of connections it is one: for each new one another is closed, which takes a few turns.
_AT_ONCE_MAX = 8

# accept(2): too few descriptors or too little memory, which passes.
_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_CAPACITY_REST_S = 0.1
# accept(2), "Error handling": a connection that failed before it was accepted; the listener is fine.
_OF_THE_CONNECTION = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ENOSYS,
        errno.ESOCKTNOSUPPORT,
        errno.EPFNOSUPPORT,
        errno.EAFNOSUPPORT,
    }
)

Handler = Callable[[trio.SocketStream], Awaitable[object]]

_log = logging.getLogger("trio.serve_listeners")


class TrioForHypercorn:
    """`trio` as hypercorn's `worker_serve` sees it: all of it, but with our `serve_listeners`."""

    def __getattr__(self, name: str) -> Any:
        return serve_listeners if name == "serve_listeners" else getattr(trio, name)


async def serve_listeners(
    handler: partial[Awaitable[object]],
    listeners: Sequence[trio.SocketListener],
    *,
    handler_nursery: trio.Nursery,
) -> NoReturn:
    """Runs `handler` for each connection, in `handler_nursery`, until cancelled; then closes the listeners.

    Takes the place of `trio.serve_listeners`. `handler` is hypercorn's, with its configuration, which is ours.
    """
    crowd: Crowd = handler.args[1].crowd
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_serve, listener, handler, handler_nursery, crowd)
    raise AssertionError("the loops end by an exception only")


async def _serve(
    listener: trio.SocketListener, handler: Handler, handler_nursery: trio.Nursery, crowd: Crowd
) -> None:
    # The same descriptor once more, for calls that do not go through the scheduler; the listener is its owner.
    sock = socket.socket(fileno=listener.socket.fileno())
    sock.setblocking(False)
    async with listener:
        try:
            while True:
                await trio.lowlevel.wait_readable(sock)
                # Fewer and fewer on the way to the limit. Those of the last turn may not be counted yet, and those of
                # the last three were not read yet and count as idle: a client at work must not be closed for them.
                room = (crowd.limit - crowd.count) // 4
                await _accept_some(sock, handler, handler_nursery, min(max(room, 1), _AT_ONCE_MAX))
        finally:
            sock.detach()


async def _accept_some(
    sock: socket.socket, handler: Handler, handler_nursery: trio.Nursery, at_once: int
) -> None:
    try:
        for _ in range(at_once):
            _accept(sock, handler, handler_nursery)
    except BlockingIOError:
        pass  # no more are waiting
    except OSError as exc:
        if exc.errno in _OF_THE_CONNECTION:
            return
        if exc.errno not in _CAPACITY:
            raise
        _log.error("accept: %s; trying again in %g s", exc.strerror, _CAPACITY_REST_S)
        await trio.sleep(_CAPACITY_REST_S)


def _accept(sock: socket.socket, handler: Handler, handler_nursery: trio.Nursery) -> None:
    accepted, _ = sock.accept()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
    handler_nursery.start_soon(_handle, stream, handler)


async def _handle(stream: trio.SocketStream, handler: Handler) -> None:
    try:
        await handler(stream)
    finally:
        await trio.aclose_forcefully(stream)
