"""Where a record of canonical text ends: at a line feed that is not inside a quoted string.

InfluxDB cuts a body into records by a rule of its own (`scanLine` in its models/points.go), which does not know
names from values: a backslash skips the byte after it; from the first space on a quote opens or closes a string
whenever there were more equals signs than commas; a line feed outside strings ends the record. Bodies are
joined on their way to it, so a record that this rule would not end at its last line feed would swallow the next
sender's. `ends_as_one_record` says whether it does. Such a record is never accepted.

Everything here works on canonical text, so nothing is checked twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_HEAD = rb"(?:[^\\ \n]|\\ ?)++"
_FIELD = rb'(?:[^\\=\n]|\\=?)++=(?:"(?:[^"\\]|\\.)*+"|[^", \n][^, \n]*+)'
_RECORD = re.compile(_HEAD + b" " + _FIELD + b"(?:," + _FIELD + rb")*+ -?[0-9]++\n", re.DOTALL)

_SCAN = re.compile(rb'\\.|[ =,"\n]', re.DOTALL)


def records_of(text: bytes) -> Iterator[bytes]:
    """The records of canonical text, in order, each with its line feed. Raises ValueError where it is none."""
    position = 0
    while position < len(text):
        record = _RECORD.match(text, position)
        if record is None:
            raise ValueError(f"no canonical line at byte {position}")
        yield record[0]
        position = record.end()


def end_of_records(text: bytes) -> tuple[int, int]:
    """The offset after the last whole record that canonical text begins with, and how many there are."""
    position = count = 0
    while record := _RECORD.match(text, position):
        position, count = record.end(), count + 1
    return position, count


class QuoteState:
    """InfluxDB's rule over a record that comes in pieces."""

    def __init__(self) -> None:
        self._fields = self._quoted = False
        self._more_equals = 0

    def is_open_after(self, piece: bytes) -> bool:
        """Whether the record goes on after this piece, which ends with a line feed and has no other."""
        if self._quoted and b'"' not in piece:
            # Only a quote can end a string, so there is nothing to count.
            return True
        return self.end_within(piece) is None

    def end_within(self, piece: bytes) -> int | None:
        """The offset after the line feed that ends the record; None when it is not in this piece."""
        for found in _SCAN.finditer(piece):
            here = found[0]
            if here[0] == 0x5C:
                continue
            if here == b"\n":
                if not self._quoted:
                    return found.end()
            elif here == b" ":
                self._fields = True
            elif not self._fields:
                continue
            elif here == b'"':
                if self._more_equals > 0:
                    self._quoted = not self._quoted
            elif not self._quoted:
                self._more_equals += 1 if here == b"=" else -1
        return None


def ends_as_one_record(record: bytes) -> bool:
    """Whether InfluxDB's own rule ends this canonical record at its last byte, and not before."""
    return QuoteState().end_within(record) == len(record)
