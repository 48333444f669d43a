"""`state.lmdb`: the node's identity, each sink's cursor, the dead letters, and the checkpoint of streams.

Invariants:

* A cursor and the dead letters it passes are written in one transaction: there is no moment at which a point
  is neither ahead of the cursor nor parked.
* A cursor never moves back. What `cursor` returns is on disk.

| key | value (JSON) |
|---|---|
| `format` | the format's version, 1 |
| `node` | `{"wal_id": uuid, "created_ns": n}` |
| `cursor/<sink>` | a Cursor |
| `letter/<sink>/<20-digit number>` | a DeadLetter |
| `trouble/<sink>` | a Trouble, while there is one |
| `pause/<sink>` | `{"since_ns": n}`, while an operator has the sink paused |
| `required/<sink>` | a Requirement: whether segments wait for the sink (see `required`) |
| `extent` | an Extent: where the log begins and ends (see `extent`) |
| `lost/<20-digit first seq>` | a LostRange: entries that were in no file at a start |
| `streams` | `{"seq": n, "first_seq": n}`: of which moment the records below are (see `checkpoint`) |
| `stream/<client_id>` | no JSON: a Position's bytes |

Losing this file loses no point that waits: every sink starts again at the oldest entry kept, and what it had is
written a second time, which changes nothing. It does lose the dead letters whose segments are gone; a damaged file
is therefore set aside whole.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wal_ingest.errors import DiskFull, NoRoomForLetters, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.cursor import Cursor, DeadLetter, Trouble
from wal_ingest.wal.directory import remove, rename, sync_directory
from wal_ingest.wal.extent import KEY_EXTENT, LOST, Extent, LostRange, lost_key
from wal_ingest.wal.letter_room import LetterLimits
from wal_ingest.wal.letters import (
    LetterGroup,
    LetterGroups,
    LetterId,
    counted_letter,
    decode_letter,
    encode_letter,
    id_of,
    letter_key,
    letters_prefix,
)
from wal_ingest.wal.lmdb_file import Item, LmdbFile, MapFull, verify
from wal_ingest.wal.lmdb_pages import PageReader, snapshot
from wal_ingest.wal.required import REQUIRED, Requirement
from wal_ingest.wal.space import Reserve, free_disk_bytes

STATE_NAME = "state.lmdb"
_VERSION = b"1"
_MAP_BYTES = 64 << 30  # address space: the dead letters of a very bad month
_READ_BYTES = 1 << 20
# Dead letters that are read of one state of the file: few enough that a node at work does not overtake the reading.
_LETTERS_AT_ONCE = 500
# Disk space held beyond what is used: some ten thousand dead letters, or any number of cursors.
_RESERVE_BYTES = 8 << 20
_PAGE_BYTES = 4096
_NODE_BYTES = 10  # what LMDB adds to a key and its value

_KEY_FORMAT = b"format"
_KEY_NODE = b"node"
_CURSOR = b"cursor/"
_TROUBLE = b"trouble/"
_PAUSE = b"pause/"
_KEY_STREAMS = b"streams"


class _Node(msgspec.Struct, frozen=True):
    wal_id: uuid.UUID
    created_ns: int


class _Pause(msgspec.Struct, frozen=True):
    since_ns: int


class _Through(msgspec.Struct, frozen=True):
    seq: int


@dataclass(frozen=True, slots=True)
class StateView:
    """What a state file says: the WAL's identity; each sink's cursor, and its trouble if any, by its name.

    `pauses` has the sinks that are paused, each with since when, in Unix nanoseconds. `requirements` say
    whether segments wait for a sink; a sink that only an earlier version knew has none. `extent` is None there, too.
    `streams_seq` is the seq that the checkpoint of streams has come to; `lost` are the ranges that were found missing.
    """

    wal_id: uuid.UUID
    cursors: dict[str, Cursor]
    troubles: dict[str, Trouble]
    pauses: dict[str, int]
    requirements: dict[str, Requirement]
    extent: Extent | None
    streams_seq: int
    lost: list[LostRange]


def read_state(path: Path) -> StateView:
    """Reads a state file without LMDB's engine, also while a server writes to it.

    Raises `UnknownFormatVersion`, `WalDamaged`, `StorageFailed`.
    """
    return snapshot(path, _view)


def read_dead_letters(path: Path, sink: str) -> list[DeadLetter]:
    """A sink's dead letters, oldest first, read as `read_state` reads, some at a time. Raises as that does."""
    prefix = letters_prefix(sink)
    found: list[DeadLetter] = []
    key = prefix

    def letters(reader: PageReader) -> list[Item]:
        items = itertools.takewhile(lambda item: item[0].startswith(prefix), reader.items_from(key))
        return list(itertools.islice(items, _LETTERS_AT_ONCE))

    while items := snapshot(path, letters):
        found += [_decoded(path, sink, item) for item in items]
        key = items[-1][0] + b"\0"
    return found


