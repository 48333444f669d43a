"""Physical lines of a line protocol file grouped into records: a quoted string may hold line feeds."""

from __future__ import annotations

from collections.abc import Sequence

from wal_ingest.points.records import QuoteState


def record_ends(lines: Sequence[bytes], *, bytes_max: int, is_last: bool) -> list[int]:
    """After how many of the lines each record ends. Lines after the last end belong to a record that is still open.

    A record whose string is still open after `bytes_max` bytes, or at the end of the file (`is_last`), does not
    swallow the lines that follow: its first line is a record by itself, and the next line begins another one.
    """
    if not any(b'"' in line for line in lines):
        return list(range(1, len(lines) + 1))
    ends: list[int] = []
    start = 0
    while start < len(lines):
        end = _end(lines, start, bytes_max)
        if end is None and not is_last:
            break
        start = end or start + 1
        ends.append(start)
    return ends


def _end(lines: Sequence[bytes], start: int, bytes_max: int) -> int | None:
    """After which line the record that begins at `start` ends; None when the lines do not say."""
    first = lines[start]
    if b'"' not in first or first.lstrip(b" \t\x00")[:1] == b"#":
        return start + 1
    state = QuoteState()
    size = 0
    for at in range(start, len(lines)):
        if not state.is_open_after(lines[at]):
            return at + 1
        size += len(lines[at])
        if size > bytes_max:
            return start + 1
    return None


def join_records(lines: Sequence[bytes], ends: Sequence[int]) -> tuple[list[bytes], list[int]]:
    """The records, and the index of the line where each begins."""
    begins = [0, *ends[:-1]]
    return [b"".join(lines[begin:end]) for begin, end in zip(begins, ends, strict=True)], begins
