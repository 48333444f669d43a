"""A file as pieces, from any place where a piece began."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from wal_ingest.cli.infile import InFile
from wal_ingest.cli.send.cutting import Place, Run, cut_csv, cut_json, cut_lines, cut_records
from wal_ingest.cli.send.formats import Format, format_of
from wal_ingest.cli.send.pieces import Accept, How, Piece, Rejected, acceptor, unit_of
from wal_ingest.cli.sifting import BadRecord, Refused, sift
from wal_ingest.points.csv_points import CsvWriter


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Records of a run that may be points: as they would be sent, as they stand in the file, and their numbers.

    `rejected` are those which are known to be none.
    """

    run: Run
    format: Format
    records: Sequence[bytes]
    raw: Sequence[bytes]
    numbers: Sequence[int]
    rejected: tuple[Rejected, ...] = ()


class Source:
    """One file. With `skips`, records that are no points are left out; else the first of them ends it.

    It ends it in front of its run when that is to stay `whole`, else right in front of the record.
    """

    def __init__(
        self, name: str, how: How, *, file: int, skips: bool, whole: bool, now_ns: Callable[[], int]
    ) -> None:
        self.name = name
        self._how = how
        self._file = file
        self._skips = skips
        self._whole = whole
        self._now_ns = now_ns

    def pieces(self, start: Place) -> Iterator[Piece]:
        """From a place on. Raises `Refused`, `UnreadableFile`, and `ConfigError` for a mapping that does not fit."""
        records_max = self._how.records_max
        with InFile(self.name) as opened:
            form = self._how.format or format_of(self.name, opened.begin)
            if form is Format.CSV:
                pieces = self._csv(opened, start)
            elif form is Format.JSON:
                pieces = self._plain(cut_json(opened, start, objects_max=records_max), form)
            else:
                cut = cut_records if form is Format.LINES else cut_lines
                pieces = self._plain(cut(opened, start, lines_max=records_max), form)
            # Lines that were made of CSV have nanoseconds.
            precision = "" if form is Format.CSV else self._how.precision
            for piece in pieces:
                yield replace(piece, precision=precision, file_bytes=opened.advanced())

    def _plain(self, runs: Iterator[Run], form: Format) -> Iterator[Piece]:
        unit = unit_of(self._how.precision)
        for run in runs:
            accept = acceptor(form, unit, now_ns=self._now_ns())
            yield from self._checked(_Candidates(run, form, run.records, run.records, run.numbers), accept)

    def _csv(self, opened: InFile, start: Place) -> Iterator[Piece]:
        """The header and the first rows say what columns are; so they are looked at wherever it begins."""
        delimiter = self._how.delimiter or ("\t" if ".tsv" in self.name.lower() else ",")
        runs = cut_csv(opened, Place(), delimiter=delimiter, lines_max=self._how.records_max)
        first = next(runs, None)
        if first is None:
            return
        columns, first = self._header(first)
        writer = CsvWriter(columns, self._how.mapping, first_rows=first.rows)
        if not start.bytes:
            for run in itertools.chain([first], runs):
                yield from self._rows(writer, run, skip=start.records)
            return
        with InFile(self.name) as again:
            for run in cut_csv(again, start, delimiter=delimiter, lines_max=self._how.records_max):
                yield from self._rows(writer, run)

    def _header(self, run: Run) -> tuple[Sequence[str], Run]:
        if self._how.columns:
            return self._how.columns, run
        columns = [name.removeprefix("\ufeff").strip() for name in run.rows[0]] if run.rows else []
        return columns, replace(run, records=run.records[1:], numbers=run.numbers[1:], rows=run.rows[1:])

    def _rows(self, writer: CsvWriter, run: Run, *, skip: int = 0) -> Iterator[Piece]:
        """Rows as lines. Those up to line `skip` are left out."""
        chosen = [at for at, number in enumerate(run.numbers) if number > skip]
        made = writer.lines([run.rows[at] for at in chosen])
        rejected = [
            Rejected(run.records[at], Refused(self.name, run.numbers[at], bad.reason, column=bad.column))
            for bad in made.bad
            for at in (chosen[bad.row],)
        ]
        kept = [chosen[row] for row in made.kept]
        yield from self._checked(
            _Candidates(
                run,
                Format.LINES,
                made.records,
                [run.records[at] for at in kept],
                [run.numbers[at] for at in kept],
                tuple(rejected),
            ),
            acceptor(Format.LINES, None, now_ns=self._now_ns()),
        )

    def _checked(self, found: _Candidates, accept: Accept) -> Iterator[Piece]:
        """The piece of what was found to be points, as far as it goes."""
        points, out = 0, set()
        rejected = list(found.rejected)
        for each in sift(found.records, accept) if found.records else ():
            if isinstance(each, BadRecord):
                out.add(each.at)
                unit = "index" if found.format is Format.JSON else "line"
                # Of CSV the column would be one of the line that was made of the row.
                column = each.column if found.raw is found.records else None
                why = Refused(self.name, found.numbers[each.at], each.reason, unit=unit, column=column)
                rejected.append(Rejected(found.raw[each.at], why))
            else:
                points += each.points
        rejected.sort(key=lambda each: each.why.number)
        if rejected and not self._skips:
            if not self._whole:
                yield from self._before(found, rejected[0].why.number, accept)
            raise rejected[0].why
        records, numbers = found.records, found.numbers
        if out:
            records = [record for at, record in enumerate(records) if at not in out]
            numbers = [number for at, number in enumerate(numbers) if at not in out]
        run = found.run
        yield Piece(
            self._file, self.name, run.start, run.end, found.format, records, numbers, points, tuple(rejected)
        )

    def _before(self, found: _Candidates, number: int, accept: Accept) -> Iterator[Piece]:
        """The records in front of the one of that number."""
        good = sum(1 for each in found.numbers if each < number)
        if good:
            records, start = found.records[:good], found.run.start
            end = Place(start.bytes, number if found.format is Format.JSON else number - 1)
            points = accept(records).points
            numbers = found.numbers[:good]
            yield Piece(self._file, self.name, start, end, found.format, records, numbers, points)