def _decoded(path: Path, sink: str, item: Item) -> DeadLetter:
    try:
        return decode_letter(sink, *item)
    except msgspec.DecodeError as exc:
        raise WalDamaged(path, f"a dead letter cannot be read: {exc}") from exc


def check_state(path: Path) -> None:
    """Verifies a state file before LMDB's engine is trusted with it. Raises as `read_state` does."""
    read_state(path)
    verify(path)


def _view(reader: PageReader) -> StateView:
    version, node = reader.get(_KEY_FORMAT), reader.get(_KEY_NODE)
    if version is not None and version != _VERSION:
        raise UnknownFormatVersion(
            reader.path, f"state format version {version!r} is not known to this program ({_VERSION!r} is)"
        )
    if node is None:
        raise WalDamaged(reader.path, "it holds no identity")
    try:
        return StateView(
            msgspec.json.decode(node, type=_Node).wal_id,
            {name: msgspec.json.decode(value, type=Cursor) for name, value in _records(reader, _CURSOR)},
            {name: msgspec.json.decode(value, type=Trouble) for name, value in _records(reader, _TROUBLE)},
            {
                name: msgspec.json.decode(value, type=_Pause).since_ns
                for name, value in _records(reader, _PAUSE)
            },
            {
                name: msgspec.json.decode(value, type=Requirement)
                for name, value in _records(reader, REQUIRED)
            },
            None if (extent := reader.get(KEY_EXTENT)) is None else msgspec.json.decode(extent, type=Extent),
            _streams_seq(reader.get(_KEY_STREAMS)),
            [msgspec.json.decode(value, type=LostRange) for _seq, value in _records(reader, LOST)],
        )
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise WalDamaged(reader.path, f"a record cannot be read: {exc}") from exc


def _streams_seq(value: bytes | None) -> int:
    """A checkpoint that cannot be read is no reason to refuse the file: see `checkpoint`."""
    try:
        return 0 if value is None else msgspec.json.decode(value, type=_Through).seq
    except msgspec.MsgspecError:
        return 0


def _records(reader: PageReader, prefix: bytes) -> Iterator[tuple[str, bytes]]:
    for key, value in reader.items_from(prefix):
        if not key.startswith(prefix):
            return
        yield key.removeprefix(prefix).decode(), value


def _make(path: Path, node: _Node) -> None:
    file = LmdbFile(path, map_bytes=_MAP_BYTES, lock=False)
    try:
        file.write([(_KEY_FORMAT, _VERSION), (_KEY_NODE, msgspec.json.encode(node))])
    finally:
        file.close()


