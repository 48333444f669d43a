"""Clients that go on whatever happens to the server, each a thread, and keep what became of every request.

A request with times of its own is sent again until it is answered, as clients do. One without is not: each try would
get a time of its own, so after a try without a clear answer its fate stays open, and the next one is sent. A frame of a
stream is sent again whatever is in it, for it has a number, and counts as sent once: it must not be there twice.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from types import TracebackType

from ops.chaos.stream_line import StreamLine
from ops.chaos.traffic import Kind, Sent, kind_of, make_request, shape_of
from tests.rigs.fleet import Plan, Request

_ANSWER_S_MAX = 30.0
# After a failure: the server may be on its way up again.
_AGAIN_S = 0.1
_NEW_CONNECTION_SHARE = 0.05
# No answer, accepted, refused, come back later.
_EXPECTED = {0, 202, 204, 400, 408, 503}


@dataclass(frozen=True, slots=True)
class Stream:
    """One client: what it sends, and how many seconds it lies idle between two requests, on the average."""

    plan: Plan
    client: int
    idle_s: float
    is_stream: bool = False
    """Whether its requests are frames of a named stream, rather than requests over HTTP."""


@dataclass(slots=True)
class _Tally:
    sent: list[Sent] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)


class Clients:
    """Runs from entering to leaving. `port` is asked for at each new connection.

    `offsets_ns` tells the lowest and the highest offset of the server's clock since a monotonic moment. `poison` and
    `broken` are shares of the requests and may be set at any time.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        *,
        port: Callable[[], int],
        offsets_ns: Callable[[float], tuple[int, int]],
    ) -> None:
        self.poison = 0.01
        self.broken = 0.02
        self._port = port
        self._offsets_ns = offsets_ns
        self._stop = threading.Event()
        self._tallies = [_Tally() for _ in streams]
        self._crashed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._live, args=(stream, tally), daemon=True)
            for stream, tally in zip(streams, self._tallies, strict=True)
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_ANSWER_S_MAX + 5)

    def stop(self) -> None:
        """Lets every client end its request. Raises AssertionError when one does not, or had crashed."""
        self.__exit__(None, None, None)
        assert not any(thread.is_alive() for thread in self._threads), "a client does not end"
        if self._crashed:
            raise AssertionError("a client crashed") from self._crashed[0]

    @property
    def sent(self) -> list[Sent]:
        """Every request; complete after `stop`."""
        return [one for tally in self._tallies for one in tally.sent]

    @property
    def acked_so_far(self) -> int:
        """Requests answered 2xx up to now."""
        return sum(tally.answers[status] for tally in self._tallies for status in (202, 204))

    @property
    def answers(self) -> Counter[int]:
        """How often each status was heard, tries included; 0 is a connection that ended without."""
        return sum((tally.answers for tally in self._tallies), Counter[int]())

    @property
    def unexpected(self) -> list[str]:
        """Answers that no client should ever get from this server."""
        return [what for tally in self._tallies for what in tally.unexpected]

    def _live(self, stream: Stream, tally: _Tally) -> None:
        dice = Random(f"pace/{stream.plan.seed}/{stream.plan.run}/{stream.client}")
        line: _Line | StreamLine = _Line(self._port)
        if stream.is_stream:
            client_id = f"{stream.plan.run}-{stream.plan.seed}-{stream.client}"
            line = StreamLine(self._port, client_id, answer_s_max=_ANSWER_S_MAX / 3)
            tally.unexpected = line.complaints
        try:
            number = 0
            while not self._stop.is_set():
                kind = kind_of(stream.plan, stream.client, number, poison=self.poison, broken=self.broken)
                tally.sent.append(self._see_through(stream, number, kind, line, tally))
                number += 1
                if dice.random() < _NEW_CONNECTION_SHARE:
                    line.drop()
                self._stop.wait(dice.expovariate(1 / stream.idle_s))
        except BaseException as exc:  # raised by `stop`
            self._crashed.append(exc)
        finally:
            line.drop()

    def _see_through(
        self, stream: Stream, number: int, kind: Kind, line: _Line | StreamLine, tally: _Tally
    ) -> Sent:
        """Sends one request as often as its kind allows and until it is answered for good."""
        request = make_request(stream.plan, stream.client, number, kind)
        again = stream.is_stream or shape_of(stream.plan, number).timed
        began_s, sent_ns = time.monotonic(), time.time_ns()
        tries = 0
        while True:
            tries += 1
            status, reply = line.send(number + 1, request)
            tally.answers[status] += 1
            if status not in _EXPECTED:
                tally.unexpected.append(f"{status} to {request.path}: {reply[:200]!r}")
            final = status != 0 and status not in (408, 429) and status < 500
            if final or not again or self._stop.is_set():
                break
            self._stop.wait(_AGAIN_S)
        heard_ns = time.time_ns()
        lowest_ns, highest_ns = self._offsets_ns(began_s)
        if not final:
            self._stop.wait(_AGAIN_S)
        told = json.loads(reply) if status == 202 and reply.endswith(b"}") else {}
        return Sent(
            stream.plan,
            stream.client,
            number,
            kind,
            status,
            sent_ns + lowest_ns,
            heard_ns + highest_ns,
            1 if stream.is_stream else tries,
            points=told.get("points"),
            seq=told.get("seq"),
        )


class _Line:
    """A connection that is made again when it has broken."""

    def __init__(self, port: Callable[[], int]) -> None:
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def send(self, _number: int, request: Request) -> tuple[int, bytes]:
        """The status, 0 when there was none, and the answer's body as far as it came."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=_ANSWER_S_MAX)
        status, reply = 0, b""
        try:
            self._connection.request("POST", request.path, request.body, request.headers)
            answer = self._connection.getresponse()
            # The status line alone is the promise: what breaks behind it does not take it back.
            status = answer.status
            reply = answer.read()
        except (OSError, http.client.HTTPException):
            self.drop()
        return status, reply

    def drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
