"""A relay between clients and a server that passes bytes on, and cuts connections at any of them when it is told to.

It keeps its port while the server behind it dies and comes back on another one, so clients have one address. It knows
no protocol: a cut falls into a handshake, a header, or the middle of a frame, in either direction.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from random import Random
from types import TracebackType

import trio

from tests.rigs.processes import wait_until

_READ_BYTES = 64 * 1024
# A connection that is to be cut lives for 1 to 2**CUT_BITS_MAX bytes, short ones as often as long ones.
CUT_BITS_MAX = 15

_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Relay:
    """Runs from entering to leaving, in a thread of its own.

    `upstream_port` is where new connections lead. While `cutting` is true each connection is cut after a random number
    of bytes, by a reset or a plain end; `cuts` counts them.
    """

    def __init__(self, *, seed: int) -> None:
        self.upstream_port = 0
        self.port = 0
        self.cutting = False
        self.cuts = 0
        self._dice = Random(f"relay/{seed}")
        self._listens = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._everything = trio.CancelScope()
        self._thread = threading.Thread(target=lambda: trio.run(self._main), daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        assert self._listens.wait(10), "the relay does not listen"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._everything.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the relay does not end"

    def cut(self, times: int, *, s_max: float = 15.0) -> None:
        """Cuts connections until so many of them were cut, and then lets them live."""
        wanted = self.cuts + times
        self.cutting = True
        try:
            wait_until(
                lambda: self.cuts >= wanted, f"{times} connections are cut", s_max=s_max, every_s=0.005
            )
        finally:
            self.cutting = False

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._everything:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            self._listens.set()
            await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, client: trio.SocketStream) -> None:
        # Whatever ends one connection ends no other.
        with contextlib.suppress(*_BROKEN):
            server = await trio.open_tcp_stream("127.0.0.1", self.upstream_port)
            passage = _Passage(self)
            async with client, server:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(passage.pass_on, client, server, nursery)
                    nursery.start_soon(passage.pass_on, server, client, nursery)
                if passage.resets:
                    for side in (client, server):
                        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def bytes_to_live(self) -> int:
        """How many more bytes a connection may carry that is to be cut."""
        return int(2 ** self._dice.uniform(0, CUT_BITS_MAX))

    def was_cut(self) -> bool:
        """Counts a cut, and says whether it is a reset."""
        self.cuts += 1
        return self._dice.random() < 0.5


class _Passage:
    """Both directions of one connection, which share the bytes that it may carry."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._left: int | None = None
        self.resets = False

    async def pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        with contextlib.suppress(*_BROKEN):
            while data := await source.receive_some(_READ_BYTES):
                await sink.send_all(data[: self._may_pass(len(data))])
                if self._left == 0:
                    self.resets = self._relay.was_cut()
                    break
        # An end in one direction is the end of both: neither side of a WebSocket goes on alone.
        nursery.cancel_scope.cancel()

    def _may_pass(self, size: int) -> int:
        if not self._relay.cutting:
            self._left = None
            return size
        if self._left is None:
            self._left = self._relay.bytes_to_live()
        size = min(size, self._left)
        self._left -= size
        return size
