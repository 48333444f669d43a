"""What is read of this host, one probe for each measurement; the only importer of psutil.

Names are about those of Telegraf's inputs, so that its dashboards need little work. What only ever rises (CPU seconds,
bytes, packets) is left a counter: a rate is the database's to take, and a round that is missing costs it nothing.

What is left out: file systems without a device behind them, and those of other machines, where a look may hang for as
long as the other machine does; loop and RAM disks; the loopback and the interfaces of containers, whose names come and
go, so that each would be a new series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol

from wal_ingest.agent.readings import Reading

Probe = Callable[[], Sequence[Reading]]

OWN_TAGS = frozenset({"host", "cpu", "device", "fstype", "path", "name", "interface"})
"""The tags that readings bring; an operator's own must have other names."""

_NOT_A_DISK = ("loop", "ram", "zram", "fd", "sr")
_NOT_A_LINE = ("veth", "cali", "ifb")


class Inodes(NamedTuple):
    """How many files a file system may have; 0 where it sets no limit."""

    total: int
    free: int


class Figures(Protocol):
    """Where figures come from. The attributes of what is returned are psutil's, and differ between systems."""

    def cpu_times(self) -> Sequence[tuple[str, Any]]:
        """`cpu-total`, `cpu0`, `cpu1`, … each with its seconds."""
        ...

    def memory(self) -> Any:
        """Bytes of memory."""
        ...

    def swap(self) -> Any:
        """Bytes of swap, and bytes swapped in and out."""
        ...

    def partitions(self) -> Sequence[Any]:
        """What is mounted from a device of this machine."""
        ...

    def usage(self, path: str) -> tuple[Any, Inodes]:
        """Bytes and files of a mounted file system."""
        ...

    def disks(self) -> dict[str, Any]:
        """Counters of each disk."""
        ...

    def interfaces(self) -> dict[str, Any]:
        """Counters of each network interface."""
        ...

    def load(self) -> tuple[float, float, float]:
        """The load averages over 1, 5 and 15 minutes."""
        ...

    def processes(self) -> int:
        """How many processes there are."""
        ...

    def cpus(self) -> int | None:
        """How many CPUs there are, where that can be told."""
        ...

    def uptime_s(self) -> float:
        """Seconds since the boot."""
        ...


def psutil_figures() -> Figures:
    """The figures of this host. Imports psutil, which takes some 20 ms."""
    import os
    import time

    import psutil

    class Host:
        def cpu_times(self) -> Sequence[tuple[str, Any]]:
            each = psutil.cpu_times(percpu=True)
            return [
                ("cpu-total", psutil.cpu_times()),
                *((f"cpu{index}", times) for index, times in enumerate(each)),
            ]

        def memory(self) -> Any:
            return psutil.virtual_memory()

        def swap(self) -> Any:
            return psutil.swap_memory()

        def partitions(self) -> Sequence[Any]:
            return psutil.disk_partitions(all=False)

        def usage(self, path: str) -> tuple[Any, Inodes]:
            files = os.statvfs(path)
            return psutil.disk_usage(path), Inodes(files.f_files, files.f_ffree)

        def disks(self) -> dict[str, Any]:
            return dict(psutil.disk_io_counters(perdisk=True, nowrap=False) or {})

        def interfaces(self) -> dict[str, Any]:
            return dict(psutil.net_io_counters(pernic=True, nowrap=False))

        def load(self) -> tuple[float, float, float]:
            return psutil.getloadavg()

        def processes(self) -> int:
            return len(psutil.pids())

        def cpus(self) -> int | None:
            return psutil.cpu_count()

        def uptime_s(self) -> float:
            # The boot's time moves with the wall clock, so their difference is right even after that was set.
            return time.time() - psutil.boot_time()

    return Host()


