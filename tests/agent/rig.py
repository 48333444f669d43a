"""A spool at work, a host with figures of our own, and a way to see what is logged."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from wal_ingest.agent.probes import Inodes
from wal_ingest.agent.spool import SPOOL_BYTES_MIN, Spool

NOW_NS = 1_795_381_200_000_000_000


@asynccontextmanager
async def open_spool(
    directory: Path,
    *,
    bytes_max: int = SPOOL_BYTES_MIN,
    free_bytes: Callable[[Path], int] = lambda _path: 1 << 40,
) -> AsyncIterator[Spool]:
    """A spool whose writer runs; closed at the end of the block, as after a stop in order."""
    spool = Spool(directory, bytes_max=bytes_max, now_ns=lambda: NOW_NS, free_bytes=free_bytes)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(spool.run)
            yield spool
            nursery.cancel_scope.cancel()
    finally:
        spool.close()


def rounds(count: int, *, first: int = 1) -> list[list[str]]:
    """So many rounds of two lines each."""
    return [[f"m,n={n} a={n} {NOW_NS}\n", f"m,n={n} b={n} {NOW_NS}\n"] for n in range(first, first + count)]


async def fill(spool: Spool, count: int, *, first: int = 1) -> None:
    for lines in rounds(count, first=first):
        await spool.append(lines)


def text_of(entries: Sequence[list[str]]) -> list[bytes]:
    """The lines of rounds, as a node stores them."""
    return [line.rstrip("\n").encode() for lines in entries for line in lines]


Times = namedtuple("Times", "user system idle")
Memory = namedtuple("Memory", "total available percent used free")
Swap = namedtuple("Swap", "total used free percent sin sout")
Part = namedtuple("Part", "device mountpoint fstype opts")
Usage = namedtuple("Usage", "total used free percent")
Disk = namedtuple("Disk", "read_count write_count read_bytes write_bytes read_time write_time")
Net = namedtuple("Net", "bytes_sent bytes_recv packets_sent packets_recv errin errout dropin dropout")


class FakeHost:
    """Figures of a host that has one of everything, and much that is to be left out. Each may be changed."""

    def __init__(self) -> None:
        self.parts: list[Any] = [
            Part("/dev/mapper/vg-root", "/var/lib/docker", "ext4", "rw"),
            Part("/dev/mapper/vg-root", "/", "ext4", "rw"),
            Part("/dev/sdb1", "/my data", "xfs", "rw"),
        ]
        self.broken_mounts: set[str] = set()
        self.net: dict[str, Any] = {
            name: Net(1, 2, 3, 4, 5, 6, 7, 8) for name in ("lo", "eth0", "veth12ab", "lo1")
        }
        self.load_averages = (0.5, 0.25, 0.125)

    def cpu_times(self) -> Sequence[tuple[str, Any]]:
        return [("cpu-total", Times(3.0, 2.0, 1.0)), ("cpu0", Times(3.0, 2.0, 1.0))]

    def memory(self) -> Any:
        return Memory(100, 60, 40.0, 30, 20)

    def swap(self) -> Any:
        return Swap(10, 5, 5, 50.0, 1, 2)

    def partitions(self) -> Sequence[Any]:
        return self.parts

    def usage(self, path: str) -> tuple[Any, Inodes]:
        if path in self.broken_mounts:
            raise PermissionError(13, "Permission denied")
        return Usage(100, 25, 75, 25.0), Inodes(10, 4) if path == "/" else Inodes(0, 0)

    def disks(self) -> dict[str, Any]:
        return {name: Disk(1, 2, 3, 4, 5, 6) for name in ("sda", "sda1", "loop0", "ram3", "nvme0n1")}

    def interfaces(self) -> dict[str, Any]:
        return self.net

    def load(self) -> tuple[float, float, float]:
        return self.load_averages

    def processes(self) -> int:
        return 73

    def cpus(self) -> int | None:
        return None

    def uptime_s(self) -> float:
        return 6064.9
