"""Dead letters on disk: few of them as records of the state file, more of them in compressed blocks in files.

Invariants:

* A letter is in one place: a record `letter/…`, or a block that a record `letter_block/…` names. Whatever moves it, or
  removes it, is one transaction of the state file, which the caller runs with what `park` and `remove` give it.
* Blocks are on disk, synced, before `park` returns. A crash before the transaction leaves bytes that no record names.
* `letter_file/<number>` is recorded before the file is made and until it is gone. A file without that record is from
  after the state file that is here (an old one was put back, or it was lost): it is set aside, never removed.
* Numbers of records are higher than all numbers in blocks: records are moved into blocks oldest first.

How it works: letters that come one by one become records, at most `LOOSE_LETTERS`; then all of them, with those
that come, go into blocks by their reason. The index of blocks is in memory: some 300 bytes for some 2,000 letters.
Directories of 0.1 have records only; they are moved into blocks at a start, `RUN_LETTERS` a transaction, and stay as
they are where the disk has no room for that.

The caller sees to it that nothing here runs twice at once, but for reading.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from wal_ingest.errors import DiskFull, NoRoomForLetters, WalDamaged
from wal_ingest.wal.cursor import DeadLetter
from wal_ingest.wal.directory import make_directory, sync_directory
from wal_ingest.wal.letter_blocks import (
    BLOCK,
    RUN_LETTERS,
    Block,
    decode_block,
    decode_record,
    make_blocks,
)
from wal_ingest.wal.letter_files import LetterFiles, file_name, read_block_bytes
from wal_ingest.wal.letter_reading import Piece, cluster
from wal_ingest.wal.letter_room import LetterLimits
from wal_ingest.wal.letters import (
    NOT_COUNTED,
    LetterGroup,
    LetterGroups,
    LetterId,
    counted_letter,
    decode_letter,
    encode_letter,
    id_of,
    letter_key,
    letter_number,
    letters_prefix,
)
from wal_ingest.wal.lmdb_file import Item, LmdbFile
from wal_ingest.wal.segment import set_aside

FILE = b"letter_file/"
_KEY_FORMAT = b"format"
FORMAT_RECORDS = b"1"
FORMAT_BLOCKS = b"2"

# At most so many letters of a sink are records, and so many bytes.
LOOSE_LETTERS = 1_000
LOOSE_BYTES = 1 << 20
# Where the disk has no room to move many records into blocks at once, a quarter is tried, unless they are fewer.
MOVED_MIN = 1_000
# Records that are read of one state of the file, and that are counted by their reasons.
PIECE_LETTERS = 500
COUNTED_LETTERS = 2_000
_READ_BYTES = 1 << 20
# What LMDB takes for a record beside its key and value, roughly: a node, and pages that are not full.
RECORD_BYTES = 40


class _File(msgspec.Struct, frozen=True):
    begun_ns: int


@dataclass(slots=True)
class _Sink:
    """A sink's letters: its blocks by their first numbers, how many records there are, and the highest number."""

    blocks: list[Block] = field(default_factory=list)
    loose: int = 0
    loose_bytes: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction's part about letters, and what to do in memory once it is durable."""

    puts: Sequence[Item] = ()
    deletes: Sequence[bytes] = ()
    letters: int = 0
    done: Callable[[], None] = lambda: None


