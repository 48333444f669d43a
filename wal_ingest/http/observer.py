"""What the front door tells of its work, to whoever counts it."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Whoever wants to know what comes in; called once per request."""

    def answered(self, route: str, result: str, points: int, body_bytes: int) -> None:
        """A write request was answered: `result` is `answers.result_of`; the counts are 0 unless it was accepted."""
        ...

    def appended(self, seconds: float) -> None:
        """An append became durable after so many seconds."""
        ...


class Nobody:
    """The observer where there is none."""

    def answered(self, route: str, result: str, points: int, body_bytes: int) -> None:
        """Nobody wants to know."""

    def appended(self, seconds: float) -> None:
        """Nobody wants to know."""
