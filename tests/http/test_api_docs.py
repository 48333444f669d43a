"""API.md says what the code does: the same routes, statuses and names."""

from __future__ import annotations

import json
import re
import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.http.rig import ask, front
from wal_ingest.http import admin, ingest, page, requests

PAGE = (Path(ingest.__file__).parent / "API.md").read_text()
COMMANDS = [
    shlex.split(block.replace("\\\n", " "))
    for block in re.findall(r"```sh\n(curl .*?)\n```", PAGE, re.DOTALL)
]


def test_every_route_is_documented_and_every_documented_route_exists() -> None:
    app = admin.create_admin_app(readiness=list, now=lambda: datetime.now(UTC))
    routes = {f"POST {path}" for path in ingest.ROUTES}
    routes.add(f"GET {ingest.STREAM_PATH}")
    parts = page.ASSETS.keys() - {"/"}
    routes |= {f"GET {rule.rule}" for rule in app.url_map.iter_rules() if rule.rule not in parts}
    headings = re.findall(r"^## ((?:GET|POST|PUT|DELETE) \S+)$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(routes)
    listed = re.findall(r"^\| (.*) \|.*\|$", PAGE.split("## The promise")[0], re.MULTILINE)
    assert {name for cell in listed for name in re.findall(r"`(\w+ /\S*?)`", cell)} == routes


def test_every_part_of_the_status_page_is_documented_with_it() -> None:
    told = PAGE.split("\n## GET /\n")[1].split("\n## ")[0]
    assert set(re.findall(r"`(/status\S*\.(?:css|js))`", told)) == page.ASSETS.keys() - {"/"}


def test_every_content_type_and_encoding_is_documented() -> None:
    for known in {*requests._FORMATS, *requests.ENCODINGS} - {"", "identity", "x-gzip"}:
        assert f"`{known}`" in PAGE


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[2])
async def test_every_command_does_what_its_section_says(command: list[str]) -> None:
    arguments = iter(command[1:])
    url, headers, body = "", {}, b""
    for argument in arguments:
        if argument == "-H":
            name, _, value = next(arguments).partition(": ")
            headers[name] = value
        elif argument in ("-d", "--data-binary"):
            body = next(arguments).encode()
        elif argument.startswith("http"):
            url = argument
    if body:
        # What curl sends when it is told nothing else.
        headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
    whole = front()
    target = url.removeprefix("http://127.0.0.1:8400")
    answer = await ask(whole.app, "POST" if body else "GET", target, body, headers)
    if body and target.startswith("/metrics"):
        assert (answer.status, json.loads(answer.body)["points"]) == (202, 1)
    else:
        assert answer.status in ((204,) if body or target == "/ping" else (200,))
    assert len(whole.wal.appends) == bool(body)


def test_there_is_a_command_for_every_route() -> None:
    paths = {re.sub(r"\?.*", "", word.split(":8400")[1]) for c in COMMANDS for word in c if ":8400" in word}
    health = {"/healthz", "/readyz", "/health", "/ready", "/ping"}
    assert paths == set(ingest.ROUTES) | health | {"/", "/status.json", "/history.json"}
