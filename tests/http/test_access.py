"""Who may write: how a token is shown, and what becomes of a request that shows none or another."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.rig import ask, front
from tests.rigs.service import run_command
from wal_ingest.http.access import Access, Unauthorized
from wal_ingest.settings import ServerSettings

TOKEN = "s3cret+/=&%"
IN_QUERY = "s3cret%2B%2F%3D%26%25"
SETTINGS = ServerSettings(write_token=TOKEN)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def shows(access: Access, authorization: str | None = None, query: str = "") -> bool:
    headers = [(b"host", b"x")]
    if authorization is not None:
        headers.append((b"authorization", authorization.encode()))
    try:
        access.check(headers, query.encode())
    except Unauthorized:
        return False
    return True


@pytest.mark.parametrize(
    ("authorization", "query"),
    [
        (f"Bearer {TOKEN}", ""),
        (f"bearer  {TOKEN} ", ""),
        (f"Token {TOKEN}", ""),
        (f"TOKEN {TOKEN}", ""),
        (basic("anybody", TOKEN), ""),
        (basic("", TOKEN), ""),
        (None, f"token={IN_QUERY}"),
        (None, f"db=x&u=anybody&p={IN_QUERY}"),
        (None, f"token=&p={IN_QUERY}"),
        ("Negotiate something", f"token={IN_QUERY}"),
    ],
)
def test_every_way_of_showing_the_token(authorization: str | None, query: str) -> None:
    assert shows(Access(TOKEN), authorization, query)


@pytest.mark.parametrize(
    ("authorization", "query"),
    [
        (None, ""),
        ("", ""),
        ("Bearer", ""),
        ("Bearer ", ""),
        (f"Bearer {TOKEN}x", ""),
        (f"Bearer {TOKEN[:-1]}", ""),
        (f"Bearer {TOKEN.upper()}", ""),
        (f"Digest {TOKEN}", ""),
        (TOKEN, ""),
        (basic(TOKEN, ""), ""),
        (basic(TOKEN, "x"), ""),
        (f"Basic {TOKEN}", ""),
        ("Basic " + base64.b64encode(TOKEN.encode()).decode(), ""),
        (None, "token="),
        (None, f"token={TOKEN}"),  # not percent-encoded, so it is another one
        (None, f"Token={IN_QUERY}"),
        (None, f"u={IN_QUERY}"),
        (None, f"token=wrong&p={IN_QUERY}"),
        # The header is what counts where it shows a token at all.
        ("Bearer wrong", f"token={IN_QUERY}"),
    ],
)
def test_what_does_not_show_the_token(authorization: str | None, query: str) -> None:
    assert not shows(Access(TOKEN), authorization, query)


def test_without_a_token_of_its_own_the_node_lets_anybody_write() -> None:
    for authorization in (None, "Bearer whatever", "Basic !!!"):
        assert shows(Access(""), authorization)


def test_what_is_missing_and_what_is_wrong_are_told_apart_and_neither_is_repeated() -> None:
    with pytest.raises(Unauthorized, match="a token is needed"):
        Access(TOKEN).check([], b"")
    with pytest.raises(Unauthorized, match="not the one") as caught:
        Access(TOKEN).check([(b"authorization", b"Bearer guess")], b"")
    assert "guess" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_token_beyond_ascii_is_utf_8_wherever_it_is_shown() -> None:
    access = Access("größe")
    assert shows(access, "Bearer größe")
    assert shows(access, basic("u", "größe"))
    assert shows(access, None, "token=gr%C3%B6%C3%9Fe")
    assert not shows(access, None, "token=gr%F6%DFe")


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_whatever_is_shown_it_is_let_in_or_refused(authorization: bytes, query: bytes) -> None:
    try:
        Access(TOKEN).check([(b"authorization", authorization)], query)
    except Unauthorized as exc:
        assert exc.status == 401  # noqa: PT017 -- most of what is tried raises, and some of it may not
    else:
        assert TOKEN.encode() in authorization or IN_QUERY.encode() in query


@pytest.mark.parametrize("target", ["/metrics", "/api/v2/write?bucket=b", "/write?db=d"])
async def test_a_write_without_the_token_is_answered_401_before_its_body_is_read(target: str) -> None:
    whole = front(SETTINGS)
    answer = await ask(whole.app, "POST", target, b"no points at all", {"Content-Type": "text/plain"})
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="wal-ingest"'
    assert answer.headers["connection"] == "close"
    told = json.loads(answer.body)
    assert "a token is needed" in told.get("error", told.get("message"))
    if target.startswith("/api"):
        assert told["code"] == "unauthorized"
    assert TOKEN not in answer.body.decode()
    assert whole.wal.appends == []


@pytest.mark.parametrize(
    ("target", "authorization"),
    [
        ("/metrics", f"Bearer {TOKEN}"),
        (f"/metrics?token={IN_QUERY}", ""),
        ("/api/v2/write?bucket=b", f"Token {TOKEN}"),
        ("/write?db=d", basic("u", TOKEN)),
        (f"/write?db=d&u=u&p={IN_QUERY}", ""),
    ],
)
async def test_a_write_that_shows_the_token_is_taken(target: str, authorization: str) -> None:
    whole = front(SETTINGS)
    headers = {"Content-Type": "text/plain"}
    if authorization:
        headers["Authorization"] = authorization
    answer = await ask(whole.app, "POST", target, b"m v=1\n", headers)
    assert answer.status in (202, 204)
    assert len(whole.wal.appends) == 1


async def test_another_token_is_answered_401() -> None:
    whole = front(SETTINGS)
    answer = await ask(whole.app, "POST", "/metrics", b"m v=1\n", {"Authorization": "Bearer guess"})
    assert answer.status == 401
    assert b"guess" not in answer.body


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/ping", "/health"])
async def test_what_writes_nothing_needs_no_token(target: str) -> None:
    whole = front(SETTINGS)
    assert (await ask(whole.app, "GET", target)).status in (200, 204)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_config_command_masks_the_token(tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[server]\nwrite_token = "hush-hush"\n')
    ran = run_command("config", "--config", file, *arguments)
    assert ran.returncode == 0
    assert "server.write_token" in ran.stdout
    assert "hush-hush" not in ran.stdout + ran.stderr
