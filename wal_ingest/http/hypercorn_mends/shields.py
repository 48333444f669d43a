"""Shields against cancellation that can all be cut at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Shields:
    """Every shield against cancellation that is held now; `cut` ends them all, and all that come after."""

    def __init__(self) -> None:
        self._held: set[trio.CancelScope] = set()
        self._is_cut = False

    @contextmanager
    def shield(self, s_max: float) -> Iterator[trio.CancelScope]:
        """Holds cancellation off for `s_max` seconds at the most; `cancelled_caught` tells whether it ran out."""
        with trio.move_on_after(s_max, shield=not self._is_cut) as scope:
            if self._is_cut:
                scope.cancel()
            self._held.add(scope)
            try:
                yield scope
            finally:
                self._held.discard(scope)

    def cut(self) -> None:
        """Ends every shield now."""
        self._is_cut = True
        for scope in self._held:
            scope.cancel()
