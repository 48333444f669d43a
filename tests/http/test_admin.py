"""Health and readiness, as load balancers and InfluxDB's tools ask for them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest

from tests.http.rig import ask, front
from wal_ingest.http.admin import INFLUXDB_VERSION, create_admin_app


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/ready", "/ping"])
async def test_a_ready_node_answers_every_health_check(path: str, method: str) -> None:
    answer = await ask(front().app, method, path)
    assert answer.status == (204 if path == "/ping" else 200)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/healthz", 200), ("/ping", 204), ("/readyz", 503), ("/health", 503), ("/ready", 503)],
)
async def test_a_node_that_is_not_ready_is_alive_all_the_same(path: str, status: int) -> None:
    whole = front()
    whole.reasons.append("the WAL is full")
    answer = await ask(whole.app, "GET", path)
    assert answer.status == status
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
        assert "the WAL is full" in answer.body.decode()


async def test_readyz_names_every_reason() -> None:
    whole = front()
    assert json.loads((await ask(whole.app, "GET", "/readyz")).body)["reasons"] == []
    whole.reasons += ["one", "two"]
    assert json.loads((await ask(whole.app, "GET", "/readyz")).body)["reasons"] == ["one", "two"]


async def test_health_speaks_influxdbs_json() -> None:
    whole = front()
    passed = json.loads((await ask(whole.app, "GET", "/health")).body)
    assert set(passed) == {"name", "message", "status", "checks", "version"}
    assert (passed["status"], passed["checks"], passed["version"]) == ("pass", [], INFLUXDB_VERSION)
    whole.reasons.append("stopping")
    failed = json.loads((await ask(whole.app, "GET", "/health")).body)
    assert (failed["status"], failed["checks"][0]["message"]) == ("fail", "stopping")


async def test_ready_speaks_influxdbs_json() -> None:
    said = json.loads((await ask(front().app, "GET", "/ready")).body)
    assert said["status"] == "ready"
    assert re.fullmatch(r"(\d+h)?(\d+m)?\d+\.\d+s", said["up"])


async def test_ping_names_a_version_that_clients_take_for_influxdb_2() -> None:
    answer = await ask(front().app, "GET", "/ping")
    assert (answer.status, answer.body) == (204, b"")
    assert re.match(r"v2\.\d+\.\d+", answer.headers["x-influxdb-version"])
    assert set(answer.headers) == {"x-influxdb-version", "x-influxdb-build"}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/status.json", "/history.json"])
async def test_the_documents_of_the_status_page_are_json_that_nobody_keeps(path: str, method: str) -> None:
    admin = create_admin_app(
        readiness=list,
        now=lambda: datetime.now(UTC),
        status=lambda: {"document": "/status.json", "nothing": None},
        history=lambda: {"document": "/history.json", "nothing": None},
    )
    answer = await ask(front(fallback=admin).app, method, path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    if method == "GET":
        assert json.loads(answer.body) == {"document": path, "nothing": None}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("POST", "/healthz", 405)])
async def test_refusals_of_the_admin_app_are_json(method: str, path: str, status: int) -> None:
    answer = await ask(front().app, method, path)
    assert answer.status == status
    assert json.loads(answer.body)["error"]
    assert ("allow" in answer.headers) == (status == 405)


async def test_a_route_that_breaks_is_answered_500_in_json() -> None:
    whole = front()
    whole.reasons.append(0)  # type: ignore[arg-type]  # what cannot be joined breaks the route
    answer = await ask(whole.app, "GET", "/health")
    assert answer.status == 500
    assert json.loads(answer.body)["error"]


async def test_the_admin_app_never_sees_a_body() -> None:
    answer = await ask(front().app, "GET", "/healthz", [b"x" * 1_000_000] * 50)
    assert answer.status == 200
