"""A browser streams: clients in JavaScript keep their place while the server is killed.

One is written from API.md alone, the other is the one that API.md shows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.rigs.chromium import Watched, running_chromium, watched_page
from tests.rigs.processes import free_port
from tests.rigs.service import Service, run_command

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "tests" / "clients" / "stream.html"
SHOWN = ROOT / "wal_ingest" / "http" / "API.md"
POINTS = 5
BASE_MS = 1_763_800_000_000
MALFORMED_FRAME = 10
KILLS = 3


# Sends with the client that API.md shows, three frames every few milliseconds, one in twenty of them malformed.
DRIVE = """
const told = {made: 0, good: [], acked: 0, failed: [], finishing: false};
function drive(url) {
  window.stream = new Stream(url, "shown");
  const timer = setInterval(() => {
    if (told.finishing) return clearInterval(timer);
    for (let n = 0; n < 3; n++) {
      const frame = told.made++;
      const malformed = frame % 20 === 19;
      if (!malformed) told.good.push(frame);
      const sent = stream.send(malformed ? "browser" : `browser,frame=${frame} value=1.5 ${frame + 1}\\n`);
      sent.then(() => told.acked++, (error) => told.failed.push(error.message));
    }
  }, 30);
}
"""
# In a WebSocket's place: tells what is sent, and is told what to hear.
STAND_IN = """
const sent = [];
window.WebSocket = class { send(text) { sent.push(JSON.parse(text.split("\\n")[0]).number); } };
const say = (message) => stream.socket.onmessage({data: JSON.stringify(message)});
"""


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


def _lines_of(frame: int) -> list[str]:
    return [
        f"browser,frame={frame} value={n + 0.5} {BASE_MS + frame * POINTS + n}000000" for n in range(POINTS)
    ]


def _wait_for_acks(watched: Watched, where: str, more: int) -> None:
    """Waits until `where`, an object in the page, counts so many more frames that are acknowledged."""
    before: int = watched.page.evaluate(f"{where}.acked")
    watched.page.wait_for_function(
        f"wanted => {where}.acked >= wanted || {where}.broken", arg=before + more, polling=5
    )


def _live_through_kills(service: Service, watched: Watched, where: str) -> None:
    for _ in range(KILLS):
        _wait_for_acks(watched, where, 100)
        service.kill()
        service.start()
    _wait_for_acks(watched, where, 100)


def _service(tmp_path: Path) -> Service:
    """A server that comes back on the same port, and keeps in its WAL what was delivered."""
    settings = {"wal.keep_confirmed_s": 3600, "log.level": "warning", "server.allowed_origins": "*"}
    return Service(tmp_path / "data", logs=tmp_path, settings=settings, bind_port=free_port())


def _kept_lines(service: Service) -> Counter[str]:
    ran = run_command("wal", "cat", "--data-dir", service.data_dir)
    assert ran.returncode == 0, ran.stderr
    return Counter(ran.stdout.splitlines())


def _unexpected(watched: Watched) -> list[str]:
    """A browser cannot be kept from complaining of a server that is not there."""
    return [said for said in watched.complaints if "WebSocket connection to" not in said]


@pytest.mark.needs("chromium")
def test_a_browser_keeps_its_place_while_the_server_is_killed(chromium: Browser, tmp_path: Path) -> None:
    with _service(tmp_path) as service, watched_page(chromium) as watched:
        watched.page.goto(PAGE.as_uri())
        url = f"ws://127.0.0.1:{service.port}/stream"
        watched.page.evaluate("url => { window.client = new Client(url, 'a-browser') }", url)
        _live_through_kills(service, watched, "client")
        watched.page.evaluate("client.finish()")
        watched.page.wait_for_function("client.done || client.broken !== ''")
        told: dict[str, Any] = watched.page.evaluate("({...client, socket: null})")
        status = service.status()
        assert service.stop() == 0

    assert told["broken"] == ""
    print(
        f"{told['acked']} frames acknowledged, {len(told['closes'])} connections broken, {told['sentAgain']} frames "
        f"without an answer then, {told['settledByWelcome']} settled by a welcome"
    )
    assert told["acked"] == told["made"] - 1
    assert [(one["status"], one["line"]) for one in told["refused"]] == [(400, 2)]
    assert len(told["closes"]) >= KILLS
    assert told["sentAgain"] + told["settledByWelcome"] > 0, "no kill ever hit a frame under way"
    frames = [frame for frame in range(told["made"]) if frame != MALFORMED_FRAME]
    assert _kept_lines(service) == Counter(line for frame in frames for line in _lines_of(frame))
    assert status["points_accepted"] == len(frames) * POINTS
    assert _unexpected(watched) == []


def _shown_client() -> str:
    """The program in API.md."""
    (program,) = re.findall(r"```javascript\n(class Stream .*?)```", SHOWN.read_text(), re.DOTALL)
    assert isinstance(program, str)
    return program


@pytest.mark.needs("chromium")
def test_the_client_that_the_page_shows_keeps_its_place_too(chromium: Browser, tmp_path: Path) -> None:
    with _service(tmp_path) as service, watched_page(chromium) as watched:
        watched.page.add_script_tag(content=_shown_client() + DRIVE)
        watched.page.evaluate("drive", f"ws://127.0.0.1:{service.port}")
        _live_through_kills(service, watched, "told")
        watched.page.evaluate("told.finishing = true")
        watched.page.wait_for_function("told.acked + told.failed.length === told.made")
        told: dict[str, Any] = watched.page.evaluate("told")
        assert service.stop() == 0

    assert len(told["failed"]) == told["made"] - len(told["good"]), told["failed"]
    assert {text.split(",")[0] for text in told["failed"]} == {"line 1"}
    assert _kept_lines(service) == Counter(
        f"browser,frame={frame} value=1.5 {frame + 1}" for frame in told["good"]
    )
    assert _unexpected(watched) == []


@pytest.mark.needs("chromium")
def test_the_client_that_the_page_shows_sends_what_needs_a_new_number_behind_the_others(
    chromium: Browser,
) -> None:
    """The error for frame 1 was lost, frame 2 is durable, frame 3 is not: numbers rise, so 3 goes before 4."""
    with watched_page(chromium) as watched:
        watched.page.add_script_tag(content=STAND_IN + _shown_client())
        sent = watched.page.evaluate(
            """() => {
              window.stream = new Stream("ws://nowhere", "shown");
              const welcome = {type: "welcome", durable: 0, seq: 0, stored: []};
              say(welcome);
              for (const body of ["one", "two", "three"]) stream.send(body);
              stream.socket.onclose({code: 1006, reason: ""});
              stream.connect();
              say({...welcome, durable: 2, seq: 1, stored: [[2, 1, 1, 0]]});
              return sent;
            }"""
        )
    assert sent == [1, 2, 3, 3, 4]
