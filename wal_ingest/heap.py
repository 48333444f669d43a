"""What the C library's allocator is told before the first thread starts, so that memory which is free is given back.

By default each thread gets a heap of its own, and pieces of up to 32 MiB are cut from it: what one large body leaves
behind stays in some heap as a gap. With one heap, and large pieces mapped by themselves, a node that had hostile bodies
for a minute holds half as much, and takes less time for it. Threads do not wait for one another here: nearly all that
they allocate, they allocate while they have the interpreter's lock.
"""

from __future__ import annotations

import ctypes

# malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_MIB = 1024 * 1024
_OPTIONS = (
    (_M_ARENA_MAX, 1),
    # A usual body is smaller: mapping costs a page fault for each 4 KiB.
    (_M_MMAP_THRESHOLD, _MIB),
    # Without it the end of the heap would be given back, and asked for again, many times a second.
    (_M_TRIM_THRESHOLD, 8 * _MIB),
)


def give_memory_back() -> bool:
    """Sets the options; false where the C library does not have them, such as musl, whose heap works otherwise."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(mallopt(option, value) == 1 for option, value in _OPTIONS)
