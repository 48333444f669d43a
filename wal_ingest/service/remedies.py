"""What each state of a sink means, how bad it is and what an operator does: one table for everything that says it.

The status page, the verdict in `/status.json`, the alerts, the dashboard and the runbook name the same remedy; a test
compares them with this table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


class Level(enum.IntEnum):
    """How bad it is, in order; `word` is what documents show."""

    GOOD = 0
    ATTENTION = 1  # nothing is in danger now, and a person should know
    BAD = 2  # points are refused or in danger, or only a person can get delivery going

    @property
    def word(self) -> str:
        """`good`, `attention` or `bad`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Remedy:
    """What an operator does: a sentence, and the command that goes with it, empty when there is none."""

    says: str
    run: str = ""

    def of(self, sink: str) -> Remedy:
        """The same for a sink by its name."""
        return Remedy(self.says.format(sink=sink), self.run.format(sink=sink))


@dataclass(frozen=True, slots=True)
class Condition:
    """A state of a sink: its level, what the sentence says of it before the time, its meaning, its remedy."""

    level: Level
    says: str = ""
    meaning: str = ""
    remedy: Remedy | None = None


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "idle": Condition(Level.GOOD),
        "delivering": Condition(Level.GOOD),
        "retrying": Condition(
            Level.ATTENTION,
            "is unavailable",
            "unavailable, tried again without end",
            Remedy("Repair {sink}; delivery goes on by itself when it is back.", "wal-ingest sink status"),
        ),
        "holding": Condition(
            Level.BAD,
            "refuses us",
            "misconfigured, an operator must act",
            Remedy("See what is wrong with its settings:", "wal-ingest sink check {sink}"),
        ),
        "failed": Condition(
            Level.BAD,
            "gave up",
            "gave up, its points stay undelivered",
            Remedy("Repair what {sink} reports, then:", "wal-ingest sink resume {sink}"),
        ),
        "paused": Condition(
            Level.ATTENTION,
            "is paused",
            "by an operator",
            Remedy("To go on:", "wal-ingest sink resume {sink}"),
        ),
        "absent": Condition(
            Level.BAD,
            "is missing from the settings",
            "required, but not in the settings: the log keeps its points",
            Remedy(
                "Configure {sink} again; or, when it will never come back:", "wal-ingest sink forget {sink}"
            ),
        ),
    }
)


# In place of "holding" where it is not the sink that is wrong.
NO_ROOM = Condition(
    Level.BAD,
    "is held, as its dead letters have no room",
    "no room for its dead letters, an operator must act",
    Remedy(
        "See why they were refused, then export, retry or drop them:",
        "wal-ingest dead-letters list --sink {sink}",
    ),
)


def condition_of(state: str, *, no_room: bool = False) -> Condition:
    """What a state means, `no_room` with that for dead letters. One that is not in the table is never good."""
    if no_room and state == "holding":
        return NO_ROOM
    return CONDITIONS.get(state) or Condition(Level.ATTENTION, f"is {state}")
