"""Which part of the WAL a command is about: by time of acceptance, seq, source and measurement."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from wal_ingest.cli.output import points_text
from wal_ingest.cli.times import TIME_HELP, parse_seqs, parse_time_ns

if TYPE_CHECKING:
    from wal_ingest.points.select import Measurements
    from wal_ingest.wal.entry import Entry
    from wal_ingest.wal.lost import Lost
    from wal_ingest.wal.reading import WalReader

SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help=f"Only what was accepted at or after TIME: {TIME_HELP}.",
        show_default=False,
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", help="Only what was accepted before TIME.", show_default=False),
]
SeqOption = Annotated[
    str | None,
    typer.Option(
        "--seq", metavar="A..B", help="Only these seqs: 17, 17..42, 17.. or ..42.", show_default=False
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="Only what this sender sent.", show_default=False),
]
MeasurementOption = Annotated[
    list[str] | None,
    typer.Option(
        "--measurement",
        metavar="NAME",
        help="Only points of this measurement; may be repeated.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Picked:
    """What a range takes of an entry: all of its points or some, and their lines."""

    entry: Entry
    lines: bytes
    points: int


@dataclass(slots=True)
class Range:
    """A range, as the options say it. `next_seq` is the first seq that was not looked at yet."""

    first_seq: int = 1
    last_seq: int | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    source: str | None = None
    measurements: Measurements | None = None
    next_seq: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.next_seq = self.first_seq

    @classmethod
    def of(
        cls,
        *,
        since: str | None,
        until: str | None,
        seq: str | None,
        source: str | None,
        measurement: list[str] | None,
    ) -> Range:
        """Raises `ConfigError` for what cannot be understood."""
        from wal_ingest.points.select import Measurements

        now_ns = time.time_ns()
        first_seq, last_seq = parse_seqs(seq) if seq is not None else (1, None)
        return cls(
            first_seq,
            last_seq,
            None if since is None else parse_time_ns(since, now_ns=now_ns),
            None if until is None else parse_time_ns(until, now_ns=now_ns),
            source,
            Measurements(measurement) if measurement else None,
        )

    def entries(self, reader: WalReader) -> Iterator[Entry | Lost]:
        """Entries from `next_seq` on that the range may take something of; what is lost among them."""
        from wal_ingest.wal.lost import Lost

        for item in reader.entries(
            first_seq=self.next_seq, last_seq=self.last_seq, since_ns=self.since_ns, until_ns=self.until_ns
        ):
            if isinstance(item, Lost):
                self.next_seq = item.last_seq + 1
            else:
                self.next_seq = item.seq + 1
                if self.source is not None and item.source != self.source:
                    continue
            yield item

    def pick(self, reader: WalReader) -> Iterator[Picked | Lost]:
        """What the range takes, decompressed; entries of which it takes nothing are left out."""
        from wal_ingest.wal.lost import Lost
        from wal_ingest.wal.salvage import lines_of

        for item in self.entries(reader):
            if isinstance(item, Lost):
                yield item
                continue
            lines = lines_of(item, f"entry {item.seq}")
            if isinstance(lines, Lost):
                yield lines
            elif self.measurements is None:
                yield Picked(item, lines, item.points)
            elif (chosen := self.measurements.of(lines)).points:
                yield Picked(item, chosen.data, chosen.points)


def tell_lost(lost: Lost) -> None:
    """Says on standard error what could not be read."""
    sys.stderr.write(f"lost: {lost_text(lost)}\n")


def lost_text(lost: Lost) -> str:
    """For people: seqs 5 to 7 (3,000 points) in FILE at byte 8192: the reason."""
    seqs = (
        f"seq {lost.first_seq}"
        if lost.first_seq == lost.last_seq
        else f"seqs {lost.first_seq} to {lost.last_seq}"
    )
    points = "an unknown number of points" if lost.points is None else points_text(lost.points)
    where = f"{lost.file} at byte {lost.offset}" if lost.offset is not None else lost.file
    return f"{seqs} ({points}), {where}: {lost.reason}"
