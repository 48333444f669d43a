"""Are the dead letters whole? Each record and block that the state file names, read from outside, also beside a server.

Nothing is written. A server moves and removes letters meanwhile. So what looks damaged is looked up again: where
the state file no longer names it, or the file is gone, there was nothing wrong with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from wal_ingest.errors import WalDamaged
from wal_ingest.wal.letter_blocks import BLOCK, Block, decode_record
from wal_ingest.wal.letter_files import LETTERS_DIR, SUFFIX, file_name, file_numbers
from wal_ingest.wal.letter_store import FILE, PIECE_LETTERS, read_block
from wal_ingest.wal.letters import LETTER, decode_letter, letter_number
from wal_ingest.wal.lmdb_file import Item
from wal_ingest.wal.lmdb_pages import PageReader, snapshot
from wal_ingest.wal.state import StateView, read_state

# Counts of letters and of a cursor are of one moment; a server at work may make several tries necessary.
_TRIES_MAX = 20

NOT_RECORDED = "the state file does not record it; a start sets it aside"
SET_ASIDE = "a start found no record of it; the state file is older, or was made again"
NO_STATE = "the state file that says what is in it cannot be read"


class LetterFileReport(msgspec.Struct, frozen=True, kw_only=True):
    """A file of `dead_letters/`: how many letters can be read, how many cannot, and what is wrong (empty: nothing)."""

    file: str
    bytes: int
    letters: int
    lost: int
    trouble: str


class LettersReport(msgspec.Struct, frozen=True, kw_only=True):
    """All dead letters of a data directory: how many can be read, how many cannot, their files, what else is wrong."""

    readable: int
    lost: int
    files: list[LetterFileReport]
    troubles: list[str]

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong with any of them."""
        return not (self.lost or self.troubles or any(file.trouble for file in self.files))


def verify_letters(state_path: Path, *, done: Callable[[int], None]) -> LettersReport:
    """Reads every dead letter; `done` is called with the bytes of each file that was read.

    Raises `UnknownFormatVersion`, `WalDamaged` for a state file that cannot be read, `StorageFailed`.
    """
    view = read_state(state_path)
    directory = state_path.parent / LETTERS_DIR
    # In this order: a server records a file before it makes it.
    there = file_numbers(directory)
    unknown = set(there) - snapshot(state_path, _known_files)
    by_file: dict[int, list[Block]] = {number: [] for number in there}
    for block in snapshot(state_path, _blocks):
        by_file.setdefault(block.record.file, []).append(block)
    files = []
    for number, blocks in sorted(by_file.items()):
        path = directory / file_name(number)
        size = _size_of(path)
        report = _file(state_path, view, path, blocks, size)
        if number in unknown:
            report = msgspec.structs.replace(report, trouble=_joined(report.trouble, NOT_RECORDED))
        if blocks or path.exists():  # a server may have removed it meanwhile, and then its record
            files.append(report)
        done(size)
    records, bad = _read_records(state_path)
    troubles = (
        [f"dead letters that are records of {state_path.name} and cannot be read: {bad:,}"] if bad else []
    )
    return LettersReport(
        readable=records + sum(file.letters for file in files),
        lost=bad + sum(file.lost for file in files),
        files=files,
        troubles=troubles + _miscounted(state_path),
    )


def without_state(data_dir: Path) -> LettersReport:
    """The report where no state file can be read: files of dead letters, and nothing that says what is in them."""
    directory = data_dir / LETTERS_DIR
    paths = [directory / file_name(number) for number in file_numbers(directory)]
    files = [
        LetterFileReport(file=path.name, bytes=_size_of(path), letters=0, lost=0, trouble=NO_STATE)
        for path in paths
    ]
    return LettersReport(readable=0, lost=0, files=files, troubles=[])


def letter_bytes(data_dir: Path) -> int:
    """The size of all files of dead letters."""
    directory = data_dir / LETTERS_DIR
    return sum(_size_of(directory / file_name(number)) for number in file_numbers(directory))


