"""Rows of CSV in, lines out, column by column: which column is a tag, a field, the time. Pure.

The lines are not checked further: a float that is out of range, a time before all times, or bytes that are no UTF-8
(and were decoded with `surrogateescape`) are for `accept_line_protocol` to find. An empty cell is a value that is not
there: its tag or field is left out of the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wal_ingest.errors import ConfigError
from wal_ingest.points.csv_columns import (
    Bad,
    Cells,
    FieldType,
    field_texts,
    guess_type,
    measurement_texts,
    tag_texts,
    time_texts,
)
from wal_ingest.points.lines import Precision
from wal_ingest.points.names import IN_FIELD_KEY, IN_MEASUREMENT, IN_TAG, name_text

Row = list[str]


_PLACES = {"measurement": IN_MEASUREMENT, "tag key": IN_TAG, "field key": IN_FIELD_KEY}


@dataclass(frozen=True, slots=True)
class CsvField:
    """A column that becomes a field; `kind` None is guessed from what the column holds."""

    column: str
    name: str
    kind: FieldType | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvMapping:
    """Which columns become what.

    The measurement is a name, or a column's values. `tags` are pairs of column and key. No `fields` means all columns
    that are nothing else. Without a `time` lines have none. `unit` is that of times which are numbers.
    """

    measurement: str = ""
    measurement_column: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    fields: tuple[CsvField, ...] = ()
    time: str = ""
    unit: Precision | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no point: its index, the column that says so ("" for the row as a whole), and why."""

    row: int
    column: str
    reason: str


@dataclass(frozen=True, slots=True)
class CsvLines:
    """The `records` of the rows with the indexes `kept`, one each, in order, and the `bad` rows.

    A record ends with a line feed, and may have others within its strings.
    """

    records: Sequence[bytes]
    kept: Sequence[int]
    bad: list[BadRow] = field(default_factory=list)

    @property
    def lines(self) -> bytes:
        """All records together."""
        return b"".join(self.records)


class CsvWriter:
    """Writes rows as lines. Its choices are made once, from the header and the first rows."""

    def __init__(self, columns: Sequence[str], mapping: CsvMapping, *, first_rows: Sequence[Row]) -> None:
        """Raises ConfigError when the mapping names a column that is not there, leaves no fields, or a bad name."""
        self._columns = list(columns)
        self._mapping = mapping
        twice = {name for name in columns if self._columns.count(name) > 1}
        if twice:
            raise ConfigError(f"the header names a column twice: {', '.join(sorted(twice))}")
        if bool(mapping.measurement) == bool(mapping.measurement_column):
            raise ConfigError("CSV needs a measurement: either a name, or the column that holds it")
        self._measurement = self._written(mapping.measurement, "measurement") if mapping.measurement else ""
        self._measurement_at = self._at(mapping.measurement_column)
        self._time_at = self._at(mapping.time)
        self._tags = [(self._at(column), self._written(key, "tag key")) for column, key in mapping.tags]
        fields = mapping.fields or self._other_columns()
        if not fields:
            raise ConfigError("no column is left to be a field")
        guessed = [row for row in first_rows if len(row) == len(self._columns)]
        self._fields = []
        for each in fields:
            at = self._at(each.column)
            kind = each.kind or guess_type([row[at] for row in guessed])
            self._fields.append((at, self._written(each.name, "field key"), kind))

    def _other_columns(self) -> tuple[CsvField, ...]:
        taken = {column for column, _key in self._mapping.tags}
        taken |= {self._mapping.time, self._mapping.measurement_column}
        return tuple(CsvField(name, name) for name in self._columns if name not in taken)

    def _at(self, column: str) -> int:
        if not column:
            return -1
        try:
            return self._columns.index(column)
        except ValueError:
            raise ConfigError(
                f"there is no column {column!r}", hint=f"these are there: {', '.join(self._columns)[:400]}"
            ) from None

    def _written(self, name: str, what: str) -> str:
        try:
            return name_text(name, what, _PLACES[what])
        except ValueError as exc:
            raise ConfigError(f"{name!r} cannot be a {what}: {exc}") from None

    def lines(self, rows: Sequence[Row]) -> CsvLines:
        """All rows as lines, but for those that are no points."""
        width = len(self._columns)
        bad: dict[int, BadRow] = {}
        if set(map(len, rows)) - {width}:
            for index, row in enumerate(rows):
                if len(row) != width:
                    reason = f"the row has {len(row)} cells, and the header has {width}"
                    bad[index] = BadRow(index, "", reason)
        kept = [index for index in range(len(rows)) if index not in bad] if bad else range(len(rows))
        if not kept:
            return CsvLines([], [], list(bad.values()))
        columns: list[tuple[str, ...]] = list(zip(*(rows[index] for index in kept), strict=True))
        texts, found = self._texts(columns)
        for at, (column, reason) in found.items():
            bad[kept[at]] = BadRow(kept[at], column, reason)
        if found:
            texts = [text for at, text in enumerate(texts) if at not in found]
            kept = [index for at, index in enumerate(kept) if at not in found]
        records = [text.encode(errors="surrogateescape") for text in texts]
        return CsvLines(records, kept, sorted(bad.values(), key=lambda each: each.row))

    def _texts(self, columns: list[tuple[str, ...]]) -> tuple[list[str], dict[int, tuple[str, str]]]:
        """A line for each row, and the rows for which it means nothing: which column says so, and why."""
        found: dict[int, tuple[str, str]] = {}
        heads = self._heads(columns, found)
        fields = self._field_lists(columns, found)
        if self._time_at < 0:
            return [f"{head} {values}\n" for head, values in zip(heads, fields, strict=True)], found
        times = self._noted(found, self._time_at, time_texts(columns[self._time_at], self._mapping.unit))
        return [
            f"{head} {values} {time}\n" for head, values, time in zip(heads, fields, times, strict=True)
        ], found

    def _heads(self, columns: list[tuple[str, ...]], found: dict[int, tuple[str, str]]) -> Iterable[str]:
        """Measurement and tags of every row."""
        parts: list[Cells] = []
        if self._measurement_at >= 0:
            cells = columns[self._measurement_at]
            written = measurement_texts(cells, lambda cell: name_text(cell, "measurement", IN_MEASUREMENT))
            parts.append(self._noted(found, self._measurement_at, written))
        else:
            parts.append([self._measurement] * len(columns[0]))
        for at, key in self._tags:
            parts.append(self._noted(found, at, tag_texts(columns[at], key)))
        return map("".join, zip(*parts, strict=True))

    def _field_lists(self, columns: list[tuple[str, ...]], found: dict[int, tuple[str, str]]) -> list[str]:
        """The fields of every row, with commas between them."""
        parts: list[Cells] = []
        gaps = False
        for at, key, kind in self._fields:
            texts = self._noted(found, at, field_texts(columns[at], kind))
            gaps = gaps or "" in texts
            begin = f"{key}="
            parts.append([text and begin + text for text in texts])
        if not gaps:
            return list(map(",".join, zip(*parts, strict=True)))
        lists = [",".join(filter(None, row)) for row in zip(*parts, strict=True)]
        for row, values in enumerate(lists):
            if not values:
                found.setdefault(row, ("", "no field has a value"))
        return lists

    def _noted(self, found: dict[int, tuple[str, str]], at: int, written: tuple[Cells, Bad]) -> Cells:
        texts, bad = written
        for row, reason in bad.items():
            found.setdefault(row, (self._columns[at], reason))
        return texts
