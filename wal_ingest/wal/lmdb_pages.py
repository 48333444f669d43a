"""LMDB files read page by page, without the engine: for files that may be damaged or belong to a running server.

LMDB's engine maps a file and trusts it: a zeroed page ends the process by an assertion, a short file by
SIGBUS. And to read beside a writer it must write itself, a slot in the lock file. This reader does neither.
It takes pages with `pread`, checks every offset before it follows it, and calls whatever it finds odd damage.

Beside a running writer: LMDB never overwrites a page of its latest two states, so what was read is
whole as long as the file is at most one transaction further on afterwards. `snapshot` sees to that, by trying again.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wal_ingest.errors import SectorUnreadable, StorageFailed, WalDamaged
from wal_ingest.wal.lmdb_layout import (
    BIG,
    BRANCH,
    DATA_VERSION,
    LEAF,
    MAGIC,
    META,
    META_BYTES,
    META_END,
    NO_ROOT,
    NODE,
    OVERFLOW,
    PAGE_HEADER,
    PAGE_HEADER_BYTES,
    PAGE_SIZES,
    TREE,
    page_number,
)

T = TypeVar("T")
Item = tuple[bytes, bytes]

_DEPTH_MAX = 32
_TRIES_MAX = 50


@dataclass(frozen=True, slots=True)
class Found:
    """An item, and the byte of the file at which its value begins."""

    key: bytes
    value: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What is behind a page that is damaged: why, and the byte of the file at which that page begins.

    `key` is the one whose value is lost, None where a page of keys is.
    """

    reason: str
    offset: int
    key: bytes | None = None


