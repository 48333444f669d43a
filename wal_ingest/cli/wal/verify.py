"""`wal-ingest wal verify`: is every page, every entry and every dead letter whole?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from wal_ingest.cli.node_settings import directory_of
from wal_ingest.cli.options import DataDirOption, FoundConfigOption, JsonOption
from wal_ingest.cli.output import (
    OPERATOR_NEEDED,
    bytes_text,
    count_text,
    entries_text,
    points_text,
    print_json,
)
from wal_ingest.cli.progress import bar
from wal_ingest.cli.ranges import lost_text

if TYPE_CHECKING:
    from wal_ingest.wal.letter_verify import LettersReport
    from wal_ingest.wal.verify import Report

EXAMPLE = "Example: wal-ingest wal verify || wal-ingest wal salvage --all --dry-run"


def verify(
    config: FoundConfigOption = None, data_dir: DataDirOption = None, json: JsonOption = False
) -> None:
    """Read every page, every entry and every dead letter, and say exactly what is lost.

    Exit code 0 when everything is whole, 3 when something is lost or was set aside and not salvaged.
    """
    from wal_ingest.wal.verify import verify as verify_all

    directory = directory_of(config, data_dir=data_dir)
    with bar("verifying") as shown:
        report = verify_all(directory, total=shown.total, done=shown.advance)
    if json:
        print_json(report)
    else:
        _print(report)
    if not report.whole:
        raise typer.Exit(OPERATOR_NEEDED)


def _print(report: Report) -> None:
    size = sum(segment.bytes for segment in report.segments)
    say = typer.echo
    say(
        f"{count_text(len(report.segments), 'segment', 'segments')}, {bytes_text(size)}: "
        f"{entries_text(report.entries)} and "
        f"{points_text(report.points)} can be read"
    )
    for segment in report.segments:
        if segment.pages:
            say(f"damaged: {segment.file}: {segment.pages}")
        for lost in segment.lost:
            say(f"lost: {lost_text(lost)}")
    for gap in report.gaps:
        say(f"lost: {lost_text(gap)}")
    if report.state:
        say(f"damaged: state.lmdb: {report.state}")
    _print_letters(report.dead_letters)
    for file in report.damaged:
        say(f"set aside{', salvaged' if file.salvaged else ''}: damaged/{file.file}: {file.reason}")
    for lost in report.gone:
        say(f"gone for good: {lost_text(lost)}")
    if report.whole:
        say("everything else is whole" if report.gone else "everything is whole")
    elif report.lost_points:
        say(f"{points_text(report.lost_points)} lost in what is listed above")


def _print_letters(letters: LettersReport) -> None:
    if letters.readable or not letters.whole:
        typer.echo(f"{count_text(letters.readable, 'dead letter', 'dead letters')} can be read")
    for file in letters.files:
        if file.trouble:
            lost = f" ({count_text(file.lost, 'dead letter', 'dead letters')} lost)" if file.lost else ""
            typer.echo(f"damaged: dead_letters/{file.file}{lost}: {file.trouble}")
    for trouble in letters.troubles:
        typer.echo(f"damaged: {trouble}")
