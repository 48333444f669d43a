"""What can be seen of a sink's delivery from outside: plain numbers, taken per batch."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from wal_ingest.wal.cursor import Cursor


class SinkState(enum.Enum):
    """What delivery to a sink is doing now; the value is the word that people are shown."""

    IDLE = "idle"  # nothing waits
    DELIVERING = "delivering"
    RETRYING = "retrying"  # the sink is unavailable for some write at least; it mends itself
    HOLDING = "holding"  # the sink is misconfigured, or its dead letters have no room; an operator must act
    FAILED = "failed"  # the sink, an optional one, broke down: nothing is delivered to it until it is resumed
    PAUSED = "paused"  # an operator asked for it
    ABSENT = "absent"  # the settings do not name this required sink; its points wait in the log


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """A moment of a sink's delivery.

    `since_ns` is Unix time in nanoseconds at which `state` began. `last_error` is the sink's latest refusal in
    words, empty when there was none since the start; `last_error_ns` is when, 0 for never.
    `no_room` says that it is holding because its dead letters have no room; `last_error` has why.
    `confirmed_points`, `parked_points`, `retried_writes` and `rejected_writes` (refused for their points) count since
    the start of this process, as the sink answered; `cursor` is the durable one.
    """

    name: str
    required: bool
    state: SinkState
    since_ns: int
    last_error: str
    last_error_ns: int
    confirmed_points: int
    parked_points: int
    retried_writes: int
    rejected_writes: int
    in_flight: int
    cursor: Cursor
    no_room: bool = False


class Progress:
    """The live numbers of one sink, changed next to the act by the tasks that deliver.

    `wrote` is called with the seconds that each write took, whatever its outcome.
    """

    def __init__(self, now_ns: int, *, wrote: Callable[[float], None] = lambda _seconds: None) -> None:
        self.wrote = wrote
        self.confirmed_points = 0
        self.parked_points = 0
        self.retried_writes = 0
        self.rejected_writes = 0
        self.in_flight = 0
        self.last_error = ""
        self.last_error_ns = 0
        # Why dead letters cannot be stored now, and since when: while there is such a reason it is the one to show,
        # whatever the sink answers to the writes that are under way.
        self._no_room = ("", 0)
        self.state = SinkState.IDLE
        self.since_ns = now_ns

    def error(self, reason: str, now_ns: int) -> None:
        """Remembers the sink's latest refusal."""
        self.last_error = reason
        self.last_error_ns = now_ns

    def no_room(self, reason: str, now_ns: int) -> None:
        """Remembers why dead letters have no room; the reason is empty when they have room."""
        self._no_room = (reason, now_ns)

    def status(self, name: str, *, required: bool, cursor: Cursor) -> SinkStatus:
        """A snapshot; `cursor` is the durable one."""
        no_room, no_room_ns = self._no_room
        return SinkStatus(
            name=name,
            required=required,
            state=self.state,
            since_ns=self.since_ns,
            last_error=no_room or self.last_error,
            last_error_ns=no_room_ns if no_room else self.last_error_ns,
            confirmed_points=self.confirmed_points,
            parked_points=self.parked_points,
            retried_writes=self.retried_writes,
            rejected_writes=self.rejected_writes,
            in_flight=self.in_flight,
            cursor=cursor,
            no_room=bool(no_room),
        )

    def enter(self, state: SinkState, now_ns: int) -> bool:
        """Changes the state; true when it was another one before."""
        if state is self.state:
            return False
        self.state = state
        self.since_ns = now_ns
        return True
