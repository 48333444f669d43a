"""What an InfluxDB-like server's answer to a write means. Pure.

| answer | outcome |
|---|---|
| 204 | `Confirmed`: see `wal_ingest.confirmation`, which knows what confirms |
| any other 2xx | `Misconfigured`: a login page, a default backend, an error that is answered with 200 |
| 400, 422 in an InfluxDB's own form | `Rejected`, with the `dropped=N` of a partial write where the server says it |
| … about the database, bucket or organisation | `Misconfigured`: parking every point would be a poor answer to it |
| … as plain text, with InfluxDB's headers | `Unavailable`, suspect: VictoriaMetrics, see below |
| … in any other form | `Misconfigured`: a proxy, a TLS port, some other server; it judged no points |
| any of 400 and above that says `partial write: … dropped=N` | `Rejected`: InfluxDB 2.0 to 2.0.4 said so with 500 |
| 413 | `TooLarge` |
| 429, 503 | `Unavailable`, with Retry-After in seconds or as an HTTP date |
| 408 and every other 5xx | `Unavailable`, suspect: it may be about this very batch |
| 401, 403, 404 | `Misconfigured`, suspect: a firewall on the way may mean this very batch |
| a redirect, anything unheard-of | `Misconfigured` |

VictoriaMetrics skips bad lines and answers 204. Its 400 is plain text and says that a body could not be read: it
was cut on the way, or a line is longer than the server takes. Neither is a verdict on every point, so such a batch
is bisected only on the evidence of its neighbours, as after a 500.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from wal_ingest.confirmation import Stored, WriteProtocol, confirmation_of
from wal_ingest.flusher.check import Check
from wal_ingest.flusher.outcome import (
    Confirmed,
    Misconfigured,
    Outcome,
    Rejected,
    TooLarge,
    Unavailable,
    plain,
)
from wal_ingest.flusher.sinks.influxdb_refusals import decoded, dropped_of, hint_of

# Only at the very start: further in, a sender's own words may be quoted.
_ABOUT_THE_DESTINATION = re.compile(
    r"(invalid: |not found: )?(database|bucket|org|organization|orgid|retention policy)\b"
    r"[^\n]*\b(required|not found|missing|invalid|not exist)"
    r"|please provide either\b",
    re.IGNORECASE,
)
_ABOUT_POINTS = re.compile(
    r"\b(partial write|parse|pars(?:ing|er)|line protocol|lines? \d|points?|fields?|tags?|measurement|schema"
    r"|time ?stamps?|time range|retention|series)\b",
    re.IGNORECASE,
)
# What InfluxDB 2 and 3 say to a write without points, once everything else about it was right.
_WANTS_POINTS = re.compile(r"\b(requires points|no data|no lines|empty)\b", re.IGNORECASE)
_TITLE = re.compile(rb"<title>\s*([^<]+?)\s*</title>", re.IGNORECASE)
# An error's JSON that was too long to be read to its end.
_OPENING = re.compile(r'\s*\{\s*"(?:error|code|message)"\s*:')
_OF_ACCESS = frozenset({401, 403, 404})


def outcome_of(status: int, headers: Mapping[str, str], body: bytes, *, now_ns: int) -> Outcome:
    """The outcome of a write that was answered at all. `headers` must find names in any case."""
    if 200 <= status < 300:
        found = confirmation_of(
            WriteProtocol.INFLUXDB, status, body, content_type=headers.get("content-type", "")
        )
        return Confirmed() if isinstance(found, Stored) else Misconfigured(plain(found.reason), status)
    said = reason_of(body) or plain(headers.get("x-influxdb-error", ""))
    if status == 401 and not said:  # so VictoriaMetrics and many proxies answer
        said = "the token is not accepted (influxdb.token)"
    reason = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if status in (400, 422):
        return _refusal(status, headers, body, said, reason)
    if status > 400 and dropped_of(_message_of(body) or ""):
        return _rejected(status, body, _message_of(body) or "", reason)
    if status == 413:
        return TooLarge(reason, status)
    if status in (429, 503):
        return Unavailable(
            reason, status, retry_after_s=parse_retry_after(headers.get("retry-after"), now_ns)
        )
    if status >= 500 or status == 408:
        return Unavailable(reason, status, suspect=True)
    if 300 <= status < 400:
        where = plain(headers.get("location", "nowhere"))
        return Misconfigured(
            f"HTTP {status}: redirected to {where}; set the address that answers itself", status
        )
    return Misconfigured(reason, status, suspect=status in _OF_ACCESS)


def _refusal(status: int, headers: Mapping[str, str], body: bytes, said: str, reason: str) -> Outcome:
    if _ABOUT_THE_DESTINATION.match(said):
        return Misconfigured(reason, status)
    message = _message_of(body)
    if message is None and "x-influxdb-error" not in headers and "x-platform-error-code" not in headers:
        if "x-influxdb-version" in headers:
            return Unavailable(reason, status, suspect=True)
        return Misconfigured(f"{reason} (no InfluxDB says it like this: is influxdb.url right?)", status)
    return _rejected(status, body, message or headers.get("x-influxdb-error", "") or said, reason)


def _rejected(status: int, body: bytes, message: str, reason: str) -> Rejected:
    """A verdict on points: what of it can be understood goes with it."""
    return Rejected(
        reason,
        status,
        dropped=dropped_of(message),
        about_points=status == 422 or _ABOUT_POINTS.search(message) is not None,
        hint=hint_of(message, decoded(body.decode(errors="replace")), prefix=f"HTTP {status}: "),
    )


def reason_of(body: bytes) -> str:
    """The server's own sentence: the message of its JSON, or its text, on one line and bounded.

    Of a web page, as proxies answer with, the title.
    """
    title = _TITLE.search(body)
    said = title[1] if title else body
    return plain(_message_of(body) or said.decode(errors="replace"))


def _message_of(body: bytes) -> str | None:
    """The message of an error's JSON, whole; None when it is no such JSON."""
    text = body.decode(errors="replace")
    answer = decoded(text)
    if answer is None:
        return text if _OPENING.match(text) else None
    if not isinstance(answer, dict):
        return None
    said = answer.get("message") or answer.get("error")
    return said if isinstance(said, str) else None


