"""The fault proxy does what it says, over real sockets: a fault that does not strike proves nothing."""

from __future__ import annotations

import gzip
import http.client
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ops.chaos.proxy import FAIR, Proxy, Weather

GOOD = b"m,a=1 v=1 1\n"
POISON = b"m,a=1,poison=yes v=1 2\n"


@contextmanager
def database() -> Iterator[tuple[Proxy, list[bytes]]]:
    """A proxy in front of a database that notes what it is given and answers 204."""
    taken: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Proxy(server.server_address[1], seed=1) as proxy:
                yield proxy, taken
        finally:
            server.shutdown()
            thread.join()


def post(port: int, body: bytes, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", "/api/v2/write?bucket=b", body, headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer


def test_in_fair_weather_a_write_passes_as_it_is() -> None:
    with database() as (proxy, taken):
        packed = gzip.compress(GOOD) + gzip.compress(GOOD)

        assert post(proxy.port, packed, {"Content-Encoding": "gzip"}).status == 204
        assert taken == [packed]


def test_an_answer_is_given_in_the_databases_place() -> None:
    with database() as (proxy, taken):
        proxy.weather = Weather("503", status=503, message="busy", headers=(("Retry-After", "2"),))
        answer = post(proxy.port, GOOD)

        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert taken == []
        assert proxy.struck == {"503": 1}


def test_only_larger_writes_are_too_large() -> None:
    with database() as (proxy, taken):
        proxy.weather = Weather("413", status=413, points_max=2)

        assert post(proxy.port, GOOD * 3).status == 413
        assert post(proxy.port, GOOD * 2).status == 204
        assert taken == [GOOD * 2]


@pytest.mark.parametrize(
    ("ending", "error", "written"),
    [
        ("half", http.client.HTTPException, 1),
        ("reset", ConnectionResetError, 1),
        ("early reset", ConnectionResetError, 0),
    ],
)
def test_an_answer_that_does_not_arrive(ending: str, error: type[Exception], written: int) -> None:
    with database() as (proxy, taken):
        proxy.weather = Weather(ending, ending=ending)
        with pytest.raises(error):
            post(proxy.port, GOOD)
        proxy.weather = FAIR

        assert len(taken) == written
        assert post(proxy.port, GOOD).status == 204


def test_a_poisoned_line_is_refused_and_never_written_whatever_becomes_of_its_neighbours() -> None:
    with database() as (proxy, taken):
        answers = {post(proxy.port, GOOD + POISON + GOOD).status for _ in range(20)}

        assert answers == {400}
        assert set(taken) == {GOOD * 2}, "a partial write was among them"
        assert len(taken) < 20, "a whole refusal was among them"


def test_a_database_that_is_down_refuses_connections_and_is_back_on_the_same_port() -> None:
    with database() as (proxy, _):
        port = proxy.port
        proxy.listen(False)
        with pytest.raises(ConnectionRefusedError):
            post(port, GOOD)
        proxy.listen(True)

        assert proxy.port == port
        assert post(port, GOOD).status == 204
