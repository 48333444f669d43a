"""Frames as POSTs: what a stream's connection does, over HTTP. The only importer of httpx.

One request at a time: its answer is the acknowledgement. Whatever is no answer to the points themselves (no
connection, 503, a wrong token) ends the "connection", as a stream would end.

An address that ends with `/api/v2/write` or `/write` is InfluxDB's: it answers 204, without a seq. Proxies of the
environment are not used, as the stream does not use them either.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import trio

from wal_ingest.client import peer
from wal_ingest.client.address import Address, write_address
from wal_ingest.client.errors import Unreachable
from wal_ingest.client.messages import Ack, Answer, Refusal
from wal_ingest.confirmation import (
    Stored,
    WriteProtocol,
    confirmation_of,
    foreign_answer,
    hint_for,
    protocol_of,
    refusal_of,
)

_ANSWER_BYTES_MAX = 64 << 10
_REASON_CHARACTERS_MAX = 500
# What a node, or a proxy before it, answers for a while.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

# Verdicts on the points; every other 4xx is about the address, the token or the moment.
_REFUSED = {
    WriteProtocol.NATIVE: frozenset({400, 413, 415}),
    WriteProtocol.INFLUXDB: frozenset({400, 413, 415, 422}),
}


class PostConnection:
    """Sends frames as requests; the answers are received as a stream's are."""

    # Nothing is known of the node before the first answer.
    welcome = None

    def __init__(self, client: httpx.AsyncClient, address: Address, headers: dict[str, str]) -> None:
        self._client = client
        self._url = f"http{'s' * address.tls}://{address.authority}{address.target}"
        self._place = str(address)
        self._headers = headers
        self._protocol = protocol_of(address.target)
        self._told, self._answers = trio.open_memory_channel[Answer](math.inf)
        self._failure: Unreachable | None = None
        self._answered = False
        self._tls = address.tls

    async def send(self, number: int, body: bytes, *, encoding: str = "identity") -> None:
        """Posts a frame and waits for the answer. Raises Unreachable, as `receive` then does.

        **Cancellation:** whether the points were stored is unknown; send them again.
        """
        try:
            self._told.send_nowait(await self._post(number, body, encoding))
        except Unreachable as exc:
            self._failure = exc
            self._told.close()
            raise

    async def receive(self) -> Answer:
        """The next answer. Raises Unreachable when there is none any more, for the reason that ended it.

        **Cancellation:** no answer is lost.
        """
        try:
            return await self._answers.receive()
        except trio.EndOfChannel:
            assert self._failure is not None
            raise self._failure from None

    async def _post(self, number: int, body: bytes, encoding: str) -> Answer:
        headers = {**self._headers, "content-length": str(len(body))}
        if encoding != "identity":
            headers["content-encoding"] = encoding
        request = httpx.Request("POST", self._url, headers=headers, stream=_Body(body))
        try:
            response = await self._client.send(request, stream=True)
            try:
                said = await _beginning(response)
            finally:
                await response.aclose()
        except httpx.HTTPError as exc:
            if found := peer.no_http_by_words(self._place, str(exc)):
                raise found from exc
            raise peer.unreachable(self._place, exc, tls=self._tls, answered=self._answered) from exc
        self._answered = True
        return self._read(number, response, said)

    def _read(self, number: int, response: httpx.Response, said: bytes) -> Answer:
        status = response.status_code
        wrong_peer = False
        reason = refusal_of(said)
        if 200 <= status < 300:
            kind = response.headers.get("content-type", "")
            found = confirmation_of(self._protocol, status, said, content_type=kind)
            if isinstance(found, Stored):
                return Ack(number, found.points or 0, found.seq or 0)
            wrong_peer, words = True, found.reason
        else:
            # A body that is too large may be refused by a proxy, in its own words: halving mends that too.
            if status in _REFUSED[self._protocol] and (reason is not None or status == 413):
                return Refusal(number, status, (reason or _text(said))[:_REASON_CHARACTERS_MAX])
            said_text = (reason or _text(said))[:_REASON_CHARACTERS_MAX]
            words = f"answered {status}{': ' if said_text else ''}{said_text}"
            if status not in _PASSING:
                words = foreign_answer(status, response.headers.get("content-type", ""), said) or words
            if not self._tls and peer.expects_tls(said):
                raise Unreachable(
                    f"{self._place}: the port is for TLS", status=status, wrong_peer=True, hint=peer.USE_TLS
                )
        asked = response.headers.get("retry-after", "")
        raise Unreachable(
            f"{self._place}: {words}",
            status=status,
            retry_after_s=int(asked) if asked.isdecimal() and asked.isascii() and len(asked) < 10 else 0,
            wrong_peer=wrong_peer,
            hint=hint_for(status) if status < 500 else "",
        )


def _text(said: bytes) -> str:
    return said.decode(errors="replace").strip()


class _Body(httpx.AsyncByteStream):
    """A request's body in one piece.

    httpx's own is a generator, which is left lying about half-way when the connection breaks while it is sent.
    """

    def __init__(self, body: bytes) -> None:
        self._pieces = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


async def _beginning(response: httpx.Response) -> bytes:
    """An answer's body, as much of it as anybody needs."""
    out = b""
    async for piece in response.aiter_bytes():
        out += piece
        if len(out) > _ANSWER_BYTES_MAX:
            break
    return out[:_ANSWER_BYTES_MAX]


@asynccontextmanager
async def open_posts(
    url: str,
    *,
    token: str = "",
    org: str = "",
    bucket: str = "",
    tls: ssl.SSLContext | None = None,
    connect_s_max: float = 10.0,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[PostConnection]:
    """A place to post frames to; connects with the first. `transport` is there for tests.

    Raises ConfigError for a URL that is none.

    **Cancellation:** leaves at once.
    """
    address = write_address(url, org=org, bucket=bucket)
    headers = {
        "host": address.authority,
        "user-agent": "wal-ingest",
        "content-type": "text/plain; charset=utf-8",
        "accept-encoding": "identity",
    }
    if token:
        headers["authorization"] = f"Bearer {token}"
    verify = (tls or ssl.create_default_context()) if address.tls else False
    client = httpx.AsyncClient(
        verify=verify,
        transport=transport,
        trust_env=False,
        # Who waits for the answer decides how long.
        timeout=httpx.Timeout(None, connect=connect_s_max),
    )
    async with client:
        yield PostConnection(client, address, headers)
