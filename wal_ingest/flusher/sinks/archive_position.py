"""The archive's own position: which files had how many confirmed bytes. Pure.

Stored with the cursor as JSON: `{"version": 1, "hour_max": 497130, "lengths": [[497130, 12345], …]}`, hours
counted from 1970-01-01T00 UTC, the file written last at the end. Several files are remembered because
acceptance times are not strictly in the order of the seqs: an entry of 20:59:59.999 may follow one of 21:00:00, and
clocks are set back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from wal_ingest.errors import OperatorNeeded

_HOUR_NS = 3_600_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FILES_MAX = 8


@dataclass(frozen=True, slots=True)
class ArchivePosition:
    """Confirmed lengths in bytes by hour, the latest written last, and the latest hour ever confirmed (-1: none)."""

    hour_max: int = -1
    lengths: tuple[tuple[int, int], ...] = ()

    def grown(self, hour: int, length: int) -> ArchivePosition:
        """The position after a confirmed append to that hour's file."""
        others = tuple(item for item in self.lengths if item[0] != hour)
        return ArchivePosition(max(self.hour_max, hour), (*others, (hour, length))[-FILES_MAX:])

    def encode(self) -> bytes:
        """As it is stored with the cursor."""
        return json.dumps({"version": 1, "hour_max": self.hour_max, "lengths": self.lengths}).encode()

    @classmethod
    def decode(cls, position: bytes, *, where: Path) -> ArchivePosition:
        """The position that `encode` made. Raises OperatorNeeded for anything else: guessing could cut files."""
        try:
            stored = json.loads(position)
            if stored["version"] != 1:
                raise ValueError(f"version {stored['version']} is not known to this program")
            lengths = tuple((int(hour), int(length)) for hour, length in stored["lengths"])
            if any(hour < 0 or length < 0 for hour, length in lengths):
                raise ValueError("negative numbers")
            return cls(int(stored["hour_max"]), lengths)
        except (ValueError, TypeError, KeyError) as exc:
            raise OperatorNeeded(f"{where}: the archive's stored position cannot be read: {exc}") from exc


def hour_of_ns(accepted_ns: int) -> int:
    """The hour (since 1970, UTC) of a time in Unix nanoseconds."""
    return accepted_ns // _HOUR_NS


def file_of_hour(hour: int) -> str:
    """The path of an hour's file below the archive, such as `2026-11-22/21.lp.gz`."""
    return (_EPOCH + timedelta(hours=hour)).strftime("%Y-%m-%d/%H.lp.gz")


def hour_of_file(path: Path) -> int:
    """The hour of a file named by `file_of_hour`; -1 for any other name."""
    try:
        when = datetime.strptime(f"{path.parent.name}/{path.name}", "%Y-%m-%d/%H.lp.gz").replace(tzinfo=UTC)
    except ValueError:
        return -1
    return (when - _EPOCH) // timedelta(hours=1)
