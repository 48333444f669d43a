"""`state.lmdb`: the node's identity, each sink's cursor, where dead letters are, and the checkpoint of streams.

Invariants:

* A cursor and the dead letters it passes are written in one transaction: there is no moment at which a point
  is neither ahead of the cursor nor parked.
* A cursor never moves back. What `cursor` returns is on disk.

| key | value (JSON) |
|---|---|
| `format` | the format's version: 1, or 2 while there are files of dead letters |
| `node` | `{"wal_id": uuid, "created_ns": n}` |
| `cursor/<sink>` | a Cursor |
| `letter/<sink>/<20-digit number>` | a DeadLetter (see `letter_store`) |
| `letter_block/<sink>/<20-digit number>` | a BlockRecord: dead letters in a file |
| `letter_file/<20-digit number>` | that there is, or may be, such a file |
| `trouble/<sink>` | a Trouble, while there is one |
| `pause/<sink>` | `{"since_ns": n}`, while an operator has the sink paused |
| `required/<sink>` | a Requirement: whether segments wait for the sink (see `required`) |
| `extent` | an Extent: where the log begins and ends (see `extent`) |
| `lost/<20-digit first seq>` | a LostRange: entries that were in no file at a start |
| `streams` | `{"seq": n, "first_seq": n}`: of which moment the records below are (see `checkpoint`) |
| `stream/<client_id>` | no JSON: a Position's bytes |

Losing this file loses no point that waits: every sink starts again at the oldest entry kept, and what it had is
written a second time, which changes nothing. It does lose the dead letters whose segments are gone; a damaged file
is therefore set aside whole, and so are the files of dead letters that a new one does not know.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from wal_ingest.errors import DiskFull, StorageFailed, UnknownFormatVersion, WalDamaged
from wal_ingest.wal.cursor import Cursor, DeadLetter, Trouble
from wal_ingest.wal.directory import remove, sync_directory
from wal_ingest.wal.extent import KEY_EXTENT, LOST, Extent, LostRange, lost_key
from wal_ingest.wal.letter_blocks import Block, block_key, blocks_prefix, decode_record
from wal_ingest.wal.letter_files import LETTERS_DIR
from wal_ingest.wal.letter_reading import Piece, cluster, in_order
from wal_ingest.wal.letter_room import LetterLimits
from wal_ingest.wal.letter_store import (
    FORMAT_BLOCKS,
    FORMAT_RECORDS,
    PIECE_LETTERS,
    LetterStore,
    add_to_groups,
    decoded_records,
    read_block,
)
from wal_ingest.wal.letters import (
    LetterGroup,
    LetterGroups,
    LetterId,
    letter_key,
    letter_number,
    letters_prefix,
)
from wal_ingest.wal.lmdb_file import Item, LmdbFile, MapFull, put_in_place, verify
from wal_ingest.wal.lmdb_pages import PageReader, snapshot
from wal_ingest.wal.required import REQUIRED, Requirement
from wal_ingest.wal.space import Reserve, free_disk_bytes, is_no_descriptors, is_no_space

STATE_NAME = "state.lmdb"
_VERSION = FORMAT_RECORDS
_VERSIONS = (FORMAT_RECORDS, FORMAT_BLOCKS)
_MAP_BYTES = 64 << 30  # address space: the dead letters of a very bad month
# Disk space held beyond what is used: some ten thousand dead letters, or any number of cursors.
_RESERVE_BYTES = 8 << 20
# A file that takes this much more than what is in it, and four times as much, is written anew: as after letters that
# were records became blocks. LMDB itself never gives space back. More than `_hold_space` holds at most (twice the
# reserve), so a new file is not written anew before something large came and went.
_COMPACT_BYTES = 2 * _RESERVE_BYTES + (4 << 20)
# A node at work does so only where little is to be copied and checked: delivery waits meanwhile (20 ms measured).
_COMPACT_AT_WORK_BYTES = 4 << 20
_PAGE_BYTES = 4096
# Where what was set aside is; `store` has the log there.
_DAMAGED_DIR = "wal/damaged"

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


def read_dead_letters(path: Path, sink: str) -> Iterator[DeadLetter]:
    """A sink's dead letters, oldest first, read as `read_state` reads, some at a time. Raises as that does."""
    wal_id = read_state(path).wal_id

    def piece(after: int) -> Piece:
        return snapshot(path, lambda reader: _piece(reader, sink, after))

    return in_order(piece, lambda block: read_block(path.parent / LETTERS_DIR, wal_id, block))


def _piece(reader: PageReader, sink: str, after: int) -> Piece:
    blocks = cluster(_blocks_in(reader, sink, after + 1))
    if blocks:
        return Piece(blocks)
    # Few at once, so that a node at work does not overtake the reading.
    items = _some_letters(sink, after + 1, reader)
    return Piece(letters=decoded_records(reader.path, sink, items))


