"""Two ways to a node with one face: the stream, and HTTP as a stream of one frame at a time that is never resumed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Protocol

import msgspec
import trio

from wal_ingest.cli.posting import COME_BACK, NoAnswer, Poster, Said
from wal_ingest.client.errors import Unreachable
from wal_ingest.client.messages import Ack, Answer, Refusal, Welcome
from wal_ingest.client.stream import open_stream
from wal_ingest.confirmation import Stored, WriteProtocol, confirmation_of, foreign_answer, hint_for

_FRAME_BYTES_MAX = 32 << 20
# Verdicts on the points; every other 4xx is about the address or the token.
_VERDICTS = (400, 413, 415)
_CONTENT_TYPES = {
    "lines": "text/plain; charset=utf-8",
    "json": "application/json",
    "ndjson": "application/x-ndjson",
}


class Link(Protocol):
    """A connection to a node, as `client.stream.StreamConnection` has it."""

    welcome: Welcome

    async def send(
        self,
        number: int,
        body: bytes,
        *,
        encoding: str = "identity",
        format: str = "lines",  # noqa: A002 - the header's word
        precision: str = "",
    ) -> None:
        """Sends a frame. Raises `StreamClosed`, `Unreachable`."""

    async def receive(self) -> Answer:
        """The next answer. Raises `StreamClosed`."""


Connect = Callable[[], AbstractAsyncContextManager[Link]]


def way_to(url: str, *, client_id: str, token: str, org: str, bucket: str) -> Connect:
    """The way to the node at a URL: ws:// and wss:// are streams. Raises `ConfigError` for other URLs."""
    if url.startswith(("ws://", "wss://")):
        return partial(open_stream, url, client_id=client_id, token=token, org=org, bucket=bucket)
    poster = Poster(url, token=token)
    return partial(_open_http, url, poster, org=org, bucket=bucket)


class _Refused(msgspec.Struct):
    """The body of a 4xx."""

    error: str
    line: int | None = None
    column: int | None = None
    index: int | None = None


class HttpLink:
    """`POST /metrics`: what is sent is answered when `send` returns."""

    welcome = Welcome(durable=0, seq=0, stored=[], window_frames=1, frame_bytes_max=_FRAME_BYTES_MAX)

    def __init__(self, url: str, poster: Poster, *, org: str, bucket: str) -> None:
        self._url = url
        self._poster = poster
        self._query = {"org": org, "bucket": bucket}
        self._answered, self._answers = trio.open_memory_channel[Answer](1)

    async def send(
        self,
        number: int,
        body: bytes,
        *,
        encoding: str = "identity",
        format: str = "lines",  # noqa: A002 - the header's word
        precision: str = "",
    ) -> None:
        """See `Link`.

        **Cancellation:** leaves at once; whether the points were taken is then unknown.
        """
        post = partial(
            self._poster.post,
            "/metrics",
            {**self._query, "precision": precision},
            body,
            content_type=_CONTENT_TYPES[format],
            gzipped=encoding == "gzip",
        )
        try:
            said = await trio.to_thread.run_sync(post, abandon_on_cancel=True)
        except NoAnswer as exc:
            raise Unreachable(str(exc), wrong_peer=exc.wrong_peer, hint=exc.hint) from exc
        self._answered.send_nowait(self._answer(number, said))

    async def receive(self) -> Answer:
        """See `Link`."""
        return await self._answers.receive()

    def _answer(self, number: int, said: Said) -> Answer:
        foreign = foreign_answer(said.status, said.content_type, said.body)
        why = f"{self._url}: answered {said.status}: {said.text}"
        if said.status in COME_BACK:
            raise Unreachable(why, status=said.status, retry_after_s=int(said.retry_after_s))
        if 200 <= said.status < 300:
            found = confirmation_of(
                WriteProtocol.NATIVE, said.status, said.body, content_type=said.content_type
            )
            if isinstance(found, Stored):
                return Ack(number, found.points or 0, found.seq or 0)
            why = f"{self._url}: {found.reason}"
        elif said.status in _VERDICTS:
            try:
                refused = msgspec.json.decode(said.body, type=_Refused)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                why = f"{self._url}: {foreign or f'answered {said.status}, not as a node does: {said.text}'}"
            else:
                return Refusal(
                    number, said.status, refused.error, refused.line, refused.column, refused.index
                )
        elif foreign:
            why = f"{self._url}: {foreign}"
        raise Unreachable(why, status=said.status, wrong_peer=True, hint=hint_for(said.status))


@asynccontextmanager
async def _open_http(url: str, poster: Poster, *, org: str, bucket: str) -> AsyncIterator[HttpLink]:
    try:
        yield HttpLink(url, poster, org=org, bucket=bucket)
    finally:
        poster.close()
