"""A connection's socket without the layers above it, for a listener that reads and answers by itself."""

from __future__ import annotations

import errno
import os
from typing import Any, Protocol

import trio

# The largest piece read from a socket at once: a body of a thousand lines and its head, in one piece. (Half of
# it, which is hypercorn's, costs 8 % of the requests per second at that size; twice as much gains nothing.)
RECEIVE_BYTES_MAX = 128 * 1024

# And within a large body, whose reader lets so much arrive (see `body.unhurried`): a read costs the same whatever it
# brings.
LARGE_RECEIVE_BYTES_MAX = 512 * 1024


class Owner(Protocol):
    """The connection, as far as its wire knows it."""

    stream: Any
    """A `trio.SocketStream`."""
    send_lock: trio.Lock

    def send_unsent(self) -> None:
        """Has what `Wire.unsent` holds sent as soon as the peer takes it."""
        ...


class Wire:
    """The socket of one connection.

    Invariant: while `unsent` holds bytes nothing else is written before them.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        # The rest of what the socket took a part of.
        self.unsent = b""

    async def read(self, bytes_max: int = RECEIVE_BYTES_MAX) -> bytes:
        """What has arrived, as soon as there is some; empty at the end of the connection, however it ended.

        Cancellation: nothing is lost.
        """
        sock = self._owner.stream.socket
        while sock.fileno() >= 0:
            try:
                await trio.lowlevel.wait_readable(sock)
                # By its number, for trio's own `recv` first tries in vain, which costs as much as the read itself; and
                # by the number of now: it may have been closed meanwhile, and be another connection's.
                return os.read(sock.fileno(), bytes_max)
            except BlockingIOError:
                continue
            except (OSError, trio.ClosedResourceError):
                break
        return b""

    def write_now(self, data: bytes) -> bool:
        """Sends at once; false, and nothing is sent, when others are sending or the socket has no room.

        What a socket that is gone does not take is nobody's: whoever reads finds out.
        """
        if self.unsent or self._owner.send_lock.locked():
            return False
        try:
            count = os.write(self._owner.stream.socket.fileno(), data)
        except BlockingIOError:
            return False
        except OSError as exc:
            if isinstance(exc, ConnectionError) or exc.errno == errno.EBADF:
                return True
            count = 0  # the kernel has no memory for it, say: then it waits, or the connection ends
        if count < len(data):
            self.unsent = data[count:]
            self._owner.send_unsent()
        return True
