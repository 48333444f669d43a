"""Files cut into runs of records: lines, objects of a JSON array, rows of CSV.

A run depends on nothing but the file's content, the place it begins at and the limits: whoever cuts again from a place
where a run began gets the same runs. Only standard input, which nobody can read again, also ends a run when
nothing came for a moment.
"""

from __future__ import annotations

import bisect
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from wal_ingest.cli.grouping import join_records, record_ends
from wal_ingest.cli.infile import InFile, UnreadableFile, whole_lines
from wal_ingest.points.json_words import json_reason
from wal_ingest.settings import ServerSettings

RUN_BYTES_MAX = 4 << 20
"""A run of lines ends before it has more bytes than these, if it has more than one."""
JSON_BYTES_MAX = 1 << 30
IDLE_S = 0.25
ROW_LINES_MAX = 1_000
_RECORD_BYTES_MAX = ServerSettings().line_bytes_max
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Place:
    """A place between two records: bytes after decompression, and records (lines, or objects of a JSON array).

    In a JSON array only the objects count, and `bytes` is 0.
    """

    bytes: int = 0
    records: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Records that stand one behind the other, between two places.

    `numbers` are their lines, from 1, or indexes, from 0. Of CSV `rows` are the cells; else it is empty.
    """

    start: Place
    end: Place
    records: Sequence[bytes]
    numbers: Sequence[int]
    rows: Sequence[list[str]] = field(default=())


class _Lines:
    """The lines of a file from a place on, taken so many at a time."""

    def __init__(self, file: InFile, start: Place) -> None:
        self._file = file
        self._blocks = whole_lines(file, idle_s=IDLE_S)
        self._held: list[bytes] = []
        if start.bytes:
            file.seek(start.bytes)
        else:
            skipped = 0
            while skipped < start.records and (taken := self.take(start.records - skipped)):
                skipped += len(taken)

    def take(self, lines_max: int) -> list[bytes]:
        """The next lines: fewer when they are large, the last ones, or nothing came for a moment; none at the end."""
        while len(self._held) < lines_max:
            block = next(self._blocks, None)
            if block is None or (not block and self._held):
                break
            # `bytes.splitlines` takes a carriage return alone for the end of a line.
            self._held += [line + b"\n" for line in block.split(b"\n")[:-1]]
        taken = self._held[:lines_max]
        size = sum(map(len, taken))
        while size > RUN_BYTES_MAX and len(taken) > 1:
            size -= len(taken.pop())
        del self._held[: len(taken)]
        return taken

    def give_back(self, lines: list[bytes]) -> None:
        """Lines that were taken last come again."""
        self._held[:0] = lines


def cut_records(file: InFile, start: Place, *, lines_max: int) -> Iterator[Run]:
    """Runs of records of line protocol of about `lines_max` lines. Raises `UnreadableFile`.

    A quoted string may have line feeds in it, so a record may have more than one line.
    """
    lines = _Lines(file, start)
    place = start
    while taken := lines.take(lines_max):
        ends = _whole_records(lines, taken)
        lines.give_back(taken[ends[-1] :])
        run = _run(place, taken[: ends[-1]])
        place = run.end
        if len(ends) < ends[-1]:
            records, begins = join_records(taken, ends)
            run = replace(run, records=records, numbers=[run.start.records + at + 1 for at in begins])
        yield run


def _whole_records(lines: _Lines, taken: list[bytes]) -> list[int]:
    """The ends of the records that begin in the lines taken. `taken` grows until it holds the last of them."""
    wanted, is_last = len(taken), False
    ends = record_ends(taken, bytes_max=_RECORD_BYTES_MAX, is_last=False)
    while not ends or ends[-1] < wanted:
        more = lines.take(len(taken))
        taken += more
        is_last = not more
        ends = record_ends(taken, bytes_max=_RECORD_BYTES_MAX, is_last=is_last)
    kept = bisect.bisect_left(ends, wanted) + 1
    if kept > 1 and sum(map(len, taken[: ends[kept - 1]])) > RUN_BYTES_MAX:
        kept -= 1
    return ends[:kept]


def cut_lines(file: InFile, start: Place, *, lines_max: int) -> Iterator[Run]:
    """Runs of at most `lines_max` lines, each with its line feed. Raises `UnreadableFile`."""
    lines = _Lines(file, start)
    place = start
    while taken := lines.take(lines_max):
        run = _run(place, taken)
        place = run.end
        yield run


def _run(place: Place, lines: list[bytes]) -> Run:
    end = Place(place.bytes + sum(map(len, lines)), place.records + len(lines))
    return Run(place, end, lines, range(place.records + 1, end.records + 1))


def cut_json(file: InFile, start: Place, *, objects_max: int) -> Iterator[Run]:
    """Runs of the objects of one JSON array; a single object is an array of one. Raises `UnreadableFile`."""
    text = file.read(JSON_BYTES_MAX + 1)
    if len(text) > JSON_BYTES_MAX:
        raise UnreadableFile(
            f"{file.name} has more than {JSON_BYTES_MAX} bytes of JSON: write it an object a line (jq -c '.[]')"
        )
    text = text.removeprefix(_BOM)
    try:
        if text.lstrip()[:1] == b"[":
            objects = msgspec.json.decode(text, type=list[msgspec.Raw])
        else:
            objects = [msgspec.json.decode(text, type=msgspec.Raw)]
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        error = UnreadableFile(f"{file.name}: {json_reason(exc)}")
        error.hint = "for an object a line say --format ndjson"
        raise error from exc
    for first in range(start.records, len(objects), objects_max):
        taken = [bytes(each) for each in objects[first : first + objects_max]]
        last = first + len(taken)
        yield Run(Place(0, first), Place(0, last), taken, range(first, last))


def cut_csv(file: InFile, start: Place, *, delimiter: str, lines_max: int) -> Iterator[Run]:
    """Runs of rows of about `lines_max` lines; the header is a row like others. Blank lines are no rows.

    A quoted cell may have line feeds in it, so a row may have more than one line. Raises `UnreadableFile`.
    """
    lines = _Lines(file, start)
    place = start
    while taken := lines.take(lines_max):
        run = _rows(file.name, _run(place, taken), delimiter)
        extended = 0
        while run is None:
            more = lines.take(1)
            extended += len(more)
            if not more or extended > ROW_LINES_MAX:
                raise _endless(file.name, _run(place, taken), delimiter)
            taken += more
            # Only a quote can end the cell.
            if b'"' in more[0]:
                run = _rows(file.name, _run(place, taken), delimiter)
        place = run.end
        yield run


# As a line behind the others it is a row of its own, unless a quoted cell is open there.
_SENTINEL = "\x00"


def _rows(name: str, run: Run, delimiter: str) -> Run | None:
    """The run with its rows, and with records and numbers by row; None when it ends within a quoted cell."""
    rows, ends = _parsed(name, run, delimiter)
    if rows.pop() != [_SENTINEL]:
        return None
    begins = [0, *ends]
    full = [at for at, row in enumerate(rows) if row]
    return replace(
        run,
        records=[b"".join(run.records[begins[at] : ends[at]]) for at in full],
        numbers=[run.start.records + begins[at] + 1 for at in full],
        rows=[rows[at] for at in full],
    )


def _parsed(name: str, run: Run, delimiter: str) -> tuple[list[list[str]], list[int]]:
    """All rows, the sentinel's too, and behind how many lines each ends."""
    # What is no UTF-8 is found later, where lines are checked.
    text = b"".join(run.records).decode(errors="surrogateescape")
    reader = csv.reader(io.StringIO(f"{text}{_SENTINEL}\n", newline="\n"), delimiter=delimiter)
    rows, ends = [], []
    try:
        for row in reader:
            rows.append(row)
            ends.append(reader.line_num)
    except csv.Error as exc:
        line = run.start.records + reader.line_num
        # Only these two are possible here, and their texts are for programmers.
        if "field limit" in str(exc):
            why = f"a cell has more than {csv.field_size_limit()} characters"
            raise UnreadableFile(f"{name}: line {line}: {why}") from exc
        error = UnreadableFile(
            f"{name}: line {line}: a carriage return within a line, and lines end with a line feed"
        )
        error.hint = f"tr '\\r' '\\n' < {name} > NEW_FILE"
        raise error from exc
    return rows, ends


def _endless(name: str, run: Run, delimiter: str) -> UnreadableFile:
    _all, ends = _parsed(name, run, delimiter)
    line = run.start.records + (ends[-2] if len(ends) > 1 else 0) + 1
    return UnreadableFile(f"{name}: line {line}: a quoted cell that begins here does not end")
