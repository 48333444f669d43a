"""Senders at a wrong address: what is there is named at once, with what to do about it; nothing is lost."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.rigs.forked import quick_command
from tests.rigs.processes import free_port
from tests.rigs.service import Service, environment, run_command
from tests.rigs.strangers import Authority, http_answer, listening, relaying, says
from wal_ingest.client import Client, Limits, NotDelivered, State, open_client
from wal_ingest.confirmation import hint_for

PAGE = b"<!doctype html><html><head><title>404 Not Found</title></head><body>nginx</body></html>"
NGINX_400 = b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"
UNPROCESSABLE = b'{"code":"unprocessable entity","message":"field type conflict"}'

NO_NODE = "this is not a wal-ingest node: it answered"
ADDRESS = "the address must be that of a wal-ingest node"
# What a server without TLS answers, whether a stream or a POST was asked for; what is said; what is to be tried.
FOREIGN = {
    "a page": (
        http_answer(404, PAGE),
        f'{NO_NODE} 404 with an HTML page titled "404 Not Found"',
        hint_for(404),
    ),
    "a page with 200": (http_answer(200, PAGE), "an HTML page titled", ADDRESS),
    "a redirect": (http_answer(301, b"", "text/plain", "Location: /x"), "301", ADDRESS),
    "a text": (http_answer(404, b"no page", "text/plain"), f'{NO_NODE} 404 with "no page"', hint_for(404)),
    "an InfluxDB": (
        http_answer(422, UNPROCESSABLE, "application/json"),
        "422",
        "an InfluxDB answers there, and not a wal-ingest node",
    ),
    "a wrong token": (http_answer(401, b'{"error":"no"}', "application/json"), "401", "--token-file"),
    "a port for TLS": (http_answer(400, NGINX_400), "the port is for TLS", "wss:// or https://"),
    "an SSH server": (b"SSH-2.0-OpenSSH_9.6\r\n", f'{NO_NODE} "SSH-2.0-OpenSSH_9.6"', "a wal-ingest node"),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", "the answer is TLS", "wss:// or https://"),
}
# Those that start a process of seconds each.
SOME = ["a page", "an InfluxDB", "a port for TLS"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("node")
    with Service(folder / "data", logs=folder) as service:
        yield service


@pytest.fixture
def points(tmp_path: Path) -> Path:
    path = tmp_path / "points.lp"
    path.write_bytes(b"m f=1 1\nm f=2 2\nm f=3 3\n")
    return path


def tls_servers(authority: Authority) -> dict[str, tuple[AbstractContextManager[int], str, str]]:
    """By what is wrong: a server, what is said of it, and what is to be tried."""
    name = "use a name that is in the certificate"
    answer = says(http_answer(404, PAGE))
    return {
        "untrusted": (listening(answer, tls=authority.context("good")), "is not trusted", "SSL_CERT_FILE"),
        "expired": (
            listening(answer, tls=authority.context("expired", days=-1)),
            "its certificate has expired",
            "renew it on the server",
        ),
        "another name": (
            listening(answer, tls=authority.context("other", names="DNS:elsewhere")),
            "its certificate is for other",
            name,
        ),
        "no TLS": (listening(answer), "the answer is no TLS", "ws:// or http://"),
    }


def send(
    points: Path, to: str, *more: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return run_command("send", points, "--to", to, *more, env=env, s_max=40)


@dataclass(frozen=True)
class Wrong:
    """A server that no sender can use: its address, what is said of it, what is to be tried, whom the sender trusts."""

    address: str
    words: str
    remedy: str
    env: dict[str, str]


@pytest.fixture(params=["wss", "https"])
def wrong_tls_server(request: pytest.FixtureRequest, authority: Authority, wrong: str) -> Iterator[Wrong]:
    server, words, remedy = tls_servers(authority)[wrong]
    trust = {} if wrong == "untrusted" else {"SSL_CERT_FILE": str(authority.file)}
    with server as port:
        yield Wrong(f"{request.param}://127.0.0.1:{port}", words, remedy, trust)


every_wrong_tls_server = pytest.mark.parametrize("wrong", ["untrusted", "expired", "another name", "no TLS"])


@pytest.mark.needs("openssl")
@every_wrong_tls_server
def test_what_is_wrong_with_a_server_of_tls_is_named_at_once(points: Path, wrong_tls_server: Wrong) -> None:
    ran = send(points, wrong_tls_server.address, env=wrong_tls_server.env)
    assert ran.returncode == 2, ran.stderr
    assert wrong_tls_server.words in ran.stderr
    assert wrong_tls_server.remedy in ran.stderr.split("try: ")[1]


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("scheme", ["wss", "https"])
def test_the_remedy_for_an_untrusted_certificate_is_one(
    authority: Authority, node: Service, points: Path, scheme: str
) -> None:
    with listening(relaying(node.port), tls=authority.context("good")) as port:
        ran = send(points, f"{scheme}://127.0.0.1:{port}", env={"SSL_CERT_FILE": str(authority.file)})
    assert ran.returncode == 0, ran.stderr
    assert "3 points in 1 frame taken" in ran.stdout


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_a_port_for_tls_that_closes_without_a_word_is_suspected_and_tried_on(
    authority: Authority, points: Path, scheme: str
) -> None:
    with listening(says(b""), tls=authority.context("good")) as port:
        ran = send(points, f"{scheme}://127.0.0.1:{port}", "--give-up-after", "1s")
    # OpenSSL sends an alert or only closes, as its version is.
    assert ran.returncode in (1, 2)
    assert "begin the address with wss:// or https://" in ran.stderr


@pytest.mark.parametrize("scheme", ["ws", "http"])
@pytest.mark.parametrize("what", FOREIGN)
def test_what_answers_instead_of_a_node_is_named_at_once(points: Path, scheme: str, what: str) -> None:
    answer, words, remedy = FOREIGN[what]
    with listening(says(answer)) as port:
        ran = send(points, f"{scheme}://127.0.0.1:{port}")
    assert ran.returncode == 2, ran.stderr
    assert words in ran.stderr
    assert remedy in ran.stderr.split("try: ")[1]


@pytest.mark.parametrize("what", SOME)
def test_the_import_names_it_at_once_too(points: Path, tmp_path: Path, what: str) -> None:
    answer, _, remedy = FOREIGN[what]
    with listening(says(answer)) as port:
        url = f"http://127.0.0.1:{port}"
        ran = run_command("wal", "import", points, "--url", url, "--data-dir", tmp_path)
    assert ran.returncode == 1
    assert remedy in ran.stderr.split("try: ")[1]


# -- the agent ---------------------------------------------------------------------------------------------


def agent(
    tmp_path: Path, to: str, *more: str, env: dict[str, str] | None = None
) -> tuple[int, list[dict[str, str]]]:
    """One round; the exit code, and the log."""
    ran = subprocess.run(
        [
            quick_command(),
            "agent",
            "--once",
            "--only",
            "system",
            "--to",
            to,
            "--spool-dir",
            tmp_path / "spool",
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
        env=environment({"log.format": "json"}) | (env or {}),
    )
    return ran.returncode, [json.loads(line) for line in ran.stderr.splitlines()]


def misdirected_agent(tmp_path: Path, to: str, env: dict[str, str] | None = None) -> tuple[str, str]:
    """What an agent that cannot deliver logs, once, before it gives up: the reason and the hint."""
    code, log = agent(tmp_path, to, "--give-up-after", "1s", env=env)
    assert code == 1
    [said] = [line for line in log if line["event"].startswith("not delivering")]
    assert said["event"] == "not delivering, a person must look; everything is kept"
    return said["reason"], said["hint"]


@pytest.mark.needs("openssl")
@every_wrong_tls_server
def test_an_agent_says_what_is_wrong_with_a_server_of_tls_and_keeps_its_points(
    tmp_path: Path, wrong_tls_server: Wrong
) -> None:
    reason, hint = misdirected_agent(tmp_path, wrong_tls_server.address, wrong_tls_server.env)
    assert wrong_tls_server.words in reason
    assert wrong_tls_server.remedy in hint


@pytest.mark.parametrize("scheme", ["ws", "http"])
@pytest.mark.parametrize("what", SOME)
def test_an_agent_names_what_answers_instead_of_a_node(tmp_path: Path, scheme: str, what: str) -> None:
    answer, words, remedy = FOREIGN[what]
    with listening(says(answer)) as port:
        reason, hint = misdirected_agent(tmp_path, f"{scheme}://127.0.0.1:{port}")
    assert words in reason
    assert remedy in hint


def test_an_agent_that_gives_up_ends_with_1_and_the_next_run_delivers(tmp_path: Path, node: Service) -> None:
    code, log = agent(tmp_path, f"ws://127.0.0.1:{free_port()}", "--give-up-after", "1s")
    assert code == 1
    [gave_up] = [line for line in log if line["event"].startswith("gave up")]
    assert int(gave_up["waiting_points"]) > 0
    assert "Connection refused" in gave_up["reason"]
    code, _ = agent(tmp_path, node.url.replace("http", "ws"), "--give-up-after", "20s")
    assert code == 0


# -- the client library ------------------------------------------------------------------------------------


async def trouble_of(url: str) -> str:
    """What a client says when it has found out that waiting does not help."""

    async def look(client: Client) -> str:
        client.write_nowait(b"m f=1 1")
        while client.status().state is not State.MISCONFIGURED:  # noqa: ASYNC110 - it has no event for this
            await trio.sleep(0.02)
        return client.status().last_error

    words = ""
    with trio.fail_after(30), contextlib.suppress(NotDelivered):
        async with open_client(url, limits=Limits(close_s_max=0.01)) as client:
            words = await look(client)
    return words


# Over HTTP its library gives no answer away that is none.
@pytest.mark.parametrize(
    ("what", "scheme"),
    [
        (what, scheme)
        for what in FOREIGN
        for scheme in ("ws", "http")
        if (what, scheme) != ("an SSH server", "http")
    ],
)
async def test_the_client_library_is_misconfigured_and_says_why(what: str, scheme: str) -> None:
    answer, words, _ = FOREIGN[what]
    with listening(says(answer)) as port:
        assert words in await trouble_of(f"{scheme}://127.0.0.1:{port}")


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("scheme", ["wss", "https"])
async def test_the_client_library_is_misconfigured_where_the_certificate_is_not_trusted(
    authority: Authority, caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    with listening(says(b""), tls=authority.context("good")) as port:
        assert "is not trusted" in await trouble_of(f"{scheme}://127.0.0.1:{port}")
    assert "SSL_CERT_FILE" in caplog.text


# -- cron --------------------------------------------------------------------------------------------------


def test_a_send_that_gives_up_ends_with_1_and_says_how_to_go_on(
    points: Path, tmp_path: Path, node: Service
) -> None:
    port = free_port()
    away = f"ws://127.0.0.1:{port}"
    ran = send(points, away, "--give-up-after", "1")
    assert ran.returncode == 1
    assert "took nothing for 1 s" in ran.stderr
    assert "0 points confirmed, 3 points read and not confirmed" in ran.stderr
    assert "with --resume PROGRESS" in ran.stderr.split("try: ")[-1]
    ran = send(points, away, "--give-up-after", "1s", "--resume", str(tmp_path / "progress"))
    assert ran.returncode == 1
    assert f"{tmp_path / 'progress'} knows" in ran.stderr
    with listening(relaying(node.port), port=port):
        ran = send(points, away, "--resume", str(tmp_path / "progress"))
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("text", ["0", "soon", "-1s", "1 year"])
def test_a_duration_that_is_none_is_refused(points: Path, text: str) -> None:
    ran = send(points, "ws://127.0.0.1:9", f"--give-up-after={text}")
    assert ran.returncode == 2
    assert "is no duration" in ran.stderr


def test_send_and_agent_take_the_token_from_a_file_and_the_hint_names_options_that_there_are(
    points: Path, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("the-token\n")
    with Service(tmp_path / "data", logs=tmp_path, settings={"server.write_token": "the-token"}) as service:
        for to in (service.url.replace("http", "ws"), service.url):
            refused = send(points, to)
            assert refused.returncode == 2
            assert "--token-file" in refused.stderr.split("try: ")[1]
            assert send(points, to, "--token-file", str(file)).returncode == 0
            code, _ = agent(tmp_path, to, "--token-file", str(file))
            assert code == 0
    file.write_text("")
    assert "there is no token in it" in send(points, "ws://127.0.0.1:9", "--token-file", str(file)).stderr
