"""What `wal-ingest dead-letters retry` does: letters to their sink again, with a progress bar."""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.text import Text

from wal_ingest.errors import ConfigError, WalIngestError
from wal_ingest.flusher.dead_letters import Written, write_again
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress as Numbers
from wal_ingest.service.sinks import sink_makers
from wal_ingest.settings import Settings
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.letters import id_of

# Letters that are refused again and shown.
_EXAMPLES = 3


@dataclass(slots=True)
class Outcome:
    """How many letters the sink took and how many it refused again, and some of the latter."""

    confirmed: int = 0
    refused: int = 0
    examples: list[DeadLetter] = field(default_factory=list)


async def write_letters(
    settings: Settings,
    name: str,
    letters: Iterable[DeadLetter],
    total: int,
    remove: Callable[..., int],
) -> Outcome:
    """Writes dead letters, `total` of them, to their sink, and removes those that it takes.

    `remove(settings, sink, ids, written=True)` takes letters out of the state. Raises `ConfigError` when the sink is
    not on, `WalIngestError` when it is away or misconfigured from the start; later it is waited for.
    """
    makers = sink_makers(settings, Path(settings.server.data_dir))
    if name not in makers:
        raise ConfigError(
            f"{name} is not on in these settings", hint="give the server's settings with --config"
        )
    if name == "archive":
        raise ConfigError("the archive refuses no points: there is nothing to retry")
    # A letter that is refused again is no news, and is told at the end.
    logging.getLogger("wal_ingest.flusher.parking").setLevel(logging.ERROR)
    await _must_be_right(makers[name]())
    outcome = Outcome()
    numbers = Numbers(time.time_ns())
    with _progress_bar(numbers) as bar:
        task = bar.add_task(f"writing to {name}", total=total)

        def written(result: Written) -> None:
            outcome.confirmed += len(result.confirmed)
            outcome.refused += len(result.refused)
            outcome.examples += result.refused[: _EXAMPLES - len(outcome.examples)]
            if result.confirmed:
                remove(settings, name, [id_of(letter) for letter in result.confirmed], written=True)
            bar.advance(task, len(result.confirmed) + len(result.refused))

        await write_again(
            makers[name](),
            letters,
            settings.flusher,
            run_sync=trio.to_thread.run_sync,
            now_ns=time.time_ns,
            rng=random.Random(),
            written=written,
            progress=numbers,
        )
    return outcome


def _progress_bar(numbers: Numbers) -> Progress:
    """A bar for a terminal, with the sink's last refusal behind it while it is tried again."""

    class Trouble(ProgressColumn):
        def render(self, task: object) -> Text:  # noqa: ARG002 - the same for every task
            return Text(f"trying again: {numbers.last_error}" if numbers.retried_writes else "")

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        Trouble(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


async def _must_be_right(sink: Sink) -> None:
    """A sink that is away or misconfigured would be waited for without end; whoever types this wants to know now."""
    await sink.open(None)
    try:
        wrong = [check for check in await sink.check() if not check.right]
    finally:
        await sink.aclose()
    if wrong:
        error = WalIngestError(f"{sink.name}: {wrong[0].what}: {wrong[0].found}")
        error.hint = f"mend that first; `wal-ingest sink check {sink.name}` tells when it is right"
        raise error
