"""Memory that is free goes back to the system: tried in processes of their own, since it is set for a whole process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

# A large piece raises the size up to which glibc cuts pieces from its heap; what is allocated after the others keeps
# that heap from shrinking.
_PROGRAM = f"""
import pathlib, sys
from wal_ingest.heap import give_memory_back

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "set":
    assert give_memory_back()
large = b"x" * (31 * {MIB})
del large
before = resident()
pieces = [b"x" * (2 * {MIB}) for _ in range(50)]
kept = [b"x" * 600 for _ in range(1_000)]
del pieces
print(resident() - before)
"""


def left_bytes(argument: str) -> int:
    """How much more than before is resident when 100 MiB in pieces of 2 MiB are free again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", _PROGRAM, argument]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=60)
    return int(done.stdout)


def test_large_pieces_go_back_to_the_system_as_soon_as_they_are_free() -> None:
    assert left_bytes("left as it is") > 80 * MIB, "else nothing is shown"
    assert left_bytes("set") < 10 * MIB
