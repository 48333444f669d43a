"""Points in time as people type them: `2026-11-22T21:00:00Z`, `2026-11-22`, Unix seconds, or an age such as `15m`."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from wal_ingest.errors import ConfigError

_AGE = re.compile(r"(\d+(?:\.\d+)?)(s|m|min|h|d)", re.ASCII)
_AGE_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_UNIX_S = re.compile(r"\d{9,11}(?:\.\d+)?", re.ASCII)
TIME_HELP = "a time such as 2026-11-22T21:00:00Z, a date, Unix seconds, or an age such as 90s, 15m, 2h, 1d"


def parse_time_ns(text: str, *, now_ns: int) -> int:
    """Unix time in nanoseconds. A time without an offset is UTC, as everywhere else here; an age counts from now back.

    Raises `ConfigError`.
    """
    text = text.strip()
    if age := _AGE.fullmatch(text):
        return now_ns - round(float(age[1]) * _AGE_UNITS_S[age[2]] * 1e9)
    if _UNIX_S.fullmatch(text):
        return round(float(text) * 1e9)
    try:
        when = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"{text!r} is no time", hint=f"give {TIME_HELP}") from exc
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    # Whole microseconds, so that no digit is lost in a float.
    since = when - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def time_text(unix_ns: int) -> str:
    """A time for people, to the second: 2026-11-22T21:00:00Z."""
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def exact_time_text(unix_ns: int) -> str:
    """A time for programs, to the nanosecond: 2026-11-22T21:00:00.123456789Z."""
    return f"{time_text(unix_ns)[:-1]}.{unix_ns % 10**9:09d}Z"


def parse_seqs(text: str) -> tuple[int, int | None]:
    """A range of seqs, both ends included: `17`, `17..42`, `17..` or `..42`; None for no end.

    Raises `ConfigError`.
    """
    match = re.fullmatch(r"(\d*)(\.\.)?(\d*)", text.strip(), re.ASCII)
    if match is None or not (match[1] or match[3]):
        raise ConfigError(f"{text!r} is no range of seqs", hint="give one like 17, 17..42, 17.. or ..42")
    first = int(match[1] or 1)
    last = int(match[3]) if match[3] else (None if match[2] else first)
    if last is not None and last < first:
        raise ConfigError(f"the range {text} ends before it begins", hint="the lower seq comes first")
    return first, last