class LetterStore:
    """The dead letters of all sinks of one data directory.

    `hold` sees to it that the state file may take so many bytes more, or raises `DiskFull`. `set_aside` are the files
    that were found at the opening and that the state file does not know.
    """

    def __init__(
        self,
        data_dir: Path,
        file: LmdbFile,
        wal_id: uuid.UUID,
        sinks: Iterable[str],
        *,
        limits: LetterLimits,
        now_ns: int,
        damaged_dir: Path,
        free_bytes: Callable[[Path], int],
        hold: Callable[[int], None],
    ) -> None:
        """Reads the index, and tidies what a crash left. Raises `StorageFailed`, `WalDamaged`."""
        self.limits = limits
        self.set_aside: list[Path] = []
        self._data_dir = data_dir
        self._file = file
        self._wal_id = wal_id
        self._now_ns = now_ns
        self._free_bytes = free_bytes
        self._hold = hold
        self._groups: list[LetterGroup] | None = None
        self._files = LetterFiles(data_dir)
        self._sinks = {name: _Sink() for name in sinks}
        for key, value in self._file.records(BLOCK):
            block = decode_record(key, value)
            self._sinks.setdefault(block.sink, _Sink()).blocks.append(block)
        for name in self._sinks:
            self._count(name)
        known = {letter_number(key) for key, _ in self._file.records(FILE)}
        there = self._files.numbers()
        self._next_file = max([*known, *there], default=0) + 1
        self._set_aside([number for number in there if number not in known], damaged_dir)
        self._remove_files(known - {block.record.file for block in self._blocks()})

    def _set_aside(self, numbers: Sequence[int], directory: Path) -> None:
        """Files that are newer than the state file, which does not record what is in them."""
        if not numbers:
            return
        make_directory(directory)
        for number in numbers:
            self.set_aside.append(set_aside(self._files.directory / file_name(number), directory))
            self._files.forget(number)
        sync_directory(directory)
        sync_directory(self._files.directory)

    def _count(self, name: str) -> None:
        """Counts a sink's records."""
        sink = self._sinks[name]
        sink.loose = sink.loose_bytes = 0
        sink.last = max((block.record.last_number for block in sink.blocks), default=0)
        for key, value in self._file.records(letters_prefix(name)):
            sink.loose += 1
            sink.loose_bytes += _record_bytes(key, value)
            sink.last = max(sink.last, letter_number(key))

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes that all letters take on disk."""
        return self._files.used_bytes + sum(sink.loose_bytes for sink in self._sinks.values())

    def piece(self, name: str, after: int) -> Piece:
        """What comes after a number. Raises `WalDamaged` where a record cannot be read."""
        sink = self._sinks.get(name) or _Sink()
        start = bisect_right(sink.blocks, after, key=lambda block: block.first_number)
        if start < len(sink.blocks):
            return Piece(cluster(itertools.islice(sink.blocks, start, None)))
        items = self._records_from(name, after + 1, PIECE_LETTERS)
        return Piece(letters=decoded_records(self._file.path, name, items))

    def read(self, block: Block) -> list[DeadLetter]:
        """The letters of a block. Raises `WalDamaged`, `StorageFailed`."""
        return read_block(self._files.directory, self._wal_id, block)

    def groups(self) -> list[LetterGroup]:
        """How many letters there are for which reason, the most first: from the index, and some records.

        Where very many are records still, those beyond `COUNTED_LETTERS` are one group. One that cannot be read is
        counted too.
        """
        if self._groups is None:
            groups = LetterGroups()
            for name, sink in self._sinks.items():
                items = self._records_from(name, 0, COUNTED_LETTERS)
                add_to_groups(groups, name, sink.blocks, items, sink.loose)
            self._groups = groups.listed()
        return self._groups

    def _records_from(self, name: str, number: int, count: int) -> list[Item]:
        prefix, found = letters_prefix(name), list[Item]()
        key = letter_key(name, number)
        while len(found) < count:
            items = self._file.read_from(key, bytes_max=_READ_BYTES, items_max=count - len(found))
            ours = [item for item in items if item[0].startswith(prefix)]
            found += ours
            if not ours or len(ours) < len(items):
                break
            key = items[-1][0] + b"\0"
        return found

    def _blocks(self) -> Iterator[Block]:
        return itertools.chain.from_iterable(sink.blocks for sink in self._sinks.values())

    # -- parking ---------------------------------------------------------------------------------------

    def park(self, name: str, letters: Sequence[DeadLetter]) -> Change:
        """Stores letters, as far as that is done before the transaction. Raises `NoRoomForLetters`, `StorageFailed`."""
        if not letters:
            return Change()
        sink = self._sinks.setdefault(name, _Sink())
        if self.used_bytes >= self.limits.bytes_max:
            self._check_bytes(name, 1)  # there is no need to compress them first
        numbered = [
            msgspec.structs.replace(letter, number=number)
            for number, letter in enumerate(letters, sink.last + 1)
        ]
        try:
            lines_bytes = sum(len(letter.line) for letter in letters)
            if sink.loose + len(letters) > LOOSE_LETTERS or sink.loose_bytes + lines_bytes > LOOSE_BYTES:
                with contextlib.suppress(DiskFull):  # the state file may hold room for them
                    return self._as_blocks(name, numbered)
            return self._as_records(name, numbered)
        except DiskFull as exc:
            raise NoRoomForLetters(name, str(exc)) from exc

    def _as_records(self, name: str, numbered: Sequence[DeadLetter]) -> Change:
        sink = self._sinks[name]
        puts = [(letter_key(name, letter.number), encode_letter(letter)) for letter in numbered]
        more_bytes = sum(map(_item_bytes, puts))
        self._check_bytes(name, more_bytes)
        self._hold(more_bytes)

        def done() -> None:
            sink.loose += len(puts)
            sink.loose_bytes += more_bytes
            sink.last = numbered[-1].number
            self._groups = None

        return Change(puts, letters=len(puts), done=done)

    def _as_blocks(self, name: str, numbered: list[DeadLetter]) -> Change:
        """The records that there are, and the new letters, into blocks.

        Where there are more records than one transaction should take (those of a disk that was full), they go first.
        After one that cannot be read, new letters stay records.
        """
        sink = self._sinks[name]
        while sink.loose > LOOSE_LETTERS and self._move_some(name):
            pass
        old, old_bytes = self._readable_records(name)
        if len(old) < sink.loose:
            return self._as_records(name, numbered)
        change = self._moved(name, [*old, *numbered], len(old), old_bytes, limited=True)

        def done() -> None:
            change.done()
            sink.last = numbered[-1].number

        return Change(change.puts, change.deletes, len(numbered), done)

    def _move_some(self, name: str) -> bool:
        """Moves a sink's oldest records into blocks, in a transaction of its own; false where none can be read.

        As many as there is room for: what one transaction frees within the state file serves the next.
        """
        count = RUN_LETTERS
        while True:
            old, old_bytes = self._readable_records(name, count)
            if not old:
                return False
            try:
                change = self._moved(name, old, len(old), old_bytes, limited=False)
            except DiskFull:
                if count < MOVED_MIN:
                    raise
                count //= 4
                continue
            self._file.write(change.puts, change.deletes)
            change.done()
            return True

    def _readable_records(self, name: str, count: int = RUN_LETTERS) -> tuple[list[DeadLetter], int]:
        """A sink's oldest records, so many at most, up to one that cannot be read; their bytes."""
        found, size = list[DeadLetter](), 0
        for item in self._records_from(name, 0, count):
            try:
                found.append(decode_letter(name, *item))
            except msgspec.DecodeError:
                break
            size += _item_bytes(item)
        return found, size

    def _moved(
        self, name: str, letters: Sequence[DeadLetter], old: int, old_bytes: int, *, limited: bool
    ) -> Change:
        """Letters into blocks; the first `old` of them are records until the transaction.

        `limited` says that the limit of bytes counts. Raises `DiskFull`, `NoRoomForLetters`.
        """
        sink = self._sinks[name]
        keys = [letter_key(name, letter.number) for letter in letters[:old]]
        made = make_blocks(self._wal_id, name, letters)
        more_bytes = sum(len(each.data) for each in made)
        if limited:
            self._check_bytes(name, more_bytes - old_bytes)
        self.limits.check_disk(more_bytes=more_bytes, free_bytes=self._free_bytes(self._data_dir))
        # The page of each removed record is written again before it is free.
        self._hold(old_bytes + 512 * len(made))
        places = self._files.append([each.data for each in made], begin=self._begin_file)
        blocks = [each.at(name, *place) for each, place in zip(made, places, strict=True)]
        blocks.sort(key=lambda block: block.first_number)

        def done() -> None:
            sink.blocks += blocks
            sink.loose -= old
            sink.loose_bytes -= old_bytes
            self._groups = None

        return Change([(block.key, block.value) for block in blocks], keys, len(letters), done)

    def _begin_file(self) -> int:
        number = self._next_file
        self._next_file += 1
        record = msgspec.json.encode(_File(self._now_ns))
        self._file.write([(FILE + b"%020d" % number, record), (_KEY_FORMAT, FORMAT_BLOCKS)])
        return number

    def _check_bytes(self, name: str, more_bytes: int) -> None:
        self.limits.check_bytes(name, used_bytes=self.used_bytes, more_bytes=more_bytes)

    def pack(self) -> None:
        """Moves records into blocks, oldest first, where there are more than there should be: at a start.

        Each step is a transaction of its own. Where the disk has no room, they stay what they are.
        """
        with contextlib.suppress(DiskFull):
            for name, sink in self._sinks.items():
                while sink.loose > LOOSE_LETTERS and self._move_some(name):
                    pass

    # -- removing --------------------------------------------------------------------------------------

    def remove(self, name: str, ids: Iterable[LetterId]) -> Change:
        """Removes those letters that are there. Raises `WalDamaged` when a block that may hold one cannot be read."""
        sink = self._sinks.get(name) or _Sink()
        wanted = {each.number: each for each in ids}
        after: dict[int, Block] = {}
        count = 0
        unread: list[tuple[Block, WalDamaged]] = []
        numbers = sorted(wanted)
        for block in sink.blocks:
            first = bisect_left(numbers, block.first_number)
            if first == bisect_right(numbers, block.record.last_number):
                continue
            try:
                letters = self.read(block)
            except WalDamaged as exc:
                unread.append((block, exc))
                continue
            places = [
                place
                for place, letter in zip(block.places_left, letters, strict=True)
                if wanted.get(letter.number) == id_of(letter)
            ]
            for letter in letters:
                wanted.pop(letter.number, None)
            if places:
                after[block.first_number] = block.without(places)
                count += len(places)
        keys, loose_bytes = [], 0
        for each in wanted.values():
            key = letter_key(name, each.number)
            items = self._file.read_from(key, bytes_max=1, items_max=1)
            if items and items[0][0] == key:
                [letter] = decoded_records(self._file.path, name, items)
                if id_of(letter) == each:
                    keys.append(key)
                    loose_bytes += _item_bytes(items[0])
                continue
            for block, damage in unread:
                if block.first_number <= each.number <= block.record.last_number:
                    raise damage
        left = [block for block in after.values() if block.left]
        dead = [block for block in after.values() if not block.left]

        def done() -> None:
            sink.blocks = [
                block for each in sink.blocks if (block := after.get(each.first_number, each)).left
            ]
            sink.loose -= len(keys)
            sink.loose_bytes -= loose_bytes
            self._groups = None
            self._give_back(dead)

        return Change(
            [(block.key, block.value) for block in left],
            [*keys, *(block.key for block in dead)],
            count + len(keys),
            done,
        )

    def _give_back(self, dead: Sequence[Block]) -> None:
        """Frees the space of blocks that no record names any more."""
        touched = {block.record.file for block in dead}
        gone = []
        for number in touched:
            live = [block.record for block in self._blocks() if block.record.file == number]
            here = [block.record for block in dead if block.record.file == number]
            if self._files.give_back(number, live, here):
                gone.append(number)
        self._forget_files(gone)

    def _remove_files(self, numbers: Iterable[int]) -> None:
        """At a start: files of ours that no block is in, from a write that was not finished or a removal."""
        there = set(self._files.numbers())
        self._forget_files(
            [number for number in numbers if number not in there or self._files.give_back(number, (), ())]
        )

    def _forget_files(self, numbers: Sequence[int]) -> None:
        """They are gone. Without any, a program of 0.1 can read the directory again."""
        if not numbers:
            return
        keys = [FILE + b"%020d" % number for number in numbers]
        left = any(key not in keys for key, _ in self._file.records(FILE))
        self._file.write([] if left else [(_KEY_FORMAT, FORMAT_RECORDS)], keys)

    def close(self) -> None:
        """Closes the file that is written to."""
        self._files.close()