class PageReader:
    """One state of an LMDB file. Raises `WalDamaged` for whatever does not hold together, `StorageFailed` for I/O."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc
        try:
            self._read_metas()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)

    def refresh(self) -> None:
        """Goes on to the file's present state. The file is the one that was opened, whatever its name is by now."""
        self._read_metas()

    def is_current(self) -> bool:
        """Whether the file is still in the state that is read."""
        return self._newest() == self.transaction

    def is_whole(self) -> bool:
        """Whether no page of the state that was read can have been overwritten yet."""
        return self._newest() - self.transaction <= 1

    def _newest(self) -> int:
        metas = (
            self._meta(self._pread(number * self._page_size + PAGE_HEADER_BYTES, META_BYTES))
            for number in (0, 1)
        )
        return max(meta[4] for meta in metas)

    # -- what is in it ---------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes of the file that the state spans."""
        return (self.last_page + 1) * self._page_size

    def get(self, key: bytes) -> bytes | None:
        """The value under a key, or None."""
        for found, value in self.items_from(key):
            return value if found == key else None
        return None

    def last(self) -> Item | None:
        """The item with the highest key, or None."""
        number, page = self._root, b""
        for _depth in range(self._depth):
            page = self._page(number, BRANCH | LEAF)
            offset = self._nodes(page)[-1]
            if self._flags(page) & LEAF:
                return self._item(page, offset)
            number = self._child(page, offset)
        if self._root == NO_ROOT:
            return None
        raise self._damaged("the tree is deeper than it says")

    def items_from(self, key: bytes) -> Iterator[Item]:
        """Items with keys from `key` on, in order."""
        if self._root != NO_ROOT:
            yield from self._walk(self._root, key, min(self._depth, _DEPTH_MAX))

    def _walk(self, number: int, key: bytes, depth_left: int) -> Iterator[Item]:
        if depth_left < 1:
            raise self._damaged("the tree is deeper than it says")
        page = self._page(number, BRANCH | LEAF)
        offsets = self._nodes(page)
        if self._flags(page) & LEAF:
            for offset in offsets:
                if self._key(page, offset) >= key:
                    yield self._item(page, offset)
            return
        # A branch's first key counts as lower than all; a child ends where its right neighbour begins.
        starts = [b"", *(self._key(page, offset) for offset in offsets[1:])]
        for index, offset in enumerate(offsets):
            if index + 1 == len(offsets) or starts[index + 1] > key:
                yield from self._walk(self._child(page, offset), key, depth_left - 1)

    def whatever_from(self, key: bytes) -> Iterator[Found | Unreadable]:
        """As `items_from`, but goes on behind damage, and says where it met it.

        Keys that damage put out of order come as they lie.
        """
        if self._root != NO_ROOT:
            yield from self._walk_on(self._root, key, 1, set())

    def _walk_on(self, number: int, key: bytes, depth: int, seen: set[int]) -> Iterator[Found | Unreadable]:
        """One subtree. No page is walked twice: where damage makes a branch its own child, that would have no end."""
        try:
            if number in seen or depth > min(self._depth, _DEPTH_MAX):
                raise self._damaged(f"page {number} is not where it should be in the tree")
            seen.add(number)
            page = self._page(number, BRANCH | LEAF)
            offsets = self._nodes(page)
        except WalDamaged as exc:
            yield Unreadable(exc.reason, number * self._page_size)
            return
        keys = [self._key(page, offset) for offset in offsets]
        if self._flags(page) & LEAF:
            for found, offset in zip(keys, offsets, strict=True):
                if found >= key:
                    try:
                        value, where = self._value(page, offset)
                        yield Found(found, value, where)
                    except WalDamaged as exc:
                        yield Unreadable(exc.reason, number * self._page_size, found)
            return
        for offset, behind in zip(offsets, [*keys[1:], None], strict=True):
            if behind is None or behind > key:
                yield from self._walk_on(self._child(page, offset), key, depth + 1, seen)

    # -- pages -----------------------------------------------------------------------------------------

    def _read_metas(self) -> None:
        for _try in range(_TRIES_MAX):
            first = self._meta(self._pread(PAGE_HEADER_BYTES, META_BYTES))
            # The second meta page stands where the first one says that the first page ends.
            second = self._meta(self._pread(first[0] + PAGE_HEADER_BYTES, META_BYTES))
            if _follow_each_other(first[4], second[4]):
                break
        else:
            raise self._damaged(
                f"its meta pages, of transactions {first[4]} and {second[4]}, do not follow each other"
            )
        newest = max(first, second, key=lambda meta: meta[4])
        self._page_size, self._depth, self._root, self.last_page, self.transaction = newest[:5]
        # Read last: a commit makes the file longer before a meta page says so.
        size = os.fstat(self._fd).st_size
        # LMDB does not write a page that one transaction took and gave back. Where it is the last one, the file ends
        # before it, and nothing is missing.
        if size < self.used_bytes and not self._are_free(size // self._page_size, *newest[5:]):
            raise self._damaged(f"the file has {size} bytes, its last page ends at {self.used_bytes}")

    def _are_free(self, first_page: int, depth: int, root: int) -> bool:
        """Whether all pages from one on are in the tree of free pages."""
        if root == NO_ROOT:
            return False
        free: set[int] = set()
        # A value is how many pages there are, and their numbers; its key is the transaction that freed them.
        try:
            for _transaction, value in self._walk(root, b"", min(depth, _DEPTH_MAX)):
                free.update(struct.unpack(f"={len(value) // 8}Q", value[: len(value) // 8 * 8])[1:])
        except WalDamaged:
            return False  # the missing pages say more
        return free.issuperset(range(first_page, self.last_page + 1))

    def _meta(self, data: bytes) -> tuple[int, int, int, int, int, int, int]:
        """The page size; the tree's depth and root; the last page; the transaction; the free tree's depth and root."""
        magic, version, _address, _map_bytes = META.unpack_from(data)
        free = TREE.unpack_from(data, 24)
        page_size = free[0]
        tree = TREE.unpack_from(data, 72)
        last_page, transaction = META_END.unpack_from(data, 120)
        if magic != MAGIC or version != DATA_VERSION or page_size not in PAGE_SIZES:
            raise self._damaged("a meta page is not LMDB's")
        return page_size, tree[2], tree[7], last_page, transaction, free[2], free[7]

    def _page(self, number: int, kinds: int) -> bytes:
        if not 2 <= number <= self.last_page:
            raise self._damaged(f"page {number} is not in the file")
        page = self._pread(number * self._page_size, self._page_size)
        found = PAGE_HEADER.unpack_from(page)
        if found[0] != number or not found[2] & kinds:
            raise self._damaged(f"page {number} is not the page that it should be")
        return page

    def _flags(self, page: bytes) -> int:
        flags: int = PAGE_HEADER.unpack_from(page)[2]
        return flags

    def _nodes(self, page: bytes) -> tuple[int, ...]:
        """The offsets of a page's nodes; at least one."""
        lower = PAGE_HEADER.unpack_from(page)[3]
        if not 18 <= lower <= len(page):
            raise self._damaged("a page has no nodes")
        offsets: tuple[int, ...] = struct.unpack_from(f"={(lower - 16) // 2}H", page, 16)
        if min(offsets) < lower or max(offsets) > len(page) - NODE.size:
            raise self._damaged("a node is not in its page")
        return offsets

    def _key(self, page: bytes, offset: int) -> bytes:
        length = NODE.unpack_from(page, offset)[3]
        start = offset + NODE.size
        return page[start : start + length]

    def _child(self, page: bytes, offset: int) -> int:
        low, high, flags, _length = NODE.unpack_from(page, offset)
        child: int = low | high << 16 | flags << 32
        return child

    def _item(self, page: bytes, offset: int) -> Item:
        return self._key(page, offset), self._value(page, offset)[0]

    def _value(self, page: bytes, offset: int) -> tuple[bytes, int]:
        """A node's value, and where in the file it begins."""
        low, high, flags, key_bytes = NODE.unpack_from(page, offset)
        length = low | high << 16
        start = offset + NODE.size + key_bytes
        where = PAGE_HEADER.unpack_from(page)[0] * self._page_size + start
        if not flags & BIG:
            value = page[start : start + length]
        elif start + 8 <= len(page):
            number = page_number(page[start : start + 8])
            self._page(number, OVERFLOW)
            where = number * self._page_size + PAGE_HEADER_BYTES
            # Looked at first: memory for a damaged length may be memory that nobody has.
            value = self._pread(where, length) if where + length <= self.used_bytes else b""
        else:
            value = b""
        if len(value) != length:
            raise self._damaged("a value ends outside of its page")
        return value, where

    def _pread(self, offset: int, length: int) -> bytes:
        data = read_bytes(self.path, self._fd, offset, length)
        if len(data) < length:
            raise self._damaged(f"the file ends at {offset + len(data)}, within a page")
        return data

    def _damaged(self, reason: str) -> WalDamaged:
        return WalDamaged(self.path, reason)


def read_bytes(path: Path, fd: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes of a file; fewer only at its end. Raises `SectorUnreadable`, `StorageFailed`."""
    data = b""
    try:
        # A read that meets a bad sector gives what is before it; the next one says so.
        while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
            data += more
    except OSError as exc:
        if exc.errno == errno.EIO:
            raise SectorUnreadable(path, f"byte {offset + len(data)} cannot be read: {exc.strerror}") from exc
        raise StorageFailed(path, str(exc.strerror), number=exc.errno or 0) from exc
    return data


def _follow_each_other(even: int, odd: int) -> bool:
    """Whether two meta pages are of one transaction and the next: they take turns.

    Where they are not, either a server wrote twice between the two looks, or one page is damaged, and to believe the
    other would be to lose the latest transaction without a word.
    """
    return even % 2 == 0 and (odd % 2 == 1 or odd == 0) and abs(even - odd) <= 1


def snapshot(path: Path, read: Callable[[PageReader], T]) -> T:
    """What `read` makes of one state of a file that a server may be writing to meanwhile.

    Raises what `read` and `PageReader` raise, when that is no matter of the moment.
    """
    for tries_left in range(_TRIES_MAX - 1, -1, -1):  # pragma: no branch
        reader = PageReader(path)
        try:
            result = read(reader)
            if reader.is_whole() or not tries_left:
                return result
        except WalDamaged:
            if reader.is_current() or not tries_left:
                raise
        finally:
            reader.close()
    raise AssertionError("the last try returns or raises")  # pragma: no cover: as it says
