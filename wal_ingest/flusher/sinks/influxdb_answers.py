"""What an InfluxDB-like server's answer to a write means. Pure.

| answer | outcome |
|---|---|
| 2xx | `Confirmed` (but not an HTML page: that is some other server) |
| 400, 422 | `Rejected`, with the `dropped=N` of a partial write where the server says it |
| 400 about the database or bucket itself | `Misconfigured`: parking every point would be a poor answer to it |
| 413 | `TooLarge` |
| 429, 503 | `Unavailable`, with Retry-After in seconds or as an HTTP date |
| 408 and every other 5xx | `Unavailable`, suspect: it may be about this very batch |
| 401, 403, 404, a redirect, anything unheard-of | `Misconfigured` |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from wal_ingest.flusher.outcome import Confirmed, Misconfigured, Outcome, Rejected, TooLarge, Unavailable

# Longest reason that is kept of an answer, in characters; servers quote whole batches in theirs.
REASON_CHARS_MAX = 500

_DROPPED = re.compile(r"\bdropped=(\d{1,9})\b")
# Only at the very start: further in, a sender's own words may be quoted.
_ABOUT_THE_DESTINATION = re.compile(
    r"(invalid: |not found: )?(database|bucket|org|organization|orgid|retention policy)\b"
    r"[^\n]*\b(required|not found|missing|invalid|not exist)",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def outcome_of(status: int, headers: Mapping[str, str], body: bytes, *, now_ns: int) -> Outcome:
    """The outcome of a write that was answered at all. `headers` must find names in any case."""
    if 200 <= status < 300:
        if headers.get("content-type", "").lower().startswith("text/html") and body:
            return Misconfigured(f"HTTP {status} with an HTML page: this is not an InfluxDB server", status)
        return Confirmed()
    said = reason_of(body) or headers.get("x-influxdb-error", "")[:REASON_CHARS_MAX]
    reason = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if status in (400, 422):
        if _ABOUT_THE_DESTINATION.match(said):
            return Misconfigured(reason, status)
        dropped = _DROPPED.search(body.decode(errors="replace"))
        return Rejected(reason, status, int(dropped[1]) if dropped else None)
    if status == 413:
        return TooLarge(reason, status)
    if status in (429, 503):
        return Unavailable(
            reason, status, retry_after_s=parse_retry_after(headers.get("retry-after"), now_ns)
        )
    if status >= 500 or status == 408:
        return Unavailable(reason, status, suspect=True)
    if 300 <= status < 400:
        where = headers.get("location", "nowhere")[:REASON_CHARS_MAX]
        return Misconfigured(
            f"HTTP {status}: redirected to {where}; set the address that answers itself", status
        )
    return Misconfigured(reason, status)


def reason_of(body: bytes) -> str:
    """The server's own sentence: the message of its JSON, or its text, on one line and bounded."""
    text = body.decode(errors="replace")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict):
        said = answer.get("message") or answer.get("error")
        if isinstance(said, str):
            text = said
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= REASON_CHARS_MAX else text[: REASON_CHARS_MAX - 1] + "…"


def parse_retry_after(value: str | None, now_ns: int) -> float | None:
    """Seconds to wait from a Retry-After header (RFC 9110, 10.2.3); None when there is none that makes sense."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(int(value)) if len(value) <= 12 else None
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, when.timestamp() - now_ns / 1e9)
    except (ValueError, OverflowError, OSError):
        return None
