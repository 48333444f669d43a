"""What a small hostile host sends: a table of attacks, each at a fixed rate, from an address of its own.

Runs in a process of its own. Attackers know the write token: without it all of them would be answered 401. An attack
is a `strike` that is repeated `per_s` times a second with at most `at_once` under way; one that holds a connection is
under way until the server closes it.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.synchronize import Event

import trio

from ops.bench.stream_generator import frame, masked, upgrade_request

# Not that of the good clients: the server shares its room by source.
ADDRESS = "127.0.0.2"

MIB = 1024 * 1024
_BOMB_BYTES = 32 * MIB
_EMPTY_MEMBERS = 9_990
_ANSWER_S_MAX = 30.0
_LIMIT = "at its own limit"
_AHEAD_PER_S = 300
_NICE = 10


@dataclass(frozen=True, slots=True)
class Target:
    """The node under attack."""

    port: int
    token: str


Strike = Callable[[Target, int], Awaitable[str]]
"""One strike, by its number; gives in a word how the server took it."""


@dataclass(frozen=True, slots=True)
class Attack:
    """A row of the table."""

    name: str
    what: str
    per_s: float
    at_once: int
    strike: Strike
    ahead: int = 0
    """So many are under way before anything is measured."""


@dataclass(slots=True)
class Struck:
    """How the strikes of one run were taken, by attack, and the seconds of CPU that they cost this process."""

    answers: dict[str, Counter[str]]
    cpu_s: float


# -- the wire -------------------------------------------------------------------------------------------------


async def _connected(target: Target) -> trio.SocketStream:
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(trio.socket.socket())
        await sock.bind((ADDRESS, 0))
        await sock.connect(("127.0.0.1", target.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        on_error.pop_all()
    return trio.SocketStream(sock)


def _head(target: Target, body_bytes: int, *lines: str, path: str = "/metrics", token: str = "") -> bytes:
    named = [
        f"POST {path} HTTP/1.1",
        *([] if any(line.startswith("Host:") for line in lines) else ["Host: localhost"]),
        f"Authorization: Bearer {token or target.token}",
        f"Content-Length: {body_bytes}",
        *lines,
    ]
    return "\r\n".join([*named, "", ""]).encode()


async def _exchange(target: Target, sent: bytes) -> str:
    """Sends, and gives the status of the answer."""
    async with await _connected(target) as stream:
        with contextlib.suppress(trio.BrokenResourceError):  # answered before the end of the body
            await stream.send_all(sent)
        return await _status(stream)


async def _status(stream: trio.SocketStream) -> str:
    with trio.move_on_after(_ANSWER_S_MAX):
        try:
            answer = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            return "reset"
        return answer[9:12].decode("ascii", "replace") if answer else "closed"
    return "no answer"


async def _held(stream: trio.SocketStream) -> str:
    """Holds a connection for as long as the server leaves it open."""
    try:
        while answer := await stream.receive_some(65536):
            if answer.startswith(b"HTTP/1.1 ") and not answer.startswith(b"HTTP/1.1 101"):
                return answer[9:12].decode()
    except trio.BrokenResourceError:
        return "reset"
    return "closed"


async def _open_stream(target: Target, client_id: str) -> trio.SocketStream:
    stream = await _connected(target)
    await stream.send_all(upgrade_request(f"?client_id={client_id}&token={target.token}"))
    await stream.receive_some(65536)  # the welcome may follow by itself
    return stream


# -- the attacks ----------------------------------------------------------------------------------------------


@cache
def _bombs() -> Sequence[tuple[str, bytes]]:
    """Types and gzip bodies of some 32 KB that become 32 MiB."""
    general = b'{"measurement":"m","tags":{},"fields":{"v":""}},'
    shapes = (
        ("application/json", b"[", b"{},", b"{}]"),
        ("application/x-ndjson", b"", b"{}\n", b"{}\n"),
        ("application/json", b"[", general, b"{}]"),
        ("text/plain", b"", b"m v=1\n", b"m v=\n"),
    )
    return [
        (kind, gzip.compress(begin + unit * ((_BOMB_BYTES - 64) // len(unit)) + end, 9))
        for kind, begin, unit, end in shapes
    ]


async def _bomb(target: Target, number: int) -> str:
    kind, body = _bombs()[number % len(_bombs())]
    return await _exchange(
        target, _head(target, len(body), f"Content-Type: {kind}", "Content-Encoding: gzip") + body
    )


@cache
def _member_bodies() -> Sequence[tuple[str, bytes]]:
    # A zstd frame without content: magic, descriptor of a single segment, size 0, last raw block.
    empty_frame = bytes.fromhex("28b52ffd2000010000")
    return [("zstd", empty_frame * _EMPTY_MEMBERS), ("gzip", gzip.compress(b"", 9) * _EMPTY_MEMBERS)]


async def _members(target: Target, number: int) -> str:
    encoding, body = _member_bodies()[number % 2]
    return await _exchange(target, _head(target, len(body), f"Content-Encoding: {encoding}") + body)


async def _foreign_page(target: Target, number: int) -> str:
    body = b"m v=1\n"
    origin = "Origin: https://evil.example"
    rebound = f"Host: evil.example:{target.port}"
    kinds = (
        _head(target, len(body), origin) + body,
        _head(target, len(body), rebound, f"Origin: http://evil.example:{target.port}") + body,
        upgrade_request(f"?client_id=page-{number}&token={target.token}", origin),
    )
    return await _exchange(target, kinds[number % 3])


async def _last_number(target: Target, number: int) -> str:
    async with await _open_stream(target, f"wedge-{os.getpid()}-{time.time_ns()}-{number}") as stream:
        await stream.send_all(frame((1 << 53) - 1, "identity", masked(b"m v=1\n")))
        said = b""
        with trio.move_on_after(_ANSWER_S_MAX):
            while b'"ack"' not in said and b'"error"' not in said:
                piece = await stream.receive_some(65536)
                if not piece:
                    return "closed"
                said += piece
        return "ack" if b'"ack"' in said else "error"


async def _slow_body(target: Target, _number: int) -> str:
    """All of 32 MiB but the last byte."""
    async with await _connected(target) as stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(_head(target, _BOMB_BYTES))
            for _ in range(_BOMB_BYTES // MIB - 1):
                await stream.send_all(bytes(MIB))
            await stream.send_all(bytes(MIB - 1))
        return await _held(stream)


async def _slow_message(target: Target, number: int) -> str:
    """The head of a frame of 32 MiB and the half of it."""
    async with await _open_stream(target, f"slow-{os.getpid()}-{number}") as stream:
        try:
            await stream.send_all(b"\x82\xff" + _BOMB_BYTES.to_bytes(8, "big") + b"\x01\x02\x03\x04")
            for _ in range(_BOMB_BYTES // MIB // 2):
                await stream.send_all(bytes(MIB))
        except trio.BrokenResourceError:
            return "reset"
        return await _held(stream)


async def _idle(target: Target, number: int) -> str:
    """A connection that says nothing, half a head, or the head of a body that never comes."""
    said = (b"", b"POST /metrics HTTP/1.1\r\nHost: local", _head(target, 100))[number % 3]
    async with await _connected(target) as stream:
        await stream.send_all(said)
        return await _held(stream)


@cache
def _malformed_bodies() -> Sequence[tuple[str, str, bytes]]:
    """Path, type and body; most of them are small."""
    lines = "".join(f"cpu,host=web-{n} usage=1.5,load=2i {time.time_ns()}\n" for n in range(999))
    points = [{"serverId": f"web-{n}", "cpu": 0.5, "ram": 0.5} for n in range(999)]
    small = [
        ("/metrics", "text/plain", b"cpu,host=web-1 usage=\n"),
        ("/metrics", "application/json", b'{"serverId": "web-1", "cpu": "high"}'),
        ("/write", "text/plain", b"cpu usage=1\nno line\n"),
        ("/api/v2/write", "text/plain", b"\xff\xfe\x00"),
    ]
    large = [
        ("/metrics", "text/plain", (lines + "cpu usage=\n").encode()),
        ("/metrics", "application/json", json.dumps([*points, {"serverId": "web-1"}]).encode()),
    ]
    return [*small, *small, *large]


async def _malformed(target: Target, number: int) -> str:
    path, kind, body = _malformed_bodies()[number % len(_malformed_bodies())]
    return await _exchange(target, _head(target, len(body), f"Content-Type: {kind}", path=path) + body)


async def _wrong_token(target: Target, number: int) -> str:
    body = b"m v=1\n"
    return await _exchange(target, _head(target, len(body), token=f"guess-{number}") + body)


_UNPARSED = (
    bytes.fromhex("16030100f5010000f10303") + bytes(234),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /a b HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
)


async def _unparsed(target: Target, number: int) -> str:
    return await _exchange(target, _UNPARSED[number % len(_UNPARSED)])


ATTACKS: Mapping[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack("bombs", "32 KB of gzip that become 32 MiB of JSON, NDJSON or lines", 1, 4, _bomb),
        Attack("members", "bodies of 9,990 empty zstd frames or gzip members", 2, 4, _members),
        Attack("pages", "posts and handshakes of foreign pages and of rebound names", 10, 10, _foreign_page),
        Attack("numbers", "new streams whose first frame has the number 2^53-1", 5, 5, _last_number),
        Attack("bodies", "bodies of 32 MiB that stop one byte short", 1, 8, _slow_body),
        Attack("messages", "streams that send half a message of 32 MiB", 1, 8, _slow_message),
        Attack(
            "crowd",
            "connections: idle, with half a head, or waiting with a body",
            50,
            3000,
            _idle,
            ahead=2900,
        ),
        Attack("malformed", "bad lines and bad JSON, a fifth of them in 1,000 points", 10, 10, _malformed),
        Attack("tokens", "requests with wrong tokens", 10, 10, _wrong_token),
        Attack("unparsed", "TLS and HTTP/2 to the plain port, bad and too large heads", 10, 10, _unparsed),
    )
}


# -- a run ----------------------------------------------------------------------------------------------------


def ahead_of(names: Sequence[str]) -> int:
    """How many connections are held before anything is measured."""
    return sum(ATTACKS[name].ahead for name in names)


_over: Event | None = None


def end_with(over: Event) -> None:
    """Sets, before the first run in this process, the event that ends its runs."""
    global _over
    _over = over


def run(target: Target, names: Sequence[str], seconds_max: float) -> Struck:
    """Strikes with the attacks of these names until the event is set; what is under way then is dropped."""
    # They stand for another host, whose cores the server and the good clients do not share.
    os.nice(max(0, _NICE - os.nice(0)))
    for prepare in (_bombs, _member_bodies, _malformed_bodies):
        prepare()
    struck = Struck({name: Counter() for name in names}, time.process_time())
    trio.run(_all, target, [ATTACKS[name] for name in names], seconds_max, struck)
    struck.cpu_s = time.process_time() - struck.cpu_s
    return struck


def prepare() -> None:
    """Makes the bodies, which takes seconds, ahead of the first run in this process."""
    run(Target(0, ""), (), 0.0)


async def _all(target: Target, attacks: Sequence[Attack], seconds_max: float, struck: Struck) -> None:
    with trio.move_on_after(seconds_max):
        async with trio.open_nursery() as nursery:
            for attack in attacks:
                nursery.start_soon(_repeat, attack, target, struck.answers[attack.name])
            if _over is not None:
                await trio.to_thread.run_sync(_over.wait, abandon_on_cancel=True)
                nursery.cancel_scope.cancel()


async def _repeat(attack: Attack, target: Target, answers: Counter[str]) -> None:
    under_way = 0

    async def strike(number: int) -> None:
        nonlocal under_way
        under_way += 1
        try:
            answers[await attack.strike(target, number)] += 1
        except OSError as exc:
            answers[type(exc).__name__] += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            answers["reset"] += 1
        finally:
            under_way -= 1

    due_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in itertools.count():
            await trio.sleep_until(due_s)
            due_s += 1 / (_AHEAD_PER_S if number < attack.ahead else attack.per_s)
            if under_way < attack.at_once:
                nursery.start_soon(strike, number)
            else:
                answers[_LIMIT] += 1