class State:
    """The state file of one data directory. `commit_cursor` may be called on any thread."""

    def __init__(
        self,
        data_dir: Path,
        *,
        now_ns: int,
        adopt: uuid.UUID | None = None,
        limits: LetterLimits | None = None,
        free_bytes: Callable[[Path], int] = free_disk_bytes,
    ) -> None:
        """Opens the file, or makes it: with the identity `adopt`, or a new one when that is None.

        `limits` are for dead letters; `free_bytes` tells how much of the disk is free, an argument so that tests can
        fill a disk. The file was checked before (`check_state`). Raises `StorageFailed`, `WalDamaged`.
        """
        self.path = data_dir / STATE_NAME
        self.letter_limits = limits or LetterLimits()
        self._free_bytes = free_bytes
        new = data_dir / f"{STATE_NAME}.new"
        remove(new)  # a crash kept it from ever being the state
        if not self.path.exists():
            _make(new, _Node(adopt or uuid.uuid4(), now_ns))
            rename(new, self.path)
        self._file = LmdbFile(self.path, map_bytes=_MAP_BYTES)
        self._mutex = threading.Lock()
        self._file.sync()  # see the WAL's opening: a kill -9 may have left this undone
        self._file.free_stale_readers()
        sync_directory(data_dir)
        view = read_state(self.path)
        self.wal_id = view.wal_id
        self._cursors = view.cursors
        self._letter_counts = {name: self._last_letter(name) for name in self._cursors}
        self._troubles = view.troubles
        self._pauses = view.pauses
        self._requirements = view.requirements
        self.extent = view.extent
        self.lost = view.lost
        self.streams_seq = view.streams_seq
        self._groups: LetterGroups | None = None
        self._reserve = Reserve(self.path)
        self._hold_space()

    def _hold_space(self) -> None:
        """Keeps room for cursors and dead letters, so that a full disk does not keep the WAL from draining."""
        used = self._file.used_bytes
        if used + _RESERVE_BYTES > self._reserve.held_bytes:
            with contextlib.suppress(DiskFull):  # there is room for the next one at least, as for this one
                self._reserve.hold(used + _RESERVE_BYTES, step=_RESERVE_BYTES)

    # -- cursors ---------------------------------------------------------------------------------------

    def cursor(self, sink: str) -> Cursor | None:
        """The sink's durable cursor, or None when it has never had one."""
        return self._cursors.get(sink)

    def cursors(self) -> dict[str, Cursor]:
        """Every cursor by its sink's name, sinks that are off today among them."""
        return dict(self._cursors)

    def commit_cursor(self, sink: str, cursor: Cursor, letters: Sequence[DeadLetter] = ()) -> None:
        """Makes a cursor and the dead letters that it passes durable, together.

        Raises `StorageFailed`: final for this process. `NoRoomForLetters` where the letters have no room: nothing
        was written then, and the same may be tried again. ValueError when the cursor would move back.
        """
        with self._mutex:
            present = self._cursors.get(sink)
            if present is not None and cursor.seq < present.seq:
                raise ValueError(f"the cursor of {sink} cannot move back from {present.seq} to {cursor.seq}")
            number = self._letter_counts.get(sink, 0)
            puts: list[Item] = [(_CURSOR + sink.encode(), msgspec.json.encode(cursor))]
            puts += [
                (letter_key(sink, number + offset), encode_letter(letter))
                for offset, letter in enumerate(letters, 1)
            ]
            if letters:
                self._make_room(sink, puts)
            self._file.write(puts)
            self._hold_space()
            self._cursors[sink] = cursor
            self._letter_counts[sink] = number + len(letters)
            if self._groups is not None:
                self._groups.add(letters)

    def _make_room(self, sink: str, puts: Sequence[Item]) -> None:
        """Sees to it that letters fit in, before anything of them is written. Raises `NoRoomForLetters`."""
        more_bytes = sum(len(key) + len(value) + _NODE_BYTES for key, value in puts)
        self.letter_limits.check(
            sink,
            used_bytes=self.letter_bytes,
            more_bytes=more_bytes,
            free_bytes=self._free_bytes(self.path.parent),
        )
        # Values fill their pages badly at worst by half, and a page that is changed is written anew.
        growth_bytes = 2 * more_bytes + 64 * _PAGE_BYTES
        try:
            self._reserve.hold(self._file.used_bytes + growth_bytes, step=_RESERVE_BYTES)
        except DiskFull as exc:
            raise NoRoomForLetters(sink, str(exc)) from exc

    @property
    def letter_bytes(self) -> int:
        """Bytes that dead letters take on disk."""
        return self._file.live_bytes

    def note_trouble(self, sink: str, trouble: Trouble | None) -> None:
        """Remembers what keeps a sink from taking points, or (None) that nothing does any more.

        For whoever looks from outside; delivery does not read it. Raises `StorageFailed`.
        """
        with self._mutex:
            if self._troubles.get(sink) == trouble:
                return
            key = _TROUBLE + sink.encode()
            if trouble is None:
                self._file.write([], [key])
                del self._troubles[sink]
            else:
                self._file.write([(key, msgspec.json.encode(trouble))])
                self._troubles[sink] = trouble

    # -- what operators decide ------------------------------------------------------------------------

    def paused_since_ns(self, sink: str) -> int | None:
        """Since when an operator has the sink paused, in Unix nanoseconds; None when it is not."""
        return self._pauses.get(sink)

    def pause(self, sink: str, *, now_ns: int) -> None:
        """Remembers that nothing is to be delivered to a sink. Raises `StorageFailed`."""
        with self._mutex:
            if sink not in self._pauses:
                self._file.write([(_PAUSE + sink.encode(), msgspec.json.encode(_Pause(now_ns)))])
                self._pauses[sink] = now_ns

    def resume(self, sink: str) -> None:
        """Takes a pause back, if there is one. Raises `StorageFailed`."""
        with self._mutex:
            if sink in self._pauses:
                self._file.write([], [_PAUSE + sink.encode()])
                del self._pauses[sink]

    def requirements(self) -> dict[str, Requirement]:
        """Whether segments wait for each sink, by its name; none for a sink that no start has noted yet."""
        return dict(self._requirements)

    def note_requirements(self, records: Mapping[str, Requirement]) -> None:
        """Remembers for which sinks segments wait. Raises `StorageFailed`."""
        with self._mutex:
            changed = {name: each for name, each in records.items() if self._requirements.get(name) != each}
            if changed:
                self._file.write(
                    [(REQUIRED + name.encode(), msgspec.json.encode(each)) for name, each in changed.items()]
                )
                self._requirements = {**self._requirements, **changed}

    def remove_letters(self, sink: str, ids: Iterable[LetterId], *, written: bool) -> int:
        """Removes dead letters and moves the account along, together; returns how many there were.

        `written` says that the sink has their points now; else they are given up. Ids of letters that are not there
        (any more), or whose number another one has by now, are passed over. Nobody else may be moving this sink's
        cursor. Raises `StorageFailed`.
        """
        with self._mutex:
            found = [letter for each in ids if (letter := self._letter(sink, each)) is not None]
            if found:
                cursor = self._cursors[sink].without_letters(len(found), written=written)
                self._file.write(
                    [(_CURSOR + sink.encode(), msgspec.json.encode(cursor))],
                    [letter_key(sink, letter.number) for letter in found],
                )
                self._cursors[sink] = cursor
                if self._groups is not None:
                    self._groups.remove(found)
        return len(found)

    def _letter(self, sink: str, wanted: LetterId) -> DeadLetter | None:
        key = letter_key(sink, wanted.number)
        items = self._file.read_from(key, bytes_max=1, items_max=1)
        if not items or items[0][0] != key:
            return None
        letter = _decoded(self.path, sink, items[0])
        return letter if id_of(letter) == wanted else None

    # -- the log's extent ------------------------------------------------------------------------------

    def note_extent(self, extent: Extent, lost: Sequence[LostRange] = ()) -> None:
        """Remembers where the log begins and ends, and what was found missing, together. Raises `StorageFailed`."""
        with self._mutex:
            if extent == self.extent and not lost:
                return
            puts = [(lost_key(each), msgspec.json.encode(each)) for each in lost]
            self._file.write([(KEY_EXTENT, msgspec.json.encode(extent)), *puts])
            self.extent = extent
            self.lost = [*self.lost, *lost]

    # -- other records ---------------------------------------------------------------------------------

    def records(self, prefix: bytes) -> Iterator[Item]:
        """The records whose keys begin with a prefix, in order. Reads in short transactions, so it may run for long."""
        key = prefix
        while items := self._file.read_from(key, bytes_max=_READ_BYTES):
            for item in items:
                if not item[0].startswith(prefix):
                    return
                yield item
            key = items[-1][0] + b"\0"

    def write_if_room(self, puts: Sequence[Item], deletes: Sequence[bytes]) -> bool:
        """Puts and deletes small records in one transaction, where the disk has room beyond what cursors need.

        False where it has not: nothing was written then, and what is held for cursors and dead letters is still there
        for them. Raises `StorageFailed`: final for this process.
        """
        # At worst each record is in a leaf of its own, which is written anew, and a new one splits it.
        pages = 2 * len(puts) + len(deletes)
        growth_bytes = (pages + pages // 8 + 64) * _PAGE_BYTES
        with self._mutex:
            try:
                held = self._file.used_bytes + growth_bytes + _RESERVE_BYTES
                self._reserve.hold(held, step=_RESERVE_BYTES)
                self._file.write(puts, deletes)
            except (DiskFull, MapFull):
                return False
            self._hold_space()
        return True

    # -- dead letters ----------------------------------------------------------------------------------

    def dead_letters(self, sink: str) -> Iterator[DeadLetter]:
        """The sink's dead letters, oldest first. Reads in short transactions, so it may run for long.

        Raises `WalDamaged` when one of them cannot be read.
        """
        return (_decoded(self.path, sink, item) for item in self.records(letters_prefix(sink)))

    def _last_letter(self, sink: str) -> int:
        """The number of the sink's newest dead letter, or 0: a search by halves over the keys."""
        low, high = 0, 1
        while self._has_letter_from(sink, high):
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if self._has_letter_from(sink, middle):
                low = middle
            else:
                high = middle
        return low

    def _has_letter_from(self, sink: str, number: int) -> bool:
        items = self._file.read_from(letter_key(sink, number), bytes_max=1, items_max=1)
        return bool(items) and items[0][0].startswith(letters_prefix(sink))

    def letter_groups(self) -> list[LetterGroup]:
        """How many dead letters there are for which reason, the most first. Counts all of them the first time.

        One that cannot be read is counted too: it must not keep anybody from counting the others.
        """
        with self._mutex:
            if self._groups is None:
                groups = LetterGroups()
                for sink in self._cursors:
                    groups.add(counted_letter(sink, *item) for item in self.records(letters_prefix(sink)))
                self._groups = groups
            return self._groups.listed()

    def close(self) -> None:
        """Unmaps the file."""
        self._reserve.close()
        self._file.close()
