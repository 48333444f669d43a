"""The admin app: health for load balancers, supervisors and InfluxDB's own tools.

It never sees a body (see `asgi.without_body`), takes no token, and answers from memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from quart import Response, g, jsonify, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from wal_ingest import __version__
from wal_ingest.http import page
from wal_ingest.http.refusals import RefusalLog, client_request_id, new_request_id

# Why the node cannot take points now, a sentence each; nothing when it can.
Readiness = Callable[[], Sequence[str]]

# What the status page shows of now, and of the last hour: see API.md.
Document = Callable[[], Mapping[str, object]]

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

RETRY_AFTER_S = 5

_REASONS = {
    404: "there is no {path} here; there are: POST /metrics, /api/v2/write, /write and /api/v3/write_lp; /query; "
    "GET /stream, /metrics, /healthz, /readyz, /health, /ready, /ping, /status.json, /history.json and /",
    405: "{path} is not for {method}: the header Allow lists the methods",
}

# How much of a path that nobody knows goes into the log.
_PATH_CHARS_MAX = 200

# InfluxDB's tools ask for a version that begins like one of the 2.x line, whose write API this is.
INFLUXDB_VERSION = f"v2.0.0-wal-ingest-{__version__}"
_INFLUXDB_HEADERS = {"X-Influxdb-Version": INFLUXDB_VERSION, "X-Influxdb-Build": "wal-ingest"}


def create_admin_app(
    *,
    readiness: Readiness,
    now: Callable[[], datetime],
    details: Document = lambda: {"sinks": {}},
    metrics: Callable[[], bytes] = bytes,
    status: Document = dict,
    history: Document = dict,
    refusals: RefusalLog | None = None,
) -> QuartTrio:
    """The Quart-Trio app with every route that is not a write route; `now` gives aware times.

    `details` is what `/readyz` shows beside whether the node is ready: see API.md.
    """
    app = QuartTrio("wal_ingest.http.admin", static_folder=None)
    started = now()
    _name_requests(app, refusals or RefusalLog(monotonic_s=time.monotonic))

    @app.get("/status.json")
    async def status_json() -> Response:
        return _fresh(status())

    @app.get("/history.json")
    async def history_json() -> Response:
        return _fresh(history())

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics(), content_type=METRICS_CONTENT_TYPE)

    @app.get("/healthz")
    async def healthz() -> Response:
        return jsonify({"status": "alive"})

    @app.get("/readyz")
    async def readyz() -> Response:
        reasons = list(readiness())
        if reasons:
            return _not_ready({"status": "not ready", "reasons": reasons, **details()})
        return jsonify({"status": "ready", "reasons": [], **details()})

    @app.get("/health")
    async def health() -> Response:
        reasons = list(readiness())
        said: dict[str, Any] = {
            "name": "wal-ingest",
            "message": "; ".join(reasons) or "ready for writes",
            "status": "fail" if reasons else "pass",
            "checks": [{"name": "wal", "status": "fail", "message": reason} for reason in reasons],
            "version": INFLUXDB_VERSION,
        }
        return _not_ready(said) if reasons else jsonify(said)

    @app.get("/ready")
    async def ready() -> Response:
        reasons = list(readiness())
        if reasons:
            return _not_ready({"code": "unavailable", "message": "; ".join(reasons)})
        up = _go_duration(now() - started)
        return jsonify({"status": "ready", "started": started.isoformat(), "up": up})

    @app.get("/ping")
    async def ping() -> Response:
        response: Response = app.response_class("", status=204, headers=_INFLUXDB_HEADERS)
        # RFC 9110 §8.6: a 204 has no Content-Length; and there is nothing that could have a type.
        response.headers.remove("Content-Length")
        response.headers.remove("Content-Type")
        return response

    for path, (content_type, body) in page.ASSETS.items():
        app.add_url_rule(path, f"page {path}", _asset(content_type, body), methods=["GET"])

    return app


def _name_requests(app: QuartTrio, refusals: RefusalLog) -> None:
    """Every refusal is JSON, is logged, and carries a request's id; other answers carry it where the client gave one.

    A 503 of the health routes is no refusal but what was asked for, and is not logged each time it is asked.
    """

    @app.errorhandler(HTTPException)
    async def refuse(error: HTTPException) -> Response:
        status = error.code or 500
        path = request.path[:_PATH_CHARS_MAX]
        reason = _reason(error, path, request.method)
        g.request_id = client_request_id(request.scope["headers"]) or new_request_id()
        client = request.scope.get("client")
        refusals.refused(g.request_id, path, status, reason, client[0] if client else "")
        if path.startswith(("/api/v2/", "/api/v3/")):
            response = jsonify({"code": error.name.lower(), "message": reason})
        else:
            response = jsonify({"error": reason})
        response.status_code = status
        for name, value in error.get_headers():
            if name.lower() not in ("content-type", "content-length"):
                response.headers[name] = value
        return response

    @app.after_request
    async def name_it(response: Response) -> Response:
        request_id = g.get("request_id") or client_request_id(request.scope["headers"])
        if request_id is None and response.status_code >= 400:
            request_id = new_request_id()
        if request_id is not None:
            response.headers["X-Request-Id"] = request_id.decode()
        return response


def _reason(error: HTTPException, path: str, method: str) -> str:
    """Why a request is refused, in our words where there are any."""
    words = _REASONS.get(error.code or 500)
    if words is None:
        return error.description or error.name
    return words.replace("{path}", path).replace("{method}", method)


def _asset(content_type: str, body: bytes) -> Callable[[], Coroutine[None, None, Response]]:
    """A view that answers with one file of the status page."""

    async def asset() -> Response:
        return Response(body, content_type=content_type, headers=dict(page.HEADERS))

    return asset


def _fresh(document: Mapping[str, object]) -> Response:
    """A document that is only true now."""
    response = jsonify(document)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _not_ready(said: dict[str, Any]) -> Response:
    response = jsonify(said)
    response.status_code = 503
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


def _go_duration(passed: timedelta) -> str:
    """A duration as Go prints it, such as `14m45.911966s`, which is what InfluxDB's clients parse."""
    minutes, seconds = divmod(max(passed.total_seconds(), 0.0), 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{seconds:.6f}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
