"""Where things stand in an LMDB file: LMDB 0.9, data format 1, 64 bit, the machine's byte order.

From `struct MDB_page`, `MDB_meta` and `MDB_node` in LMDB's mdb.c. Two meta pages come first and take turns; every
other page says its own number. Keys and small values stand in leaf pages, each large value in overflow pages of its
own, behind one page header.
"""

from __future__ import annotations

import struct
import sys

MAGIC = 0xBEEFC0DE
DATA_VERSION = 1
PAGE_HEADER = struct.Struct("=QHHHH")  # page number, pad, flags, lower, upper
META = struct.Struct("=IIQQ")  # magic, version, address, map size
TREE = struct.Struct("=IHHQQQQQ")  # page size, flags, depth, branches, leaves, overflows, entries, root
META_END = struct.Struct("=QQ")  # last page, transaction
NODE = struct.Struct("=HHHH")  # low, high, flags, key size

META_BYTES = 136
PAGE_HEADER_BYTES = PAGE_HEADER.size
BRANCH, LEAF, OVERFLOW = 0x01, 0x02, 0x04
BIG = 0x01
NO_ROOT = (1 << 64) - 1
PAGE_SIZES = (4096, 8192, 16384, 32768)


def page_number(data: bytes) -> int:
    """A page number as it stands in a node."""
    return int.from_bytes(data, sys.byteorder)
