"""The table of faults: what each does to whom, what it needs, and how it is taken back.

A fault is a context: entering it strikes, leaving it heals. What it yields says what exactly was done.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ops.chaos.clients import Clients
from ops.chaos.clock import Clock
from ops.chaos.disk import Disk
from ops.chaos.node import Node
from ops.chaos.proxy import FAIR, Proxy, Weather
from ops.chaos.sector import PAGE_BYTES, Sector

_NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class World:
    """Everything that can be struck. `disk` is None without root, `clock` and `sector` without a C compiler."""

    node: Node
    proxy: Proxy
    clients: Clients
    disk: Disk | None
    clock: Clock | None
    sector: Sector | None = None


Struck = Callable[[World, Random], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class Fault:
    """`whom` is "server" or "database"; `needs` is "", "loop" or "cc" (see tests/rigs/needs.py)."""

    name: str
    whom: str
    what: str
    strike: Struck
    needs: str = ""


# -- the server -----------------------------------------------------------------------------------------


@contextmanager
def _kill(world: World, _dice: Random) -> Iterator[str]:
    world.node.kill()
    yield ""


@contextmanager
def _power_cut(world: World, _dice: Random) -> Iterator[str]:
    assert world.disk is not None
    world.node.pause()
    world.disk.cut_power()
    world.node.kill()
    world.disk.forget()
    world.node.service.data_dir = world.disk.path / "data"
    yield ""


@contextmanager
def _stop(world: World, _dice: Random) -> Iterator[str]:
    world.node.pause()
    try:
        yield ""
    finally:
        world.node.resume()


@contextmanager
def _disk_full(world: World, dice: Random) -> Iterator[str]:
    assert world.disk is not None
    leave_bytes = dice.choice([0, 0, 256 * 1024, 2 * 1024 * 1024, 6 * 1024 * 1024])
    try:
        world.disk.fill(leave_bytes=leave_bytes)
        yield f"{leave_bytes // 1024} KiB left"
    finally:
        world.disk.free()


@contextmanager
def _clock_jump(world: World, dice: Random) -> Iterator[str]:
    assert world.clock is not None
    # A day at the most: VictoriaMetrics takes no times that are two days ahead.
    offset_s = dice.choice([-86_400, -3_600, -60, -1, 1, 60, 3_600, 86_400])
    world.clock.set(offset_s * _NS_PER_S)
    try:
        yield f"{offset_s:+d} s"
    finally:
        # In half of the cases it stays off, and the next jump starts from there.
        world.clock.set(dice.choice([0, offset_s]) * _NS_PER_S)


@contextmanager
def _bad_sector(world: World, dice: Random) -> Iterator[str]:
    """A page of a sealed segment cannot be read: by the delivery, or by the next start."""
    assert world.sector is not None
    killed, said = dice.random() < 0.8, "no sealed segment"
    sealed = sorted((world.node.service.data_dir / "wal").glob("*.lmdb"))[:-1]
    if sealed:
        path = sealed[-1]  # the one that most likely is still to be delivered
        with contextlib.suppress(FileNotFoundError):  # truncated just now
            page = dice.randrange(path.stat().st_size // PAGE_BYTES)
            world.sector.strike(path, page)
            said = f"page {page} of {path.name}{', then kill -9' if killed else ''}"
    if killed:
        world.node.kill()
    try:
        yield said
    finally:
        world.sector.heal()


@contextmanager
def _no_descriptors(world: World, dice: Random) -> Iterator[str]:
    node = world.node
    node.tend()
    pid = node.pid
    spare = dice.choice([0, 0, 1, 3])
    node.excuse("fd_exhaustion")
    try:
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        least = len(list(Path(f"/proc/{pid}/fd").iterdir())) + spare
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (least, before[1]))
    except (ProcessLookupError, FileNotFoundError):
        before, least = None, 0
    try:
        yield f"at most {least}"
    finally:
        if before is not None and node.pid == pid and node.up:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        node.no_excuse("fd_exhaustion")


@contextmanager
def _sink_vanishes(world: World, _dice: Random) -> Iterator[str]:
    """The sink's settings are missing at one start, and there again at the next."""
    before = world.node.service.settings
    without = {name: value for name, value in before.items() if not name.startswith("influxdb.")}
    # Something must be on. It must not hold anything back once it is off again.
    without |= {"archive.enabled": "on", "archive.required": False}
    world.node.start_again(without)
    try:
        yield ""
    finally:
        world.node.start_again(before)


@contextmanager
def _slow_senders(world: World, dice: Random) -> Iterator[str]:
    """Bodies that are announced and stop short: they must not take the room of everybody else's."""
    node, body_bytes, senders = world.node, 32 << 20, dice.choice([4, 8, 16])
    head = (
        "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {body_bytes}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as opened:
        for _ in range(senders):
            with contextlib.suppress(OSError):  # the node may be down because of another fault
                sock = opened.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=5))
                sock.sendall(head + b"m f=1 1\n" * dice.choice([1, 100_000]))
        yield f"{senders} bodies of {body_bytes >> 20} MiB"


# -- the database and the way to it ---------------------------------------------------------------------


@contextmanager
def _db_down(world: World, _dice: Random) -> Iterator[str]:
    world.proxy.listen(False)
    try:
        yield ""
    finally:
        world.proxy.listen(True)


