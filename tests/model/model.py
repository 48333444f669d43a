"""The invariant as a small model, pure: what senders were told, what sinks had, and what that demands of a disk.

> Every point whose acceptance the sender was told of is in the WAL, or confirmed by every required sink, or parked
> with a reason.

Segments that were damaged on purpose and are set aside, with their evidence, are one exception: what was in them is
`given_up`. What an operator decided that a sink need not have is the other: `expired` (by seq) and `dropped` (dead
letters, by line).

`left` are the sinks that were missing from the settings at some start.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Found:
    """What is on a disk: the lines of the entries that can be read, by seq; each sink's cursor and dead letters."""

    kept: Mapping[int, bytes]
    cursors: Mapping[str, int]
    parked: Mapping[str, Set[bytes]]


@dataclass
class Model:
    """What the world outside of the process knows. `required` says of each sink whether it holds truncation back."""

    required: dict[str, bool] = field(default_factory=dict)
    accepted: dict[int, bytes] = field(default_factory=dict)
    had: dict[str, set[bytes]] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)
    expired: dict[str, set[int]] = field(default_factory=dict)
    dropped: dict[str, set[bytes]] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)

    def accept(self, first_seq: int, entries: list[bytes]) -> None:
        """Notes what a sender is told. Raises AssertionError when a seq was given out before."""
        assert first_seq > max(self.accepted, default=0), "a seq is given out twice, or out of order"
        self.accepted |= dict(enumerate(entries, first_seq))

    def holding(self) -> list[str]:
        """The sinks that truncation waits for: the required ones, in the settings or not; where none is, those
        that the settings have always named.
        """
        required = [name for name, required in self.required.items() if required]
        return required or [name for name in self.required if name not in self.left]

    def broken(self, found: Found) -> list[str]:
        """Everything that is not as it must be; an empty list is what is wanted."""
        wrong = []
        for seq, lines in self.accepted.items():
            if seq in found.kept:
                if found.kept[seq] != lines:
                    wrong.append(f"seq {seq} reads otherwise than it was written")
            elif seq not in self.given_up:
                wrong += [
                    f"seq {seq} is dropped, and the durable cursor of {name} is at {found.cursors[name]}"
                    for name in self.holding()
                    if found.cursors[name] < seq
                ]
            wrong += self._unsettled(seq, lines, found)
        return wrong

    def _unsettled(self, seq: int, lines: bytes, found: Found) -> list[str]:
        """The sinks whose cursors passed an entry that they neither have nor refused."""
        wrong = []
        for name, cursor in found.cursors.items():
            skipped = seq in self.given_up or (seq not in found.kept and name not in self.holding())
            skipped = skipped or seq in self.expired.get(name, ())
            missing = set(lines.splitlines(keepends=True)) - self.had[name] - found.parked[name]
            missing -= self.dropped.get(name, set())
            if seq <= cursor and missing and not skipped:
                wrong.append(f"seq {seq}: {name} has passed it; {len(missing)} points are nowhere")
        return wrong
