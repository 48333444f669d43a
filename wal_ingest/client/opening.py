"""How a client is opened and left: its task beside the block, and what comes out of it."""

from __future__ import annotations

import functools
import os
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import trio

from wal_ingest.client.address import stream_address, write_address
from wal_ingest.client.client import Client, Limits
from wal_ingest.client.delivery import Connect, log, log_refusal
from wal_ingest.client.errors import NotDelivered, PointsRefused, Replaced


@asynccontextmanager
async def open_client(
    url: str,
    *,
    client_id: str = "",
    token: str = "",
    org: str = "",
    bucket: str = "",
    limits: Limits | None = None,
    on_refused: Callable[[PointsRefused], None] = log_refusal,
    tls: ssl.SSLContext | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    rng: Random | None = None,
    connect: Connect | None = None,
) -> AsyncIterator[Client]:
    """A client for the node at `url`: ws:// and wss:// mean the stream, http:// and https:// a POST for each frame.

    It connects in the background and keeps trying. `client_id` names this sender, so that what an earlier process of
    the same name sent is not mixed up with ours; by default it is a fresh one. Where the node's stream of that name has
    no numbers left, the client goes on as `<client_id>.<8 hex digits>`, and logs that. `org` and `bucket` are the
    points' destination, where the node asks for one. `on_refused` is called with refused points that no `write`
    waits for. `now_ns`, `rng` and `connect` are there for tests.

    Leaving the block waits up to `limits.close_s_max` until everything is durable, then raises NotDelivered. When the
    block ends with an error, that comes out instead, and what was not delivered is logged.

    Raises ConfigError for a URL or client_id that is none, and Replaced, which ends the block, when somebody else
    streams with the same client_id.

    **Cancellation:** leaves at once; what was not acknowledged is given up, and logged.
    """
    limits = limits or Limits()
    client_id = client_id or _fresh_client_id()
    client = Client(
        connect or _connector(url, client_id, token, org, bucket, tls, limits),
        client_id=client_id,
        limits=limits,
        on_refused=on_refused,
        now_ns=now_ns,
        rng=rng or Random(),
    )
    replaced: Replaced | None = None
    error: BaseException | None = None
    async with trio.open_nursery() as nursery:

        async def deliver() -> None:
            nonlocal replaced
            try:
                await client.run()
            except Replaced as exc:
                replaced = exc
                nursery.cancel_scope.cancel()

        nursery.start_soon(deliver)
        try:
            yield client
            await client.close()
        except BaseException as exc:
            # Kept until the nursery is done: it would wrap it into a group.
            error = exc
            await _leave(client, exc)
        finally:
            client.leave()
        nursery.cancel_scope.cancel()
    if replaced is not None:
        raise replaced from (None if isinstance(error, trio.Cancelled) else error)
    if error is not None:
        raise error


async def _leave(client: Client, error: BaseException) -> None:
    """The block failed: delivers what can be, unless it was cancelled, and says what could not."""
    if isinstance(error, NotDelivered):
        return
    try:
        if isinstance(error, Exception):
            await client.close()
    except NotDelivered:
        pass
    finally:
        left = client.status()
        if left.waiting_points:
            log.warning("the client is left with %d points not acknowledged", left.waiting_points)


def _connector(
    url: str, client_id: str, token: str, org: str, bucket: str, tls: ssl.SSLContext | None, limits: Limits
) -> Connect:
    """How to connect to a URL. Raises ConfigError now for what would fail each time."""
    wanted = {"token": token, "org": org, "bucket": bucket, "tls": tls, "connect_s_max": limits.connect_s_max}
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        tls = tls or (_tls() if write_address(url).tls else None)
        from wal_ingest.client.posting import open_posts

        post = functools.partial(open_posts, url, **{**wanted, "tls": tls})  # type: ignore[arg-type]
        return lambda _client_id: post()
    tls = tls or (_tls() if stream_address(url, client_id=client_id).tls else None)
    from wal_ingest.client.stream import open_stream

    stream = functools.partial(open_stream, url, **{**wanted, "tls": tls})  # type: ignore[arg-type]
    return lambda client_id: stream(client_id=client_id)


def _tls() -> ssl.SSLContext:
    # Once for a client: reading the system's certificates takes tens of milliseconds.
    return ssl.create_default_context()


def _fresh_client_id() -> str:
    """This host, this process, and something that no other has: whoever looks at the node's streams wants to know."""
    host = "".join(char for char in socket.gethostname() if "!" <= char <= "~")[:80]
    return f"{host}-{os.getpid()}-{secrets.token_hex(6)}"
