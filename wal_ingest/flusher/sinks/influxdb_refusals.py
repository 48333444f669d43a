"""What the words of a refusal name: a field, a time, lines. Pure. The words are those of real servers.

| server | words | hint |
|---|---|---|
| InfluxDB 1, 2 | `input field "v" on measurement "m" is type string, already exists as …` | `Named` |
| InfluxDB 1, 2 | `input tag "time" on measurement "m" is invalid` | `Named` |
| InfluxDB 1, 2 | `… limit exceeded (…): measurement="m" tag="t" value="x"` | `Named` |
| InfluxDB 1, 2 | `points beyond retention policy dropped=1` | `BeyondRetention` |
| InfluxDB 1.11, 2.7 | `… violates a Retention Policy Lower Bound at 2026-01-02T03:04:05Z` | the same, with the time |
| InfluxDB 1, 2 | `unable to parse 'LINE': REASON`, one below the other | `LinesRefused` |
| InfluxDB 3 | `{"error": …, "data": [{"original_line", "line_number", "error_message"}]}` | `LinesRefused` |
| QuestDB | `{"code": …, "message": …, "line": 3}` | `LinesRefused` |

A name stands in the words without its escapes, and may hold quotes of its own. Nothing here is a verdict: a hint only
chooses which lines are written by themselves, and what becomes of those decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from wal_ingest.flusher.outcome import BeyondRetention, Hint, LineRefused, LinesRefused, Named, plain

# The last words of the server's own sentence, never of a line that it quotes: `dropped` is a common field's name.
_DROPPED = re.compile(r"(?:[a-z ]+: )*partial write: .*\bdropped=(\d{1,9})\s*", re.DOTALL)
_FIELD = re.compile(
    r'\binput field "(.*?)" on measurement "(.*)" is type (\w+), already exists as type \w+', re.DOTALL
)
_TAG = re.compile(r'\binput tag "(.*?)" on measurement "(.*)" is invalid', re.DOTALL)
_TAG_LIMIT = re.compile(r'\blimit exceeded \([^)]*\): measurement="(.*)" tag="(.*)" value="', re.DOTALL)
_LOWER_BOUND = re.compile(
    r"Retention Policy Lower Bound at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z"
)
_RETENTION = re.compile(r"\b(points beyond retention policy|points outside retention policy)\b")
_UNPARSED = re.compile(r"unable to parse '(.*?)': (.*?)(?=\nunable to parse '|\Z)", re.DOTALL)
_DROPPED_END = re.compile(r"\s*dropped=\d+\s*\Z")
# Lines of a list that are looked at: an answer is read up to 64 KiB, and each has some words.
_LISTED_MAX = 2_000


def dropped_of(message: str) -> int | None:
    """How many points the server says it refused, in a partial write; None when it does not say."""
    found = _DROPPED.fullmatch(message)
    return int(found[1]) if found else None


def hint_of(message: str, answer: object, *, prefix: str = "") -> Hint | None:
    """What the words name. `message` is the server's sentence, whole; `answer` its JSON, decoded, where there is one.

    `prefix` is put before the reason of each line that is listed.
    """
    listed = _listed(answer) or _unparsed(message)
    if listed:
        return LinesRefused(
            tuple(replace(each, reason=plain(f"{prefix}{each.reason}")) for each in listed[:_LISTED_MAX])
        )
    return next((hint for find in _FINDERS if (hint := find(message)) is not None), None)


def decoded(text: str) -> Any:
    """An answer's JSON, one that was cut at its end too; None when it is none."""
    for end in ("", '"}', '"}]}', "}]}"):
        try:
            return json.loads(text + end)
        except (ValueError, RecursionError):
            continue
    return None


def _listed(answer: object) -> list[LineRefused]:
    if not isinstance(answer, dict):
        return []
    data = answer.get("data")
    items = data if isinstance(data, list) else [data] if isinstance(data, dict) else [answer]
    return [found for item in items if (found := _listed_line(item)) is not None]


def _listed_line(item: object) -> LineRefused | None:
    if not isinstance(item, dict):
        return None
    number = item.get("line_number", item.get("line"))
    reason = item.get("error_message", item.get("message"))
    line = item.get("original_line", "")
    if not isinstance(number, int) or not isinstance(reason, str) or not isinstance(line, str):
        return None
    return LineRefused(reason, number, line)


def _field(message: str) -> Hint | None:
    found = _FIELD.search(message)
    return Named(found[2], field=found[1], given=found[3]) if found else None


def _tag(message: str) -> Hint | None:
    found = _TAG.search(message)
    return Named(found[2], tag=found[1]) if found else None


def _tag_limit(message: str) -> Hint | None:
    found = _TAG_LIMIT.search(message)
    return Named(found[1], tag=found[2]) if found else None


def _retention(message: str) -> Hint | None:
    bound = _LOWER_BOUND.search(message)
    if bound:
        try:
            seconds = int(datetime.fromisoformat(bound[1]).replace(tzinfo=UTC).timestamp())
        except ValueError:  # no such date
            return BeyondRetention()
        return BeyondRetention(seconds * 10**9 + int((bound[2] or "0").ljust(9, "0")))
    return BeyondRetention() if _RETENTION.search(message) else None


def _unparsed(message: str) -> list[LineRefused]:
    """The lines that a parser quotes. They are looked for first: a line may hold any other words."""
    return [
        LineRefused(f"unable to parse: {_DROPPED_END.sub('', reason)}", line=line)
        for line, reason in _UNPARSED.findall(message)
    ]


_FINDERS: tuple[Callable[[str], Hint | None], ...] = (_field, _tag, _tag_limit, _retention)
