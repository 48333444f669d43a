"""A browser streams: a client written in JavaScript from API.md alone keeps its place while the server is killed."""

from __future__ import annotations

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

PAGE = Path(__file__).parent.parent / "clients" / "stream.html"
POINTS = 5
BASE_MS = 1_763_800_000_000
MALFORMED_FRAME = 10
KILLS = 3


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with running_chromium() as browser:
        yield browser


def _lines_of(frame: int) -> list[str]:
    return [
        f"browser,frame={frame} value={n + 0.5} {BASE_MS + frame * POINTS + n}000000" for n in range(POINTS)
    ]


def _wait_for_acks(watched: Watched, more: int) -> None:
    """Waits until so many further frames are acknowledged."""
    before: int = watched.page.evaluate("client.acked")
    watched.page.wait_for_function(
        "wanted => client.acked >= wanted || client.broken !== ''", arg=before + more, polling=5
    )


@pytest.mark.needs("chromium")
def test_a_browser_keeps_its_place_while_the_server_is_killed(chromium: Browser, tmp_path: Path) -> None:
    service = Service(
        tmp_path / "data",
        logs=tmp_path,
        settings={"wal.keep_confirmed_s": 3600},
        bind_port=free_port(),
    )
    with service, watched_page(chromium) as watched:
        watched.page.goto(PAGE.as_uri())
        url = f"ws://127.0.0.1:{service.port}/stream"
        watched.page.evaluate("url => { window.client = new Client(url, 'a-browser') }", url)
        for _ in range(KILLS):
            _wait_for_acks(watched, 100)
            service.kill()
            service.start()
        _wait_for_acks(watched, 100)
        watched.page.evaluate("client.finish()")
        watched.page.wait_for_function("client.done || client.broken !== ''")
        told: dict[str, Any] = watched.page.evaluate("({...client, socket: null})")
        status = service.status()
        assert service.stop() == 0
    printed = run_command("wal", "cat", "--data-dir", service.data_dir).stdout.splitlines()

    assert told["broken"] == ""
    print(
        f"{told['acked']} frames acknowledged over {len(told['closes'])} broken connections, {told['sentAgain']} sent "
        f"again, {told['settledByWelcome']} settled by a welcome"
    )
    assert told["acked"] == told["made"] - 1
    assert [(one["status"], one["line"]) for one in told["refused"]] == [(400, 2)]
    assert len(told["closes"]) >= KILLS
    assert told["sentAgain"] + told["settledByWelcome"] > 0, "no kill ever hit a frame under way"
    frames = [frame for frame in range(told["made"]) if frame != MALFORMED_FRAME]
    assert Counter(printed) == Counter(line for frame in frames for line in _lines_of(frame))
    assert status["points_accepted"] == len(frames) * POINTS
    # A browser cannot be kept from complaining of a server that is not there.
    assert [said for said in watched.complaints if "WebSocket connection to" not in said] == []
