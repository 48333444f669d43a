"""What there is to do around a request that is not about points: who sent it, and bodies that nobody wants."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from wal_ingest.http.answers import Answer
from wal_ingest.http.body import Receive, discard_body

Send = Callable[[dict[str, Any]], Awaitable[None]]
Scope = dict[str, Any]
AsgiCallable = Callable[[Scope, Receive, Send], Awaitable[None]]


_SLASHES = re.compile(r"//+")


def with_plain_path(scope: Scope) -> Scope:
    """The scope with its path as the routes have it: without doubled slashes or one at the end.

    Base addresses that are configured with a slash at the end make such paths.
    """
    path = scope["path"]
    if "//" not in path and (len(path) == 1 or path[-1:] != "/"):
        return scope
    plain = _SLASHES.sub("/", path).rstrip("/") or "/"
    return scope | {"path": plain, "raw_path": plain.encode()}


def source_of(scope: Scope) -> str:
    """The address that a request came from, as far as it is known."""
    client = scope.get("client")
    return client[0] if client else ""


async def answer_early(answer: Answer, receive: Receive, send: Send) -> None:
    """Answers while the body may still be coming, and takes it off the server's hands until it closes."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(discard_body, receive)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})


def without_body(receive: Receive) -> Receive:
    """The same request with an empty body: nothing behind the write routes takes one.

    The admin app would collect a body in memory before its route says a word; so it is shown none,
    and what a client sends all the same is dropped as it comes.
    """
    shown = False

    async def receivewithout_body() -> dict[str, Any]:
        nonlocal shown
        if not shown:
            shown = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message

    return receivewithout_body


async def refuse_websocket(send: Send, answer: Answer | None = None) -> None:
    """Answers a WebSocket handshake with `answer`, by default a 404."""
    if answer is None:
        body = b'{"error": "there is no WebSocket here"}\n'
        headers = (
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        )
        answer = Answer(404, headers, body)
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})
