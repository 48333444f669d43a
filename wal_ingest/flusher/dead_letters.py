"""Dead letters, written to their sink once more after what made it refuse them was mended.

Nothing here moves a cursor or removes a letter. `write_again` tells, batch by batch, what the sink has by now; whoever
calls it removes those letters, so that a crash in between costs a second writing and no point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import trio

from wal_ingest.flusher.batches import Batch, Part
from wal_ingest.flusher.grace import Grace
from wal_ingest.flusher.log import NowNs, RunSync
from wal_ingest.flusher.sinks import Sink
from wal_ingest.flusher.status import Progress
from wal_ingest.flusher.writing import SinkWriter
from wal_ingest.settings import FlusherSettings
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.gzip_codec import compress


@dataclass(frozen=True, slots=True)
class Written:
    """What became of some letters: the sink has those that are `confirmed`, the others it `refused` again.

    The latter carry the sink's reason of this time.
    """

    confirmed: tuple[DeadLetter, ...]
    refused: tuple[DeadLetter, ...]


async def write_again(
    sink: Sink,
    letters: Iterable[DeadLetter],
    settings: FlusherSettings,
    *,
    run_sync: RunSync,
    now_ns: NowNs,
    rng: Random,
    written: Callable[[Written], None],
    progress: Progress | None = None,
) -> None:
    """Writes letters in batches, one after the other, with the patience that delivery has: a sink that is away is
    waited for. `written` is called in a thread after each batch. Raises what the sink and `written` raise.

    **Cancellation:** a write under way is given up; what was told to `written` stays.
    """
    writer = SinkWriter(
        sink,
        points_max=settings.batch_points_max,
        settings=settings,
        progress=progress or Progress(now_ns()),
        grace=_NoGrace(0.0),
        run_sync=run_sync,
        now_ns=now_ns,
        rng=rng,
        changed=lambda: None,
    )
    await sink.open(None)
    try:
        for chunk in _chunks(letters, settings.batch_points_max):
            settled = await writer.settle(_batch(chunk))
            refused = {letter.seq: letter for letter in settled.letters}
            result = Written(
                tuple(letter for index, letter in enumerate(chunk) if index not in refused),
                tuple(_with_reason(chunk[index], again) for index, again in refused.items()),
            )
            await run_sync(written, result)
    finally:
        with trio.CancelScope(shield=True):
            await sink.aclose()


class _NoGrace(Grace):
    """Whoever cancels this wants it to end: the letters stay where they are, and can be written another time."""

    @contextmanager
    def shield(self) -> Iterator[trio.CancelScope]:
        with trio.CancelScope() as scope:
            yield scope


def _chunks(letters: Iterable[DeadLetter], points_max: int) -> Iterator[list[DeadLetter]]:
    """Letters in their order, cut where the destination changes or `points_max` are together."""
    chunk: list[DeadLetter] = []
    for letter in letters:
        if chunk and (len(chunk) == points_max or letter.destination != chunk[0].destination):
            yield chunk
            chunk = []
        chunk.append(letter)
    if chunk:
        yield chunk


def _batch(chunk: Sequence[DeadLetter]) -> Batch:
    """A batch in which each letter's part has its place in the chunk for a seq: a refusal then names it exactly."""
    lines = b"".join(letter.line for letter in chunk)
    destination = chunk[0].destination
    return Batch(
        first_seq=0,
        last_seq=len(chunk) - 1,
        points=len(chunk),
        points_after=0,
        accepted_ns=chunk[0].parked_ns,
        destination=destination,
        body=compress(lines),
        raw_bytes=len(lines),
        parts=tuple(Part(index, 1, destination) for index in range(len(chunk))),
        group=destination,
    )


def _with_reason(letter: DeadLetter, again: DeadLetter) -> DeadLetter:
    return DeadLetter(
        letter.sink,
        letter.seq,
        letter.line,
        again.reason,
        again.status,
        letter.parked_ns,
        letter.destination,
        letter.number,
    )
