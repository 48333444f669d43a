"""Web pages of other origins and rebound names are refused; agents pass whatever their Host is."""

from __future__ import annotations

import json

import pytest
import structlog.testing

from tests.http.rig import LINE, ask, front, get, post, running, within
from tests.http.test_refusals import Noted
from wal_ingest.errors import ConfigError
from wal_ingest.http.proxies import TrustedProxies
from wal_ingest.settings import ServerSettings

PAGE = {"Accept-Language": "en", "User-Agent": "Mozilla/5.0"}
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


async def status(method: str, target: str, settings: ServerSettings, **headers: str) -> int:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    body = LINE if method == "POST" else b""
    return (await ask(front(settings).app, method, target, body, sent)).status


@pytest.mark.parametrize(
    ("origin", "host", "settings", "expected"),
    [
        ("https://evil.example", "127.0.0.1:8400", {}, 403),
        ("null", "127.0.0.1:8400", {}, 403),
        ("http://127.0.0.1:9999", "127.0.0.1:8400", {}, 403),
        ("http://evil.example:8400", "evil.example:8400", {}, 403),
        ("http://127.0.0.1:8400", "127.0.0.1:8400", {}, 204),
        ("http://LOCALHOST:8400", "localhost:8400", {}, 204),
        ("http://[::1]:8400", "[::1]:8400", {}, 204),
        ("https://127.0.0.1", "127.0.0.1:443", {}, 204),
        (
            "https://page.example",
            "127.0.0.1:8400",
            {"allowed_origins": "https://page.example/, http://b"},
            204,
        ),
        ("https://page.example", "127.0.0.1:8400", {"allowed_origins": "http://page.example"}, 403),
        ("https://node.example", "node.example", {"bind": "0.0.0.0:8400"}, 204),
        ("https://node.example", "node.example", {"allowed_hosts": "node.example"}, 204),
        ("https://evil.example", "node.example", {"bind": "0.0.0.0:8400"}, 403),
    ],
)
async def test_a_page_may_write_only_from_the_nodes_own_origin_or_a_listed_one(
    origin: str, host: str, settings: dict[str, str], expected: int
) -> None:
    given = ServerSettings(**settings)  # type: ignore[arg-type]  # all of them are text
    assert await status("POST", "/write", given, Origin=origin, Host=host) == expected


@pytest.mark.parametrize("host", ["x", "", "metrics:8400", "node.default.svc.cluster.local", "lb.example"])
@pytest.mark.parametrize("bind", ["127.0.0.1:8400", "0.0.0.0:8400"])
async def test_an_agent_passes_with_any_host(host: str, bind: str) -> None:
    settings = ServerSettings(bind=bind, allowed_hosts="other")
    assert await status("POST", "/write", settings, Host=host, User_Agent="Telegraf/1.30") == 204
    # The fetch of Node.js looks like a browser, but for one header that a page cannot remove.
    node = {"Host": host, "Accept_Language": "*", "Sec_Fetch_Mode": "cors"}
    assert await status("POST", "/write", settings, **node) == 204


@pytest.mark.parametrize("path", ["/", "/status.json", "/history.json", "/metrics"])
@pytest.mark.parametrize("sign", ["Accept-Language", "Referer", "Sec-Fetch-Site"])
async def test_a_browser_reads_nothing_by_a_name_that_is_not_known(path: str, sign: str) -> None:
    rebound = {sign: "x", "Host": "evil.example:8400"}
    answer = await ask(front().app, "GET", path, b"", rebound)
    assert answer.status == 403
    assert "server.allowed_hosts" in json.loads(answer.body)["error"]
    for host in ("127.0.0.1:8400", "localhost:8400", "[::1]:8400", "10.1.2.3", "app.localhost"):
        assert (await ask(front().app, "GET", path, b"", {**PAGE, "Host": host})).status == 200
    elsewhere = front(ServerSettings(bind="0.0.0.0:8400"))
    assert (await ask(elsewhere.app, "GET", path, b"", {**PAGE, "Host": "node.example"})).status == 200


