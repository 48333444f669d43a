"""What a run of `wal-ingest send` has to do, as its driver is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wal_ingest.cli.progress import Bar
from wal_ingest.cli.send.ledger import Ledger, Mark
from wal_ingest.cli.send.pieces import Piece
from wal_ingest.cli.stopping import Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done.

    `pieces` blocks while it reads. `keep` makes a mark and the texts of rejected records durable, and blocks too.
    `skips` says that a record which the node refuses is left out. `tell` says something to people. `give_up_s` is how
    long the node may take nothing; None: for ever.
    """

    to: str
    pieces: Iterator[Piece]
    ledger: Ledger
    keep: Callable[[Mark, list[bytes]], None]
    skips: bool
    points_per_s_max: float | None
    give_up_s: float | None = None
    stop: Stop
    bar: Bar
    tell: Callable[[str], None]
