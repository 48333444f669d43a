"""Which records of a file are no points: found by halving, so that a bad one costs a few looks, not one a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from wal_ingest.errors import PointError, RequestError, WalIngestError

T = TypeVar("T")


class Refused(WalIngestError):
    """A record of a file is no point: mend it. `number` is its line, or its index in a JSON array.

    Unlike `UnreadableFile`, the rest of the file may be fine.
    """

    def __init__(
        self, name: str, number: int, why: str, *, unit: str = "line", column: object = None
    ) -> None:
        behind = "" if column in (None, "") else f", column {column}"
        super().__init__(f"{name}: {unit} {number}{behind}: {why}")
        self.hint = "write such lines to a file and go on, with --skip-invalid FILE"
        self.number = number


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that was not accepted: its index among those that were sifted, and why."""

    at: int
    error: RequestError

    @property
    def reason(self) -> str:
        """Why, without a place."""
        return self.error.reason if isinstance(self.error, PointError) else str(self.error)

    @property
    def column(self) -> int | None:
        """Where in the line, counted in bytes from 1; None when it is not the first line of the record."""
        if isinstance(self.error, PointError) and self.error.line in (None, 1):
            return self.error.column
        return None


def sift(
    records: Sequence[bytes], accept: Callable[[Sequence[bytes]], T], *, first: int = 0
) -> Iterator[T | BadRecord]:
    """What `accept` makes of the good runs of records, and the bad records, in order.

    `accept` raises `RequestError` for records of which one is bad, or more. `first` is the index of the first.
    """
    try:
        yield accept(records)
    except RequestError as exc:
        if len(records) == 1:
            yield BadRecord(first, exc)
            return
        half = len(records) // 2
        yield from sift(records[:half], accept, first=first)
        yield from sift(records[half:], accept, first=first + half)