@contextmanager
def _bad_lines(world: World, dice: Random) -> Iterator[str]:
    before = world.clients.poison
    world.clients.poison = dice.choice([0.1, 0.3, 0.6])
    try:
        yield f"in {world.clients.poison:.0%} of the requests"
    finally:
        world.clients.poison = before


@contextmanager
def _refusing(world: World, dice: Random) -> Iterator[str]:
    """Bad lines, refused in ways that name nothing, or say it with a status that usually means something else."""
    clients, proxy = world.clients, world.proxy
    before = clients.poison, proxy.refusals
    clients.poison = dice.choice([0.1, 0.3])
    proxy.refusals = dice.choice([("partial 500",), ("filter",), ("partial 500", "filter", "whole")])
    try:
        yield f"in {clients.poison:.0%} of the requests, {' or '.join(proxy.refusals)}"
    finally:
        clients.poison, proxy.refusals = before


_PAGES = (
    ("text/plain", "default backend - 404"),
    ("text/html", "<html><title>Login</title></html>"),
    ("application/json", '{"error":"database not found"}'),
    ("", ""),
)


def _default_backend(dice: Random) -> Weather:
    return Weather("default backend", _chance(dice), dice.choice([200, 202, 203]), page=dice.choice(_PAGES))


def _weather(make: Callable[[Random], Weather]) -> Struck:
    @contextmanager
    def strike(world: World, dice: Random) -> Iterator[str]:
        weather = make(dice)
        world.proxy.weather = weather
        try:
            yield _said(weather)
        finally:
            world.proxy.weather = FAIR

    return strike


def _said(weather: Weather) -> str:
    told = [f"{weather.chance:.0%} of the writes"]
    told += [f"after {weather.delay_s:.1f} s"] if weather.delay_s else []
    told += [f"{name} {value}" for name, value in weather.headers]
    told += [f"above {weather.points_max} points"] if weather.points_max else []
    return ", ".join(told)


def _chance(dice: Random) -> float:
    return dice.choice([0.5, 1.0, 1.0])


def _answering(status: int, message: str, *, retry_after: bool = False) -> Struck:
    def make(dice: Random) -> Weather:
        headers = (("Retry-After", dice.choice(["0", "1", "2"])),) if retry_after else ()
        return Weather(str(status), _chance(dice), status, message, headers)

    return _weather(make)


EVERY_FAULT = (
    Fault("kill", "server", "kill -9", _kill),
    Fault("power_cut", "server", "the disk as it is without what was not synced", _power_cut, "loop"),
    Fault("sigstop", "server", "SIGSTOP, later SIGCONT", _stop),
    Fault("disk_full", "server", "the data's disk is full, later free again", _disk_full, "loop"),
    Fault("clock_jump", "server", "the wall clock jumps", _clock_jump, "cc"),
    Fault("bad_sector", "server", "a page of a sealed segment cannot be read", _bad_sector, "cc"),
    Fault("fd_exhaustion", "server", "no descriptor left to open", _no_descriptors),
    Fault("slow_senders", "server", "large bodies that stop short", _slow_senders),
    Fault("sink_vanishes", "server", "a start without the sink's settings", _sink_vanishes),
    Fault("db_down", "database", "connections broken and refused", _db_down),
    Fault(
        "db_slow",
        "database",
        "answers late, or too late",
        _weather(lambda dice: Weather("slow", _chance(dice), delay_s=dice.uniform(0.5, 4))),
    ),
    Fault("db_500", "database", "500", _answering(500, "internal error")),
    Fault("db_503", "database", "503 with Retry-After", _answering(503, "busy", retry_after=True)),
    Fault("db_429", "database", "429 with Retry-After", _answering(429, "slow down", retry_after=True)),
    Fault("db_400", "database", "400 because of some lines, which clients send more of", _bad_lines),
    Fault("refusing", "database", "bad lines refused with 500 or by a filter with 403", _refusing),
    Fault("default_backend", "database", "another server says 200", _weather(_default_backend)),
    Fault("db_401", "database", "401", _answering(401, "unauthorized access")),
    Fault(
        "db_413",
        "database",
        "413 for larger writes",
        _weather(lambda dice: Weather("413", 1.0, 413, "too large", points_max=dice.choice([1, 10, 50]))),
    ),
    Fault(
        "half_answer",
        "database",
        "written, and the answer cut off",
        _weather(lambda dice: Weather("half", _chance(dice), ending="half")),
    ),
    Fault(
        "reset",
        "database",
        "connection reset, written or not",
        _weather(lambda dice: Weather("reset", _chance(dice), ending=dice.choice(["reset", "early reset"]))),
    ),
)
FAULTS = {fault.name: fault for fault in EVERY_FAULT}

# Faults of the server that last, and those that end a process in the middle of another fault.
_LASTING = ("disk_full", "clock_jump", "fd_exhaustion")
_SUDDEN = ("kill", "power_cut")


def pairs_of(names: Sequence[str]) -> list[str]:
    """Which of these faults can strike at once, as "a+b"."""
    database = [name for name in names if FAULTS[name].whom == "database"]
    server = [name for name in names if FAULTS[name].whom == "server"]
    pairs = [f"{first}+{second}" for first in database for second in server]
    return pairs + [
        f"{first}+{second}" for first in _LASTING for second in _SUDDEN if {first, second} <= {*names}
    ]
