"""Serving on listening sockets, a graceful stop, and the deadline after it.

What happens at a stop: the listening sockets close; connections without a request are closed; requests under
way are answered, and their connections closed behind the answer; at the deadline everything that is left is
cancelled, and the shields around sends are cut, so that a peer that never reads cannot hold it off.
What was appended but not answered then is in the WAL, and its sender sends it again: that is harmless.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import trio

from wal_ingest.http.hypercorn_mends import (
    AsgiApp,
    Crowd,
    OnUnparsed,
    ServerConfig,
    Shields,
    connections_max,
    run_hypercorn,
)
from wal_ingest.listeners import open_sockets
from wal_ingest.settings import ServerSettings

# The parts of `stop_s_max`: until the first, requests under way may be answered, and then they are cut; what is
# still there at the second is cancelled whole. The rest is for the WAL to commit and close.
_ANSWERING_PART_OF_STOP = 0.8
_HTTP_PART_OF_STOP = 0.9


async def serve(
    app: AsgiApp,
    *,
    settings: ServerSettings,
    shutdown: trio.Event,
    sockets: Sequence[socket.socket] | None = None,
    on_unparsed: OnUnparsed = lambda _refused: None,
    make_room: Callable[[], object] = lambda: None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves `app` until `shutdown` is set, then answers what is under way, within 0.9 × `stop_s_max` seconds.

    `sockets` listen already (see `open_sockets`) and are closed by this function; without them
    `settings.bind` is opened. `on_unparsed` is called for each request that the HTTP parser refuses,
    `make_room` where connections are too many and none is idle.
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
        crowd=Crowd(connections_max(settings.connections_max), make_room=make_room),
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
