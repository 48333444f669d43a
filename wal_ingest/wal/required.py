"""Which sinks must have a point before it may leave the log, durably: also a sink that today's settings do not name.

Invariants:

* What was accepted while a sink was required stays in the log until that sink has confirmed it, or until an operator
  gives it up (`sink forget`). A settings file that names the sink no more is no such decision: it may be a mistake.
* The record of a sink is on disk before the sink is delivered to, and before the log drops anything in this life.
* A sink that the settings make optional (`required = false`) while they name it holds nothing from then on.

A standby sink is one that is on only because no other sink is, as the archive is with `enabled = "auto"`. When a
required sink takes its place that has yet to get everything that the standby sink has not, the standby sink holds
nothing any more: those points wait for its successor. Otherwise it holds what was accepted until then (`through_seq`),
and nothing of what comes later: that was never meant for it.

A directory from an earlier version has no records. Every sink with a cursor that is absent then counts as required.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import msgspec

from wal_ingest.wal.cursor import Cursor

REQUIRED = b"required/"


class Requirement(msgspec.Struct, frozen=True):
    """What is remembered of one sink. `absent_since_ns` is Unix time in nanoseconds, None while the settings name it.

    `through_seq` bounds what an absent standby sink holds. `forgotten` says that an operator gave up the sink.
    """

    required: bool
    standby: bool = False
    absent_since_ns: int | None = None
    through_seq: int | None = None
    forgotten: bool = False

    def holds(self, cursor_seq: int) -> bool:
        """Whether an absent sink with this cursor keeps segments in the log."""
        if self.absent_since_ns is None or not self.required or self.forgotten:
            return False
        return self.through_seq is None or cursor_seq < self.through_seq


@dataclass(frozen=True, slots=True)
class Presence:
    """A sink that today's settings name. `standby`: only because they name no other."""

    required: bool
    standby: bool = False


def at_start(
    known: Mapping[str, Requirement],
    cursors: Mapping[str, Cursor],
    present: Mapping[str, Presence],
    *,
    standby_names: Set[str],
    first_seq: int,
    last_seq: int,
    now_ns: int,
) -> dict[str, Requirement]:
    """The records as a start with these settings leaves them. Pure.

    `cursors` name every sink that ever was, present ones among them. `standby_names` are the sinks that these settings
    have as standby, for those without a record. `first_seq` and `last_seq` are the ends of the log.
    """
    records = {name: Requirement(each.required, each.standby) for name, each in present.items()}
    for name, cursor in cursors.items():
        if name in present:
            continue
        record = known.get(name)
        if record is None:
            standby = name in standby_names
            # An earlier version has dropped what such a sink waited for: it held nothing by then.
            released = standby and cursor.seq + 1 < first_seq
            record = Requirement(True, standby, through_seq=cursor.seq if released else None)
        if record.absent_since_ns is None:
            through_seq = record.through_seq
            if record.standby and through_seq is None:
                successors = (cursors[other].seq for other, each in present.items() if each.required)
                has_successor = min(successors, default=last_seq + 1) <= cursor.seq
                through_seq = cursor.seq if has_successor else last_seq
            record = msgspec.structs.replace(record, absent_since_ns=now_ns, through_seq=through_seq)
        records[name] = record
    return records