def read_letter_groups(path: Path, sinks: Iterable[str]) -> LetterGroups:
    """How many dead letters some sinks have for which reason, as `State.letter_groups`. Raises as `read_state`."""

    groups = LetterGroups()
    for sink in sinks:
        add_to_groups(groups, sink, snapshot(path, partial(_all_blocks, sink)), (), 0)
        number = 0
        # Some at once, as there are very many in a directory that no start has changed yet.
        while items := snapshot(path, partial(_some_letters, sink, number)):
            add_to_groups(groups, sink, (), items, len(items))
            number = letter_number(items[-1][0]) + 1
    return groups


def _all_blocks(sink: str, reader: PageReader) -> list[Block]:
    return list(_blocks_in(reader, sink, 0))


def _some_letters(sink: str, number: int, reader: PageReader) -> list[Item]:
    return list(itertools.islice(_letters_in(reader, sink, number), PIECE_LETTERS))


def _letters_in(reader: PageReader, sink: str, number: int) -> Iterator[Item]:
    prefix = letters_prefix(sink)
    return itertools.takewhile(
        lambda item: item[0].startswith(prefix), reader.items_from(letter_key(sink, number))
    )


def _blocks_in(reader: PageReader, sink: str, number: int) -> Iterator[Block]:
    prefix = blocks_prefix(sink)
    items = reader.items_from(block_key(sink, number))
    for key, value in itertools.takewhile(lambda item: item[0].startswith(prefix), items):
        try:
            yield decode_record(key, value)
        except (msgspec.DecodeError, ValueError) as exc:
            raise WalDamaged(reader.path, f"a record cannot be read: {exc}") from exc


def check_state(path: Path) -> None:
    """Verifies a state file before LMDB's engine is trusted with it. Raises as `read_state` does."""
    view = read_state(path)
    snapshot(path, lambda reader: [list(_blocks_in(reader, sink, 0)) for sink in view.cursors])
    verify(path)


