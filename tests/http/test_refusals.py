"""Request ids, what is logged of a refusal and how often, and what whoever counts is told."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import structlog.testing

from tests.http.rig import LINE, ask, front
from wal_ingest.errors import WalFull
from wal_ingest.http.refusals import LINES_PER_S, RefusalLog
from wal_ingest.settings import ServerSettings

ROUTES = ["/metrics", "/api/v2/write", "/write"]
OURS = re.compile(r"[0-9a-f]{16}")
PLAIN = {"Content-Type": "text/plain"}
TOKEN = {"Authorization": "Token s3cr3t"}


class Noted:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str, int, int]] = []
        self.appends: list[float] = []
        self.refusals: list[tuple[str, str, str, int]] = []
        self.oddities: list[tuple[str, str, str, int]] = []
        self.looks: list[str] = []

    def answered(self, route: str, result: str, points: int, body_bytes: int) -> None:
        self.answers.append((route, result, points, body_bytes))

    def appended(self, seconds: float) -> None:
        self.appends.append(seconds)

    def refused(self, route: str, reason: str, source: str, lines: int) -> None:
        self.refusals.append((route, reason, source, lines))

    def noticed(self, route: str, oddity: str, source: str, points: int, looks_like: str) -> None:
        self.oddities.append((route, oddity, source, points))
        self.looks.append(looks_like)


# -- ids ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
async def test_the_id_that_a_client_gave_is_in_the_answer(route: str) -> None:
    app = front().app
    for body in (LINE, b"nonsense"):
        answer = await ask(app, "POST", route, body, {**PLAIN, "X-Request-Id": "web-17/42 again"})
        assert answer.headers["x-request-id"] == "web-17/42 again"


@pytest.mark.parametrize("route", ROUTES)
async def test_an_accepted_request_without_an_id_gets_none(route: str) -> None:
    assert "x-request-id" not in (await ask(front().app, "POST", route, LINE, PLAIN)).headers


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_refused_request_without_an_id_gets_one(route: str, method: str) -> None:
    app = front().app
    first = (await ask(app, method, route, b"nonsense", PLAIN)).headers["x-request-id"]
    second = (await ask(app, method, route, b"nonsense", PLAIN)).headers["x-request-id"]
    assert OURS.fullmatch(first)
    assert OURS.fullmatch(second)
    assert first != second


@pytest.mark.parametrize("given", ["", "x" * 129, "caf\u00e9", "tab\there", "\x1b[31m", " "])
async def test_an_id_that_does_not_belong_into_a_log_is_replaced(given: str) -> None:
    answer = await ask(front().app, "POST", "/write", LINE, {"X-Request-Id": given})
    assert answer.status == 204
    assert OURS.fullmatch(answer.headers["x-request-id"])


@pytest.mark.parametrize("given", ["x", "x" * 128, "a b", '{"quoted"}'])
async def test_any_printable_id_of_128_bytes_is_taken(given: str) -> None:
    assert (await ask(front().app, "GET", "/healthz", b"", {"X-Request-Id": given})).headers[
        "x-request-id"
    ] == given


async def test_the_other_routes_name_their_requests_in_the_same_way() -> None:
    app = front().app
    assert "x-request-id" not in (await ask(app, "GET", "/healthz")).headers
    assert OURS.fullmatch((await ask(app, "GET", "/nowhere")).headers["x-request-id"])
    named = await ask(app, "GET", "/nowhere", b"", {"X-Request-Id": "n-1"})
    assert named.headers["x-request-id"] == "n-1"


# -- the log --------------------------------------------------------------------------------------------


async def told(error: Exception | None, target: str, body: bytes, **headers: str) -> list[dict[str, Any]]:
    """The lines that one request leaves in the log."""
    whole = front()
    whole.wal.error = error
    with structlog.testing.capture_logs() as lines:
        await ask(whole.app, "POST", target, body, {**PLAIN, **TOKEN, **headers})
    return [dict(line) for line in lines]


async def test_nothing_is_logged_of_an_accepted_request() -> None:
    assert await told(None, "/write", LINE) == []


@pytest.mark.parametrize(
    ("error", "body", "status", "level"),
    [
        (None, b"nonsense", 400, "info"),
        (WalFull("the WAL is full", retry_after_s=10), LINE, 503, "warning"),
        (RuntimeError("a bug"), LINE, 500, "error"),
    ],
)
async def test_a_refusal_is_logged_with_what_the_client_was_told_and_no_token(
    error: Exception | None, body: bytes, status: int, level: str
) -> None:
    [line] = await told(error, "/write?db=x", body, **{"X-Request-Id": "r-7"})
    assert (line["log_level"], line["status"], line["request_id"]) == (level, status, "r-7")
    assert (line["route"], line["source"]) == ("/write", "10.0.0.7")
    assert line["reason"]
    assert "s3cr3t" not in str(line)
    assert bool(line.get("exc_info")) == (status == 500)


async def test_a_wrong_address_is_logged_and_a_node_that_is_not_ready_is_not() -> None:
    whole = front()
    whole.reasons.append("full")
    with structlog.testing.capture_logs() as lines:
        await ask(whole.app, "GET", "/readyz")
        answer = await ask(whole.app, "POST", "/api/v2/writes?token=s3cr3t", LINE)
    [line] = lines
    assert (line["route"], line["status"]) == ("/api/v2/writes", 404)
    assert line["request_id"] == answer.headers["x-request-id"]


def test_a_flood_of_refusals_is_told_in_a_few_lines_and_a_number() -> None:
    now_s = [100.0]
    log = RefusalLog(monotonic_s=lambda: now_s[0])
    with structlog.testing.capture_logs() as lines:
        for _ in range(1_000):
            log.refused(b"id", "/write", 400, "no", "10.0.0.7")
        assert len(lines) == LINES_PER_S
        log.say_left_out()
        assert len(lines) == LINES_PER_S, "the second is not over"
        now_s[0] = 101.0
        log.say_left_out()
        log.say_left_out()
        now_s[0] = 102.0
        log.refused(b"id", "/write", 400, "no", "10.0.0.7")
    assert lines[LINES_PER_S]["left_out"] == 1_000 - LINES_PER_S
    assert len(lines) == LINES_PER_S + 2


def test_failures_are_told_to_whoever_keeps_the_last_errors_also_when_the_log_is_full() -> None:
    failures: list[str] = []
    log = RefusalLog(monotonic_s=lambda: 5.0, failed=failures.append)
    with structlog.testing.capture_logs() as lines:
        for _ in range(LINES_PER_S + 3):
            log.broke(b"id", "/write", RuntimeError("a bug"), "10.0.0.7")
    assert failures == ["a request to /write failed: RuntimeError: a bug"] * (LINES_PER_S + 3)
    assert len(lines) == LINES_PER_S


# -- what is counted ------------------------------------------------------------------------------------


async def test_an_observer_is_told_of_every_answer_once() -> None:
    noted, now_s = Noted(), itertools.count(1, 0.5)
    whole = front(observer=noted, monotonic_s=lambda: next(now_s))
    await ask(whole.app, "POST", "/metrics", LINE * 3, PLAIN)
    await ask(whole.app, "POST", "/write", b"nonsense")
    await ask(whole.app, "PUT", "/write", LINE)
    await ask(whole.app, "POST", "/api/v2/write", b"", {"Content-Length": str(1 << 40)})
    await ask(whole.app, "POST", "/api/v2/write", b"# nothing\n")
    assert noted.answers == [
        ("/metrics", "accepted", 3, len(LINE * 3)),
        ("/write", "invalid", 0, 0),
        ("/write", "invalid", 0, 0),
        ("/api/v2/write", "too_large", 0, 0),
        ("/api/v2/write", "accepted", 0, 10),
    ]
    assert noted.appends == [0.5]


async def test_a_wrong_token_has_a_metric_label_of_its_own() -> None:
    noted = Noted()
    whole = front(ServerSettings(write_token="right"), observer=noted)
    await ask(whole.app, "POST", "/write", LINE, {"Authorization": "Bearer wrong"})
    await ask(whole.app, "POST", "/write", b"nonsense", {"Authorization": "Bearer right"})
    assert noted.answers == [("/write", "unauthorized", 0, 0), ("/write", "invalid", 0, 0)]
    assert [reason for _route, reason, *_ in noted.refusals] == ["unauthorized", "malformed"]


@pytest.mark.parametrize(
    ("error", "result"), [(WalFull("full"), "unavailable"), (RuntimeError("a bug"), "failed")]
)
async def test_what_could_not_be_taken_is_counted_by_whose_fault_it_was(
    error: Exception, result: str
) -> None:
    noted = Noted()
    whole = front(observer=noted)
    whole.wal.error = error
    await ask(whole.app, "POST", "/write", LINE)
    assert noted.answers == [("/write", result, 0, 0)]
    assert noted.appends == []
