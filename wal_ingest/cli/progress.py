"""A bar on standard error while something takes long, and nothing there when nobody is looking."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class Bar:
    """How far something is. Every method may be called at any time; without a terminal they do nothing."""

    def total(self, amount: int) -> None:
        """Says how much there is."""

    def advance(self, amount: int) -> None:
        """Says that so much more is done."""

    def note(self, text: str) -> None:
        """Shows a few words behind the bar."""


@contextlib.contextmanager
def bar(what: str, total: int | None = None, *, unit_bytes: bool = True) -> Iterator[Bar]:
    """Shows a bar with the rate and the time left for as long as the block runs, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = (
        [DownloadColumn(binary_units=True), TransferSpeedColumn()] if unit_bytes else [MofNCompleteColumn()]
    )
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, note="")

        class Shown(Bar):
            def total(self, amount: int) -> None:
                progress.update(task, total=amount)

            def advance(self, amount: int) -> None:
                progress.advance(task, amount)

            def note(self, text: str) -> None:
                progress.update(task, note=text)

        yield Shown()
