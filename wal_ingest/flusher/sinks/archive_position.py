"""The archive's own position: which files had how many confirmed bytes. Pure.

Stored with the cursor as JSON: `{"version": 2, "hour_max": 497130, "files": [[497130, 0, 12345], …]}`: hour
(counted from 1970-01-01T00 UTC), part and length of each, the file written last at the end. Version 1 had
`lengths` without parts. Several files are remembered because acceptance times are not strictly in the order of the
seqs: an entry of 20:59:59.999 may follow one of 21:00:00, and clocks are set back.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from wal_ingest.errors import OperatorNeeded

_HOUR_NS = 3_600_000_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = re.compile(r"(\d{4}-\d\d-\d\d/\d\d)(?:\.part([1-9]\d{0,8}))?\.lp\.gz", re.ASCII)
FILES_MAX = 8


class ConfirmedFile(NamedTuple):
    """The file an hour's points go to: the newest of its parts, and how many bytes of it are confirmed."""

    hour: int
    part: int
    length: int


@dataclass(frozen=True, slots=True)
class ArchivePosition:
    """The file of each hour written to lately, the latest written last, and the latest hour of all (-1: none)."""

    hour_max: int = -1
    files: tuple[ConfirmedFile, ...] = ()

    def of_hour(self, hour: int) -> ConfirmedFile | None:
        """What is remembered of an hour."""
        return next((file for file in self.files if file.hour == hour), None)

    def grown(self, file: ConfirmedFile) -> ArchivePosition:
        """The position after a confirmed append to that file."""
        others = tuple(each for each in self.files if each.hour != file.hour)
        return ArchivePosition(max(self.hour_max, file.hour), (*others, file)[-FILES_MAX:])

    def encode(self) -> bytes:
        """As it is stored with the cursor."""
        return json.dumps({"version": 2, "hour_max": self.hour_max, "files": self.files}).encode()

    @classmethod
    def decode(cls, position: bytes, *, where: Path) -> ArchivePosition:
        """The position that `encode` made. Raises OperatorNeeded for anything else: guessing could cut files."""
        try:
            stored = json.loads(position)
            if stored["version"] == 1:
                rows = [(hour, 0, length) for hour, length in stored["lengths"]]
            elif stored["version"] == 2:
                rows = stored["files"]
            else:
                raise ValueError(f"version {stored['version']} is not known to this program")
            files = tuple(ConfirmedFile(int(hour), int(part), int(length)) for hour, part, length in rows)
            if any(min(file) < 0 for file in files):
                raise ValueError("negative numbers")
            return cls(int(stored["hour_max"]), files)
        except (ValueError, TypeError, KeyError) as exc:
            raise OperatorNeeded(f"{where}: the archive's stored position cannot be read: {exc}") from exc


def hour_of_ns(accepted_ns: int) -> int:
    """The hour (since 1970, UTC) of a time in Unix nanoseconds."""
    return accepted_ns // _HOUR_NS


def file_of_hour(hour: int, part: int = 0) -> str:
    """A file's path below the archive: `2026-11-22/21.lp.gz`, and behind it in order `2026-11-22/21.part1.lp.gz`."""
    name = (_EPOCH + timedelta(hours=hour)).strftime("%Y-%m-%d/%H")
    return f"{name}.part{part}.lp.gz" if part else f"{name}.lp.gz"


def hour_and_part(path: Path) -> tuple[int, int] | None:
    """The hour and part of a file named by `file_of_hour`; None for any other name."""
    named = _NAME.fullmatch(f"{path.parent.name}/{path.name}")
    if named is None:
        return None
    try:
        when = datetime.strptime(named[1], "%Y-%m-%d/%H").replace(tzinfo=UTC)
    except ValueError:
        return None
    return (when - _EPOCH) // timedelta(hours=1), int(named[2] or 0)
