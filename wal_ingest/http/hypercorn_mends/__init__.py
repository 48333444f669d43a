"""Hypercorn on Trio, mended: the one package that knows Hypercorn, h11 and wsproto.

Invariants:

1. Nothing that one connection does ends the server, or another connection.
2. Nothing holds off a stop beyond the deadline: every shield in here is in `Shields`, and can be cut.
3. A connection in any state ends by itself within a named time, whatever its peer does or leaves undone.
4. A connection speaks HTTP/1.1 for its whole life.

Why each mend is there (hypercorn 0.18; a test in tests/http shows each symptom gone):

* *One byte sent straight after a WebSocket upgrade ended the process* (hypercorn issue 225). A connection's task
  lives in the server's nursery, so any exception that it lets out cancels every other connection and the
  listener. `Connection.run` is the fence: it logs and drops what is the connection's own, and lets through
  what is not (Cancelled, KeyboardInterrupt, SystemExit), also when they come mixed in one exception group.
* *HTTP/2 over plain TCP is the second crash path*, and slower here. `Http1` is created directly, not
  through hypercorn's `ProtocolWrapper`, so nothing can switch protocol: an `Upgrade: h2c` is ignored,
  which RFC 9110 §7.8 allows, and the prior-knowledge preface is answered 505.
* *The header limit held only for headers that trickle in*: h11 compares the limit with what is
  incomplete after a read, and one read may take it all. `_H11Connection` measures every finished header too.
* *quart-trio cancels its own request when it hears `http.disconnect`*, which hypercorn sends in the middle of
  recycling the connection for the next request. The cancellation then left the connection neither idle nor
  closed: no keep-alive time-out, and a stop that took its whole grace. `_maybe_recycle` is
  shielded, which mends it for every application and not for one wrapper's.
* *A peer that never reads its answer held the process for ever*: sends were shielded without an end. Here a
  send ends after `answer_s_max`, and at once when the shields are cut.
* *A refusal was lost when the peer was still sending*: closing a socket with unread data makes the
  kernel send RST, and the peer's own kernel then discards the 413 that it had received. `_close` sends
  FIN first and goes on reading and discarding for a short while (RFC 9112 §9.6).
* *A connection whose peer closed in the middle of a refused body was never closed*: the message
  that tells the application of the end was cancelled together with the reading. Now it is shielded.
* *The answer was written in three pieces* (head, body, nothing): they leave together now. And *each request
  started and cancelled two timer tasks*; now one task a connection waits, and its deadline moves.

* *A request that h11 refuses got an empty answer and left no trace.* `_send_error_response` gives it what every
  refusal has: a reason, an id, a line in the log and a count. *Blank lines before a request were an error*;
  `_H11Connection` skips them.

* *One connection was accepted in each turn of the scheduler*: after a crowd's, a good client's waited for seconds. See
  `accepting`.
* *Thousands of connections that ended at once were one turn of the scheduler*, of seconds. See `turns`.
* *WebSockets* have mends of their own: see `websocket`.

The seam is private: hypercorn promises nothing about these names, so `check_seam` looks for them at start
and refuses any other hypercorn by name.
"""

from __future__ import annotations

import importlib.metadata
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import hypercorn.protocol.h11 as hypercorn_h11
import hypercorn.trio.run as hypercorn_run
import trio
import wsproto.frame_protocol
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Sockets

from wal_ingest.errors import ConfigError
from wal_ingest.http.hypercorn_mends.accepting import TrioForHypercorn
from wal_ingest.http.hypercorn_mends.config import ServerConfig
from wal_ingest.http.hypercorn_mends.connection import LINGER_S_MAX, Connection
from wal_ingest.http.hypercorn_mends.crowd import ACCEPT_FILTER, Crowd, connections_max
from wal_ingest.http.hypercorn_mends.frames import Masker
from wal_ingest.http.hypercorn_mends.shields import Shields
from wal_ingest.http.hypercorn_mends.unparsed import OnUnparsed, Unparsed
from wal_ingest.http.hypercorn_mends.websocket import EXTENSION, More, Pieces, WebSocket
from wal_ingest.http.hypercorn_mends.wire import LARGE_RECEIVE_BYTES_MAX, RECEIVE_BYTES_MAX

__all__ = [
    "EXTENSION",
    "LARGE_RECEIVE_BYTES_MAX",
    "LINGER_S_MAX",
    "RECEIVE_BYTES_MAX",
    "AsgiApp",
    "Connection",
    "Crowd",
    "More",
    "OnUnparsed",
    "Pieces",
    "ServerConfig",
    "Shields",
    "Unparsed",
    "check_seam",
    "connections_max",
    "run_hypercorn",
]


class AsgiApp(Protocol):
    """An ASGI 3 application."""

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None: ...


def check_seam() -> None:
    """Raises ConfigError when the installed hypercorn is not the one whose private seam is known."""
    version = importlib.metadata.version("hypercorn")
    code = hypercorn_run.worker_serve.__code__
    missing = [
        name
        for name in (
            "_check_protocol",
            "_send_h11_event",
            "_send_error_response",
            "_maybe_recycle",
            "_close_stream",
            "stream_send",
        )
        if not hasattr(hypercorn_h11.H11Protocol, name)
    ]
    creating = hypercorn_h11.H11Protocol._create_stream.__code__
    seams = {"TCPServer", "serve_listeners"} <= {*code.co_names} and "WSStream" in creating.co_names
    if not version.startswith("0.18.") or not seams or missing:
        raise ConfigError(
            f"hypercorn {version} is installed, but only 0.18 can be kept from ending on a bad connection",
            hint='pip install "hypercorn==0.18.*"',
        )


async def run_hypercorn(
    app: AsgiApp,
    config: ServerConfig,
    sockets: list[socket.socket],
    *,
    shutdown: trio.Event,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves `app` on sockets that listen already, until `shutdown` and the grace after it.

    Raises ConfigError when hypercorn is another one than the mends were made for.
    """
    check_seam()
    logging.getLogger("trio.serve_listeners").addFilter(ACCEPT_FILTER)
    hypercorn_run.TCPServer = Connection  # type: ignore[attr-defined]  # the seam itself
    hypercorn_run.trio = TrioForHypercorn()  # type: ignore[attr-defined,assignment]
    setattr(wsproto.frame_protocol, "XorMaskerSimple", Masker)  # noqa: B010 -- as below
    # And the other one: who speaks WebSocket.
    setattr(hypercorn_h11, "WSStream", WebSocket)  # noqa: B010 -- it is no name that the module exports
    async with trio.open_nursery() as nursery:
        nursery.start_soon(config.pings.run)
        nursery.start_soon(config.ends.run)
        await hypercorn_run.worker_serve(
            ASGIWrapper(app),  # type: ignore[arg-type]  # the same protocol, spelled with plain dictionaries
            config,
            sockets=Sockets([], sockets, []),
            shutdown_trigger=shutdown.wait,
            task_status=task_status,
        )
        nursery.cancel_scope.cancel()