async def test_a_refused_page_is_counted_and_logged_with_its_reason() -> None:
    noted = Noted()
    app = front(observer=noted).app
    with structlog.testing.capture_logs() as lines:
        for path in ("/write", "/status.json"):
            await ask(app, "POST", path, LINE, {"Origin": "https://evil.example", "Host": "127.0.0.1"})
    assert noted.answers == [("/write", "invalid", 0, 0), ("other", "invalid", 0, 0)]
    assert [line["route"] for line in lines] == ["/write", "/status.json"]
    assert all("https://evil.example" in line["reason"] for line in lines)


async def test_a_foreign_page_opens_no_stream() -> None:
    door = front()
    with within(5):
        async with running(door.app, door.settings) as server:
            peer = await server.connect()
            handshake = get("/stream?client_id=a", "Origin: https://evil.example", *HANDSHAKE)
            await peer.send(handshake.replace(b"Host: x", b"Host: 127.0.0.1"))
            answer = await peer.answer()
    assert answer.status == 403
    assert "server.allowed_origins" in json.loads(answer.body)["error"]


@pytest.mark.parametrize("origins", ["evil.example", "https://", "https://a/b"])
def test_an_origin_that_is_none_is_an_error_of_the_settings(origins: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin"):
        front(ServerSettings(allowed_origins=origins))


# -- trusted proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "headers", "source"),
    [
        ("10.0.0.1", [(b"x-forwarded-for", b"1.2.3.4")], "1.2.3.4"),
        ("10.0.0.1", [(b"x-forwarded-for", b"6.6.6.6, 1.2.3.4, 10.0.0.2")], "1.2.3.4"),
        ("10.0.0.1", [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"1.2.3.4:555")], "1.2.3.4"),
        ("10.0.0.1", [(b"x-forwarded-for", b"10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ("10.0.0.1", [(b"forwarded", b'for=6.6.6.6, for="[2001:db8::1]:80";proto=https')], "2001:db8::1"),
        ("10.0.0.1", [(b"x-forwarded-for", b"1.2.3.4, unknown")], "10.0.0.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("9.9.9.9", [(b"x-forwarded-for", b"1.2.3.4")], "9.9.9.9"),
        ("", [(b"x-forwarded-for", b"1.2.3.4")], ""),
    ],
)
def test_the_source_is_the_nearest_address_that_is_not_a_trusted_proxys(
    peer: str, headers: list[tuple[bytes, bytes]], source: str
) -> None:
    assert TrustedProxies("10.0.0.0/8, ::1").source(peer, headers) == source


async def test_the_source_from_a_trusted_proxy_is_stored_and_logged() -> None:
    door = front(ServerSettings(trusted_proxies="10.0.0.7"))
    with structlog.testing.capture_logs() as lines:
        for body in (LINE, b"nonsense"):
            await ask(door.app, "POST", "/write", body, {"X-Forwarded-For": "1.2.3.4"})
    assert [entry.source for entry in door.wal.appends[0]] == ["1.2.3.4"]
    assert [line["source"] for line in lines] == ["1.2.3.4"]
    assert not TrustedProxies("")
    with pytest.raises(ConfigError, match="is not a network"):
        TrustedProxies("10.0.0.1/8")


async def test_without_trusted_proxies_the_header_is_ignored() -> None:
    door = front()
    with within(5):
        async with running(door.app, door.settings) as server:
            peer = await server.connect()
            await peer.send(post("/write", LINE, "X-Forwarded-For: 1.2.3.4"))
            assert (await peer.answer()).status == 204
    assert door.wal.appends[0][0].source == "127.0.0.1"


async def test_with_a_star_every_page_may_write() -> None:
    app = front(ServerSettings(allowed_origins="*")).app
    headers = {"Content-Type": "text/plain", "Host": "127.0.0.1:8400"}
    for origin in ("https://evil.example", "null", "file://"):
        assert (await ask(app, "POST", "/metrics", LINE, {**headers, "Origin": origin})).status == 202