def read_block(directory: Path, wal_id: uuid.UUID, block: Block) -> list[DeadLetter]:
    """The letters of a block in `dead_letters`. Raises `WalDamaged`, `StorageFailed`."""
    try:
        return decode_block(read_block_bytes(directory, block.record), wal_id, block)
    except ValueError as exc:
        path = directory / file_name(block.record.file)
        raise WalDamaged(path, f"a dead letter cannot be read: {exc}") from exc


def decoded_records(path: Path, name: str, items: Iterable[Item]) -> list[DeadLetter]:
    """The letters of records, up to one that cannot be read. Raises `WalDamaged` where that is the first."""
    found: list[DeadLetter] = []
    for item in items:
        try:
            found.append(decode_letter(name, *item))
        except msgspec.DecodeError as exc:
            if found:
                break
            raise WalDamaged(path, f"a dead letter cannot be read: {exc}") from exc
    return found


def add_to_groups(
    groups: LetterGroups, name: str, blocks: Iterable[Block], items: Sequence[Item], loose: int
) -> None:
    """Counts a sink's letters: those in blocks by the index, some records, and the other records as not counted."""
    for block in blocks:
        groups.add_counted(name, block.record.group, block.left, block.record.last_ns)
    groups.add(counted_letter(name, *item) for item in items)
    if loose > len(items):
        groups.add_counted(name, NOT_COUNTED, loose - len(items), 0)


def _record_bytes(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + RECORD_BYTES


def _item_bytes(item: Item) -> int:
    return _record_bytes(*item)
