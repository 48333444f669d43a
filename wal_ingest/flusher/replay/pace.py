"""Not faster than so many points a second."""

from __future__ import annotations

import trio


class Pace:
    """Lets points pass at `points_per_s` on trio's clock; None is no limit. What was not used is not saved up."""

    def __init__(self, points_per_s: float | None) -> None:
        self._points_per_s = points_per_s
        self._next_s = -float("inf")

    async def take(self, points: int) -> None:
        """Returns when so many points may go. **Cancellation:** they count as gone. Always a checkpoint."""
        start_s = now_s = trio.current_time()
        if self._points_per_s is not None:
            start_s = max(self._next_s, now_s)
            self._next_s = start_s + points / self._points_per_s
        await trio.sleep(start_s - now_s)