def _view(reader: PageReader) -> StateView:
    version, node = reader.get(_KEY_FORMAT), reader.get(_KEY_NODE)
    if version is not None and version not in _VERSIONS:
        raise UnknownFormatVersion(
            reader.path,
            f"state format version {version!r} is not known to this program ({_VERSIONS[-1]!r} is the latest)",
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

        `limits` are for dead letters; `free_bytes` returns how much of the disk is free, an argument so that tests can
        fill a disk. The file was checked before (`check_state`). Raises `StorageFailed`, `WalDamaged`.
        """
        self.path = data_dir / STATE_NAME
        self.letter_limits = limits or LetterLimits()
        self._free_bytes = free_bytes
        self._new = data_dir / f"{STATE_NAME}.new"
        remove(self._new)  # a crash kept it from ever being the state
        if not self.path.exists():
            _make(self._new, _Node(adopt or uuid.uuid4(), now_ns))
            put_in_place(self._new, self.path)
        self._mutex = threading.Lock()
        self._open()
        try:
            sync_directory(data_dir)
            view = read_state(self.path)
            self.wal_id = view.wal_id
            self._cursors = view.cursors
            self._troubles = view.troubles
            self._pauses = view.pauses
            self._requirements = view.requirements
            self.extent = view.extent
            self.lost = view.lost
            self.streams_seq = view.streams_seq
            self._letters = self._open_letters(now_ns)
            self._letters.pack()
            self._give_back_space(at_work=False)
            self._hold_space()
        except BaseException:
            self._reserve.close()
            self._file.close()
            raise

    def _open(self) -> None:
        self._file = LmdbFile(self.path, map_bytes=_MAP_BYTES)
        self._file.sync()  # see the WAL's opening: a kill -9 may have left this undone
        self._file.free_stale_readers()
        self._reserve = Reserve(self.path)

    def _open_letters(self, now_ns: int) -> LetterStore:
        return LetterStore(
            self.path.parent,
            self._file,
            self.wal_id,
            self._cursors,
            limits=self.letter_limits,
            now_ns=now_ns,
            damaged_dir=self.path.parent / _DAMAGED_DIR,
            free_bytes=self._free_bytes,
            hold=self._hold_more,
        )

    def _is_mostly_free(self) -> bool:
        taken_bytes, live_bytes = max(self._file.used_bytes, self._reserve.held_bytes), self._file.live_bytes
        return taken_bytes - live_bytes > _COMPACT_BYTES and live_bytes < taken_bytes // 4

    def _give_back_space(self, *, at_work: bool) -> None:
        """Writes the file anew where it is mostly free; `at_work`, where little is in it only.

        Nobody reads or writes meanwhile (a node at work holds the mutex), so the copy is the file. A crash before the
        rename leaves the old one, after it the new one. Where the disk has no room for a copy, the file stays.
        """
        live_bytes = self._file.live_bytes
        if not self._is_mostly_free() or (at_work and live_bytes > _COMPACT_AT_WORK_BYTES):
            return
        try:
            # A node at work must not be without the reserve. A start has room for it once the old file is gone.
            reserve = self._copy(held_bytes=live_bytes + (_RESERVE_BYTES if at_work else 0))
        except DiskFull:
            return
        self._reserve.close()
        self._reserve = reserve
        try:
            self._file.replace_by(self._new)
            sync_directory(self.path.parent)
        except BaseException:
            # After a power cut the name may be the old file's. Nothing may be written to the new one, whichever
            # caller gets this error: every later use fails as well.
            self._file.close()
            raise

    def _copy(self, *, held_bytes: int) -> Reserve:
        """Makes `_new`, a checked copy without free pages; returns the space that it may grow by.

        Raises `DiskFull`, `StorageFailed`; there is no copy then.
        """
        try:
            # A full disk is met here, before anything is copied. The space stays the file's, whatever its name is.
            reserve = Reserve(self._new, make=True)
            try:
                reserve.hold(held_bytes, step=0)
                self._file.copy(self._new)
                check_state(self._new)
            except BaseException:
                reserve.close()
                raise
        except WalDamaged as exc:  # the file itself was checked at the start
            remove(self._new)
            raise StorageFailed(self._new, f"the copy is not what was written: {exc}") from exc
        except StorageFailed as exc:
            remove(self._new)
            if is_no_space(exc.number) or is_no_descriptors(exc.number):
                raise DiskFull(str(exc)) from exc
            raise
        except DiskFull:
            remove(self._new)
            raise
        return reserve

    def _hold_more(self, more_bytes: int) -> None:
        """Sees to it that letters' records of so many bytes fit in. Raises `DiskFull`: nothing was written then."""
        # Values fill their pages badly at worst by half, and a page that is changed is written anew.
        wanted = self._file.used_bytes + 2 * more_bytes + 64 * _PAGE_BYTES
        if wanted > self._reserve.held_bytes:
            self._check_floor(wanted - self._reserve.held_bytes)
            self._reserve.hold(wanted, step=0)

    def _check_floor(self, more_bytes: int) -> None:
        self.letter_limits.check_disk(more_bytes=more_bytes, free_bytes=self._free_bytes(self.path.parent))

    def _hold_space(self) -> None:
        """Keeps room for cursors and dead letters, so that a full disk does not keep the WAL from draining."""
        # Free pages within the file are written to before it grows: letters that went left some.
        wanted = max(self._file.used_bytes, self._file.live_bytes + _RESERVE_BYTES)
        if wanted <= self._reserve.held_bytes:
            return
        step = _RESERVE_BYTES
        try:
            self._check_floor(2 * _RESERVE_BYTES)
        except DiskFull:
            if self._reserve.held_bytes:
                return  # letters took some of it: more is held for them above their floor only
            step = 0
        with contextlib.suppress(DiskFull):  # there is room for the next one at least, as for this one
            self._reserve.hold(wanted, step=step)

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
            # Letters that go into blocks are on disk by then; the transaction is what counts.
            change = self._letters.park(sink, letters)
            record = (_CURSOR + sink.encode(), msgspec.json.encode(cursor))
            self._file.write([record, *change.puts], change.deletes)
            self._hold_space()
            self._cursors[sink] = cursor
            change.done()
            if letters:  # so that earlier ones may be in blocks now
                self._give_back_space(at_work=True)

    @property
    def letter_bytes(self) -> int:
        """Bytes that dead letters take on disk."""
        return self._letters.used_bytes

    @property
    def letters_set_aside(self) -> Sequence[Path]:
        """Files of dead letters that the state file did not know at the opening, where they are now."""
        return self._letters.set_aside

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
            change = self._letters.remove(sink, ids)
            if change.letters:
                cursor = self._cursors[sink].without_letters(change.letters, written=written)
                record = (_CURSOR + sink.encode(), msgspec.json.encode(cursor))
                self._file.write([record, *change.puts], change.deletes)
                self._cursors[sink] = cursor
                change.done()
                self._give_back_space(at_work=True)
        return change.letters

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
        return self._file.records(prefix, guard=self._mutex)

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

        def piece(after: int) -> Piece:
            with self._mutex:
                return self._letters.piece(sink, after)

        return in_order(piece, self._letters.read)

    def letter_groups(self) -> list[LetterGroup]:
        """How many dead letters there are for which reason, the most first. Reads a bounded number of records.

        One that cannot be read is counted too: it must not keep anybody from counting the others.
        """
        with self._mutex:
            return self._letters.groups()

    def close(self) -> None:
        """Unmaps the file."""
        self._letters.close()
        self._reserve.close()
        self._file.close()
