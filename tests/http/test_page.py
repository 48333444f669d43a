"""The status page's files: served with a strict policy, and in keeping with it."""

from __future__ import annotations

import re

import pytest

from tests.http.rig import ask, front
from wal_ingest.http.page import ASSETS, HEADERS

HTML = ASSETS["/"][1].decode()
SCRIPTS = {path: body.decode() for path, (_, body) in ASSETS.items() if path.endswith(".js")}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ASSETS)
async def test_every_part_is_served_with_its_type_and_the_policy(path: str, method: str) -> None:
    answer = await ask(front().app, method, path)
    assert answer.status == 200
    assert answer.headers["content-type"] == ASSETS[path][0]
    assert {name: answer.headers[name.lower()] for name in HEADERS} == HEADERS
    # The body of an answer to HEAD is left out by the server, behind the app.
    assert answer.body == ASSETS[path][1]


def test_the_policy_admits_nothing_but_this_server() -> None:
    rules = dict(rule.split(" ", 1) for rule in HEADERS["Content-Security-Policy"].split("; "))
    assert rules.pop("img-src") == "'self' data:"
    assert set(rules.values()) == {"'none'", "'self'"}
    assert rules["default-src"] == "'none'"
    assert rules["frame-ancestors"] == "'none'"


def test_the_page_has_nothing_that_its_policy_forbids() -> None:
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", HTML) == []


@pytest.mark.parametrize("path", ASSETS)
def test_no_part_names_another_server(path: str) -> None:
    addresses = set(re.findall(r"https?://[^\"'\s]+", ASSETS[path][1].decode()))
    assert addresses <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("path", SCRIPTS)
def test_no_script_makes_markup_of_texts(path: str) -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", SCRIPTS[path]) == []


def test_every_part_is_asked_for_by_another() -> None:
    named = set(re.findall(r"""(?:href|src|from) ?=? ?"(?:\./)?(status[-\w]*\.(?:css|js))\"""", HTML))
    for script in SCRIPTS.values():
        named |= set(re.findall(r'from "\./(status-\w+\.js)"', script))
    assert {f"/{name}" for name in named} == ASSETS.keys() - {"/"}


def test_every_id_that_the_scripts_use_is_in_the_page() -> None:
    ids = set(re.findall(r'\bid="([\w-]+)"', HTML))
    used = {name for script in SCRIPTS.values() for name in re.findall(r'byId\("([\w-]+)"\)', script)}
    assert len(used) > 10
    assert used <= ids
