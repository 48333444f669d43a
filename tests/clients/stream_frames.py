"""Streams frames of a plan until SIGTERM, keeping its place on disk: `python -m tests.clients.stream_frames`.

Arguments: URL, client_id, the ledger's path, the plan's run, and its first time in nanoseconds. Whenever it is killed
and started again it goes on where its ledger and the node's welcome say. Every so many frames one is malformed, and
must be refused without harm to its neighbours.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import trio

from tests.clients.stream_ledger import Ledger
from tests.rigs.fleet import Plan, Shape, make_points, request_of
from wal_ingest.client.errors import StreamClosed, Unreachable
from wal_ingest.client.stream import StreamConnection, open_stream
from wal_ingest.wal.gzip_codec import crc32

FORMATS = {"lines": "lines", "general": "json", "ndjson": "ndjson"}
SHAPES = tuple(Shape(form, packed, timed=True) for form in FORMATS for packed in (False, True))
MALFORMED_EVERY = 29
BURST_FRAMES_MAX = 40
FRAMES_PER_S = 300
COMES_BACK_S = 0.01


def plan_of(run: str, base_ns: int) -> Plan:
    """What a client of this name sends."""
    return Plan(run, base_ns, points=12, shapes=SHAPES, seed=len(run), vary=True)


def is_malformed(frame: int) -> bool:
    return frame % MALFORMED_EVERY == MALFORMED_EVERY - 1


class Client:
    """The stream of one plan."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan = plan
        self._ledger = ledger
        self._dice = Random()
        self._answered = trio.Event()
        self.stopping = False
        self.done = False

    async def talk(self, stream: StreamConnection) -> None:
        """Sends and hears until everything is settled after `stopping`, or the stream breaks. Raises StreamClosed."""
        welcome = stream.welcome
        self._ledger.welcomed(welcome)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_all, stream, nursery.cancel_scope.cancel)
            while True:
                self._ledger.answered(await stream.receive())
                self._answered.set()

    async def _send_all(self, stream: StreamConnection, end: Callable[[], None]) -> None:
        durable = stream.welcome.durable
        left = self._ledger.unsettled()
        # What may still be under its number first: numbers rise within a stream.
        for number, frame in [one for one in left if one[0] > durable]:
            await self._send(stream, number, frame)
        for _, frame in [one for one in left if one[0] <= durable]:
            await self._send(stream, self._ledger.next_number, frame)
        while not self.stopping:
            burst = self._dice.randint(1, BURST_FRAMES_MAX)
            for _ in range(burst):
                await self._send(stream, self._ledger.next_number, self._ledger.next_frame)
            await trio.sleep(burst / FRAMES_PER_S)
        while self._ledger.under_way:
            await self._wait_for_answer()
        self.done = True
        end()

    async def _send(self, stream: StreamConnection, number: int, frame: int) -> None:
        while len(self._ledger.under_way) >= stream.welcome.window_frames:
            await self._wait_for_answer()
        body, text, shape = self._body(frame)
        points = 0 if is_malformed(frame) else len(make_points(self._plan, 0, frame))
        self._ledger.sends(number, frame, points, crc32(text))
        await stream.send(
            number, body, encoding="gzip" if shape.gzip else "identity", format=FORMATS[shape.form]
        )

    def _body(self, frame: int) -> tuple[bytes, bytes, Shape]:
        """The body as it is sent, as it is after decompression, and the shape that it has."""
        shape = SHAPES[frame % len(SHAPES)]
        if is_malformed(frame):
            plain = Shape(shape.form, gzip=False, timed=True)
            return b"neither a line nor JSON", b"neither a line nor JSON", plain
        points = make_points(self._plan, 0, frame)
        text = request_of(Shape(shape.form, gzip=False, timed=True), points).body
        return request_of(shape, points).body, text, shape

    async def _wait_for_answer(self) -> None:
        self._answered = trio.Event()
        await self._answered.wait()


async def main(url: str, client_id: str, path: Path, run: str, base_ns: int) -> None:
    with Ledger(path) as ledger:
        client = Client(plan_of(run, base_ns), ledger)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_sigterm, client)
            while not client.done:
                try:
                    async with open_stream(url, client_id=client_id) as stream:
                        await client.talk(stream)
                except* StreamClosed as group:
                    for exc in group.exceptions:
                        ledger.closed(exc.code if isinstance(exc, StreamClosed) else 0)
                except* Unreachable:
                    pass
                await trio.sleep(COMES_BACK_S)
            nursery.cancel_scope.cancel()


async def _stop_on_sigterm(client: Client) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            client.stopping = True


if __name__ == "__main__":
    url, client_id, path, run, base_ns = sys.argv[1:]
    trio.run(main, url, client_id, Path(path), run, int(base_ns))
