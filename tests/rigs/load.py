"""Clients that send a plan to a running server, each in a thread of its own, and keep what became of it.

Every client is a closed loop: it sends its next request when the last one was answered. What is bounded:
the number of requests, or the time until `stop`; every single answer by `ANSWER_S_MAX`.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType

from tests.rigs.fleet import Plan, make_request

ANSWER_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and what was heard of it. `status` is 0 when the connection ended without an answer.

    `sent_ns` and `heard_ns` are Unix time around it. `points` and `seq` are the answer's own, None where
    the answer carries none (InfluxDB's 204).
    """

    plan: Plan
    client: int
    number: int
    status: int
    sent_ns: int
    heard_ns: int
    points: int | None = None
    seq: int | None = None
    reply: bytes = b""

    @property
    def acked(self) -> bool:
        return 200 <= self.status < 300


@dataclass(slots=True)
class _Tally:
    """What a client thread writes and the test reads once the thread has ended."""

    sent: list[Sent] = field(default_factory=list)
    refused: int = 0
    crashed: BaseException | None = None


class Load:
    """Starts `clients` clients on entering, and ends them on leaving.

    With `requests` each client sends so many and ends; without, it goes on until `stop`. A 503 is waited
    out as its Retry-After says and sent again (it was not stored); any other answer, and a connection
    that breaks, ends the client, since a test that expects neither must see it.
    """

    def __init__(self, port: int, plan: Plan, *, clients: int, requests: int | None = None) -> None:
        self._port = port
        self._plan = plan
        self._requests = requests
        self._stop = threading.Event()
        self._heard = threading.Condition()
        self._acked = 0
        self._tallies = [_Tally() for _ in range(clients)]
        self._threads = [
            threading.Thread(target=self._client, args=(number, tally), name=f"client {number}", daemon=True)
            for number, tally in enumerate(self._tallies)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self, *, s_max: float) -> None:
        """Waits until every client has sent its `requests`. Raises AssertionError when they take longer."""
        deadline = time.monotonic() + s_max
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"{thread.name} is not done after {s_max:g} s"
        self._raise_crash()

    def wait_for_acks(self, requests: int, *, s_max: float = 30.0) -> None:
        """Waits until so many requests in all were answered 2xx."""
        with self._heard:
            done = self._heard.wait_for(lambda: self._acked >= requests, timeout=s_max)
        self._raise_crash()
        assert done, f"{self._acked} of {requests} requests were answered within {s_max:g} s"

    def stop(self) -> None:
        """Lets every client finish the request it is at."""
        self._stop.set()
        for thread in self._threads:
            thread.join(ANSWER_S_MAX + 5)
            assert not thread.is_alive(), f"{thread.name} does not end"
        self._raise_crash()

    @property
    def sent(self) -> list[Sent]:
        """Every request that was sent; read it after `stop` or `wait`."""
        return [one for tally in self._tallies for one in tally.sent]

    @property
    def acked(self) -> list[Sent]:
        return [one for one in self.sent if one.acked]

    @property
    def acked_so_far(self) -> int:
        """Requests answered 2xx up to now; may be read while clients run."""
        return self._acked

    @property
    def refused(self) -> int:
        """How many answers were 503."""
        return sum(tally.refused for tally in self._tallies)

    def _raise_crash(self) -> None:
        for tally in self._tallies:
            if tally.crashed is not None:
                raise AssertionError("a client of the load crashed") from tally.crashed

    def _client(self, client: int, tally: _Tally) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S_MAX)
        try:
            number = 0
            while not self._stop.is_set() and (self._requests is None or number < self._requests):
                one, retry_after_s = self._send(connection, client, number)
                if one.status == 503:
                    tally.refused += 1
                    self._stop.wait(min(retry_after_s, 1.0))
                    continue
                tally.sent.append(one)
                if not one.acked:
                    return
                with self._heard:
                    self._acked += 1
                    self._heard.notify_all()
                number += 1
        except BaseException as exc:  # handed to the test's thread, which raises it
            tally.crashed = exc
        finally:
            connection.close()

    def _send(self, connection: http.client.HTTPConnection, client: int, number: int) -> tuple[Sent, float]:
        request = make_request(self._plan, client, number)
        sent_ns = time.time_ns()
        status, reply, retry_after_s = 0, b"", 0.0
        try:
            connection.request("POST", request.path, request.body, request.headers)
            answer = connection.getresponse()
            # The status line alone is the promise: what breaks behind it does not take it back.
            status = answer.status
            retry_after_s = float(answer.headers.get("Retry-After", "0"))
            reply = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
        told = json.loads(reply) if status == 202 and reply.endswith(b"}") else {}
        one = Sent(
            self._plan,
            client,
            number,
            status,
            sent_ns,
            time.time_ns(),
            points=told.get("points"),
            seq=told.get("seq"),
            reply=reply[:500],
        )
        return one, retry_after_s