def set_aside_files(damaged_dir: Path) -> list[Path]:
    """The files of dead letters that a start has set aside."""
    return sorted(damaged_dir.glob(f"*{SUFFIX}*"))


def _size_of(path: Path) -> int:
    """A file's size, 0 where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _joined(*troubles: str) -> str:
    return "; ".join(filter(None, troubles))


def _file(state_path: Path, view: StateView, path: Path, blocks: list[Block], size: int) -> LetterFileReport:
    """Reads the blocks that the state file names in one file."""
    readable, lost = 0, 0
    reasons: dict[str, None] = {}
    for block in blocks:
        try:
            readable += len(read_block(path.parent, view.wal_id, block))
        except WalDamaged as exc:
            if _is_named(state_path, block):
                lost += block.left
                reasons[exc.reason] = None
    return LetterFileReport(
        file=path.name, bytes=size, letters=readable, lost=lost, trouble=_joined(*reasons)
    )


def _is_named(state_path: Path, block: Block) -> bool:
    """Whether the state file still says that a block is where it was."""
    place = block.record.file, block.record.offset
    return any(
        (each.sink, each.first_number) == (block.sink, block.first_number)
        and (each.record.file, each.record.offset) == place
        for each in snapshot(state_path, _blocks)
    )


def _read_records(state_path: Path) -> tuple[int, int]:
    """How many letters that are records can be read, and how many cannot: some of one state of the file at a time."""
    readable, bad, key = 0, 0, LETTER
    while items := snapshot(state_path, partial(_some_records, key)):
        for each in items:
            if _is_readable(each):
                readable += 1
            else:
                bad += 1
        key = items[-1][0] + b"\0"
    return readable, bad


def _some_records(key: bytes, reader: PageReader) -> list[Item]:
    return list(itertools.islice(_with_prefix(reader, LETTER, key), PIECE_LETTERS))


def _is_readable(item: Item) -> bool:
    try:
        decode_letter("", *item)
    except ValueError:  # also of msgspec: neither JSON, nor a number in the key
        return False
    return True


def _miscounted(state_path: Path) -> list[str]:
    """Sinks whose cursor counts other letters than there are. Counted until nothing changed meanwhile."""
    for _try in range(_TRIES_MAX):
        before = read_state(state_path).cursors
        counts = snapshot(state_path, _counts)
        found = [
            f"the cursor of {name} counts {cursor.parked:,} dead letters, {counts.get(name, 0):,} are recorded"
            for name, cursor in before.items()
            if cursor.parked != counts.get(name, 0)
        ]
        if not found or read_state(state_path).cursors == before:
            return found
    # A server changes them faster than they are counted. Each letter was read all the same.
    return []


def _counts(reader: PageReader) -> dict[str, int]:
    counts: dict[str, int] = {}
    for block in _blocks(reader):
        counts[block.sink] = counts.get(block.sink, 0) + block.left
    for key, _ in _with_prefix(reader, LETTER, LETTER):
        sink = key.removeprefix(LETTER).rpartition(b"/")[0].decode(errors="replace")
        counts[sink] = counts.get(sink, 0) + 1
    return counts


def _known_files(reader: PageReader) -> set[int]:
    return {letter_number(key) for key, _ in _with_prefix(reader, FILE, FILE)}


def _blocks(reader: PageReader) -> list[Block]:
    try:
        return [decode_record(*item) for item in _with_prefix(reader, BLOCK, BLOCK)]
    except (msgspec.DecodeError, ValueError) as exc:
        raise WalDamaged(reader.path, f"a record cannot be read: {exc}") from exc


def _with_prefix(reader: PageReader, prefix: bytes, key: bytes) -> Iterator[Item]:
    return itertools.takewhile(lambda item: item[0].startswith(prefix), reader.items_from(key))
