"""How far each stream has come, read from outside: also while a server has the data directory open.

What the server has in memory is the checkpoint in the state file, moved on by the marks of the entries after it; so it
is found out here in the same way. Nothing is written, and LMDB's engine is not used (see `lmdb_pages`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from wal_ingest.errors import NoWal
from wal_ingest.wal.checkpoint import KEY_STREAMS, STREAM, Through
from wal_ingest.wal.directory import exists
from wal_ingest.wal.entry import Entry
from wal_ingest.wal.lmdb_file import Item
from wal_ingest.wal.lmdb_pages import PageReader, snapshot
from wal_ingest.wal.reading import WalReader
from wal_ingest.wal.state import STATE_NAME
from wal_ingest.wal.streams import Position, Positions


def read_streams(data_dir: Path, *, clients_max: int) -> list[Position]:
    """The streams that are remembered, the one that was silent longest first.

    Raises `NoWal`, PermissionError when this user may not look, `WalDamaged`, `StorageFailed`.
    """
    if not exists(data_dir / STATE_NAME):
        raise NoWal(data_dir)
    items = dict(snapshot(data_dir / STATE_NAME, _records))
    positions = Positions(clients_max=clients_max, mutex=threading.Lock())
    positions.restore(_decoded(list(items.items())))
    through = _through(items.get(KEY_STREAMS))
    if through is not None:
        with WalReader(data_dir) as reader:
            for entry in reader.entries(first_seq=through.seq + 1):
                if isinstance(entry, Entry) and entry.mark is not None:
                    positions.apply(entry.mark, entry.seq, entry.points, entry.accepted_ns)
    return positions.listed()


def _records(reader: PageReader) -> list[Item]:
    """The checkpoint: one moment's, as it is read in one go."""
    return list(
        itertools.takewhile(lambda item: item[0].startswith(STREAM[:-1]), reader.items_from(STREAM[:-1]))
    )


def _decoded(items: Sequence[Item]) -> list[Position]:
    found = (
        Position.decode(key.removeprefix(STREAM).decode(errors="replace"), value)
        for key, value in items
        if key.startswith(STREAM)
    )
    return [position for position in found if position is not None]


def _through(value: bytes | None) -> Through | None:
    try:
        return None if value is None else msgspec.json.decode(value, type=Through)
    except msgspec.MsgspecError:
        return None
