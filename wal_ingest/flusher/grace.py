"""A stop does not throw away what is under way: writes get a little time to learn their outcome."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Grace:
    """Shields what runs inside from cancellation until `begin`, and for `grace_s` seconds after it."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._deadline = float("inf")
        self._scopes: set[trio.CancelScope] = set()

    @contextmanager
    def shield(self) -> Iterator[trio.CancelScope]:
        scope = trio.CancelScope(shield=True, deadline=self._deadline)
        self._scopes.add(scope)
        try:
            with scope:
                yield scope
        finally:
            self._scopes.discard(scope)

    def begin(self) -> None:
        """The stop has begun: what is under way has `grace_s` seconds left."""
        self._deadline = trio.current_time() + self._grace_s
        for scope in self._scopes:
            scope.deadline = self._deadline