def checks_of(url: str, status: int, headers: Mapping[str, str], body: bytes) -> list[Check]:
    """What the answer to a write without points says about the settings.

    InfluxDB 2 looks at the token, the organisation, the bucket and the permission in this order, and only then at the
    body (`handleWrite` in its http/write_handler.go); InfluxDB 1 and VictoriaMetrics answer 204.
    """
    version = plain(headers.get("x-influxdb-version", ""))
    address = Check("address", True, f"{url} answers" + (f", as InfluxDB {version}" if version else ""))
    what = "token, organisation and bucket"
    said = reason_of(body)
    if 200 <= status < 300:
        outcome = outcome_of(status, headers, body, now_ns=0)
        if isinstance(outcome, Confirmed):
            return [address, Check(what, True, "accepted, as far as this server looks at them")]
        reason = getattr(outcome, "reason", "")
        return [Check("address", False, f"{url} does not answer as an InfluxDB does ({reason})")]
    if status == 400 and _WANTS_POINTS.search(said):
        return [address, Check(what, True, "accepted")]
    reason = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if status in (401, 403, 404):
        about = {401: "the token is not accepted", 403: "the token may not write to the bucket"}
        return [
            address,
            Check(what, False, f"{about.get(status, 'organisation or bucket is missing')} ({reason})"),
        ]
    if status in (429, 503) or status >= 500:
        return [address, Check(what, False, f"cannot be told now ({reason})")]
    return [Check("address", False, f"{url} does not answer as an InfluxDB does ({reason})")]


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
