"""Fake databases that refuse some points and take the others, in the words of real ones, as sinks in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from tests.flusher.fake_sink import FakeSink
from tests.flusher.twins import START_NS
from wal_ingest.flusher.outcome import Confirmed, Outcome, Rejected
from wal_ingest.flusher.sinks.influxdb_answers import outcome_of

_TYPES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb'\bv="'), "string"),
    (re.compile(rb"\bv=\d+i"), "integer"),
    (re.compile(rb"\bv=(true|false)"), "boolean"),
)

# Gets the lines of a write; gives status and message, or None for 204.
Words = Callable[[Sequence[bytes]], tuple[int, str] | None]


def type_conflict(line: bytes) -> str | None:
    """The type of the field `v` where it is no float."""
    return next((kind for pattern, kind in _TYPES if pattern.search(line)), None)


class RefusingSink(FakeSink):
    """Judges a write by `words`, and takes from a partial write what is not refused.

    `taken` are the lines that are stored, however the write was answered; `refused` says of a line whether it is bad.
    """

    def __init__(
        self,
        words: Words,
        refused: Callable[[bytes], object],
        *,
        in_flight_max: int = 4,
        partial: bool = True,
    ) -> None:
        super().__init__(in_flight_max=in_flight_max)
        self.taken: set[bytes] = set()
        self.order: list[bytes] = []

        def answer(lines: list[bytes]) -> Outcome:
            said = words(lines)
            if said is None or partial:
                good = [line for line in lines if not refused(line)]
                self.order += [line for line in good if line not in self.taken]
                self.taken.update(good)
            if said is None:
                return Confirmed()
            status, message = said
            body = message if message.startswith("{") else json.dumps({"code": "invalid", "message": message})
            return outcome_of(status, {"content-type": "application/json"}, body.encode(), now_ns=START_NS)

        self.answer = answer


def influxdb1(lines: Sequence[bytes]) -> tuple[int, str] | None:
    """InfluxDB 1 names the first conflict and counts all of them."""
    kinds = [kind for kind in map(type_conflict, lines) if kind]
    if not kinds:
        return None
    return 400, (
        f'partial write: field type conflict: input field "v" on measurement "m" is type {kinds[0]}, '
        f"already exists as type float dropped={len(kinds)}"
    )


def influxdb2(lines: Sequence[bytes]) -> tuple[int, str] | None:
    """InfluxDB 2 says the same with 422."""
    said = influxdb1(lines)
    return said and (422, f"failure writing points to database: {said[1]}")


def influxdb2_without_count(lines: Sequence[bytes]) -> tuple[int, str] | None:
    said = influxdb1(lines)
    return said and (422, said[1].replace("partial write: ", "").partition(" dropped=")[0])


def influxdb3(lines: Sequence[bytes]) -> tuple[int, str] | None:
    """InfluxDB 3 lists each line."""
    data = [
        {
            "original_line": line.decode()[:20],
            "line_number": number,
            "error_message": f"invalid column type for column 'v', expected float, got {kind}",
        }
        for number, line in enumerate(lines, 1)
        if (kind := type_conflict(line))
    ]
    return (
        (400, json.dumps({"error": "partial write of line protocol occurred", "data": data}))
        if data
        else None
    )


def unparsed(lines: Sequence[bytes]) -> tuple[int, str] | None:
    """What quotes each line that it could not parse."""
    bad = [line.rstrip(b"\n").decode() for line in lines if type_conflict(line)]
    return (400, "\n".join(f"unable to parse '{line}': invalid number" for line in bad)) if bad else None


def is_old(line: bytes) -> bool:
    return int(line.rsplit(b" ", 1)[1]) < START_NS


def retention(lines: Sequence[bytes]) -> tuple[int, str] | None:
    """InfluxDB before 2.7: no word of the time."""
    dropped = sum(map(is_old, lines))
    return (422, f"partial write: points beyond retention policy dropped={dropped}") if dropped else None


def retention_with_bound(lines: Sequence[bytes]) -> tuple[int, str] | None:
    dropped = sum(map(is_old, lines))
    return (
        (
            422,
            f"partial write: dropped {dropped} points outside retention policy of duration 24h0m0s - oldest point m at "
            "1970-01-01T00:00:01Z dropped because it violates a Retention Policy Lower Bound at "
            f"2025-11-22T08:26:40Z dropped={dropped}",
        )
        if dropped
        else None
    )


def wordless(lines: Sequence[bytes]) -> tuple[int, str] | None:
    """A refusal that says nothing of use, though about points."""
    return (400, "the points cannot be written") if any(map(type_conflict, lines)) else None


__all__ = ["RefusingSink", "Rejected", "Words"]
