"""The account: every point that was accepted is, for each sink, delivered, waiting, parked or given up.

    accepted = delivered + waiting + parked + given up

`Account` says so for one sink; the page, `/status.json`, `/readyz`, the metrics and `wal status` all show this one. In
the cursor's own terms:

    accepted by the log = since + confirmed + parked + skipped + expired + waiting

The cursors count all but the last as they move, and what is waiting is the rest, so the sum holds by itself as long as
cursors and log agree. Whether they do is checked once, at every start: the log counts its points on its own, in each
entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from wal_ingest.errors import StorageFailed, WalDamaged
from wal_ingest.wal.cursor import Cursor
from wal_ingest.wal.segment import Segment, read_entry


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the points that were accepted for one sink, in points:

        accepted = delivered + waiting + parked + given_up + unaccounted

    * `accepted`: by the log since this sink began;
    * `delivered`: the sink has confirmed them;
    * `waiting`: they are in the log;
    * `parked`: they are dead letters that are kept;
    * `given_up`: the sink will never get them: an operator skipped them or dropped them as dead letters, or they were
      in a segment that was set aside as damaged;
    * `unaccounted`: what is missing from the sum; anything but 0 is a bug, or the state file was tampered with.
    """

    accepted: int
    delivered: int
    waiting: int
    parked: int
    given_up: int
    unaccounted: int

    def as_json(self) -> dict[str, int]:
        """The same under the same names, as every document shows it."""
        return asdict(self)


def account_of(cursor: Cursor, points_total: int) -> Account:
    """The account of one sink, when the log has accepted `points_total` points in all, of all sinks.

    Take the cursor before `points_total`: then what is accepted in between waits. A log that counts fewer points than
    the cursor has passed (its segments are gone) is taken to end at the cursor.
    """
    waiting = max(0, points_total - cursor.settled)
    return Account(
        accepted=cursor.settled + waiting - cursor.since,
        delivered=cursor.confirmed,
        waiting=waiting,
        parked=cursor.parked,
        given_up=cursor.skipped + cursor.expired,
        unaccounted=cursor.unaccounted,
    )


def disagreements(cursors: Mapping[str, Cursor], segments: Sequence[Segment]) -> list[str]:
    """What does not add up between the cursors and the log, a sentence each; nothing when all is well."""
    found = []
    for name, cursor in cursors.items():
        if cursor.unaccounted:
            found.append(
                f"{name}: {cursor.unaccounted} of the {cursor.points} points it has passed are unaccounted for"
            )
        last_seq = max((segment.last_seq for segment in segments), default=cursor.seq)
        if cursor.seq > last_seq:
            found.append(f"{name}: its cursor is at seq {cursor.seq}, and the log's last entry is {last_seq}")
        points = _points_up_to(cursor.seq, segments)
        if points is not None and points != cursor.points:
            found.append(
                f"{name}: it counts {cursor.points} points up to seq {cursor.seq}, the log counts {points}"
            )
    return found


def _points_up_to(seq: int, segments: Sequence[Segment]) -> int | None:
    """The log's own count of points up to an entry; None where neither it nor the next one is kept, or readable."""
    for segment in segments:
        for candidate in (seq, seq + 1):
            if segment.first_seq <= candidate <= segment.last_seq:
                try:
                    entry = read_entry(segment.path, candidate)
                except (WalDamaged, StorageFailed):
                    return None  # damage has a report of its own, when it is read
                if entry is not None:
                    return entry.points_before + (entry.points if candidate == seq else 0)
    return None
