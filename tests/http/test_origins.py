"""Which web pages may send to a node and read its status page; programs that are no browsers notice nothing."""

from __future__ import annotations

import json
import socket

import pytest

from tests.http.rig import LINE, ask, front, get, running
from wal_ingest.http.ingest import PAGE_ROUTES
from wal_ingest.http.origins import ForeignOrigin, Origins, UnknownHost
from wal_ingest.settings import ServerSettings

EVIL = "https://evil.example"
PLAIN = {"Content-Type": "text/plain"}


@pytest.mark.parametrize("route", ["/metrics", "/write", "/api/v2/write"])
async def test_a_foreign_page_stores_nothing(route: str) -> None:
    the = front()
    answer = await ask(the.app, "POST", route, LINE, {**PLAIN, "Origin": EVIL, "Host": "127.0.0.1:8400"})
    assert answer.status == 403
    assert "server.allowed_origins" in answer.body.decode()
    assert answer.headers["x-request-id"]
    assert the.wal.appends == []


async def test_a_foreign_page_opens_no_stream() -> None:
    counted: list[str] = []
    async with running(front(turned_away=counted.append).app, ServerSettings()) as server:
        peer = await server.connect()
        await peer.send(
            get(
                "/stream",
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Version: 13",
                f"Origin: {EVIL}",
            )
        )
        answer = await peer.answer()
    assert answer.status == 403
    assert EVIL in json.loads(answer.body)["error"]
    assert counted == ["origin"]


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://127.0.0.1:8400", "127.0.0.1:8400", True),
        ("http://localhost:8400", "localhost:8400", True),
        ("http://[::1]:8400", "[::1]:8400", True),
        ("https://node.local", "node.local:443", False),  # the name is not known
        ("http://127.0.0.1:3000", "127.0.0.1:8400", False),  # another program on this machine
        ("http://evil.example:8400", "evil.example:8400", False),  # a rebound name
        ("null", "127.0.0.1:8400", False),
        ("http://[broken", "127.0.0.1:8400", False),
        (EVIL, "", False),
        ("", "evil.example", True),  # no browser
    ],
)
def test_only_the_nodes_own_page_may_send(origin: str, host: str, allowed: bool) -> None:
    headers = [(b"host", host.encode())] + ([(b"origin", origin.encode())] if origin else [])
    rules = Origins("127.0.0.1:8400")
    if allowed:
        rules.check_origin(headers)
    else:
        with pytest.raises(ForeignOrigin):
            rules.check_origin(headers)


def test_origins_in_the_settings_may_send() -> None:
    headers = [(b"origin", b"https://App.example"), (b"host", b"node:8400")]
    Origins("127.0.0.1:8400", allowed_origins="https://other.example, https://app.example/").check_origin(
        headers
    )
    Origins("127.0.0.1:8400", allowed_origins="*").check_origin(headers)
    with pytest.raises(ForeignOrigin):
        Origins("127.0.0.1:8400", allowed_origins="https://other.example").check_origin(headers)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8400", True),
        ("10.1.2.3", True),
        ("[fe80::1]:8400", True),
        ("LOCALHOST.:8400", True),
        ("dev.localhost", True),
        ("bound.example:8400", True),
        ("proxy.example", True),
        (socket.gethostname(), True),
        ("evil.example:8400", False),
        ("localhost.evil.example", False),
        ("[broken", False),
        (":8400", False),
        ("", True),  # HTTP/1.0, and no browser
    ],
)
def test_the_status_page_is_for_hosts_that_are_known(host: str, known: bool) -> None:
    rules = Origins("bound.example:8400", allowed_hosts="proxy.example")
    if known:
        rules.check_host([(b"host", host.encode())])
    else:
        with pytest.raises(UnknownHost):
            rules.check_host([(b"host", host.encode())])


@pytest.mark.parametrize("route", sorted(PAGE_ROUTES))
async def test_a_rebound_name_reads_nothing_of_the_status_page(route: str) -> None:
    counted: list[str] = []
    app = front(turned_away=counted.append).app
    answer = await ask(app, "GET", route, headers={"Host": "evil.example:8400"})
    assert answer.status == 421
    assert "server.allowed_hosts" in answer.body.decode()
    assert counted == ["host"]
    assert (await ask(app, "GET", route, headers={"Host": "127.0.0.1:8400"})).status == 200


@pytest.mark.parametrize("route", ["/healthz", "/readyz", "/metrics", "/ping"])
async def test_probes_and_scrapes_may_use_any_name(route: str) -> None:
    answer = await ask(front().app, "GET", route, headers={"Host": "node.monitoring.svc"})
    assert answer.status in (200, 204)


async def test_agents_may_use_any_name() -> None:
    answer = await ask(front().app, "POST", "/write", LINE, {"Host": "node.monitoring.svc"})
    assert answer.status == 204