def host_probes(figures: Figures) -> dict[str, Probe]:
    """The probes by the names of their measurements, in the order in which they are asked."""
    return {
        "cpu": lambda: _cpu(figures),
        "mem": lambda: [_memory(figures.memory())],
        "swap": lambda: [_swap(figures.swap())],
        "disk": lambda: _disk(figures),
        "diskio": lambda: _disk_io(figures.disks()),
        "net": lambda: _net(figures.interfaces()),
        "system": lambda: [_system(figures)],
    }


def _cpu(figures: Figures) -> list[Reading]:
    return [
        Reading("cpu", {f"time_{key}": value for key, value in times._asdict().items()}, {"cpu": name})
        for name, times in figures.cpu_times()
    ]


def _memory(memory: Any) -> Reading:
    keys = {"total": "total", "available": "available", "used": "used", "free": "free"}
    keys |= {"active": "active", "inactive": "inactive", "buffers": "buffered", "cached": "cached"}
    keys |= {"shared": "shared", "slab": "slab"}
    return Reading("mem", {**_picked(memory, keys), "used_percent": float(memory.percent)})


def _swap(swap: Any) -> Reading:
    keys = {"total": "total", "used": "used", "free": "free", "sin": "in", "sout": "out"}
    return Reading("swap", {**_picked(swap, keys), "used_percent": float(swap.percent)})


def _disk(figures: Figures) -> list[Reading]:
    """Each device once, at its shortest path: a bind mount says the same about it once more."""
    mounts: dict[str, Any] = {}
    for part in sorted(figures.partitions(), key=lambda part: len(part.mountpoint)):
        mounts.setdefault(part.device, part)
    readings = []
    trouble: OSError | None = None
    for part in mounts.values():
        try:
            usage, inodes = figures.usage(part.mountpoint)
        except OSError as exc:
            trouble = exc
            continue
        fields = {"total": usage.total, "used": usage.used, "free": usage.free}
        readings.append(
            Reading(
                "disk",
                {
                    **fields,
                    "used_percent": float(usage.percent),
                    # Some file systems have no such limit, and say 0.
                    "inodes_total": inodes.total or None,
                    "inodes_free": inodes.free if inodes.total else None,
                },
                {"device": PurePath(part.device).name, "fstype": part.fstype, "path": part.mountpoint},
            )
        )
    if trouble is not None and not readings:
        raise trouble
    return readings


def _disk_io(disks: dict[str, Any]) -> list[Reading]:
    keys = {"read_count": "reads", "write_count": "writes", "read_bytes": "read_bytes"}
    keys |= {"write_bytes": "write_bytes", "read_time": "read_time", "write_time": "write_time"}
    keys |= {
        "busy_time": "io_time",
        "read_merged_count": "merged_reads",
        "write_merged_count": "merged_writes",
    }
    return [
        Reading("diskio", _picked(counters, keys), {"name": name})
        for name, counters in disks.items()
        if not _is_numbered(name, _NOT_A_DISK)
    ]


def _net(interfaces: dict[str, Any]) -> list[Reading]:
    keys = {"bytes_sent": "bytes_sent", "bytes_recv": "bytes_recv", "packets_sent": "packets_sent"}
    keys |= {"packets_recv": "packets_recv", "errin": "err_in", "errout": "err_out"}
    keys |= {"dropin": "drop_in", "dropout": "drop_out"}
    return [
        Reading("net", _picked(counters, keys), {"interface": name})
        for name, counters in interfaces.items()
        if name != "lo" and not name.startswith(_NOT_A_LINE)
    ]


def _system(figures: Figures) -> Reading:
    load1, load5, load15 = figures.load()
    return Reading(
        "system",
        {
            "load1": load1,
            "load5": load5,
            "load15": load15,
            "n_cpus": figures.cpus(),
            "n_processes": figures.processes(),
            "uptime": int(figures.uptime_s()),
        },
    )


def _picked(counters: Any, keys: dict[str, str]) -> dict[str, int | float | None]:
    """Those of psutil's attributes that this system has, under our names."""
    return {ours: getattr(counters, theirs, None) for theirs, ours in keys.items()}


def _is_numbered(name: str, kinds: tuple[str, ...]) -> bool:
    return name.rstrip("0123456789") in kinds
